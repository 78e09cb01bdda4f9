"""Looks at every database and at the storage, within seconds, whatever hangs.

A server that answers nothing costs its time-out and no more; all are asked at the same time. Nothing
is changed anywhere.
"""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import date, datetime, timedelta
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pitr_pipelines.catalog.drills import DrillOutcome, drill_history
from pitr_pipelines.catalog.inventory import read_base_record
from pitr_pipelines.catalog.layout import BASE_RECORD, Layout
from pitr_pipelines.catalog.records import BundleRecord, read_record
from pitr_pipelines.catalog.rights import (
    Trouble,
    archiving_trouble,
    forgeable_script,
    keeping_trouble,
    reading_trouble,
    script_here,
)
from pitr_pipelines.errors import ArtifactDamaged, PitrError, StorageFailed, storage_failed
from pitr_pipelines.settings import DatabaseSettings, Settings
from pitr_pipelines.wal import archive
from pitr_pipelines.wal.lsn import SegmentName, WalFileKind
from pitr_pipelines.watch.in_parallel import Parallel, Stuck
from pitr_pipelines.watch.observation import Space, StoredState

if TYPE_CHECKING:
    import psycopg

    from pitr_pipelines.postgres.archiver import ArchiverState

CONNECT_TIMEOUT_S = 3.0
SERVERS_TIMEOUT_S = 15.0
"""For all servers together: Dagster gives a sensor a minute."""
STORAGE_TIMEOUT_S = 10.0
_BUNDLES_READ = 5
_DRILLS_READ = 20
_RAW_SAYS_ALL = timedelta(hours=1)
"""While raw WAL is younger than this, nothing newer is in a bundle: a year of them need not be listed."""
_HANGS = "A mount that hangs holds up everything: is the file server up? Servers cannot archive meanwhile."
_NOT_THERE = (
    "Is the volume mounted? Servers cannot archive meanwhile; they keep their WAL until it is back. On a new "
    "installation, `pitr init-db` creates it."
)

_asking: Parallel[ArchiverState] = Parallel()
_probing: Parallel[bool] = Parallel()


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


def is_there(root: Path, *, look: Callable[[Path], bool] = Path.is_dir) -> PitrError | None:
    """Return None if a directory is there, else why not. A network mount that hangs is not there."""
    found = _probing.run({str(root): partial(look, root)}, timeout_s=STORAGE_TIMEOUT_S)[str(root)]
    if isinstance(found, Stuck):
        return Stuck(f"backup_root {root} does not answer: {found.what}", remedy=_HANGS)
    if isinstance(found, PitrError):
        return found
    return None if found else StorageFailed(f"backup_root {root} is not there", remedy=_NOT_THERE)


def look_at_stored(settings: Settings, database: str, *, now: datetime) -> StoredState:
    """Read what storage holds of a database. Raises OSError if it cannot be read."""
    layout = Layout(settings.backup_root)
    files = archive.scan_archive(layout.wal(database))
    known = [(file.closed_at, file.segment) for file in files if file.kind is WalFileKind.SEGMENT]
    if not known or now - max(known)[0] > _RAW_SAYS_ALL:
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


def look_at_archiving(settings: Settings, database: str, server: ArchiverState | PitrError) -> Trouble | None:
    """Return what keeps a server's user from writing to its archive, as far as it can be told from here."""
    from pitr_pipelines.postgres.archiver import server_user

    if isinstance(server, PitrError):
        return None
    layout = Layout(settings.backup_root)
    archive_here = layout.wal(database)
    return archiving_trouble(
        archive_here, script_here(layout, settings.database(database)), server_user(server, archive_here)
    )


def look_at_rights(settings: Settings, database: str) -> tuple[Trouble, ...]:
    """Return what keeps us from reading a database's archive and from making its backups."""
    layout = Layout(settings.backup_root)
    script = script_here(layout, settings.database(database))
    found = (
        reading_trouble(layout.wal(database)),
        keeping_trouble(layout, database),
        forgeable_script(script) if script is not None else None,
    )
    return tuple(trouble for trouble in found if trouble is not None)


def why_unreadable(settings: Settings, database: str, error: OSError) -> PitrError:
    """Return what it means that the storage of a database could not be read."""
    if isinstance(error, PermissionError):
        for trouble in look_at_rights(settings, database):
            return StorageFailed(trouble.what, remedy=trouble.remedy)
    return storage_failed(error)


def _bundled(layout: Layout, database: str) -> list[tuple[datetime, SegmentName]]:
    """Return the ends of the newest bundles that hold WAL: raw files go, once they are bundled."""
    names = _listed(layout.bundles(database))
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
    for name in _listed(layout.bases(database)):
        with suppress(ValueError):
            days.append(date.fromisoformat(name))
    for day in sorted(days, reverse=True):
        try:
            return read_base_record(layout.base(database, day) / BASE_RECORD).ended_at
        except (ArtifactDamaged, FileNotFoundError, NotADirectoryError):
            continue
    return None


def _listed(directory: Path) -> list[str]:
    try:
        return [name for name in os.listdir(directory) if not name.startswith(".")]  # noqa: PTH208
    except FileNotFoundError:
        return []
