"""LSNs and segment names are computed as PostgreSQL computes them, for every segment size."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from pitr_pipelines.wal.lsn import Lsn, SegmentName, WalFileKind, check_segment_size, classify

sizes = st.sampled_from([2**power for power in range(20, 31)])
lsns = st.integers(0, 2**64 - 2**31).map(Lsn)
timelines = st.integers(1, 2**32 - 1)


@given(st.integers(0, 2**64 - 1).map(Lsn))
def test_an_lsn_is_read_back_from_its_text(lsn: Lsn) -> None:
    assert Lsn.parse(str(lsn)) == lsn
    assert str(lsn) == f"{lsn // 2**32:X}/{lsn % 2**32:X}"


@pytest.mark.parametrize("text", ["", "0", "0/", "/0", "0/G", "123456789/0", "0/123456789", "0/1/2", "-1/0"])
def test_what_is_no_lsn_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not an LSN"):
        Lsn.parse(text)


@given(lsns, timelines, sizes)
def test_the_segment_containing_a_byte_starts_at_or_before_and_ends_after_it(
    lsn: Lsn, timeline: int, size: int
) -> None:
    name = SegmentName.containing(lsn, timeline, size)
    assert name.start(size) <= lsn < name.end(size)
    assert name.end(size) - name.start(size) == size
    assert name.timeline == timeline


@given(lsns, timelines, sizes)
def test_a_segment_name_is_read_back_from_its_text_and_its_number(lsn: Lsn, timeline: int, size: int) -> None:
    name = SegmentName.containing(lsn, timeline, size)
    assert SegmentName.parse(str(name)) == name
    assert SegmentName.numbered(name.number(size), timeline, size) == name
    assert SegmentName.containing(name.start(size), timeline, size) == name
    assert SegmentName.containing(name.end(size) - 1, timeline, size) == name


@given(lsns, timelines, sizes)
def test_the_following_segment_begins_where_this_one_ends(lsn: Lsn, timeline: int, size: int) -> None:
    name = SegmentName.containing(lsn, timeline, size)
    following = name.following(size)
    assert following.start(size) == name.end(size)
    assert following > name
    assert str(following) > str(name)


@given(lsns, lsns, sizes)
def test_names_of_a_timeline_sort_as_their_positions_do(one: Lsn, other: Lsn, size: int) -> None:
    first, second = (SegmentName.containing(lsn, 7, size) for lsn in (one, other))
    assert (first < second) == (first.start(size) < second.start(size))
    assert (str(first) < str(second)) == (first < second)


@pytest.mark.parametrize(
    ("name", "size", "following"),
    [
        ("000000010000000000000001", 16 << 20, "000000010000000000000002"),
        ("0000000100000000000000FF", 16 << 20, "000000010000000100000000"),
        ("000000010000000000000FFF", 1 << 20, "000000010000000100000000"),
        ("000000010000000000000003", 1 << 30, "000000010000000100000000"),
        ("0000000A0000000000000007", 512 << 20, "0000000A0000000100000000"),
    ],
)
def test_names_roll_over_where_postgres_rolls_them_over(name: str, size: int, following: str) -> None:
    assert str(SegmentName.parse(name).following(size)) == following


@given(lsns, timelines, timelines, sizes)
def test_the_same_position_on_another_timeline_has_the_same_start(
    lsn: Lsn, timeline: int, other: int, size: int
) -> None:
    name = SegmentName.containing(lsn, timeline, size)
    assert name.on(other) == SegmentName.containing(lsn, other, size)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("0000000100000000000000A3", WalFileKind.SEGMENT),
        ("0000000100000000000000A3.partial", WalFileKind.PARTIAL),
        ("00000002.history", WalFileKind.HISTORY),
        ("0000000100000000000000A3.00000028.backup", WalFileKind.BACKUP),
        ("0000000100000000000000a3", None),
        ("0000000100000000000000A3.gz", None),
        ("0000000100000000000000A3\n", None),
        ("../000000010000000000000A3", None),
        (".wal-archive.0000000100000000000000A3.1.tmp", None),
        ("system_identifier", None),
        ("", None),
    ],
)
def test_only_names_that_postgres_writes_are_archive_files(name: str, kind: WalFileKind | None) -> None:
    assert classify(name) is kind


@pytest.mark.parametrize("name", ["", "0000000100000000000000a3", "0000000100000000000000A", "x" * 24])
def test_what_is_no_segment_name_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="is not a WAL segment name"):
        SegmentName.parse(name)


@pytest.mark.parametrize("size", [0, -(1 << 20), 1, 1 << 19, 3 << 20, (16 << 20) + 1, 1 << 31])
def test_sizes_that_postgres_does_not_allow_are_refused(size: int) -> None:
    with pytest.raises(ValueError, match="is not a WAL segment size"):
        check_segment_size(size)


@given(lsns, timelines, sizes)
def test_records_keep_lsns_and_names_as_their_text(lsn: Lsn, timeline: int, size: int) -> None:
    check_segment_size(size)
    name = SegmentName.containing(lsn, timeline, size)
    for kind, value in ((Lsn, lsn), (SegmentName, name)):
        adapter: TypeAdapter[object] = TypeAdapter(kind)
        assert adapter.dump_json(value).decode() == f'"{value}"'
        assert adapter.validate_json(adapter.dump_json(value)) == value
