"""Sealing: what makes the end of an hour a point that recovery can reach and stop at.

Recovery to a time stops only at a commit after it. So each hour's end gets a commit of ours, a named
restore point and a segment switch; and the seal is written down once its segment has arrived in the
archive, so that every later bundling agrees which segment sealed which hour.
"""

from __future__ import annotations

from contextlib import suppress
from datetime import datetime

from pitr_pipelines.catalog.layout import Layout
from pitr_pipelines.catalog.records import SealRecord, read_record, write_record
from pitr_pipelines.errors import ServerNotReady, ServerUnavailable
from pitr_pipelines.settings import Settings
from pitr_pipelines.wal.hours import Hour
from pitr_pipelines.wal.sealed_segment import check_sealed_segment, keep_history

SILENCE_S = 60.0
"""How long a server may take over the seal itself, a commit and a segment switch, in seconds."""


def seal_hour(settings: Settings, layout: Layout, database: str, hour: Hour, now: datetime) -> SealRecord:
    """Seal `hour`, or return the seal it already has.

    For the running hour this makes a restore point now, which is not an hour's seal and not written
    down as one. The caller holds the database's bundle lock. Raises ServerUnavailable,
    ServerNotReady or ArchiveStalled, and ForeignWal if what arrived is not what the server wrote.
    """
    ended = hour.end <= now
    path = layout.seal_record(database, hour)
    if ended and path.exists():
        return read_record(path, SealRecord)
    name = f"pitr-{database}-{hour}" if ended else f"pitr-{database}-{now:%Y%m%dT%H%M%SZ}"
    record = _seal(settings, layout, database, hour, name, not_before=hour.end if ended else None)
    if ended:
        write_record(path, record)
    return record


def seal_now(settings: Settings, layout: Layout, database: str, now: datetime) -> SealRecord:
    """Make everything up to this moment restorable: a restore that asks for the last minute needs it."""
    return _seal(
        settings,
        layout,
        database,
        Hour.containing(now),
        f"pitr-{database}-{now:%Y%m%dT%H%M%SZ}",
        not_before=None,
    )


def _seal(
    settings: Settings, layout: Layout, database: str, hour: Hour, name: str, *, not_before: datetime | None
) -> SealRecord:
    # psycopg takes a quarter of a second to import: only those who talk to a server pay for it.
    from pitr_pipelines.postgres.answering import answering_within
    from pitr_pipelines.postgres.connection import connect
    from pitr_pipelines.postgres.seal import seal, wait_until_archived
    from pitr_pipelines.postgres.timeline_history import read_server_history

    with connect(database, settings.database(database)) as connection:
        wait_s = settings.bundle.archive_wait_s
        with answering_within(connection, SILENCE_S + wait_s):
            made = seal(connection, name, not_before=not_before)
            wait_until_archived(connection, layout.wal(database), made.segment, timeout_s=wait_s)
        if made.segment.timeline > 1:
            # The seal is good without it, if a base backup of this timeline is there: so nothing is lost
            # if the server does not tell, and whoever misses it says so.
            with suppress(ServerNotReady, ServerUnavailable):
                configured = settings.database(database)
                history = read_server_history(database, configured, connection, made.segment.timeline)
                keep_history(layout.wal(database), history.name, history.content, history.written_at)
    check_sealed_segment(layout.wal(database), made.segment, made.lsn, made.restore_point, database=database)
    return SealRecord(
        database=database,
        hour=hour,
        segment=made.segment,
        lsn=made.lsn,
        restore_point=made.restore_point,
        at=made.at,
    )
