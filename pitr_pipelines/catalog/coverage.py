"""Which stretches of WAL exist, on which branch of history, and so which moments can be reached.

Pure functions over runs of segments: nothing here reads a disk. Whatever the number of segments,
the work grows with the number of runs, which is one or two an hour.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from pitr_pipelines.catalog.records import BaseRecord, WalRun
from pitr_pipelines.wal.lsn import SegmentName
from pitr_pipelines.wal.timelines import TimelineHistory


@dataclass(frozen=True, slots=True)
class Stretch:
    """Consecutive segments by running number, and when the server closed the last one."""

    first: int
    last: int
    closed_at: datetime


@dataclass(frozen=True, slots=True)
class Gap:
    """Segments that are missing although later ones of the same branch exist."""

    first: SegmentName
    last: SegmentName


@dataclass(frozen=True, slots=True)
class Reach:
    """How far an unbroken chain goes: its last segment, its end in time, and the gap behind it."""

    last: SegmentName
    until: datetime
    gap: Gap | None


@dataclass(frozen=True, slots=True)
class Window:
    """A span of moments that can be restored with no gap in it, both ends included."""

    start: datetime
    end: datetime
    timeline: int


@dataclass(frozen=True, slots=True)
class Section:
    """The part of a branch that lies on one timeline; `last` is None where it has no end yet."""

    timeline: int
    first: int
    last: int | None


@dataclass(frozen=True, slots=True)
class Coverage:
    """The segments that exist, by timeline, as stretches in order that do not touch."""

    segment_size: int
    stretches: Mapping[int, Sequence[Stretch]]

    @classmethod
    def of(cls, runs: Iterable[WalRun], segment_size: int) -> Coverage:
        """Merge runs, in any order and overlapping as they may."""
        by_timeline: dict[int, list[Stretch]] = defaultdict(list)
        for run in runs:
            by_timeline[run.timeline].append(
                Stretch(run.first.number(segment_size), run.last.number(segment_size), run.closed_at)
            )
        return cls(segment_size, {timeline: _merge(found) for timeline, found in by_timeline.items()})

    def newest_timeline(self) -> int | None:
        """Return the timeline that was written last: the one the server is on.

        The highest number will not do: a stray copy that archived a few segments has that.
        """
        newest = [(found[-1].closed_at, timeline) for timeline, found in self.stretches.items()]
        return max(newest)[1] if newest else None

    def stretch_with(self, timeline: int, number: int) -> Stretch | None:
        """Return the stretch that holds a segment, or None."""
        found = self.stretches.get(timeline, ())
        index = bisect_right(found, number, key=lambda stretch: stretch.first) - 1
        return found[index] if index >= 0 and found[index].last >= number else None

    def next_after(self, timeline: int, number: int) -> int | None:
        """Return the first existing segment number beyond `number` on a timeline."""
        found = self.stretches.get(timeline, ())
        index = bisect_right(found, number, key=lambda stretch: stretch.first)
        return found[index].first if index < len(found) else None

    def reach(self, start: SegmentName, branch: TimelineHistory) -> Reach | None:
        """Follow a branch from `start` as far as the chain is unbroken; None if `start` is missing."""
        position = start.number(self.segment_size)
        reached: Reach | None = None
        for section in sections(branch, start.timeline, self.segment_size):
            if section.last is not None and section.last < position:
                continue
            stretch = self.stretch_with(section.timeline, position)
            if stretch is None:
                return self._broken(reached, section, position)
            last = stretch.last if section.last is None else min(stretch.last, section.last)
            reached = Reach(self._name(last, section.timeline), stretch.closed_at, None)
            position = last + 1
            if section.last is None or last < section.last:
                return self._broken(reached, section, position)
        return reached

    def _broken(self, reached: Reach | None, section: Section, missing: int) -> Reach | None:
        following = self.next_after(section.timeline, missing)
        if reached is None or following is None:
            return reached
        gap = Gap(self._name(missing, section.timeline), self._name(following - 1, section.timeline))
        return Reach(reached.last, reached.until, gap)

    def _name(self, number: int, timeline: int) -> SegmentName:
        return SegmentName.numbered(number, timeline, self.segment_size)


def sections(branch: TimelineHistory, start: int, segment_size: int) -> list[Section]:
    """Return the parts of a branch from timeline `start` on, as recovery reads them.

    The segment in which a timeline was left is read from its successor, which begins with a copy of
    it. Raises KeyError if `start` is not on the branch.
    """
    switches = [(a.timeline, a.switched_at // segment_size) for a in branch.ancestors]
    found = []
    first = 0
    for timeline, switch in switches:
        found.append(Section(timeline, first, switch - 1))
        first = switch
    found.append(Section(branch.timeline, first, None))
    timelines = [section.timeline for section in found]
    if start not in timelines:
        raise KeyError(start)
    return found[timelines.index(start) :]


def windows(
    bases: Iterable[BaseRecord], coverage: Coverage, branch: TimelineHistory
) -> tuple[list[Window], list[Gap]]:
    """Return the spans that can be restored on a branch, oldest first, and the gaps between."""
    spans: list[Window] = []
    gaps: dict[SegmentName, Gap] = {}
    for base in sorted(bases, key=lambda base: base.ended_at):
        if not branch.includes(base.timeline, base.end_lsn):
            continue
        reach = coverage.reach(base.first_segment, branch)
        end = base.ended_at if reach is None else max(reach.until, base.ended_at)
        if reach is not None and reach.gap is not None:
            gaps[reach.gap.first] = reach.gap
        if spans and spans[-1].end >= base.ended_at:
            spans[-1] = Window(spans[-1].start, max(end, spans[-1].end), branch.timeline)
        else:
            spans.append(Window(base.ended_at, end, branch.timeline))
    return spans, list(gaps.values())


def _merge(stretches: list[Stretch]) -> list[Stretch]:
    merged: list[Stretch] = []
    for stretch in sorted(stretches, key=lambda stretch: (stretch.first, stretch.last)):
        if merged and stretch.first <= merged[-1].last + 1:
            held = merged[-1]
            newest = stretch if stretch.last > held.last else held
            merged[-1] = Stretch(held.first, newest.last, newest.closed_at)
        else:
            merged.append(stretch)
    return merged
