"""What storage says by itself, cheaply: directory entries and file times, and records one by one.

Nothing here writes, and what is not there is simply absent.
"""

from dataclasses import dataclass
from datetime import date, datetime, timedelta
from functools import lru_cache
from pathlib import Path

from pitr_pipelines.catalog.layout import Layout
from pitr_pipelines.catalog.records import BundleRecord, BundleState, read_record
from pitr_pipelines.errors import ArtifactDamaged
from pitr_pipelines.wal.archive import scan_archive
from pitr_pipelines.wal.hours import Hour
from pitr_pipelines.wal.lsn import WalFileKind

LOOK_BACK = timedelta(days=7)
"""How long an hour without any WAL is still looked for."""


def written_at_ns(path: Path) -> int | None:
    """Return a file's mtime, or None if there is no such file."""
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return None


def base_days(layout: Layout, database: str) -> list[date]:
    """Return the days of which there is a recorded base backup, oldest first."""
    days = []
    for name in _names(layout.bases(database)):
        try:
            day = date.fromisoformat(name)
        except ValueError:
            continue
        if layout.base_record(database, day).exists():
            days.append(day)
    return sorted(days)


@dataclass(frozen=True, slots=True)
class BundledHours:
    """How it stands with the hours of one database.

    `missing` are those that are over and not closed although they could be, oldest first. `reached` is the
    moment up to which the archive and closed bundles prove that there is WAL, None without any. `in_vain`
    are the hours after it that were bundled and could not be closed: the server was out of reach, say.
    """

    missing: tuple[Hour, ...]
    reached: datetime | None
    in_vain: tuple[Hour, ...]


def look_at_hours(
    layout: Layout, database: str, now: datetime, *, look_back: timedelta = LOOK_BACK
) -> BundledHours:
    """Look for the hours that are to be bundled, but for the newest that is over: its time has come anyway.

    Hours of which raw WAL lies in the archive are found however old they are; hours that nothing was
    written in, for the time of `look_back`. An hour beyond which nothing was archived yet, as in the middle
    of an outage, is not missing: bundling could not close it.
    """
    raw = [file.closed_at for file in scan_archive(layout.wal(database)) if file.kind is WalFileKind.SEGMENT]
    recorded = _recorded_hours(layout, database)
    known = [Hour.containing(min(raw))] if raw else []
    known += [min(recorded)] if recorded else []
    if not known:
        return BundledHours((), None, ())
    since = Hour.containing(now - look_back)
    ended = Hour.containing(now).preceding()
    oldest = max(min(known), min(since, Hour.containing(min(raw)) if raw else since))
    reached = max(raw, default=None)
    open_hours = []
    for hour in oldest.until(ended):
        if hour in recorded and is_closed(layout, database, hour):
            reached = hour.end if reached is None else max(reached, hour.end)
        else:
            open_hours.append(hour)
    if reached is None:
        return BundledHours((), None, tuple(hour for hour in open_hours if hour in recorded))
    return BundledHours(
        tuple(hour for hour in open_hours if hour.end <= reached and hour < ended),
        reached,
        tuple(hour for hour in open_hours if hour.end > reached and hour in recorded),
    )


def is_closed(layout: Layout, database: str, hour: Hour) -> bool:
    """Tell whether an hour's record says that it is closed. An unreadable one says nothing."""
    path = layout.bundle_record(database, hour)
    try:
        status = path.stat()
    except FileNotFoundError:
        return False
    return _says_closed(path, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=65536)
def _says_closed(path: Path, _size_bytes: int, _mtime_ns: int) -> bool:
    # Remembered by size and mtime, because each tick asks for the same hundred hours of each database.
    try:
        return read_record(path, BundleRecord).state is BundleState.CLOSED
    except (FileNotFoundError, ArtifactDamaged):
        return False


def _recorded_hours(layout: Layout, database: str) -> set[Hour]:
    hours = set()
    for name in _names(layout.bundles(database)):
        if name.endswith(".json") and not name.endswith(".seal.json"):
            try:
                hours.add(Hour.parse(name.removesuffix(".json")))
            except ValueError:
                continue
    return hours


def _names(directory: Path) -> list[str]:
    try:
        return [path.name for path in directory.iterdir() if not path.name.startswith(".")]
    except FileNotFoundError:
        return []
