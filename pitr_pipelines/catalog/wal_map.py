"""Which bundle holds which WAL, and how far chains go, for decisions over years of bundles at once.

It says what `Inventory.coverage` says of bundled WAL, made in one pass: twenty databases with three years
of hours each are half a million bundles, and retention looks at all of them. Pure; nothing is read.
"""

from __future__ import annotations

import operator
from bisect import bisect_right
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain, compress, islice, pairwise, repeat
from operator import attrgetter

from pitr_pipelines.catalog.coverage import Coverage, sections
from pitr_pipelines.catalog.inventory import BundleEntry
from pitr_pipelines.catalog.records import BaseRecord, SealRecord, WalRun
from pitr_pipelines.wal.hours import Hour
from pitr_pipelines.wal.lsn import SegmentName
from pitr_pipelines.wal.timelines import TimelineHistory

END_OF_WAL = 1 << 62
_RECENT = 48
"""Seals among which the newest is looked for; they come in order of their hours."""
_LOG, _SEG = attrgetter("log"), attrgetter("seg")


@dataclass(frozen=True, slots=True)
class Stretch:
    """Segments that are needed, by running number, both ends included."""

    timeline: int
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class _Runs:
    """The runs of one timeline in order: their first and last segments, and whose bundle each is."""

    firsts: Sequence[int]
    lasts: Sequence[int]
    furthest: Sequence[int]
    bundles: Sequence[int]


@dataclass(frozen=True, slots=True)
class WalMap:
    """The bundled WAL of one database. Bundles are meant by their place in the sequence it was made of.

    `coverage` leaves out the bundles that were said to be damaged; `newest_seal` is the newest of all, and
    `with_histories` are the bundles that carry timeline histories.
    """

    segment_size: int
    runs: Mapping[int, _Runs]
    coverage: Coverage
    newest_seal: SealRecord | None
    with_histories: Sequence[int]

    def holders(self, stretch: Stretch) -> Iterator[int]:
        """Yield the bundles that hold any of these segments."""
        found = self.runs.get(stretch.timeline)
        if found is None:
            return
        at = bisect_right(found.firsts, stretch.last) - 1
        while at >= 0 and found.furthest[at] >= stretch.first:
            if found.lasts[at] >= stretch.first:
                yield found.bundles[at]
            at -= 1

    def path(
        self, base: BaseRecord, branch: TimelineHistory, until: SegmentName | None = None
    ) -> Iterator[Stretch]:
        """Yield what recovery from `base` along `branch` reads, up to and with `until`, or to the end.

        The segment in which a timeline was left is wanted under both names: recovery reads it from the
        successor, but a prepared transaction may still be looked for in the old one.
        """
        first = base.first_segment.number(self.segment_size)
        end = END_OF_WAL if until is None else until.number(self.segment_size)
        for section in sections(branch, base.timeline, self.segment_size):
            last = end if section.last is None else min(section.last + 1, end)
            if max(first, section.first) <= last:
                yield Stretch(section.timeline, max(first, section.first), last)

    def reaches(self, base: BaseRecord, branch: TimelineHistory, segment: SegmentName) -> bool:
        """Tell whether the chain from `base` along `branch` is unbroken up to and with `segment`."""
        reach = self.coverage.reach(base.first_segment, branch)
        if reach is None:
            return False
        return reach.last.number(self.segment_size) >= segment.number(self.segment_size)


def map_wal(
    bundles: Sequence[BundleEntry],
    bases: Iterable[BaseRecord],
    segment_size: int,
    damaged: Collection[Hour] = (),
) -> WalMap:
    """Map the WAL in bundles, which are in order of their hours, and in bases."""
    skipped = {index for index, entry in enumerate(bundles) if entry.hour in damaged} if damaged else set()
    runs: dict[int, _Runs] = {}
    merged: list[WalRun] = []
    seals: list[SealRecord] = []
    for timeline, (firsts, lasts, places) in _columns(bundles, segment_size).items():
        if any(map(operator.gt, firsts, firsts[1:])):
            order = sorted(zip(firsts, lasts, places, strict=True))
            firsts, lasts, places = (list(column) for column in zip(*order, strict=True))
        found = _Runs(firsts, lasts, list(accumulate(lasts, max)), places)
        runs[timeline] = found
        for begin, end, index in _merged(found, skipped):
            entry = bundles[index]
            last = SegmentName.numbered(end, timeline, segment_size)
            closed_at = next(run.closed_at for run in entry.runs if run.last == last)
            first = SegmentName.numbered(begin, timeline, segment_size)
            merged.append(WalRun(first=first, last=last, closed_at=closed_at))
            if entry.seal is not None:
                seals.append(entry.seal)
    coverage = Coverage.of(merged, segment_size, bases=bases, seals=seals)
    sealed = islice((entry.seal for entry in reversed(bundles) if entry.seal is not None), _RECENT)
    newest = max(sealed, key=lambda seal: (seal.at, seal.lsn), default=None)
    with_histories = [i for i, copies in enumerate(map(attrgetter("histories"), bundles)) if copies]
    return WalMap(segment_size, runs, coverage, newest, with_histories)


_Columns = tuple[list[int], list[int], list[int]]


def _columns(bundles: Sequence[BundleEntry], segment_size: int) -> dict[int, _Columns]:
    """Return, by timeline, the first and last segments of all runs, and the places of their bundles.

    Column by column, in loops of the interpreter's own, and without an object for each bundle: with half a
    million of them the collector of garbage would take longer than all the rest.
    """
    per_log = 0x1_0000_0000 // segment_size
    held = list(map(attrgetter("runs"), bundles))
    every = list(chain.from_iterable(held))
    places = list(chain.from_iterable(map(repeat, range(len(held)), map(len, held))))
    firsts, lasts = list(map(attrgetter("first"), every)), list(map(attrgetter("last"), every))
    timelines = list(map(attrgetter("timeline"), firsts))
    columns = [
        [log * per_log + seg for log, seg in zip(map(_LOG, names), map(_SEG, names), strict=True)]
        for names in (firsts, lasts)
    ]
    found: dict[int, _Columns] = {}
    for timeline in set(timelines):
        if timelines.count(timeline) == len(timelines):
            return {timeline: (columns[0], columns[1], places)}
        own = [each == timeline for each in timelines]
        found[timeline] = (
            list(compress(columns[0], own)),
            list(compress(columns[1], own)),
            list(compress(places, own)),
        )
    return found


def _merged(runs: _Runs, skipped: Collection[int]) -> Iterator[tuple[int, int, int]]:
    """Join runs that touch; each result names the bundle with its last segment."""
    firsts, lasts, furthest, places = runs.firsts, runs.lasts, runs.furthest, runs.bundles
    if skipped:
        sound = [place not in skipped for place in places]
        firsts, lasts, places = (list(compress(column, sound)) for column in (firsts, lasts, places))
        furthest = list(accumulate(lasts, max))
    breaks = [
        i for i, (first, end) in enumerate(zip(firsts[1:], furthest, strict=False), 1) if first > end + 1
    ]
    for begin, end in pairwise([0, *breaks, len(firsts)]):
        if begin < end:
            tail = begin + lasts[begin:end].index(furthest[end - 1])
            yield firsts[begin], furthest[end - 1], places[tail]
