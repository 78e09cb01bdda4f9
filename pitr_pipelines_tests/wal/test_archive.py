"""Reading a WAL archive: what is in it is listed, what is not what it says it is is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from pitr_pipelines.errors import ArtifactDamaged
from pitr_pipelines.wal import archive
from pitr_pipelines.wal.lsn import Lsn, SegmentName, WalFileKind
from pitr_pipelines_tests.wal_files import (
    SEGMENT_SIZE,
    SYSTEM_IDENTIFIER,
    at,
    put_file,
    put_segment,
    segment,
    segment_bytes,
)


def test_an_archive_that_is_not_there_yet_is_empty(tmp_path: Path) -> None:
    assert archive.scan_archive(tmp_path / "wal") == []


def test_files_are_listed_by_name_with_kind_size_and_mtime_to_the_microsecond(tmp_path: Path) -> None:
    put_segment(tmp_path, segment(5), at(10, 1, 2.345678))
    put_file(tmp_path, "00000002.history", b"1\t0/300000\tx\n", at(11))
    put_file(tmp_path, f"{segment(4)}.00000028.backup", b"START", at(9))
    put_file(tmp_path, f"{segment(6)}.partial", segment_bytes(segment(6)), at(12))
    files = archive.scan_archive(tmp_path)
    assert [(file.name, file.kind, file.size_bytes, file.closed_at) for file in files] == [
        ("00000001" + "0" * 15 + "4.00000028.backup", WalFileKind.BACKUP, 5, at(9)),
        (str(segment(5)), WalFileKind.SEGMENT, SEGMENT_SIZE, at(10, 1, 2.345678)),
        (f"{segment(6)}.partial", WalFileKind.PARTIAL, SEGMENT_SIZE, at(12)),
        ("00000002.history", WalFileKind.HISTORY, 13, at(11)),
    ]


def test_links_directories_temporary_and_foreign_files_do_not_exist(tmp_path: Path) -> None:
    put_file(tmp_path, ".wal-archive.000000010000000000000005.9.tmp", b"x", at(9))
    put_file(tmp_path, "system_identifier", b"1\n", at(9))
    put_file(tmp_path, f"{segment(7)}.gz", b"x", at(9))
    (tmp_path / str(segment(8))).mkdir()
    (tmp_path / str(segment(9))).symlink_to(put_segment(tmp_path / "elsewhere", segment(9), at(9)))
    assert archive.scan_archive(tmp_path) == []


def test_a_header_says_whose_and_where_a_segment_is(tmp_path: Path) -> None:
    header = archive.read_header(put_segment(tmp_path, segment(5, timeline=3), at(9)))
    assert header == archive.SegmentHeader(SYSTEM_IDENTIFIER, SEGMENT_SIZE, 3, Lsn(5 * SEGMENT_SIZE))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        segment_bytes(segment(5))[:39],
        bytes(SEGMENT_SIZE),
        b"\x1f\x8b" + bytes(100),
        segment_bytes(segment(5))[:32] + (3 << 20).to_bytes(4, "little") + bytes(100),
    ],
    ids=["empty", "cut", "zeros", "gzip", "odd segment size"],
)
def test_what_does_not_begin_like_a_segment_is_named(tmp_path: Path, content: bytes) -> None:
    path = put_file(tmp_path, str(segment(5)), content, at(9))
    with pytest.raises(ArtifactDamaged, match=str(segment(5))):
        archive.read_header(path)


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        (segment(5), segment_bytes(segment(6)), "holds the WAL from 0/600000, not from 0/500000"),
        (segment(5), segment_bytes(segment(5))[:-1], "has 1048575 bytes where its header says 1048576"),
        (segment(5), segment_bytes(segment(5)) + b"x", "has 1048577 bytes"),
        (segment(5), segment_bytes(segment(5, 2)), "was written on timeline 2"),
    ],
    ids=["misnamed", "truncated", "too long", "later timeline"],
)
def test_a_segment_that_is_not_what_its_name_says_is_named(
    tmp_path: Path, name: SegmentName, content: bytes, problem: str
) -> None:
    path = put_file(tmp_path, str(name), content, at(9))
    with pytest.raises(ArtifactDamaged, match=f"{name} {problem}"):
        archive.check_segment(archive.read_header(path), path, len(content))


def test_a_segment_copied_at_a_switch_may_keep_its_ancestors_number(tmp_path: Path) -> None:
    path = put_segment(tmp_path, segment(5, timeline=2), at(9), written_on=1)
    archive.check_segment(archive.read_header(path), path, SEGMENT_SIZE)


def test_a_history_may_hold_a_restore_points_name_in_any_encoding(tmp_path: Path) -> None:
    path = put_file(tmp_path, "00000002.history", b'1\t0/300000\tat restore point "\xfcber"\n', at(9))
    assert archive.read_history(path).includes(1, Lsn(0x2FFFFF))


def test_what_is_no_history_is_named(tmp_path: Path) -> None:
    path = put_file(tmp_path, "00000002.history", b"\0\0\0\0", at(9))
    with pytest.raises(ArtifactDamaged, match=r"00000002\.history is not a timeline history"):
        archive.read_history(path)


def test_the_archives_own_file_says_whose_it_is_else_its_first_readable_segment(tmp_path: Path) -> None:
    assert archive.owner(tmp_path, []) is None
    put_file(tmp_path, str(segment(4)), b"cut", at(9))
    put_segment(tmp_path, segment(5), at(9))
    assert archive.owner(tmp_path, archive.scan_archive(tmp_path)) == SYSTEM_IDENTIFIER
    put_file(tmp_path, archive.IDENTITY_FILE, b"42\n", at(9))
    assert archive.owner(tmp_path, archive.scan_archive(tmp_path)) == "42"
