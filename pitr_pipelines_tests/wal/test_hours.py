"""An hour is a whole hour of UTC, whatever zone a moment is given in."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pitr_pipelines.wal.hours import Hour

moments = st.datetimes(
    datetime(1990, 1, 1),  # noqa: DTZ001  # hypothesis adds the zone
    datetime(2190, 1, 1),  # noqa: DTZ001
    timezones=st.integers(-840, 840).map(lambda minutes: timezone(timedelta(minutes=minutes))),
)


@given(moments)
def test_a_moment_lies_in_its_hour(moment: datetime) -> None:
    hour = Hour.containing(moment)
    assert hour.start <= moment < hour.end
    assert hour.end - hour.start == timedelta(hours=1)
    assert hour.start.tzinfo is UTC


@given(moments)
def test_an_hour_is_read_back_from_its_key(moment: datetime) -> None:
    hour = Hour.containing(moment)
    assert Hour.parse(str(hour)) == hour
    assert str(hour) == moment.astimezone(UTC).strftime("%Y-%m-%d-%H")


@given(moments, moments)
def test_keys_sort_as_hours_do(one: datetime, other: datetime) -> None:
    first, second = Hour.containing(one), Hour.containing(other)
    assert (first < second) == (str(first) < str(second))


@given(moments, st.integers(0, 50))
def test_hours_follow_each_other_without_a_gap(moment: datetime, count: int) -> None:
    first = Hour.containing(moment)
    last = first
    for _ in range(count):
        assert last.following().preceding() == last
        last = last.following()
    hours = list(first.until(last))
    assert len(hours) == count + 1
    assert all(one.end == other.start for one, other in pairwise(hours))
    assert list(last.following().until(first)) == []


@pytest.mark.parametrize(
    "key",
    ["", "2026-01-29", "2026-01-29-24", "2026-1-29-14", "2026-01-29-14 ", "2026-01-29-4", "26-01-29-14"],
)
def test_what_is_no_hour_is_refused(key: str) -> None:
    with pytest.raises(ValueError, match="is not an hour"):
        Hour.parse(key)


def test_an_hour_does_not_start_at_a_naive_time_or_amid_an_hour() -> None:
    with pytest.raises(ValueError, match="aware"):
        Hour(datetime(2026, 1, 29, 14))  # noqa: DTZ001
    with pytest.raises(ValueError, match="not the start of an hour"):
        Hour(datetime(2026, 1, 29, 14, 1, tzinfo=UTC))


def test_an_hour_of_a_zone_with_half_hours_is_still_one_of_utc() -> None:
    india = timezone(timedelta(hours=5, minutes=30))
    assert str(Hour.containing(datetime(2026, 1, 29, 14, 10, tzinfo=india))) == "2026-01-29-08"
