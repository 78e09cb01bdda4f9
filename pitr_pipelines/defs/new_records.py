"""Records that appeared in storage since the last look, found at a cost that follows the changes.

A directory whose mtime has not changed is not read again. In one that is read, a record is new if its
ctime is later than what was dealt with: ctime, because a copy can bring an old mtime along. Nothing
that is younger than a second counts yet, so that two changes within one tick of the kernel's clock
are never taken for one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from pydantic import BaseModel

from pitr_pipelines.catalog.layout import BASE_RECORD, Layout
from pitr_pipelines.wal.hours import Hour

_YOUNG_NS = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Found:
    """A record file: its partition key, and when it was written (mtime) and put there (ctime)."""

    key: str
    path: Path
    written_ns: int
    changed_ns: int


class Seen(BaseModel):
    """What is known of one directory. `until` is the newest record that was dealt with.

    `directory_ns` is the mtime at which everything in it was; zero if it must be read again.
    `count` and `newest_ns` tell whether anything appeared or vanished.
    """

    directory_ns: int = 0
    until: tuple[int, str] = (0, "")
    count: int = 0
    newest_ns: int = 0


@dataclass(frozen=True, slots=True)
class Look:
    """What a look at a directory found: the state before it, and the new records, oldest first."""

    seen: Seen
    new: Sequence[Found]
    settled_ns: int

    def after(self, dealt_with: int) -> Seen:
        """Return what is known once the first `dealt_with` of the new records were dealt with."""
        until = self.seen.until
        if dealt_with:
            last = self.new[dealt_with - 1]
            until = (last.changed_ns, last.key)
        whole = dealt_with == len(self.new)
        return self.seen.model_copy(update={"until": until, "directory_ns": self.settled_ns if whole else 0})


def look_at_bases(layout: Layout, database: str, seen: Seen, now_ns: int) -> Look:
    """Look for new base backups."""
    directory = layout.bases(database)
    changed_ns = _mtime_ns(directory)
    if changed_ns == seen.directory_ns:
        return Look(seen, (), changed_ns)
    days = [name for name in _names(directory) if _is_day(name)]
    found = list(_found((day, directory / day / BASE_RECORD) for day in days))
    # Between its renaming and its record a base backup does not change this directory once more.
    return _look(seen, found, now_ns, changed_ns if len(found) == len(days) else 0)


def look_at_bundles(layout: Layout, database: str, seen: Seen, now_ns: int) -> Look:
    """Look for new bundles, and for those that were made again."""
    directory = layout.bundles(database)
    changed_ns = _mtime_ns(directory)
    if changed_ns == seen.directory_ns:
        return Look(seen, (), changed_ns)
    hours = (name.removesuffix(".json") for name in _names(directory) if name.endswith(".json"))
    found = list(_found((hour, directory / f"{hour}.json") for hour in hours if _is_hour(hour)))
    return _look(seen, found, now_ns, changed_ns)


def _look(seen: Seen, found: Sequence[Found], now_ns: int, changed_ns: int) -> Look:
    latest = now_ns - _YOUNG_NS
    new = [record for record in found if (record.changed_ns, record.key) > seen.until]
    ready = sorted(
        (record for record in new if record.changed_ns < latest),
        key=lambda record: (record.changed_ns, record.key),
    )
    newest_ns = max((record.changed_ns for record in found), default=0)
    settled = changed_ns < latest and len(ready) == len(new)
    return Look(
        seen.model_copy(update={"count": len(found), "newest_ns": newest_ns}),
        ready,
        changed_ns if settled else 0,
    )


def _found(records: Iterable[tuple[str, Path]]) -> Iterator[Found]:
    for key, path in records:
        try:
            status = path.stat()
        except FileNotFoundError:
            continue
        yield Found(key, path, status.st_mtime_ns, status.st_ctime_ns)


def _mtime_ns(directory: Path) -> int:
    try:
        return directory.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def _names(directory: Path) -> list[str]:
    try:
        return [path.name for path in directory.iterdir()]
    except FileNotFoundError:
        return []


def _is_day(name: str) -> bool:
    try:
        return date.fromisoformat(name).isoformat() == name
    except ValueError:
        return False


def _is_hour(name: str) -> bool:
    try:
        Hour.parse(name)
    except ValueError:
        return False
    return True
