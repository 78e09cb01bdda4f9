"""Which hour a segment belongs to does not depend on what was bundled first."""

from __future__ import annotations

from datetime import datetime

from hypothesis import given
from hypothesis import strategies as st

from pitr_pipelines.wal.assignment import Fixed, assign_hours
from pitr_pipelines.wal.hours import Hour
from pitr_pipelines.wal.lsn import SegmentName
from pitr_pipelines_tests.wal_files import at, hour_of, segment

minutes = st.integers(0, 8 * 60 - 1)
archives = st.dictionaries(
    st.builds(segment, st.integers(1, 40), st.integers(1, 2)), minutes.map(lambda m: at(8, m)), max_size=25
)
"""Segments with any mtimes at all: clocks that are stepped back and forward make these."""
seals = st.lists(
    st.builds(
        lambda number, hour: Fixed(segment(number), hour_of(hour)), st.integers(1, 40), st.integers(8, 15)
    ),
    max_size=4,
)


@given(archives, seals)
def test_hours_never_go_back_on_a_timeline(
    closed_at: dict[SegmentName, datetime], fixed: list[Fixed]
) -> None:
    hours = assign_hours(closed_at, fixed)
    assert hours.keys() == closed_at.keys()
    for timeline in (1, 2):
        assigned = [hours[name] for name in sorted(hours) if name.timeline == timeline]
        assert assigned == sorted(assigned)


@given(archives)
def test_with_a_steady_clock_a_segment_belongs_to_the_hour_in_which_it_was_closed(
    closed_at: dict[SegmentName, datetime],
) -> None:
    for timeline in (1, 2):
        names = sorted(name for name in closed_at if name.timeline == timeline)
        moments = sorted(closed_at[name] for name in names)
        closed_at.update(zip(names, moments, strict=True))
    hours = assign_hours(closed_at, [])
    assert hours == {name: Hour.containing(moment) for name, moment in closed_at.items()}


@given(archives, seals)
def test_a_seal_pulls_everything_before_it_into_its_hour_at_the_latest(
    closed_at: dict[SegmentName, datetime], fixed: list[Fixed]
) -> None:
    hours = assign_hours(closed_at, fixed)
    for seal in fixed:
        assert all(hours[name] <= seal.hour for name in hours if name.timeline == 1 and name <= seal.segment)


@given(archives, seals, st.data())
def test_segments_that_were_bundled_and_removed_leave_the_others_where_they_were(
    closed_at: dict[SegmentName, datetime], fixed: list[Fixed], data: st.DataObject
) -> None:
    before = assign_hours(closed_at, fixed)
    bundled = data.draw(st.sets(st.sampled_from(sorted(set(before.values())))) if before else st.just(set()))
    gone = {name for name, hour in before.items() if hour in bundled}
    closed = []
    for timeline in (1, 2):
        for hour in bundled:
            held = sorted(name for name in gone if before[name] == hour and name.timeline == timeline)
            closed += [Fixed(name, hour) for name in held[:1] + held[-1:]]
    left = {name: moment for name, moment in closed_at.items() if name not in gone}
    after = assign_hours(left, [*fixed, *closed])
    assert after == {name: before[name] for name in left}


@given(
    archives,
    st.dictionaries(st.builds(segment, st.integers(1, 40), st.just(9)), minutes.map(lambda m: at(1, m))),
)
def test_a_stray_timeline_does_not_move_the_segments_of_another(
    closed_at: dict[SegmentName, datetime], stray: dict[SegmentName, datetime]
) -> None:
    with_stray = assign_hours({**closed_at, **stray}, [Fixed(segment(7, 9), hour_of(2))])
    assert {name: with_stray[name] for name in closed_at} == assign_hours(closed_at, [])


def test_a_clock_that_was_ahead_keeps_later_segments_in_its_hour_until_time_has_caught_up() -> None:
    closed_at = {
        segment(1): at(10, 50),
        segment(2): at(12, 10),  # the clock was ahead
        segment(3): at(11, 5),
        segment(4): at(11, 55),
        segment(5): at(12, 30),
        segment(6): at(13, 1),
    }
    hours = assign_hours(closed_at, [])
    assert [hours[segment(n)].start.hour for n in range(1, 7)] == [10, 12, 12, 12, 12, 13]


def test_a_segment_closed_just_after_the_hour_but_before_its_seal_belongs_to_it() -> None:
    closed_at = {
        segment(1): at(10, 59),
        segment(2): at(11, 0, 30),
        segment(3): at(11, 1),
        segment(4): at(11, 2),
    }
    hours = assign_hours(closed_at, [Fixed(segment(3), hour_of(10))])
    assert [hours[segment(n)].start.hour for n in range(1, 5)] == [10, 10, 10, 11]
