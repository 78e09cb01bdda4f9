"""Where each WAL file that a restore needs lies: in a bundle, in the raw archive, or in a base.

A place says only where to look; whether what lies there is whole is checked before a restore
touches anything, and again when the file is read.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import date, datetime
from itertools import accumulate

from pitr_pipelines.catalog.coverage import sections
from pitr_pipelines.catalog.inventory import Inventory
from pitr_pipelines.catalog.layout import Layout
from pitr_pipelines.catalog.records import (
    BaseRecord,
    BundleMember,
    BundleRecord,
    BundleState,
    read_record,
)
from pitr_pipelines.wal.archive import ArchivedFile
from pitr_pipelines.wal.hours import Hour
from pitr_pipelines.wal.lsn import SegmentName
from pitr_pipelines.wal.timelines import TimelineHistory


@dataclass(frozen=True, slots=True)
class InBundle:
    """A member of the bundle of `hour`; `envelope` is the day of the one it is fetched from, if it is."""

    hour: Hour
    member: BundleMember
    envelope: date | None = field(default=None, compare=False)

    def __str__(self) -> str:
        where = "" if self.envelope is None else f" in the envelope of {self.envelope}"
        return f"bundle {self.hour}{where}"


@dataclass(frozen=True, slots=True)
class InArchive:
    """A raw file in the WAL archive."""

    file: ArchivedFile

    def __str__(self) -> str:
        return "raw archive"


@dataclass(frozen=True, slots=True)
class InBase:
    """A segment that the base backup of `day` carries in its pg_wal.tar."""

    day: date

    def __str__(self) -> str:
        return f"base {self.day}"


Place = InBundle | InArchive | InBase


@dataclass(frozen=True, slots=True)
class WalSegment:
    """A segment that recovery needs; `closed_at` is when the server last wrote it."""

    name: SegmentName
    closed_at: datetime
    place: Place


def artifact_of(segment: WalSegment) -> date | Hour | str:
    """Return the artifact a segment lies in, as `Inventory.without` takes it."""
    match segment.place:
        case InBundle(hour):
            return hour
        case InBase(day):
            return day
        case InArchive(file):
            return file.name


class WalIndex:
    """Finds segments of one database. Reads a bundle's full record only when it is asked for.

    `envelope_of` says for a bundle that is not here which day's envelope it comes from.
    """

    def __init__(
        self,
        layout: Layout,
        inventory: Inventory,
        envelope_of: Callable[[Hour], date | None] | None = None,
    ) -> None:
        self._layout = layout
        self._envelope_of = envelope_of
        self._inventory = inventory
        self._raw = {file.name: file for file in inventory.raw}
        self._members: dict[Hour, dict[str, BundleMember]] = {}
        runs = [
            (run.first, run.last, entry.state is BundleState.OPEN, entry.hour)
            for entry in inventory.bundles
            for run in entry.runs
        ]
        self._runs = sorted(runs)
        self._furthest = list(accumulate((run[1] for run in self._runs), max))

    def find(self, segment: SegmentName, base: BaseRecord) -> WalSegment | None:
        """Return where a segment lies for a restore from `base`, or None.

        What the base carries is preferred, because it is unpacked with it, but for its last segment:
        there the backup may have stopped in the middle. Then come closed bundles, whose bytes are on
        record; then raw files, open bundles, and other bases.
        """
        if _carries(base, segment) and segment != base.last_segment:
            return WalSegment(segment, base.ended_at, InBase(base.day))
        archived = self._archived(segment)
        if archived is not None:
            return archived
        for carrier in (base, *self._inventory.bases):
            if _carries(carrier, segment):
                return WalSegment(segment, carrier.ended_at, InBase(carrier.day))
        return None

    def _archived(self, segment: SegmentName) -> WalSegment | None:
        bundled = self._bundled(segment)
        raw = self._raw.get(str(segment))
        if bundled is not None and (raw is None or not bundled[1]):
            hour = bundled[0]
            member = self._load(hour).get(str(segment))
            if member is not None:
                envelope = self._envelope_of(hour) if self._envelope_of is not None else None
                return WalSegment(segment, member.closed_at, InBundle(hour, member, envelope))
        return WalSegment(segment, raw.closed_at, InArchive(raw)) if raw is not None else None

    def chain(self, base: BaseRecord, branch: TimelineHistory) -> Iterator[WalSegment]:
        """Yield the segments from the base's first on, along a branch, until one is missing."""
        size = base.wal_segment_size
        number = base.first_segment.number(size)
        for section in sections(branch, base.timeline, size):
            while section.last is None or number <= section.last:
                found = self.find(SegmentName.numbered(number, section.timeline, size), base)
                if found is None:
                    return
                yield found
                number += 1

    def _bundled(self, segment: SegmentName) -> tuple[Hour, bool] | None:
        """Return the hour of the bundle that holds a segment, and whether it is still open."""
        at = bisect_right(self._runs, segment, key=lambda run: run[0]) - 1
        best: tuple[Hour, bool] | None = None
        # Open bundles may overlap closed ones, so look back as far as any run can hold the segment.
        while at >= 0 and self._furthest[at] >= segment and (best is None or best[1]):
            _first, last, is_open, hour = self._runs[at]
            if segment <= last and (best is None or not is_open):
                best = (hour, is_open)
            at -= 1
        return best

    def _load(self, hour: Hour) -> dict[str, BundleMember]:
        if hour not in self._members:
            record = read_record(self._layout.bundle_record(self._inventory.database, hour), BundleRecord)
            self._members[hour] = {member.name: member for member in record.members}
        return self._members[hour]


def _carries(base: BaseRecord, segment: SegmentName) -> bool:
    return base.first_segment <= segment <= base.last_segment
