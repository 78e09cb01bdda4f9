"""Timelines that nobody has had, and what a server that takes its original's place has to archive."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from pitr_pipelines.catalog.inventory import Inventory
from pitr_pipelines.restore.in_place_wal import (
    decide_status,
    highest_timeline,
    mark_for_archiver,
    reserve_timelines,
)
from pitr_pipelines.wal.lsn import Lsn, SegmentName

SIZE = 16 * 1024**2
NOTHING = Inventory("order-db", (), (), (), {}, ())


def name(number: int, timeline: int) -> str:
    return str(SegmentName.numbered(number, timeline, SIZE))


def test_the_highest_timeline_counts_wherever_it_is_known() -> None:
    assert highest_timeline(NOTHING, [], {}) == 1
    assert highest_timeline(NOTHING, [name(3, 2), "00000005.history", "archive_status"], {}) == 5
    assert highest_timeline(NOTHING, [f"{name(3, 6)}.partial"], {"Latest checkpoint's TimeLineID": "4"}) == 6
    assert highest_timeline(NOTHING, [], {"Latest checkpoint's TimeLineID": "4"}) == 4
    assert highest_timeline(NOTHING, [], {"Latest checkpoint's TimeLineID": "destroyed"}) == 1


def test_timelines_are_reserved_without_a_hole_and_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "00000003.history").write_text("1\t0/3000000\n")
    made = reserve_timelines(tmp_path, 1, 4)
    assert [path.name for path in made] == ["00000002.history", "00000004.history"]
    assert (tmp_path / "00000003.history").read_text() == "1\t0/3000000\n"
    assert reserve_timelines(tmp_path, 4, 4) == []


@given(
    st.lists(st.tuples(st.integers(1, 60), st.integers(1, 4)), unique=True),
    st.integers(1, 4),
    st.integers(0, 60 * SIZE),
)
def test_only_what_the_new_timeline_has_filled_is_archived(
    segments: list[tuple[int, int]], timeline: int, written_to: int
) -> None:
    names = [name(number, on) for number, on in segments]
    status = decide_status(names, timeline, Lsn(written_to), SIZE)
    assert not status.ready & status.done
    for (number, on), file in zip(segments, names, strict=True):
        assert (file in status.done) == (on != timeline)
        assert (file in status.ready) == (on == timeline and (number + 1) * SIZE <= written_to)


def test_the_new_timelines_history_is_archived_and_that_of_others_is_not() -> None:
    names = ["00000002.history", "00000003.history", f"{name(3, 1)}.00000028.backup", "archive_status"]
    status = decide_status(names, 3, Lsn(3 * SIZE + 40), SIZE)
    assert status.ready == {"00000003.history"}
    assert status.done == {"00000002.history", f"{name(3, 1)}.00000028.backup"}


def test_marks_left_by_the_source_are_replaced(tmp_path: Path) -> None:
    directory = tmp_path / "archive_status"
    directory.mkdir()
    (directory / f"{name(3, 1)}.ready").touch()
    marks = mark_for_archiver(tmp_path, decide_status([name(3, 1), name(3, 2)], 2, Lsn(4 * SIZE), SIZE))
    assert sorted(path.name for path in directory.iterdir()) == sorted(path.name for path in marks)
    assert {path.name for path in marks} == {f"{name(3, 1)}.done", f"{name(3, 2)}.ready"}
