"""How a server that was replaced is started, and whether its configuration will let it."""

from __future__ import annotations

import pwd
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from pitr_pipelines.postgres.account import run, server_account
from pitr_pipelines.postgres.binaries import find_binaries
from pitr_pipelines.restore.conf_file import MAIN
from pitr_pipelines.restore.report import RestoreReport
from pitr_pipelines.settings import Settings

_ELSEWHERE = Path("/etc/postgresql")
"""Where Debian keeps the configuration of a cluster, as <major>/<cluster>."""

_ASKED = (
    "shared_memory_size",  # first: for what is computed, everything is checked that a start checks
    "port",
    "archive_mode",
    "synchronous_standby_names",
    "max_prepared_transactions",
)


def how_to_start(data_directory: Path, done: RestoreReport) -> str:
    """Return what to type to start a server as it is always started, as far as that can be told."""
    major, cluster = data_directory.parent.name, data_directory.name
    if (_ELSEWHERE / major / cluster / MAIN).is_file():
        return f"systemctl start postgresql@{major}-{cluster}  (or: pg_ctlcluster {major} {cluster} start)"
    try:
        pwd.getpwuid(data_directory.stat().st_uid)
    except KeyError:
        return "as it is always started (systemctl, docker start)"
    command = in_its_place(done.start.partition(" -l ")[0], data_directory, done)
    return f"as it is always started (systemctl, docker start), or: {command}"


def in_its_place(command: str, data_directory: Path, done: RestoreReport) -> str:
    """Return a command about the restored server as it is when that has its original's place."""
    return command.replace(shlex.quote(str(done.data_directory)), shlex.quote(str(data_directory)))


@dataclass(frozen=True, slots=True)
class Asked:
    """What PostgreSQL says of the configuration; `port` is None if it cannot be asked."""

    port: int | None
    notes: tuple[str, ...]


def ask_configuration(settings: Settings, data_directory: Path, major: int) -> Asked:
    """Ask PostgreSQL what a person should know of the configuration that the server will start with.

    Where the configuration is not in the data directory, nothing is known of it.
    """
    if not (data_directory / MAIN).exists():
        return Asked(None, ("the server's configuration is outside its data directory, and stays as it is",))
    account = server_account(settings.run_as)
    owner = data_directory.stat()
    if account.switch:
        account = replace(account, uid=owner.st_uid, gid=owner.st_gid)
    program = find_binaries(major, settings.binaries).reachable_by(account).program("postgres")
    values: dict[str, str] = {}
    for name in _ASKED:
        done = run(account, [program, "-D", data_directory, "-C", name])
        if done.returncode != 0:
            said = " ".join(done.stderr.split())
            return Asked(None, (f"PostgreSQL does not accept the configuration yet: {said}",))
        values[name] = done.stdout.strip()
    prepared = sum(1 for _ in (data_directory / "pg_twophase").iterdir())
    return Asked(int(values["port"]), tuple(_notes(values, prepared)))


def _notes(values: Mapping[str, str], prepared: int) -> Iterator[str]:
    yield f"the server will listen on port {values['port']}, with the configuration that the old one had"
    if values["archive_mode"] == "off":
        yield "archive_mode is off in that configuration: nothing will be archived"
    if values["synchronous_standby_names"]:
        yield (
            f"synchronous_standby_names is {values['synchronous_standby_names']!r}: commits will wait for "
            "standbys that cannot follow any more, until they are made anew or it is emptied"
        )
    if prepared > int(values["max_prepared_transactions"]):
        yield (
            f"{prepared} transactions are prepared, and max_prepared_transactions is "
            f"{values['max_prepared_transactions']}: raise it, or the server does not start"
        )
