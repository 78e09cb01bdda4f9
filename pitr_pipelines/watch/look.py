"""Looks at every database and at the storage, within seconds, whatever hangs.

A server that answers nothing costs its time-out and no more; all are asked at the same time. Nothing
is changed anywhere.
"""

from __future__ import annotations

import shutil
import socket
from collections.abc import Mapping
from contextlib import suppress
from datetime import date, datetime
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pitr_pipelines.catalog.drills import DrillOutcome, drill_history
from pitr_pipelines.catalog.inventory import read_base_record
from pitr_pipelines.catalog.layout import BASE_RECORD, Layout
from pitr_pipelines.catalog.records import BundleRecord, read_record
from pitr_pipelines.errors import ArtifactDamaged, PitrError
from pitr_pipelines.settings import DatabaseSettings, Settings
from pitr_pipelines.wal import archive
from pitr_pipelines.wal.lsn import SegmentName, WalFileKind
from pitr_pipelines.watch.in_parallel import Parallel, Stuck
from pitr_pipelines.watch.observation import Space, StoredState

if TYPE_CHECKING:
    import psycopg

    from pitr_pipelines.postgres.archiver import ArchiverState

CONNECT_TIMEOUT_S = 3.0
SERVERS_TIMEOUT_S = 20.0
"""For all servers together: Dagster gives a sensor a minute."""
_BUNDLES_READ = 5
_DRILLS_READ = 20

_asking: Parallel[ArchiverState] = Parallel()


def ask_servers(
    databases: Mapping[str, DatabaseSettings], *, timeout_s: float = SERVERS_TIMEOUT_S
) -> dict[str, ArchiverState | PitrError]:
    """Ask every server how its archiving stands; each answers, or there is the reason why not."""
    # psycopg comes with it: `pitr status` and Dagster's loading do without.
    from pitr_pipelines.postgres.archiver import read_archiver

    connections: dict[str, psycopg.Connection[Any]] = {}

    def ask(name: str, database: DatabaseSettings) -> ArchiverState:
        def connected(connection: psycopg.Connection[Any]) -> None:
            connections[name] = connection

        return read_archiver(name, database, timeout_s=CONNECT_TIMEOUT_S, connected=connected)

    work = {name: partial(ask, name, database) for name, database in databases.items()}
    answers = _asking.run(work, timeout_s=timeout_s)
    for name, connection in list(connections.items()):
        if isinstance(answers[name], Stuck):
            _cut_off(connection)
    return answers


def _cut_off(connection: psycopg.Connection[Any]) -> None:
    """Let the thread that waits for an answer on a connection go on, with an error."""
    import psycopg

    with (
        suppress(OSError, psycopg.Error),
        socket.fromfd(connection.fileno(), socket.AF_UNIX, socket.SOCK_STREAM) as line,
    ):
        line.shutdown(socket.SHUT_RDWR)


def look_at_space(path: Path) -> Space:
    """Return how full the file system is. Raises OSError."""
    usage = shutil.disk_usage(path)
    return Space(usage.free, usage.total)


def look_at_stored(settings: Settings, database: str) -> StoredState:
    """Read what storage holds of a database. Raises OSError if it cannot be read."""
    layout = Layout(settings.backup_root)
    files = archive.scan_archive(layout.wal(database))
    known = [(file.closed_at, file.segment) for file in files if file.kind is WalFileKind.SEGMENT]
    known += _bundled(layout, database)
    newest_at, newest = max(known, default=(None, None))
    drills = []
    good = None
    for report in islice(drill_history(layout, database), _DRILLS_READ):
        drills.append(report)
        if report.outcome is DrillOutcome.PASSED:
            good = report
            break
    return StoredState(
        raw_files=len(files),
        raw_bytes=sum(file.size_bytes for file in files),
        newest_segment=newest,
        newest_at=newest_at,
        archive_owner=archive.owner(layout.wal(database), files),
        base_ended_at=_newest_base(layout, database),
        last_drill=drills[0] if drills else None,
        last_good_drill=good,
        present=frozenset(file.name for file in files),
    )


def _bundled(layout: Layout, database: str) -> list[tuple[datetime, SegmentName]]:
    """Return the ends of the newest bundles that hold WAL: raw files go, once they are bundled."""
    names = (path.name for path in _listed(layout.bundles(database)))
    hours = sorted(
        (name for name in names if name.endswith(".json") and not name.endswith(".seal.json")), reverse=True
    )
    for name in hours[:_BUNDLES_READ]:
        try:
            record = read_record(layout.bundles(database) / name, BundleRecord)
        except (ArtifactDamaged, FileNotFoundError):
            continue
        if record.runs:
            return [(run.closed_at, run.last) for run in record.runs]
    return []


def _newest_base(layout: Layout, database: str) -> datetime | None:
    """Return when the newest base backup ended whose record can be read."""
    days = []
    for path in _listed(layout.bases(database)):
        with suppress(ValueError):
            days.append(date.fromisoformat(path.name))
    for day in sorted(days, reverse=True):
        try:
            return read_base_record(layout.base(database, day) / BASE_RECORD).ended_at
        except (ArtifactDamaged, FileNotFoundError, NotADirectoryError):
            continue
    return None


def _listed(directory: Path) -> list[Path]:
    try:
        return [path for path in directory.iterdir() if not path.name.startswith(".")]
    except FileNotFoundError:
        return []
