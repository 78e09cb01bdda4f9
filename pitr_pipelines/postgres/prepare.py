"""`pitr init-db`: prepare a server for backups, as its superuser, and say what was done.

Idempotent: what is in order is left alone. Everything that could refuse is asked before anything is
changed. Never restarts a server, never edits pg_hba.conf, and never shows a password: the server
gets a SCRAM verifier, and printed SQL asks for the password where it is run.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psycopg

from pitr_pipelines.catalog.layout import Layout
from pitr_pipelines.errors import PitrError, ServerNotReady, SettingsError
from pitr_pipelines.postgres.archive_place import (
    LocalStep,
    archive_steps,
    owner_on_this_machine,
    unreachable_by,
)
from pitr_pipelines.postgres.binaries import SUPPORTED_MAJORS
from pitr_pipelines.postgres.connection import (
    ROLE,
    ServerIdentity,
    address_of,
    identify,
    open_connection,
    parameters_of,
    parse_dsn,
)
from pitr_pipelines.postgres.password import password_of
from pitr_pipelines.postgres.prepare_plan import (
    Facts,
    RoleFacts,
    SettingFacts,
    State,
    Step,
    Wanted,
    archive_command,
    plan,
)
from pitr_pipelines.settings import DatabaseSettings, Settings

SETTING_NAMES = (
    "wal_level",
    "max_wal_senders",
    "archive_mode",
    "archive_library",
    "archive_command",
    "archive_timeout",
)
_RELOAD_WAIT_S = 5.0
_VERIFIER = re.compile(r"SCRAM-SHA-256\$(\d+):([^$]+)\$([^:]+):(.+)")


def prepare(
    name: str,
    settings: Settings,
    *,
    admin_dsn: str | None = None,
    replace_archive_command: bool = False,
) -> list[Step]:
    """Prepare the server of database `name` and return every step with how it stands now.

    `admin_dsn` is a superuser's connection string; by default the configured one is used, with the
    password that the settings name. Raises ServerUnavailable, SettingsError, and ServerNotReady (with
    nothing changed) if it is no superuser's, if the server is a standby or of an unsupported version,
    if it archives in another way and `replace_archive_command` is false, or if the archive belongs to
    another cluster.
    """
    database = settings.database(name)
    with _admin(name, database, admin_dsn) as connection:
        prepared = _read(name, settings, database, connection)
        steps = plan(prepared.facts, prepared.wanted, replace=replace_archive_command)
        results = [_act_here(name, local) for local in prepared.local]
        results += [_apply(connection, step) for step in steps]
        connection.execute("SELECT pg_reload_conf()")
        if any(step.restart for step in results):
            results.append(
                Step("restart the server when it suits you; until then it archives nothing", State.BY_HAND)
            )
        else:
            _wait_for_reload(name, connection, prepared.wanted.archive_command)
        if prepared.unreachable is not None and (problem := prepared.unreachable()) is not None:
            results.append(Step(f"{problem}: open the directories above it to that user", State.BY_HAND))
    return results


def planned_sql(
    name: str,
    settings: Settings,
    *,
    admin_dsn: str | None = None,
    replace_archive_command: bool = False,
) -> str:
    """Return what `prepare` would do as a psql script, and change nothing anywhere.

    Where the server cannot be asked, because it does not answer or we are no superuser there, the
    script is that for a server on which nothing is prepared, and says so. Raises like `prepare`
    otherwise.
    """
    database = settings.database(name)
    try:
        connection = _admin(name, database, admin_dsn)
    except SettingsError:
        raise
    except PitrError as error:
        wanted = _wanted(name, settings, database)
        header = [f"-- {line}" for line in (*error.what.splitlines(), "So this assumes a new server.")]
        steps = [Step(f"directory {Layout(settings.backup_root).wal(name)}", State.TO_DO)]
        steps += plan(Facts(), replace(wanted, verifier="unknown" if wanted.has_password else None))
    else:
        with connection:
            prepared = _read(name, settings, database, connection)
            wanted, header = prepared.wanted, []
            steps = [local.step for local in prepared.local]
            steps += plan(prepared.facts, wanted, replace=replace_archive_command)
    lines = [f"-- {name}: run this with psql as superuser, in the database {wanted.dbname}", *header]
    for step in steps:
        lines.append(f"-- {step.what}{'' if step.printed else f': {step.state}'}")
        if step.printed:
            lines.append(step.printed)
    lines.append("SELECT pg_reload_conf();")
    if any(step.restart for step in steps):
        lines.append("-- then restart the server")
    return "\n".join(lines) + "\n"


@dataclass(frozen=True, slots=True)
class _Prepared:
    facts: Facts
    wanted: Wanted
    local: list[LocalStep]
    unreachable: Callable[[], str | None] | None


def _read(
    name: str, settings: Settings, database: DatabaseSettings, connection: psycopg.Connection[Any]
) -> _Prepared:
    identity = identify(connection)
    _check_server(name, identity)
    facts, data_directory, stored = _read_facts(connection, role_of(name, database))
    wanted = _wanted(name, settings, database)
    password = password_of(name, database)
    if password is not None and not verifies(password, stored):
        verifier = connection.pgconn.encrypt_password(
            password.encode(), wanted.role.encode(), b"scram-sha-256"
        )
        wanted = replace(wanted, verifier=verifier.decode())
    owner = owner_on_this_machine(data_directory, identity.system_identifier)
    layout = Layout(settings.backup_root)
    local = archive_steps(
        name,
        layout,
        system_identifier=identity.system_identifier,
        owner=owner,
        server_archive=server_archive(name, settings),
        install_script=database.archive_script is None,
    )
    script = Path(database.archive_script or layout.archive_script)
    unreachable = None if owner is None else lambda: unreachable_by(owner, layout.wal(name), script)
    return _Prepared(facts, wanted, local, unreachable)


def server_archive(name: str, settings: Settings) -> str:
    """Return the WAL archive's directory as the server of `name` sees it."""
    return settings.database(name).archive_directory or str(Layout(settings.backup_root).wal(name))


def expected_archive_command(name: str, settings: Settings) -> str:
    """Return the archive_command that the server of `name` should have."""
    script = settings.database(name).archive_script or str(Layout(settings.backup_root).archive_script)
    return archive_command(script, server_archive(name, settings))


def role_of(name: str, database: DatabaseSettings) -> str:
    """Return the backup role's name. Raises SettingsError if only a service file knows it."""
    parameters = parameters_of(name, database)
    if "user" not in parameters and "service" in parameters:
        raise SettingsError(
            f"databases.{name}.dsn names a service but no user, so the role to prepare is not known",
            remedy=f"Add user={ROLE} to the dsn.",
        )
    return str(parameters.get("user", ROLE))


def verifies(password: str, stored: str | None) -> bool:
    """Tell whether `stored`, as in pg_authid, is a SCRAM verifier of `password` (RFC 5803).

    Passwords outside ASCII are said not to match: they would have to be normalized first.
    """
    match = _VERIFIER.fullmatch(stored or "")
    if match is None or not password.isascii():
        return False
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), base64.b64decode(match[2]), int(match[1]))
    client_key = hmac.digest(salted, b"Client Key", "sha256")
    return hmac.compare_digest(hashlib.sha256(client_key).digest(), base64.b64decode(match[3]))


def _wanted(name: str, settings: Settings, database: DatabaseSettings) -> Wanted:
    parameters = parameters_of(name, database)
    return Wanted(
        server=f"{name} ({address_of(parameters)})",
        role=role_of(name, database),
        dbname=str(parameters.get("dbname", "postgres")),
        archive_command=expected_archive_command(name, settings),
        archive_timeout_s=database.archive_timeout_s,
        has_password=database.has_password,
    )


def _admin(name: str, database: DatabaseSettings, admin_dsn: str | None) -> psycopg.Connection[Any]:
    """Connect as superuser to the database of the dsn: rights on functions are kept in each one."""
    ours = parameters_of(name, database)
    if admin_dsn is None:
        connection = open_connection(name, ours, password=password_of(name, database))
    else:
        parameters = parse_dsn(admin_dsn, key="--admin-dsn")
        if "dbname" in ours:
            parameters["dbname"] = ours["dbname"]
        connection = open_connection(name, parameters)
    if connection.info.parameter_status("is_superuser") != "on":
        user = connection.info.user
        connection.close()
        raise ServerNotReady(
            f"{user} is not a superuser of {name}, and preparing a server takes one",
            remedy="Name a superuser's connection with --admin-dsn, or give its DBA the output of "
            f"`pitr init-db {name} --print-sql`.",
        )
    return connection


def _check_server(name: str, identity: ServerIdentity) -> None:
    if identity.in_recovery:
        raise ServerNotReady(
            f"{name} is a standby; it gets its roles and its WAL from its primary",
            remedy="Let the dsn lead to the primary.",
        )
    if identity.major not in SUPPORTED_MAJORS:
        raise ServerNotReady(
            f"{name} runs PostgreSQL {identity.major}",
            remedy=f"Supported are {SUPPORTED_MAJORS.start} to {SUPPORTED_MAJORS.stop - 1}.",
        )


SEALING_FUNCTIONS = (
    "pg_create_restore_point(text)",
    "pg_switch_wal()",
    "pg_logical_emit_message(boolean,text,text)",  # to version 16
    "pg_logical_emit_message(boolean,text,text,boolean)",  # from 17
)

_ROLE = """
SELECT r.rolcanlogin, r.rolreplication OR r.rolsuper, pg_has_role(r.oid, 'pg_monitor', 'USAGE'), a.rolpassword
  FROM pg_roles r JOIN pg_authid a USING (oid) WHERE r.rolname = %s
"""
_MISSING_FUNCTIONS = """
SELECT f FROM unnest(%s::text[]) f
 WHERE to_regprocedure('pg_catalog.' || f) IS NOT NULL
   AND NOT has_function_privilege(%s, to_regprocedure('pg_catalog.' || f), 'EXECUTE')
"""
# A setting that waits for a restart is in the files but does not run yet; of several lines for one
# setting the last one counts.
_SETTINGS = """
SELECT s.name, s.setting, f.setting, s.source
  FROM pg_settings s
  LEFT JOIN (SELECT DISTINCT ON (name) name, setting FROM pg_file_settings
              WHERE error IS NULL OR error = 'setting could not be applied'
              ORDER BY name, seqno DESC) f USING (name)
 WHERE s.name = ANY(%s)
"""


def _read_facts(connection: psycopg.Connection[Any], role: str) -> tuple[Facts, str, str | None]:
    """Return the facts, the server's data directory, and the role's stored password."""
    row = connection.execute(_ROLE, [role]).fetchone()
    grantee = role if row else "public"
    missing = connection.execute(_MISSING_FUNCTIONS, [list(SEALING_FUNCTIONS), grantee]).fetchall()
    checks = (
        "SELECT has_database_privilege(%s, current_database(), 'CONNECT'), current_setting('data_directory')"
    )
    may_connect, data_directory = connection.execute(checks, [grantee]).fetchone() or (False, "")
    settings: Mapping[str, SettingFacts] = {
        name: SettingFacts(running, in_files, source)
        for name, running, in_files, source in connection.execute(_SETTINGS, [list(SETTING_NAMES)])
    }
    facts = Facts(
        role=RoleFacts(*row[:3]) if row else None,
        may_connect=may_connect,
        missing_functions=tuple(function for (function,) in missing),
        settings=settings,
    )
    return facts, data_directory, row[3] if row else None


def _apply(connection: psycopg.Connection[Any], step: Step) -> Step:
    if step.statement is None:
        return step
    if step.printed != f"{step.statement};":  # it holds a verifier: keep that out of the server's log
        with connection.transaction():
            connection.execute("SET LOCAL log_statement = 'none'")
            connection.execute("SET LOCAL log_min_duration_statement = -1")
            connection.execute("SET LOCAL log_min_error_statement = 'panic'")
            connection.execute(step.statement.encode())
    else:
        connection.execute(step.statement.encode())
    return replace(step, state=State.NEEDS_RESTART if step.restart else State.DONE)


def _act_here(name: str, local: LocalStep) -> Step:
    if local.act is None:
        return local.step
    try:
        local.act()
    except OSError as error:
        raise ServerNotReady(
            f"{name}: {local.step.what}: {error.strerror} ({error.filename})",
            remedy="Correct that, or run this as root; what was done before it stays and is not repeated.",
        ) from None
    return replace(local.step, state=State.DONE)


def _wait_for_reload(name: str, connection: psycopg.Connection[Any], command: str) -> None:
    """Return when the server runs with what its files say: signals take a moment."""
    deadline = time.monotonic() + _RELOAD_WAIT_S
    while True:
        row = connection.execute("SELECT current_setting('archive_command')").fetchone()
        if row == (command,):
            return
        if time.monotonic() > deadline:
            raise ServerNotReady(
                f"{name} was told to reload its configuration, but archive_command is still {row and row[0]}",
                remedy="Its log says what is wrong with its configuration files (pg_file_settings too).",
            )
        time.sleep(0.02)
