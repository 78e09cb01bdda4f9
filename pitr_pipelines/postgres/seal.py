"""Sealing: make this moment one that recovery can reach and stop at, even in an idle database.

Since PostgreSQL 13 recovery stops for a time T only at a commit after T; without one in the archive
it fails. A seal is such a commit, a named restore point behind it, and a switch to a new segment so
that both reach the archive. Promise: the seal's commit is later than `Seal.at`, by the server's own
clock, and so is later than every target up to it. Needs LOGIN, pg_monitor and EXECUTE on
pg_create_restore_point and pg_switch_wal; it writes about a hundred bytes and locks nothing.
Source: recoveryStopsBefore in PostgreSQL's src/backend/access/transam/xlogrecovery.c.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, LiteralString

import psycopg
from psycopg import errors as sql_errors

from pitr_pipelines.errors import ArchiveStalled, ServerNotReady, ServerUnavailable
from pitr_pipelines.postgres.archive_place import name_taken
from pitr_pipelines.postgres.connection import server_address
from pitr_pipelines.wal.lsn import Lsn, SegmentName

MESSAGE_PREFIX = "pitr"
MAX_NAME_BYTES = 63
"""PostgreSQL's limit for the name of a restore point (MAXFNAMELEN - 1)."""

_POLL_S = 0.02

# One statement is one transaction here, and its commit record carries the time of its end. `at` is
# read before that, less the clock's smallest step, so that the commit is later and not just as late.
# The commit waits for our own disk only: a standby that is away must not hold up a seal.
_COMMIT: LiteralString = """
WITH clock AS MATERIALIZED (
    SELECT clock_timestamp() - interval '1 microsecond' AS at, pg_is_in_recovery() AS in_recovery
)
SELECT at, in_recovery,
       CASE WHEN in_recovery OR at <= %(not_before)s::timestamptz THEN NULL
            ELSE set_config('synchronous_commit', 'local', true)
              || pg_logical_emit_message(true, %(prefix)s, %(name)s)::text
       END IS NOT NULL AS committed
  FROM clock
"""

# The restore point is written when its CTE is read, and so before the switch.
_MARK: LiteralString = """
WITH point AS MATERIALIZED (SELECT pg_create_restore_point(%(name)s) AS lsn)
SELECT point.lsn::text, left(pg_walfile_name(point.lsn), 8), s.system_identifier::text,
       i.bytes_per_wal_segment, clock_timestamp(), pg_switch_wal()::text
  FROM point, pg_control_system() s, pg_control_init() i
"""


@dataclass(frozen=True, slots=True)
class Seal:
    """What a seal put into the WAL.

    `at` is the server's clock just before the commit: every target up to and including it can be
    reached. `lsn` is the end of the restore point's record, and `segment` the one that holds it.
    """

    segment: SegmentName
    lsn: Lsn
    restore_point: str
    at: datetime
    system_identifier: str
    wal_segment_size: int


def seal(
    connection: psycopg.Connection[Any], restore_point: str, *, not_before: datetime | None = None
) -> Seal:
    """Seal this moment under the name `restore_point`; two round trips.

    `connection` must be in autocommit mode. With `not_before` (aware; an hour's end) the seal's `at`
    is later than that. Raises ServerNotReady if the server's clock has not passed `not_before`, if it
    is a standby, or if the role lacks a right; ServerUnavailable if the connection breaks. Whatever
    was written until then is harmless, and so is sealing again under the same name, except that
    recovery to a name stops at the first restore point of that name.
    """
    if not connection.autocommit:
        raise ValueError("a seal needs a connection in autocommit mode: its commit must be its own")
    if not 0 < len(restore_point.encode()) <= MAX_NAME_BYTES:
        raise ValueError(f"the name of a restore point has 1 to {MAX_NAME_BYTES} bytes: {restore_point!r}")
    server = server_address(connection)
    values = {"not_before": not_before, "prefix": MESSAGE_PREFIX, "name": restore_point}
    at, in_recovery, committed = _fetch(connection, _COMMIT, values)
    if in_recovery:
        raise ServerNotReady(
            f"the server at {server} is a standby, and only a primary can be sealed",
            remedy="Point the dsn at the primary (target_session_attrs=read-write with several hosts).",
        )
    if not committed:
        assert not_before is not None
        raise ServerNotReady(
            f"the clock of the server at {server} says {_text(at)}, which is not after "
            f"{_text(not_before)}; this machine's clock says {_text(datetime.now(UTC))}",
            remedy="Ask again when the server's clock has passed that moment; if the two clocks "
            "differ by more than a second, correct the one that is wrong (NTP).",
        )
    lsn_text, timeline, system_identifier, segment_size, after, _ = _fetch(connection, _MARK, values)
    if after < at:
        raise ServerNotReady(
            f"the clock of the server at {server} went back while it was sealed, "
            f"from {_text(at)} to {_text(after)}",
            remedy="Ask again; and let NTP slew that server's clock instead of setting it.",
        )
    lsn = Lsn.parse(lsn_text)
    return Seal(
        # The record ends at its LSN, so its last byte may be the last one of a segment.
        segment=SegmentName.containing(lsn - 1, int(timeline, 16), segment_size),
        lsn=lsn,
        restore_point=restore_point,
        at=at.astimezone(UTC),
        system_identifier=system_identifier,
        wal_segment_size=segment_size,
    )


def wait_until_archived(
    connection: psycopg.Connection[Any], archive: Path, segment: SegmentName, *, timeout_s: float
) -> None:
    """Return as soon as the file of `segment` is in the directory `archive`.

    Raises ArchiveStalled, with what the server's archiver says of itself, if it does not come within
    `timeout_s` seconds, or if the directory cannot be read.
    """
    file = archive / str(segment)
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            file.stat()
        except FileNotFoundError:
            pass
        except OSError as error:
            raise ArchiveStalled(
                f"cannot look for {segment} in the WAL archive {archive}: {error.strerror}",
                remedy="Let the user this runs as read that directory and the files in it.",
            ) from None
        else:
            return
        if time.monotonic() >= deadline:
            raise _stalled(connection, archive, segment, timeout_s)
        time.sleep(_POLL_S)


_ARCHIVER: LiteralString = """
SELECT current_setting('archive_mode'), current_setting('archive_command'), archived_count,
       last_archived_wal, last_archived_time, failed_count, last_failed_wal, last_failed_time
  FROM pg_stat_archiver
"""


def _stalled(
    connection: psycopg.Connection[Any], archive: Path, segment: SegmentName, timeout_s: float
) -> ArchiveStalled:
    what = f"{segment} did not arrive in {archive} within {timeout_s:.0f} s. "
    row = _fetch(connection, _ARCHIVER, {})
    mode, command, archived, last_wal, last_time, failures, failed_wal, failed_time = row
    if mode == "off" or not command:
        return ArchiveStalled(
            what + f"The server archives nothing: archive_mode={mode}, archive_command is "
            f"{'set' if command else 'empty'}.",
            remedy="Let `pitr init-db` prepare the server, and restart it if that says so.",
        )
    done = f"has archived {archived} files" + (f", last {last_wal} at {_text(last_time)}" if last_wal else "")
    if failed_time is not None and (last_time is None or failed_time >= last_time):
        return ArchiveStalled(
            what + f"The server's archiver {done}; it failed {failures} times, last on {failed_wal} "
            f"at {_text(failed_time)}.",
            remedy=name_taken(archive, failed_wal)
            or "The line that wal-archive.sh wrote into the server's log at that time says why; "
            "PostgreSQL keeps the WAL and tries again until it succeeds.",
        )
    if last_wal is not None and last_wal[:24] >= str(segment):
        return ArchiveStalled(
            what + f"The server's archiver {done}, so it archives to another place: {command}",
            remedy="archive_command must write to that directory as it is mounted on the server "
            "(archive_directory in the settings); `pitr check` compares the two.",
        )
    return ArchiveStalled(
        what + f"The server's archiver {done}, and reports no failure.",
        remedy="It may be working off a backlog: look again, or raise bundle.archive_wait_s. "
        "If it stands still, look into the server's log.",
    )


def _fetch(
    connection: psycopg.Connection[Any], statement: LiteralString, values: dict[str, Any]
) -> tuple[Any, ...]:
    server = server_address(connection)
    try:
        row = connection.execute(statement, values).fetchone()
    except sql_errors.InsufficientPrivilege as error:
        raise ServerNotReady(
            f"the role {connection.info.user} may not do what sealing needs at {server}: "
            f"{error.diag.message_primary}",
            remedy="`pitr init-db` grants what is missing; `pitr check` lists it.",
        ) from None
    except psycopg.DatabaseError as error:
        if connection.closed:
            raise ServerUnavailable(
                f"the connection to {server} broke: {str(error).strip()}",
                remedy="Is the server up? Ask again when it is; nothing needs to be undone.",
            ) from None
        raise ServerNotReady(
            f"the server at {server} refused a step of sealing: {error.diag.message_primary or error}",
            remedy="`pitr check` lists what the server still needs.",
        ) from None
    assert row is not None
    return tuple(row)


def _text(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(sep=" ", timespec="milliseconds")
