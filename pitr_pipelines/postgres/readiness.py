"""`pitr check`: is a server ready to be backed up, and if not, what is missing?

Looks only; changes nothing on the server or on disk. Every finding says what was seen, and one that
is not in order says what to do. What cannot be looked at because the server does not answer is left
out; what can be, such as the archive's directory, is still looked at.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg

from pitr_pipelines.catalog.layout import Layout
from pitr_pipelines.catalog.rights import (
    Trouble,
    archiving_trouble,
    forgeable_script,
    keeping_trouble,
    ourselves,
    reading_trouble,
    script_here,
    show_uid,
)
from pitr_pipelines.errors import (
    ArtifactDamaged,
    BinariesNotFound,
    PitrError,
    ServerUnavailable,
    SettingsError,
)
from pitr_pipelines.postgres.archive_place import IDENTITY_FILE, archive_owner, name_taken
from pitr_pipelines.postgres.archiver import ArchiverState, read_state, server_user
from pitr_pipelines.postgres.binaries import SUPPORTED_MAJORS, find_binaries
from pitr_pipelines.postgres.connection import (
    ServerIdentity,
    connect,
    identify,
    open_connection,
    parameters_of,
)
from pitr_pipelines.postgres.password import exposed_password_file, password_of
from pitr_pipelines.postgres.prepare import SEALING_FUNCTIONS, expected_archive_command, role_of
from pitr_pipelines.settings import DatabaseSettings, Settings

TOLERATED_SKEW = timedelta(seconds=2)
NEEDED_WAL_SENDERS = 2
"""What one pg_basebackup with streamed WAL takes."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at. `remedy` says what to do if it is not in order.

    One that is `ok` and has a remedy is a warning: backups work, and something should be better.
    """

    subject: str
    ok: bool
    detail: str
    remedy: str | None = None


def check(name: str, settings: Settings) -> list[Finding]:
    """Look at everything that backups of database `name` need.

    A server that does not answer is a finding, not an error. Raises only BadRequest and SettingsError.
    """
    database = settings.database(name)
    findings = list(_password(name, database))
    if not all(finding.ok for finding in findings):
        return [*findings, *_archive_findings(name, settings, None), _space(settings, None)]
    try:
        connection = connect(name, database)
    except ServerUnavailable as error:
        return [
            *findings,
            Finding("connection", False, error.what, _hba_remedy(name, settings, error)),
            *_archive_findings(name, settings, None),
            _space(settings, None),
        ]
    with connection:
        try:
            identity = identify(connection)
            findings.append(_connection(connection, identity))
            findings += _server_findings(name, settings, connection, identity)
            size_bytes = _size_bytes(connection)
            archiver = read_state(connection)
        except psycopg.OperationalError as error:
            lost = f"the connection broke: {str(error).strip()}"
            findings.append(Finding("connection", False, lost, "Is the server still up? Check again."))
            return findings
    findings.append(_replication(name, settings, identity))
    findings += _archive_findings(name, settings, archiver)
    findings.append(_space(settings, size_bytes))
    return findings


def _password(name: str, database: DatabaseSettings) -> Iterator[Finding]:
    """Look at the password that the settings name. One that cannot be had must not hide other databases."""
    if not database.has_password:
        return
    try:
        password_of(name, database)
    except SettingsError as error:
        yield Finding("password", False, error.what, error.remedy)
        return
    exposed = exposed_password_file(database)
    if exposed is not None:
        yield Finding(
            "password",
            True,
            f"every user of this machine or container can read {exposed}",
            f"Better: chmod 640 '{exposed}' and chgrp it to a group of the user this runs as. compose shows "
            "the host's file as it is; in Kubernetes say defaultMode: 0440 for the volume, and fsGroup.",
        )
        return
    yield Finding("password", True, f"in {database.password_file or f'the variable {database.password_env}'}")


def _connection(connection: psycopg.Connection[Any], identity: ServerIdentity) -> Finding:
    info = connection.info
    where = f"{info.host or 'local socket'}:{info.port}"
    detail = f"{info.user} at {where}, cluster {identity.system_identifier}, timeline {identity.timeline}"
    return Finding("connection", True, detail)


def _server_findings(
    name: str, settings: Settings, connection: psycopg.Connection[Any], identity: ServerIdentity
) -> Iterator[Finding]:
    yield _version(identity)
    yield _programs(settings, identity.major)
    yield Finding(
        "primary",
        not identity.in_recovery,
        "is a standby" if identity.in_recovery else "accepts writes",
        "Let the dsn lead to the primary: only there can WAL be sealed." if identity.in_recovery else None,
    )
    yield _clock(connection)
    yield from _rights(name, connection)
    yield from _settings_findings(name, settings, connection)
    yield _archiver(connection, Layout(settings.backup_root).wal(name))


def _version(identity: ServerIdentity) -> Finding:
    supported = identity.major in SUPPORTED_MAJORS
    return Finding(
        "version",
        supported,
        f"PostgreSQL {identity.major}.{identity.server_version % 10000}",
        None if supported else f"Supported are {SUPPORTED_MAJORS.start} to {SUPPORTED_MAJORS.stop - 1}.",
    )


def _programs(settings: Settings, major: int) -> Finding:
    try:
        binaries = find_binaries(major, settings.binaries)
    except BinariesNotFound as error:
        return Finding("programs", False, error.what, error.remedy)
    return Finding("programs", True, f"PostgreSQL {binaries.version} in {binaries.directory}")


def _clock(connection: psycopg.Connection[Any]) -> Finding:
    asked = datetime.now(UTC)
    there = _row(connection, "SELECT clock_timestamp()")[0].astimezone(UTC)
    answered = datetime.now(UTC)
    # It read its clock between our two readings; only what lies outside of them is skew for certain.
    skew = there - answered if there > answered else there - asked if there < asked else timedelta(0)
    ok = abs(skew) <= TOLERATED_SKEW
    return Finding(
        "clock",
        ok,
        f"the server's clock differs from ours by {skew.total_seconds():+.3f} s",
        None
        if ok
        else "Let both machines follow NTP: the end of each hour is a moment of the server's clock.",
    )


def _rights(name: str, connection: psycopg.Connection[Any]) -> Iterator[Finding]:
    role, replication, monitor = _row(
        connection,
        "SELECT rolname, rolreplication OR rolsuper, pg_has_role(oid, 'pg_monitor', 'USAGE') "
        "FROM pg_roles WHERE rolname = current_user",
    )
    remedy = f"`pitr init-db {name}` grants it."
    for right, held in (("REPLICATION", replication), ("pg_monitor", monitor)):
        yield Finding(
            f"right: {right}", held, f"{role} {'has' if held else 'lacks'} it", None if held else remedy
        )
    lacking = _row(
        connection,
        "SELECT array_remove(array_agg(CASE WHEN NOT has_function_privilege(to_regprocedure(f), 'EXECUTE') "
        "THEN f END), NULL) FROM unnest(%s::text[]) f WHERE to_regprocedure(f) IS NOT NULL",
        list(SEALING_FUNCTIONS),
    )[0]
    yield Finding(
        "right: sealing functions",
        not lacking,
        f"{role} may not call {', '.join(lacking)}" if lacking else f"{role} may call them",
        remedy if lacking else None,
    )


def _settings_findings(
    name: str, settings: Settings, connection: psycopg.Connection[Any]
) -> Iterator[Finding]:
    prepare = f"`pitr init-db {name}` sets it; then restart the server."
    rows = connection.execute("SELECT name, setting, pending_restart FROM pg_settings").fetchall()
    values = {row[0]: row[1] for row in rows}

    def finding(setting: str, ok: bool, remedy: str, detail: str | None = None) -> Finding:
        return Finding(setting, ok, detail or values.get(setting, ""), None if ok else remedy)

    yield finding("wal_level", values["wal_level"] in ("replica", "logical"), prepare)
    archiving = values["archive_mode"] in ("on", "always")
    yield finding("archive_mode", archiving, prepare)
    yield _archive_command(name, settings, values)
    wanted_s = settings.database(name).archive_timeout_s
    timeout_s = int(values["archive_timeout"])
    yield finding(
        "archive_timeout",
        wanted_s == 0 or 0 < timeout_s <= wanted_s,
        f"`pitr init-db {name}` sets it to {wanted_s} s: it bounds what a lost server takes along.",
        f"{timeout_s} s",
    )
    busy = _row(connection, "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'walsender'")[0]
    free = int(values["max_wal_senders"]) - busy
    yield finding(
        "max_wal_senders",
        free >= NEEDED_WAL_SENDERS,
        f"A base backup takes {NEEDED_WAL_SENDERS}. Raise max_wal_senders and restart the server.",
        f"{free} of {values['max_wal_senders']} free",
    )
    waiting = sorted(row[0] for row in rows if row[2])
    yield Finding(
        "restart",
        not waiting,
        f"these wait for a restart: {', '.join(waiting)}" if waiting else "nothing waits for one",
        "Restart the server when it suits you." if waiting else None,
    )


def _archive_command(name: str, settings: Settings, values: dict[str, str]) -> Finding:
    expected = expected_archive_command(name, settings)
    library, command = values.get("archive_library"), values["archive_command"]
    if library:
        return Finding(
            "archive_command",
            False,
            f"archive_library = {library} archives instead of a command",
            f"`pitr init-db {name} --replace-archive-command` replaces it, if nobody needs that archive.",
        )
    if command == expected:
        return Finding("archive_command", True, command)
    detail = "empty" if command in ("", "(disabled)") else f"{command}; expected was {expected}"
    return Finding(
        "archive_command",
        False,
        detail,
        f"`pitr init-db {name}` sets it; if you let a command of your own archive to the same directory, "
        "make sure that it is wal-archive.sh which writes there.",
    )


def _archiver(connection: psycopg.Connection[Any], archive: Path) -> Finding:
    count, last_wal, last_time, failures, failed_wal, failed_time = _row(
        connection,
        "SELECT archived_count, last_archived_wal, last_archived_time, failed_count, last_failed_wal, "
        "last_failed_time FROM pg_stat_archiver",
    )
    done = f"{count} files archived" + (f", last {last_wal} at {_text(last_time)}" if last_wal else "")
    if failed_time is None or (last_time is not None and last_time > failed_time):
        return Finding("archiver", True, done)
    return Finding(
        "archiver",
        False,
        f"{done}; {failures} failures, last with {failed_wal} at {_text(failed_time)}",
        name_taken(archive, failed_wal)
        or "wal-archive.sh wrote the reason into the server's log. The server keeps its WAL and tries again.",
    )


def _replication(name: str, settings: Settings, identity: ServerIdentity) -> Finding:
    """Really open a replication connection: only that shows what pg_hba.conf thinks of it."""
    database = settings.database(name)
    parameters = {**parameters_of(name, database), "replication": "true"}
    try:
        with open_connection(name, parameters, password=password_of(name, database)) as connection:
            # Such a connection reports no encoding, for which psycopg gives text as bytes.
            reached = connection.pgconn.exec_(b"IDENTIFY_SYSTEM").get_value(0, 0)
    except PitrError as error:
        return Finding("replication", False, error.what, _hba_remedy(name, settings, error))
    if reached is None or reached.decode() != identity.system_identifier:
        return Finding(
            "replication",
            False,
            "replication connections reach another cluster than ordinary ones",
            "Is there a proxy or pooler between? Let the dsn lead to the server itself.",
        )
    return Finding("replication", True, "a replication connection works")


def _hba_remedy(name: str, settings: Settings, error: PitrError) -> str:
    if "pg_hba.conf" not in error.what:
        return error.remedy
    database = settings.database(name)
    role, dbname = role_of(name, database), parameters_of(name, database).get("dbname", "postgres")
    match = re.search(r'host "([^"]+)"', error.what)
    client = match[1] if match else "<this machine's address>"
    lines = []
    for target in (f'"{dbname}"', "replication"):
        if client == "[local]":
            lines.append(f"  local  {target}  {role}  scram-sha-256")
        else:
            lines.append(f"  host  {target}  {role}  {client}/{128 if ':' in client else 32}  scram-sha-256")
    return (
        "Add to the server's pg_hba.conf what it lacks of\n"
        + "\n".join(lines)
        + ("\nabove any line that matches and rejects, then reload it: SELECT pg_reload_conf()")
    )


def _archive_findings(name: str, settings: Settings, archiver: ArchiverState | None) -> Iterator[Finding]:
    """Look at the archive, at who may do what there, and at our own directories; without a server, too."""
    layout = Layout(settings.backup_root)
    archive = layout.wal(name)
    server = server_user(archiver, archive) if archiver is not None else None
    there = os.path.isdir(archive)  # noqa: PTH112 - false, and no error, where we may not even look
    script = script_here(layout, settings.database(name))
    writing = None
    if server is not None and archiver is not None and there:
        # Of a user that we conclude from the version alone, success has the last word; and his groups are not
        # known, so before the first segment a directory that some group may write to is left to prove itself.
        unproven = archiver.last_archived_at is None and not archive.stat().st_mode & 0o022
        doubtful = server.certain or archiver.is_failing or unproven
        writing = archiving_trouble(archive, script, server) if doubtful else None
    reading = reading_trouble(archive, server)
    if reading is not None:
        remedy = reading.remedy if writing is None else "The commands for the server's rights mend this, too."
        yield Finding("archive", False, reading.what, remedy)
    elif there:
        yield Finding("archive", True, str(archive))
        yield from _archives_cluster(archive, archiver)
    else:
        remedy = f"`pitr init-db {name}` creates it; where it is a mounted volume, mount it."
        yield Finding("archive", False, f"there is no directory {archive}", remedy)
    keeping = keeping_trouble(layout, name)
    yield (
        _trouble("our rights", keeping)
        if keeping is not None
        else Finding("our rights", True, f"we run as {ourselves()}")
    )
    if server is not None and there:
        who = show_uid(server.user.uid)
        yield (
            _trouble("server's rights", writing)
            if writing is not None
            else Finding(
                "server's rights",
                True,
                f"it runs as {who}" if server.certain else "nothing speaks against them",
            )
        )
    forgeable = forgeable_script(script) if script is not None else None
    if forgeable is not None:
        yield _trouble("archive script", forgeable)


def _trouble(subject: str, trouble: Trouble) -> Finding:
    return Finding(subject, False, trouble.what, trouble.remedy)


def _archives_cluster(archive: Path, archiver: ArchiverState | None) -> Iterator[Finding]:
    try:
        owner = archive_owner(archive)
    except ArtifactDamaged as error:
        yield Finding("archive's cluster", False, error.what, error.remedy)
        return
    if archiver is None:
        return
    if owner is None:
        yield Finding("archive's cluster", True, "none yet; the first segment decides")
    elif owner == archiver.system_identifier:
        yield Finding("archive's cluster", True, f"{owner}, which is this one")
    else:
        yield Finding(
            "archive's cluster",
            False,
            f"{archive / IDENTITY_FILE} says {owner}, but the server is {archiver.system_identifier}",
            "Does the dsn lead to the right server? A new cluster needs a new name in the settings, or "
            "the old archive with its bundles and bases moved away.",
        )


def _size_bytes(connection: psycopg.Connection[Any]) -> int:
    statement = "SELECT coalesce(sum(pg_database_size(oid)), 0)::bigint FROM pg_database"
    try:
        return int(_row(connection, statement)[0])
    except psycopg.errors.InsufficientPrivilege:  # without pg_monitor, which is a finding of its own
        return 0


def _space(settings: Settings, size_bytes: int | None) -> Finding:
    """Compare what is free with the size of the databases: an uncompressed base and a bit of WAL."""
    place = settings.backup_root
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    detail = f"{_gib(free)} free in {settings.backup_root}"
    if size_bytes is None:
        return Finding("space", True, detail)
    ok = free > size_bytes
    return Finding(
        "space",
        ok,
        f"{detail}, the databases take {_gib(size_bytes)}",
        None if ok else "Make room, or move backup_root: a full archive makes the server keep its WAL.",
    )


def _row(connection: psycopg.Connection[Any], statement: str, *values: Any) -> tuple[Any, ...]:
    row = connection.execute(statement.encode(), values or None).fetchone()
    assert row is not None
    return tuple(row)


def _gib(size_bytes: int) -> str:
    return f"{size_bytes / 2**30:.1f} GiB"


def _text(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(sep=" ", timespec="seconds")
