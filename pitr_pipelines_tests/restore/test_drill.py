"""What a drill decides without a server: its moment, and whether an answer is the one expected."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pitr_pipelines.catalog.coverage import Window
from pitr_pipelines.restore.drill import choose_moment
from pitr_pipelines.restore.drill_checks import fits

START = datetime(2026, 1, 1, tzinfo=UTC)
BOOLEAN, OTHER = 16, 20


@st.composite
def some_windows(draw: st.DrawFn) -> list[Window]:
    """Windows in order that do not overlap, some of them a single moment."""
    found, at = [], START
    for gap, length in draw(st.lists(st.tuples(st.integers(1, 10**6), st.integers(0, 10**6)), max_size=4)):
        start = at + timedelta(seconds=gap)
        at = start + timedelta(seconds=length)
        found.append(Window(start, at, 1))
    return found


@given(some_windows(), st.integers(0, 2**32), st.integers(0, 10**7))
def test_a_drawn_moment_is_in_a_window_not_in_the_future_and_the_same_again(
    windows: list[Window], seed: int, age: int
) -> None:
    now = START + timedelta(seconds=age)
    moment = choose_moment(windows, seed, now=now)
    begun = [window for window in windows if window.start <= now]
    if moment is None:
        assert not begun
        return
    assert any(window.start <= moment <= window.end for window in begun)
    assert moment <= now
    assert moment == choose_moment(windows, seed, now=now)


def test_every_part_of_every_window_is_drawn() -> None:
    hour = timedelta(hours=1)
    windows = [Window(START, START + hour, 1), Window(START + 5 * hour, START + 6 * hour, 1)]
    drawn = [choose_moment(windows, seed, now=START + 9 * hour) for seed in range(200)]
    quarters = {(moment - START) // (hour / 4) for moment in drawn if moment is not None}
    assert quarters == {0, 1, 2, 3, 20, 21, 22, 23}


@pytest.mark.parametrize(
    ("value", "type_oid", "expected", "good"),
    [
        (b"t", BOOLEAN, True, True),
        (b"f", BOOLEAN, True, False),
        (b"f", BOOLEAN, False, True),
        (b"1", OTHER, True, False),
        (b"t", OTHER, True, False),
        (b"10", OTHER, 10, True),
        (b"10.00", OTHER, 10, True),
        (b"0.1", OTHER, 0.1, True),
        (b"11", OTHER, 10, False),
        (b"ten", OTHER, 10, False),
        (b"t", BOOLEAN, 1, False),
        (b"2026-01-29", OTHER, "2026-01-29", True),
        (b"", OTHER, "", True),
        (None, OTHER, "", False),
        (None, BOOLEAN, False, False),
    ],
)
def test_an_answer_is_compared_as_what_is_expected(
    value: bytes | None, type_oid: int, expected: bool | int | float | str, good: bool
) -> None:
    assert fits(value, type_oid, expected) is good
