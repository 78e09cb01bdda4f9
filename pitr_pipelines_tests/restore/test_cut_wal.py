"""After a cut nothing is left of the WAL from there on, and all that comes before is as it was."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pitr_pipelines.postgres.account import Account
from pitr_pipelines.postgres.binaries import Binaries
from pitr_pipelines.restore.cut_wal import LocalWal
from pitr_pipelines.wal.lsn import Lsn, SegmentName

MIB = 1024 * 1024
FIRST = 4095
"""A segment of 1 MiB just before the log's number goes up."""
OURSELVES = Account(os.getuid(), os.getgid(), "ourselves", switch=False)


def make_wal(directory: Path, segments: int, timeline: int = 1) -> dict[int, bytes]:
    """Write segments of which every byte is set; return their content by number."""
    content = {}
    for number in range(FIRST, FIRST + segments):
        content[number] = bytes([number % 255 + 1]) * MIB
        (directory / str(SegmentName.numbered(number, timeline, MIB))).write_bytes(content[number])
    return content


@given(offset=st.integers(0, 4 * MIB))
def test_what_comes_before_the_cut_stays_and_nothing_else(
    offset: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    directory = tmp_path_factory.mktemp("wal")
    content = make_wal(directory, 4)
    history = directory / "00000002.history"
    history.write_text("1\t0/3000000\tno reason\n")
    boundary = Lsn(FIRST * MIB + offset)

    binaries = Binaries(directory, 15, "15.0")
    LocalWal(directory, binaries, OURSELVES, MIB).cut(boundary)

    left = {path.name: path.read_bytes() for path in directory.iterdir()}
    assert left.pop(history.name) == history.read_bytes()
    expected = {}
    for number, whole in content.items():
        kept = whole[: max(0, boundary - number * MIB)]
        if kept:
            expected[str(SegmentName.numbered(number, 1, MIB))] = kept.ljust(MIB, b"\0")
    assert left == expected


def test_every_timelines_copy_of_the_segment_is_cut(tmp_path: Path) -> None:
    make_wal(tmp_path, 1)
    make_wal(tmp_path, 2, timeline=2)

    LocalWal(tmp_path, Binaries(tmp_path, 15, "15.0"), OURSELVES, MIB).cut(Lsn(FIRST * MIB + 8192))

    names = {str(SegmentName.numbered(FIRST, timeline, MIB)) for timeline in (1, 2)}
    assert {path.name for path in tmp_path.iterdir()} == names
    assert all(path.read_bytes()[8192:] == bytes(MIB - 8192) for path in tmp_path.iterdir())
