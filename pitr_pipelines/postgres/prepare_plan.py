"""What a server needs before it can be backed up, and which statements bring it there.

Pure: facts that were read from the server go in, steps come out. A step that finds its subject in
order holds no statement, so that preparing a prepared server changes nothing. Nothing here takes
away a right or weakens a setting, and an archive_command that somebody else wrote is not replaced
unless that was asked for.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from psycopg import sql

from pitr_pipelines.errors import ServerNotReady

MIN_WAL_SENDERS = 4
"""pg_basebackup takes two; the rest is for standbys and for a second backup tool."""

_TRUE = {"on", "true", "t", "yes", "y", "1"}
_NOT_IN_EFFECT = "(disabled)"
"""What PostgreSQL shows instead of archive_command while archive_mode is off."""


_Fits = Callable[[str], bool]


class State(StrEnum):
    """How a step stands."""

    ALREADY = "in order already"
    TO_DO = "to do"
    DONE = "done"
    NEEDS_RESTART = "needs a restart"
    BY_HAND = "left to you"


@dataclass(frozen=True, slots=True)
class Step:
    """One thing a server needs. `printed` is its SQL for people: it never holds a secret."""

    what: str
    state: State
    printed: str | None = None
    statement: str | None = field(default=None, repr=False)
    restart: bool = False


@dataclass(frozen=True, slots=True)
class RoleFacts:
    """What the backup role is allowed to do."""

    login: bool
    replication: bool
    monitor: bool


@dataclass(frozen=True, slots=True)
class SettingFacts:
    """A server setting: as it runs, as its files say it (None: they do not), and from where it runs."""

    running: str
    in_files: str | None
    source: str

    @property
    def configured(self) -> str:
        """The value after the next restart."""
        if self.source == "command line" or self.in_files is None:
            return self.running
        return self.in_files


@dataclass(frozen=True, slots=True)
class Facts:
    """What was read from a server. Without a server at hand, `Facts()` assumes that nothing is there.

    `may_connect` and `missing_functions` (signatures it may not call) are about the role, or about
    everybody while there is no such role.
    """

    role: RoleFacts | None = None
    may_connect: bool = True
    missing_functions: tuple[str, ...] = ("pg_create_restore_point(text)", "pg_switch_wal()")
    settings: Mapping[str, SettingFacts] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the settings ask for. `verifier` is a new SCRAM verifier for the role's password, if any."""

    server: str
    role: str
    dbname: str
    archive_command: str
    archive_timeout_s: int
    has_password: bool = False
    verifier: str | None = field(default=None, repr=False)


def archive_command(script: str, archive: str) -> str:
    """Return the archive_command that runs `script` for the directory `archive`.

    Both paths are as the server sees them; they are quoted for the shell that PostgreSQL starts,
    and their percent signs for PostgreSQL itself.
    """
    script, archive = (shlex.quote(path).replace("%", "%%") for path in (script, archive))
    return f'{script} {archive} "%p" "%f"'


def plan(facts: Facts, wanted: Wanted, *, replace: bool = False) -> list[Step]:
    """Return what has to be done, in order.

    Raises ServerNotReady if WAL is archived in another way already and `replace` is false, or if a
    setting that must change is fixed on the server's command line.
    """
    return [*_role_steps(facts, wanted), *_setting_steps(facts, wanted, replace=replace)]


def _role_steps(facts: Facts, wanted: Wanted) -> Iterator[Step]:
    role = _identifier(wanted.role)
    has = facts.role
    yield _step(
        f"role {wanted.role} with LOGIN and REPLICATION",
        None
        if has and has.login and has.replication
        else f"ALTER ROLE {role} LOGIN REPLICATION"
        if has
        else f"CREATE ROLE {role} LOGIN REPLICATION",
    )
    if wanted.has_password:
        statement = wanted.verifier and f"ALTER ROLE {role} PASSWORD {_literal(wanted.verifier)}"
        yield _step(f"password of {wanted.role}", statement, printed=f"\\password {role}")
    yield _step(
        f"{wanted.role} is a member of pg_monitor",
        None if has and has.monitor else f"GRANT pg_monitor TO {role}",
    )
    if not facts.may_connect:
        yield _step(
            f"{wanted.role} may connect to the database {wanted.dbname}",
            f"GRANT CONNECT ON DATABASE {_identifier(wanted.dbname)} TO {role}",
        )
    for function in facts.missing_functions:
        yield _step(
            f"{wanted.role} may call {function} in {wanted.dbname}",
            f"GRANT EXECUTE ON FUNCTION pg_catalog.{function} TO {role}",
        )
    if not facts.missing_functions:
        yield _step(f"{wanted.role} may call what sealing needs in {wanted.dbname}", None)


def _setting_steps(facts: Facts, wanted: Wanted, *, replace: bool) -> Iterator[Step]:
    get = facts.settings.get
    unknown = SettingFacts("", None, "default")

    wal_level = get("wal_level", unknown)
    yield _setting(
        wanted, "wal_level", "replica", wal_level, lambda v: v in ("replica", "logical", "archive")
    )
    senders = get("max_wal_senders", unknown)
    if senders is not unknown:
        yield _setting(
            wanted, "max_wal_senders", "10", senders, lambda v: v.isdigit() and int(v) >= MIN_WAL_SENDERS
        )
    mode = get("archive_mode", unknown)
    yield _setting(wanted, "archive_mode", "on", mode, lambda v: v.lower() in _TRUE | {"always"})

    library = get("archive_library", unknown).configured
    if library:
        if not replace:
            raise _conflict(wanted, "archive_library", library)
        yield _alter_system(wanted, "archive_library", "", get("archive_library", unknown))
    command = get("archive_command", unknown)
    current = command.configured
    if current not in ("", _NOT_IN_EFFECT, wanted.archive_command) and not replace:
        raise _conflict(wanted, "archive_command", current)
    if current == wanted.archive_command:
        yield Step(f"archive_command = {current}", State.ALREADY)
    else:
        yield _alter_system(wanted, "archive_command", wanted.archive_command, command)

    timeout = get("archive_timeout", unknown)
    seconds = int(timeout.running) if timeout.running.isdigit() else 0
    if wanted.archive_timeout_s and not 0 < seconds <= wanted.archive_timeout_s:
        yield _alter_system(wanted, "archive_timeout", str(wanted.archive_timeout_s), timeout)
    else:
        yield Step(f"archive_timeout = {seconds} s", State.ALREADY)


def _setting(wanted: Wanted, name: str, value: str, facts: SettingFacts, fits: _Fits) -> Step:
    """Return the step for a setting that takes effect at a restart."""
    if fits(facts.running) and fits(facts.configured):
        return Step(f"{name} = {facts.running}", State.ALREADY)
    if fits(facts.configured):
        return Step(f"{name} = {facts.configured} (still {facts.running})", State.NEEDS_RESTART, restart=True)
    return _alter_system(wanted, name, value, facts, restart=True)


def _alter_system(
    wanted: Wanted, name: str, value: str, facts: SettingFacts, *, restart: bool = False
) -> Step:
    if facts.source == "command line":
        raise ServerNotReady(
            f"{wanted.server} was started with {name}={facts.running} on its command line, which beats "
            "every configuration file",
            remedy=f"Change that to {name}={value} where the server is started (the command of a service "
            "or container), restart it, then run this again.",
        )
    was = f" (was {facts.running})" if facts.running else ""
    return _step(f"{name} = {value}{was}", f"ALTER SYSTEM SET {name} = {_literal(value)}", restart=restart)


def _conflict(wanted: Wanted, setting: str, value: str) -> ServerNotReady:
    return ServerNotReady(
        f"{wanted.server} archives its WAL in another way already: {setting} = {value}",
        remedy="If nobody needs that archive any more, run this again with --replace-archive-command. If "
        "it is still needed, let one command do both: have it call wal-archive.sh as well, and set it "
        f"yourself. Ours would be: {wanted.archive_command}",
    )


def _step(what: str, statement: str | None, *, printed: str | None = None, restart: bool = False) -> Step:
    if statement is None:
        return Step(what, State.ALREADY)
    return Step(what, State.TO_DO, printed or f"{statement};", statement, restart)


def _identifier(name: str) -> str:
    return sql.Identifier(name).as_string(None)


def _literal(value: str) -> str:
    return sql.Literal(value).as_string(None).strip()
