"""A branch of history is what PostgreSQL takes it to be: which bytes of which timeline are its past."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pitr_pipelines.catalog.coverage import sections
from pitr_pipelines.wal.lsn import Lsn
from pitr_pipelines.wal.timelines import TimelineHistory, history_file_name

MIB = 1024 * 1024


@st.composite
def histories(draw: st.DrawFn) -> tuple[int, list[tuple[int, int]], str]:
    """A history as PostgreSQL may write it, and its text, with comments and reasons."""
    numbers = sorted(draw(st.sets(st.integers(1, 40), min_size=1, max_size=6)))
    switches = [draw(st.integers(1, 20 * MIB)) for _ in numbers[:-1]]
    entries = list(zip(numbers[:-1], switches, strict=True))
    lines = []
    for timeline, lsn in entries:
        reason = draw(st.sampled_from(["no recovery target specified", "before 2026-01-29 #1", ""]))
        lines.append(f"{timeline}\t{Lsn(lsn)}\t{reason}\n")
        lines.append(draw(st.sampled_from(["", "\n", "# a comment\n", "  # 9\t0/1\tanother\n"])))
    return numbers[-1], entries, "".join(lines)


def timeline_at_as_postgres_says(timeline: int, entries: list[tuple[int, int]], lsn: int) -> int:
    """A transcript of tliOfPointInHistory() in timeline.c, which looks from the newest on."""
    begins = [0] + [switch for _, switch in entries]
    ends: list[int | None] = [*[switch for _, switch in entries], None]
    numbers = [number for number, _ in entries] + [timeline]
    for number, begin, end in reversed(list(zip(numbers, begins, ends, strict=True))):
        if begin <= lsn and (end is None or lsn < end):
            return number
    raise AssertionError("not in history")


@given(histories(), st.integers(0, 22 * MIB))
def test_each_byte_is_on_the_timeline_that_postgres_says(
    history: tuple[int, list[tuple[int, int]], str], lsn: int
) -> None:
    timeline, entries, text = history
    branch = TimelineHistory.parse(timeline, text)
    expected = timeline_at_as_postgres_says(timeline, entries, lsn)
    assert branch.timeline_at(Lsn(lsn)) == expected
    assert branch.includes(expected, Lsn(lsn))
    later = [number for number, _ in entries if number < expected]
    assert not any(branch.includes(number, Lsn(lsn)) for number in later)
    assert not branch.includes(41, Lsn(lsn))


@given(histories(), st.integers(0, 22))
def test_each_segment_is_read_from_the_timeline_that_has_the_whole_of_it(
    history: tuple[int, list[tuple[int, int]], str], number: int
) -> None:
    timeline, entries, text = history
    branch = TimelineHistory.parse(timeline, text)
    parts = sections(branch, branch.ancestors[0].timeline if branch.ancestors else timeline, MIB)
    holding = [p for p in parts if p.first <= number and (p.last is None or number <= p.last)]
    # The branch's last byte in the segment decides: up to there, its copy holds the earlier ones too.
    expected = timeline_at_as_postgres_says(timeline, entries, number * MIB + MIB - 1)
    assert [part.timeline for part in holding] == [expected]


def test_sections_from_a_timeline_that_is_not_on_the_branch_are_refused() -> None:
    with pytest.raises(KeyError):
        sections(TimelineHistory.parse(3, "1\t0/300000\tx\n"), 2, MIB)


def test_last_lsn_of_the_timeline_itself_is_open() -> None:
    branch = TimelineHistory.parse(3, "1\t0/300000\tx\n2\t0/500000\tx\n")
    assert branch.last_lsn_of(3) is None
    assert branch.last_lsn_of(1) == Lsn(0x300000)
    with pytest.raises(KeyError):
        branch.last_lsn_of(9)


def test_a_recovery_that_ended_before_the_switch_it_followed_left_the_older_timeline_there() -> None:
    # What PostgreSQL writes when it follows timeline 2, stops before its beginning, and becomes 3.
    branch = TimelineHistory.parse(3, "1\t0/5000000\tx\n\n2\t0/3000000\tbefore 2026-01-29\n")
    assert not branch.includes(1, Lsn(0x4000000))
    assert branch.includes(1, Lsn(0x2FFFFFF))
    assert branch.timeline_at(Lsn(0x4000000)) == 3


@pytest.mark.parametrize(
    "text",
    [
        "one\t0/3000000\tx",
        "1",
        "1\t3000000",
        "2\t0/1\tx\n1\t0/2\tx",
        "4\t0/1\tx",
        "5\t0/1\tx",
    ],
)
def test_what_is_no_history_of_timeline_4_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        TimelineHistory.parse(4, text)


def test_history_files_are_named_in_hexadecimal() -> None:
    assert history_file_name(26) == "0000001A.history"
