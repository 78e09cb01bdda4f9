"""What a server says about its WAL archiving, over one short connection of the backup role.

Reads only. What the role may not see is None, not an error. Nothing here waits for longer than its
time-out: connecting and each statement are bounded by it.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg

from pitr_pipelines.catalog.rights import ServerUser, server_elsewhere, server_on_this_machine
from pitr_pipelines.errors import ServerUnavailable
from pitr_pipelines.postgres.archive_place import owner_on_this_machine
from pitr_pipelines.postgres.connection import connect, identify
from pitr_pipelines.settings import DatabaseSettings
from pitr_pipelines.wal.lsn import Lsn

WATCHED_SETTINGS = (
    "archive_mode",
    "archive_command",
    "archive_library",
    "archive_timeout",
    "full_page_writes",
    "max_wal_senders",
    "wal_level",
)
"""Settings on which backups depend. archive_library is new in PostgreSQL 15."""


@dataclass(frozen=True, slots=True)
class ArchiverState:
    """One server's archiving at `now`, its own clock.

    `oldest_ready_at` is when the segment that waits longest was finished; None if none waits, or if
    the role may not see that (then `ready_backlog` is None too). `current_lsn` is None on a standby.
    `pg_wal_free_bytes` and `pg_wal_size_bytes` are of the file system, and known only where the data
    directory is on this machine and readable.
    """

    now: datetime
    system_identifier: str
    timeline: int
    wal_segment_size: int
    in_recovery: bool
    settings: dict[str, str]
    archived_count: int
    failed_count: int
    last_archived_wal: str | None
    last_archived_at: datetime | None
    last_failed_wal: str | None
    last_failed_at: datetime | None
    current_lsn: Lsn | None
    ready_backlog: int | None
    oldest_ready_at: datetime | None
    pg_wal_bytes: int | None
    pg_wal_free_bytes: int | None = None
    pg_wal_size_bytes: int | None = None
    version: str = ""
    """In the server's words, with the platform it was built for."""
    runs_as: ServerUser | None = None
    """Known only where the data directory is on this machine."""

    @property
    def archives(self) -> bool:
        """Is the server set up to archive at all?"""
        command = self.settings.get("archive_command", "")
        return self.settings.get("archive_mode") in ("on", "always") and bool(
            self.settings.get("archive_library") or command not in ("", "(disabled)")
        )

    @property
    def archive_timeout_s(self) -> int:
        return int(self.settings.get("archive_timeout") or 0)

    @property
    def is_failing(self) -> bool:
        """Did the archiver's last attempt fail?"""
        return self.last_failed_at is not None and (
            self.last_archived_at is None or self.last_failed_at > self.last_archived_at
        )


def server_user(state: ArchiverState, archive: Path) -> ServerUser:
    """Return whom a server runs as, as far as that can be told; `archive` is its archive here."""
    return state.runs_as or server_elsewhere(archive, state.last_archived_wal, state.version)


def read_archiver(
    name: str,
    database: DatabaseSettings,
    *,
    timeout_s: float = 3.0,
    connected: Callable[[psycopg.Connection[Any]], None] = lambda _: None,
) -> ArchiverState:
    """Ask a server how its archiving stands.

    `connected` is given the connection as soon as there is one, so that somebody else can cut it off
    should the server stop in the middle. Raises ServerUnavailable, and SettingsError like `connect`.
    """
    with connect(name, database, timeout_s=timeout_s) as connection:
        connected(connection)
        try:
            connection.execute("SELECT set_config('statement_timeout', %s, false)", [f"{timeout_s:g}s"])
            return read_state(connection)
        except psycopg.Error as error:
            raise ServerUnavailable(
                f"{name} answers, but not to what is asked about its archiving: {str(error).strip()}",
                remedy=f"Is the server overloaded, or a pooler in between? `pitr check {name}` asks as well.",
            ) from None


def read_state(connection: psycopg.Connection[Any]) -> ArchiverState:
    """Read it over a connection that is there. Raises psycopg.Error."""
    identity = identify(connection)
    settings = dict(
        connection.execute(
            "SELECT name, setting FROM pg_settings WHERE name = ANY(%s)", [list(WATCHED_SETTINGS)]
        ).fetchall()
    )
    archived, last_wal, last_at, failed, failed_wal, failed_at = _row(
        connection,
        "SELECT archived_count, last_archived_wal, last_archived_time, failed_count, last_failed_wal, "
        "last_failed_time FROM pg_stat_archiver",
    )
    current = None
    if not identity.in_recovery:
        current = Lsn.parse(_row(connection, "SELECT pg_current_wal_lsn()::text")[0])
    # Both functions are for members of pg_monitor.
    ready = _if_allowed(
        connection,
        "SELECT count(*), min(modification) FROM pg_ls_archive_statusdir() WHERE name LIKE '%.ready'",
    )
    pg_wal = _if_allowed(connection, "SELECT coalesce(sum(size), 0)::bigint FROM pg_ls_waldir()")
    free = _pg_wal_space(connection, identity.system_identifier)
    return ArchiverState(
        now=identity.now,
        system_identifier=identity.system_identifier,
        timeline=identity.timeline,
        wal_segment_size=identity.wal_segment_size,
        in_recovery=identity.in_recovery,
        settings=settings,
        archived_count=archived,
        failed_count=failed,
        last_archived_wal=last_wal,
        last_archived_at=_utc(last_at),
        last_failed_wal=failed_wal,
        last_failed_at=_utc(failed_at),
        current_lsn=current,
        ready_backlog=ready[0] if ready else None,
        oldest_ready_at=_utc(ready[1]) if ready else None,
        pg_wal_bytes=int(pg_wal[0]) if pg_wal else None,
        pg_wal_free_bytes=free[0] if free else None,
        pg_wal_size_bytes=free[1] if free else None,
        version=_row(connection, "SELECT version()")[0],
        runs_as=_runs_as(connection, identity.system_identifier),
    )


def _runs_as(connection: psycopg.Connection[Any], system_identifier: str) -> ServerUser | None:
    found = _if_allowed(connection, "SELECT current_setting('data_directory')")
    owner = owner_on_this_machine(found[0], system_identifier) if found is not None else None
    return server_on_this_machine(owner.uid, owner.gid) if owner is not None else None


def _pg_wal_space(connection: psycopg.Connection[Any], system_identifier: str) -> tuple[int, int] | None:
    """Return free and whole size of pg_wal's file system, if it is on this machine for certain."""
    found = _if_allowed(connection, "SELECT current_setting('data_directory')")
    if found is None:
        return None
    directory = Path(found[0])
    try:
        # Without a look into pg_control, a path says nothing: a container has the same one.
        (directory / "global" / "pg_control").open("rb").close()
        if owner_on_this_machine(found[0], system_identifier) is None:
            return None
        usage = shutil.disk_usage(directory / "pg_wal")
    except OSError:
        return None
    return usage.free, usage.total


def _if_allowed(connection: psycopg.Connection[Any], statement: str) -> tuple[Any, ...] | None:
    try:
        return _row(connection, statement)
    except psycopg.errors.InsufficientPrivilege:
        return None


def _row(connection: psycopg.Connection[Any], statement: str) -> tuple[Any, ...]:
    row = connection.execute(statement.encode()).fetchone()
    assert row is not None
    return tuple(row)


def _utc(moment: datetime | None) -> datetime | None:
    return moment.astimezone(UTC) if moment is not None else None
