"""Which stretches of WAL exist, on which branch of history, and so which moments can be reached.

Pure functions over runs of segments: nothing here reads a disk. Whatever the number of segments,
the work grows with the number of runs, which is one or two an hour.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from pitr_pipelines.catalog.records import BaseRecord, SealRecord, WalRun
from pitr_pipelines.wal.lsn import SegmentName
from pitr_pipelines.wal.timelines import TimelineHistory

CLOCK_MARGIN = timedelta(seconds=1)
"""A file's mtime may lag the server's clock by a kernel tick, and follow the last write by as long as
that took; no conclusion is drawn from differences smaller than this."""


@dataclass(frozen=True, slots=True)
class Stretch:
    """Consecutive segments by running number, and when the server closed the last one.

    `until` is the moment up to which their end proves that nothing committed is missing.
    """

    first: int
    last: int
    closed_at: datetime
    until: datetime
    in_base: bool = False
    """Whether the last segment is known only from a base backup."""


@dataclass(frozen=True, slots=True)
class Gap:
    """Segments that are missing although later ones of the same branch exist."""

    first: SegmentName
    last: SegmentName


@dataclass(frozen=True, slots=True)
class Reach:
    """How far an unbroken chain goes: its last segment, its end in time, and the gap behind it.

    `until` is None where that is not known: the branch leaves a timeline amid segments of one run.
    """

    last: SegmentName
    until: datetime | None
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
    def of(
        cls,
        runs: Iterable[WalRun],
        segment_size: int,
        *,
        bases: Iterable[BaseRecord] = (),
        seals: Iterable[SealRecord] = (),
    ) -> Coverage:
        """Merge runs, in any order and overlapping as they may, and the WAL that bases carry.

        A segment is archived when the server has filled it or switched away from it, and no commit
        behind it is acknowledged before its last write; so whatever a client knew to be committed by
        then is in it or in those before. A seal proves its own moment.
        """
        by_timeline: dict[int, list[Stretch]] = defaultdict(list)
        sealed = sorted((seal.segment, seal.at) for seal in seals)
        for run in runs:
            until = run.closed_at - CLOCK_MARGIN
            for index in range(bisect_left(sealed, run.first, key=lambda s: s[0]), len(sealed)):
                if sealed[index][0] > run.last:
                    break
                until = max(until, sealed[index][1])
            first, last = run.first.number(segment_size), run.last.number(segment_size)
            by_timeline[run.timeline].append(Stretch(first, last, run.closed_at, until))
        for base in bases:
            first, last = base.first_segment.number(segment_size), base.last_segment.number(segment_size)
            by_timeline[base.timeline].append(
                Stretch(first, last, base.ended_at, base.started_at, in_base=True)
            )
        return cls(segment_size, {timeline: _merge(found) for timeline, found in by_timeline.items()})

    def last_written(self) -> dict[int, datetime]:
        """Return when each timeline was last written to, as far as that is known."""
        return {
            timeline: max(stretch.closed_at for stretch in found)
            for timeline, found in self.stretches.items()
        }

    def stretch_with(self, timeline: int, number: int) -> Stretch | None:
        """Return the stretch that holds a segment, or None."""
        found = self.stretches.get(timeline, ())
        index = bisect_right(found, number, key=lambda stretch: stretch.first) - 1
        return found[index] if index >= 0 and found[index].last >= number else None

    def first_from(self, timeline: int, number: int) -> int | None:
        """Return the first existing segment number on a timeline that is not below `number`."""
        if self.stretch_with(timeline, number) is not None:
            return number
        found = self.stretches.get(timeline, ())
        index = bisect_right(found, number, key=lambda stretch: stretch.first)
        return found[index].first if index < len(found) else None

    def reach(self, start: SegmentName, branch: TimelineHistory) -> Reach | None:
        """Follow a branch from `start` as far as the chain is unbroken; None if `start` is missing."""
        position = start.number(self.segment_size)
        reached: Reach | None = None
        parts = sections(branch, start.timeline, self.segment_size)
        for index, section in enumerate(parts):
            if section.last is not None and section.last < position:
                continue
            stretch = self.stretch_with(section.timeline, position)
            if stretch is None:
                return self._broken(reached, parts[index:], position)
            last = stretch.last if section.last is None else min(stretch.last, section.last)
            until = stretch.until if last == stretch.last else None
            reached = Reach(self._name(last, section.timeline), until, None)
            position = last + 1
            if section.last is None or last < section.last:
                return self._broken(reached, parts[index:], position)
        return reached

    def _broken(self, reached: Reach | None, rest: Sequence[Section], missing: int) -> Reach | None:
        """Name the gap behind what was reached, if the branch goes on after it."""
        if reached is None:
            return None
        before = rest[0].timeline
        for section in rest:
            following = self.first_from(section.timeline, max(missing, section.first))
            if following is not None and (section.last is None or following <= section.last):
                ends_on = section.timeline if following > section.first else before
                gap = Gap(self._name(missing, rest[0].timeline), self._name(following - 1, ends_on))
                return Reach(reached.last, reached.until, gap)
            if section.last is not None and section.last >= section.first:
                before = section.timeline
        return reached

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
        if reach is None:
            continue
        end = max(reach.until or base.ended_at, base.ended_at)
        if reach.gap is not None:
            gaps[reach.gap.first] = reach.gap
        if spans and spans[-1].end >= base.ended_at:
            # Moments from here on are restored from this base, so its chain alone says until when.
            spans[-1] = Window(spans[-1].start, end, branch.timeline)
        else:
            spans.append(Window(base.ended_at, end, branch.timeline))
    return spans, list(gaps.values())


def follow(start: SegmentName, coverage: Coverage, branch: TimelineHistory) -> list[Gap]:
    """Return every gap on a branch from `start` on, oldest first.

    Raises KeyError if the timeline of `start` is not on the branch.
    """
    found: list[Gap] = []
    reach = coverage.reach(start, branch)
    while reach is not None and reach.gap is not None:
        found.append(reach.gap)
        reach = coverage.reach(reach.gap.last.following(coverage.segment_size), branch)
    return found


def _merge(stretches: list[Stretch]) -> list[Stretch]:
    merged: list[Stretch] = []
    for stretch in sorted(stretches, key=lambda stretch: (stretch.first, stretch.last)):
        if merged and stretch.first <= merged[-1].last + 1:
            merged[-1] = _joined(merged[-1], stretch)
        else:
            merged.append(stretch)
    return merged


def _joined(held: Stretch, other: Stretch) -> Stretch:
    """Join two stretches that touch; `held` does not begin later."""
    if held.last == other.last:
        # A file's own mtime says more than the end of a backup that carries the segment too.
        tail = other if held.in_base and not other.in_base else held
        until = max(held.until, other.until)
    elif other.last > held.last:
        tail = other
        until = max(held.until, other.until) if other.in_base else other.until
    else:
        tail = held
        until = max(held.until, other.until) if held.in_base else held.until
    return Stretch(held.first, tail.last, tail.closed_at, until, tail.in_base)
