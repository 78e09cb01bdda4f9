"""Windows and gaps are what one finds by walking from segment to segment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from pitr_pipelines.catalog.coverage import CLOCK_MARGIN, Coverage, Gap, Reach, Window, windows
from pitr_pipelines.catalog.records import BaseRecord, SealRecord, WalRun
from pitr_pipelines.wal.lsn import Lsn, SegmentName
from pitr_pipelines.wal.timelines import TimelineHistory
from pitr_pipelines_tests.wal_files import (
    SEGMENT_SIZE,
    at,
    base_record,
    runs_of,
    seal_record,
    segment,
)

LAST = 30


@dataclass(frozen=True)
class World:
    """Segments one by one, bases, seals, and the branch that is asked for."""

    closed_at: Mapping[SegmentName, datetime]
    bases: Sequence[BaseRecord]
    seals: Sequence[SealRecord]
    branch: TimelineHistory
    switch: int | None

    def coverage(self, runs: Sequence[WalRun] | None = None) -> Coverage:
        return Coverage.of(
            runs_of(self.closed_at) if runs is None else runs,
            SEGMENT_SIZE,
            bases=self.bases,
            seals=self.seals,
        )

    def path(self, base: BaseRecord) -> list[SegmentName]:
        """Return the names recovery would ask for from a base on, one after the other."""
        first = base.start_lsn // SEGMENT_SIZE
        return [
            segment(n, 1 if self.switch is not None and n < self.switch else self.branch.timeline)
            for n in range(first, LAST + 12)
        ]

    def exists(self, name: SegmentName) -> bool:
        return name in self.closed_at or any(
            base.timeline == name.timeline and base.first_segment <= name <= base.last_segment
            for base in self.bases
        )


def closed_at_of(number: int) -> datetime:
    """A segment every five minutes, an idle stretch in the middle."""
    return at(8, 5 * number + (120 if number > 15 else 0))


@st.composite
def worlds(draw: st.DrawFn) -> World:
    switch = draw(st.none() | st.integers(5, 25))
    timelines = (1,) if switch is None else (1, 2)
    closed_at: dict[SegmentName, datetime] = {}
    for timeline in timelines:
        missing = draw(st.sets(st.integers(1, LAST), max_size=4))
        begin, end = (switch or 1, LAST) if timeline == 2 else (1, draw(st.integers(1, LAST)))
        closed_at |= {
            segment(n, timeline): closed_at_of(n) + timedelta(seconds=timeline)
            for n in range(begin, end + 1)
            if n not in missing
        }
    bases = []
    for first in sorted(draw(st.sets(st.integers(1, LAST), max_size=3))):
        last = first + draw(st.integers(0, 2))
        timeline = 2 if switch is not None and first >= switch else 1
        ended_at = closed_at_of(last) + timedelta(seconds=timeline)
        bases.append(base_record(first, last, ended_at, timeline=timeline))
    seals = []
    for number in sorted(draw(st.sets(st.integers(1, LAST), max_size=3))):
        for timeline in timelines:
            if segment(number, timeline) in closed_at:
                moment = closed_at[segment(number, timeline)] - timedelta(milliseconds=100)
                seals.append(seal_record(8, number, moment, timeline))
    branch = TimelineHistory(1)
    if switch is not None:
        branch = TimelineHistory.parse(2, f"1\t{Lsn(switch * SEGMENT_SIZE + 0x500)}\tx\n")
    return World(closed_at, bases, seals, branch, switch)


def walk(world: World, base: BaseRecord) -> tuple[SegmentName, Gap | None] | None:
    """Go from segment to segment; return the last one there is, and what is missing behind it."""
    path = world.path(base)
    there = [world.exists(name) for name in path]
    if not there[0]:
        return None
    length = there.index(False)
    if True not in there[length:]:
        return path[length - 1], None
    again = there.index(True, length)
    return path[length - 1], Gap(path[length], path[again - 1])


@given(worlds())
def test_the_chain_from_a_base_is_the_one_found_by_walking(world: World) -> None:
    for base in world.bases:
        if world.branch.includes(base.timeline, base.end_lsn):
            reach = world.coverage().reach(base.first_segment, world.branch)
            assert (reach and (reach.last, reach.gap)) == walk(world, base)


@given(worlds())
def test_windows_claim_no_more_than_the_last_segments_of_their_chains_prove(world: World) -> None:
    """What the end of a chain proves: its last write less the margin, a seal in it, or its base's end."""
    spans, gaps = windows(world.bases, world.coverage(), world.branch)
    assert all(one.end < other.start for one, other in pairwise(spans))
    starts = {base.ended_at for base in world.bases}
    walks = {}
    for base in world.bases:
        if world.branch.includes(base.timeline, base.end_lsn) and (found := walk(world, base)):
            walks[base.ended_at] = (base, *found)
    assert {gap for *_, gap in walks.values() if gap} == set(gaps)
    for span in spans:
        assert span.start in starts
        base, last, _ = walks[max(ended for ended in walks if ended <= span.end)]
        proofs = [base.ended_at]
        for name in world.path(base)[
            : last.number(SEGMENT_SIZE) - base.first_segment.number(SEGMENT_SIZE) + 1
        ]:
            if name in world.closed_at:
                proofs.append(world.closed_at[name] - CLOCK_MARGIN)
            proofs += [seal.at for seal in world.seals if seal.segment == name]
            proofs += [b.started_at for b in world.bases if b.first_segment <= name <= b.last_segment]
        assert span.end <= max(proofs)
    for ended in walks:
        assert any(span.start <= ended <= span.end for span in spans)


@given(worlds(), st.data())
def test_how_segments_are_grouped_into_runs_does_not_matter(world: World, data: st.DataObject) -> None:
    names = sorted(world.closed_at)
    cuts = sorted(data.draw(st.sets(st.integers(0, len(names)), max_size=8)) | {0, len(names)})
    runs: list[WalRun] = []
    for begin, end in pairwise(cuts):
        runs += runs_of({name: world.closed_at[name] for name in names[begin:end]})
    data.draw(st.permutations(runs)) if len(runs) < 8 else runs.reverse()
    whole = windows(world.bases, world.coverage(), world.branch)
    assert windows(world.bases, world.coverage(runs), world.branch) == whole
    assert windows(world.bases, world.coverage([*runs, *runs]), world.branch) == whole


def test_a_window_goes_from_the_end_of_a_base_to_just_before_the_last_write() -> None:
    base = base_record(3, 4, at(3))
    runs = runs_of({segment(n): at(3, n) for n in range(1, 9)})
    coverage = Coverage.of(runs, SEGMENT_SIZE, bases=[base])
    assert windows([base], coverage, TimelineHistory(1)) == (
        [Window(at(3), at(3, 8) - CLOCK_MARGIN, 1)],
        [],
    )


def test_a_base_alone_is_a_window_of_one_moment() -> None:
    base = base_record(3, 4, at(3))
    coverage = Coverage.of([], SEGMENT_SIZE, bases=[base])
    assert windows([base], coverage, TimelineHistory(1)) == ([Window(at(3), at(3), 1)], [])


def test_a_seal_proves_its_moment_though_its_segment_was_closed_just_then() -> None:
    base = base_record(3, 4, at(3))
    runs = runs_of({segment(n): at(4, 0, 0.05) for n in range(3, 6)})
    coverage = Coverage.of(runs, SEGMENT_SIZE, bases=[base], seals=[seal_record(3, 5, at(4))])
    assert windows([base], coverage, TimelineHistory(1))[0] == [Window(at(3), at(4), 1)]


def test_what_only_another_base_carries_proves_no_more_than_that_bases_beginning() -> None:
    bases = [base_record(3, 3, at(3)), base_record(4, 5, at(9), took=timedelta(minutes=20))]
    coverage = Coverage.of([], SEGMENT_SIZE, bases=bases)
    assert windows(bases, coverage, TimelineHistory(1))[0] == [
        Window(at(3), at(8, 40), 1),
        Window(at(9), at(9), 1),
    ]


def test_a_gap_at_the_end_of_a_timeline_is_a_gap_though_only_the_next_one_goes_on() -> None:
    """Else the latest moment would silently be one before the switch."""
    branch = TimelineHistory.parse(2, f"1\t{Lsn(10 * SEGMENT_SIZE + 5)}\tx\n")
    base = base_record(1, 1, at(3))
    runs = runs_of(
        {segment(n): at(3, n) for n in range(1, 6)} | {segment(n, 2): at(4, n) for n in range(10, 13)}
    )
    coverage = Coverage.of(runs, SEGMENT_SIZE, bases=[base])
    assert coverage.reach(base.first_segment, branch) == Reach(
        segment(5), at(3, 5) - CLOCK_MARGIN, Gap(segment(6), segment(9))
    )


def test_a_gap_at_the_beginning_of_a_timeline_is_a_gap() -> None:
    branch = TimelineHistory.parse(2, f"1\t{Lsn(6 * SEGMENT_SIZE + 5)}\tx\n")
    base = base_record(1, 1, at(3))
    runs = runs_of(
        {segment(n): at(3, n) for n in range(1, 9)} | {segment(n, 2): at(4, n) for n in range(8, 10)}
    )
    reach = Coverage.of(runs, SEGMENT_SIZE, bases=[base]).reach(base.first_segment, branch)
    assert reach == Reach(segment(5), None, Gap(segment(6, 2), segment(7, 2)))


def test_beyond_a_switch_the_old_timelines_later_wal_does_not_count() -> None:
    branch = TimelineHistory.parse(2, f"1\t{Lsn(6 * SEGMENT_SIZE + 5)}\tx\n")
    bases = [base_record(1, 1, at(3)), base_record(8, 8, at(3, 30), timeline=1)]
    runs = runs_of(
        {segment(n): at(3, n) for n in range(1, 20)} | {segment(n, 2): at(4, n) for n in range(6, 8)}
    )
    coverage = Coverage.of(runs, SEGMENT_SIZE, bases=bases)
    assert windows(bases, coverage, branch)[0] == [Window(at(3), at(4, 7) - CLOCK_MARGIN, 2)]


def test_each_timeline_was_last_written_when_its_newest_file_was() -> None:
    runs = runs_of({segment(n): at(9, 50 - n) for n in (1, 2, 4)} | {segment(3, 2): at(9, 30)})
    assert Coverage.of(runs, SEGMENT_SIZE).last_written() == {1: at(9, 48), 2: at(9, 30)}
    assert Coverage.of([], SEGMENT_SIZE).last_written() == {}
