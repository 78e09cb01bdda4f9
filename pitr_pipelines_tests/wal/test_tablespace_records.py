"""No record of CREATE TABLESPACE is overlooked, wherever pages and segments divide it."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pitr_pipelines.wal import tablespace_records as records

PAGE = 8192
SEGMENT = 8 * PAGE

names = st.text(st.characters(exclude_characters="\0", codec="utf-8"), min_size=1, max_size=300).map(
    lambda text: "/" + text
)


def make_record(oid: int, location: str, *, top_level: bool = False) -> bytes:
    """Make a record as PostgreSQL does."""
    data = struct.pack("<I", oid) + location.encode() + b"\0"
    short = len(data) < 256
    body = (b"\xfc" + struct.pack("<I", 700) if top_level else b"") + (
        b"\xff" + bytes([len(data)]) if short else b"\xfe" + struct.pack("<I", len(data))
    )
    record = bytearray(24) + body + data
    struct.pack_into("<IIQBBHI", record, 0, len(record), 700, 0x3000028, 0, 5, 0, 0)
    struct.pack_into("<I", record, 20, records.checksum(record))
    return bytes(record)


def put(record: bytes, offset: int, filler: bytes) -> tuple[bytes, bytes]:
    """Return a segment and the next one, full of `filler`, with a record that begins at `offset`."""
    both = bytearray((filler * (2 * SEGMENT // len(filler) + 1))[: 2 * SEGMENT])
    for page in range(0, 2 * SEGMENT, PAGE):
        header = records.LONG_PAGE_HEADER_BYTES if page % SEGMENT == 0 else records.PAGE_HEADER_BYTES
        both[page : page + header] = bytes(header)
        if page % SEGMENT == 0:
            struct.pack_into("<I", both, page + 36, PAGE)
    done = 0
    for at, taken in records.pieces(offset, len(record), PAGE, SEGMENT):
        both[at : at + taken] = record[done : done + taken]
        done += taken
    return bytes(both[:SEGMENT]), bytes(both[SEGMENT:])


@settings(max_examples=150, deadline=None)
@given(
    oid=st.integers(1, 2**32 - 1),
    location=names,
    page=st.integers(1, SEGMENT // PAGE),
    before=st.integers(1, 60),
    filler=st.sampled_from([b"\0", b"\xff", b"\x05", b"\x05\0\0", b"\x05\0\0abcd\xff\x01abcd/"]),
    top_level=st.booleans(),
)
def test_a_record_near_the_end_of_a_page_or_a_segment_is_found_and_read(
    oid: int, location: str, page: int, before: int, filler: bytes, top_level: bool
) -> None:
    record = make_record(oid, location, top_level=top_level)
    offset = page * PAGE - 8 * before
    segment, following = put(record, offset, filler)
    assert offset in set(records.candidates(segment, following))
    assert records.record_bytes(records.read(segment, following, offset, 24)) == len(record)
    assert records.read(segment, following, offset, len(record)) == record
    creation = records.parse_creation(record)
    assert creation is not None
    assert (creation.oid, creation.location) == (oid, location)


@given(oid=st.integers(1, 2**32 - 1), location=names, top_level=st.booleans())
def test_what_replaces_it_has_its_length_its_oid_a_right_checksum_and_no_location(
    oid: int, location: str, top_level: bool
) -> None:
    record = make_record(oid, location, top_level=top_level)
    creation = records.parse_creation(record)
    assert creation is not None
    bare = creation.replacement
    assert len(bare) == len(record)
    assert bare[:20] == record[:20]
    assert struct.unpack_from("<I", bare, 20) == (records.checksum(bare),)
    end = len(record) - len(location.encode()) - 1
    assert bare[24:end] == record[24:end]
    assert not any(bare[end:])
    assert records.parse_creation(bare) is None


@given(st.integers(0, 23), st.integers(1, 255))
def test_a_record_that_is_damaged_is_none(at: int, change: int) -> None:
    damaged = bytearray(make_record(16388, "/data/space"))
    damaged[at] ^= change
    assert records.parse_creation(damaged) is None


def test_what_is_no_segment_is_refused() -> None:
    for content in (b"", bytes(PAGE), bytes(36) + struct.pack("<I", PAGE) + bytes(100)):
        with pytest.raises(ValueError, match=r"^it "):
            list(records.candidates(content, b""))
