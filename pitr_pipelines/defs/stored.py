"""What storage says by itself, cheaply: directory entries and file times, and records one by one.

Nothing here writes, and what is not there is simply absent.
"""

from datetime import UTC, date, datetime, timedelta
from pathlib import Path

from pitr_pipelines.catalog.layout import Layout
from pitr_pipelines.catalog.records import BundleRecord, BundleState, read_record
from pitr_pipelines.errors import ArtifactDamaged
from pitr_pipelines.wal.archive import scan_archive
from pitr_pipelines.wal.hours import Hour
from pitr_pipelines.wal.lsn import WalFileKind

LOOK_BACK = timedelta(hours=24)


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


def hours_to_bundle(layout: Layout, database: str, now: datetime) -> list[Hour]:
    """Return the hours of the last 24 that are not closed in storage but could be, oldest first.

    The newest hour that is over is not among them: its time has come anyway. Nor is an hour beyond
    which nothing was archived yet, as in the middle of an outage: bundling could not close it.
    """
    raw = [file.closed_at for file in scan_archive(layout.wal(database)) if file.kind is WalFileKind.SEGMENT]
    recorded = _recorded_hours(layout, database)
    known = [Hour.containing(min(raw))] if raw else []
    known += [min(recorded)] if recorded else []
    if not known:
        return []
    newest = Hour.containing(now).preceding().preceding()
    oldest = max(min(known), Hour.containing(now - LOOK_BACK))
    reached = max(raw, default=datetime.min.replace(tzinfo=UTC))
    missing = []
    for hour in oldest.until(newest):
        if hour in recorded and _is_closed(layout, database, hour):
            reached = max(reached, hour.end)
        else:
            missing.append(hour)
    return [hour for hour in missing if hour.end <= reached]


def _recorded_hours(layout: Layout, database: str) -> set[Hour]:
    hours = set()
    for name in _names(layout.bundles(database)):
        if name.endswith(".json") and not name.endswith(".seal.json"):
            try:
                hours.add(Hour.parse(name.removesuffix(".json")))
            except ValueError:
                continue
    return hours


def _is_closed(layout: Layout, database: str, hour: Hour) -> bool:
    try:
        record = read_record(layout.bundle_record(database, hour), BundleRecord)
    except (FileNotFoundError, ArtifactDamaged):
        return False
    return record.state is BundleState.CLOSED


def _names(directory: Path) -> list[str]:
    try:
        return [path.name for path in directory.iterdir() if not path.name.startswith(".")]
    except FileNotFoundError:
        return []
