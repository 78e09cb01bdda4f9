"""The tablespace map is read and written by PostgreSQL's own escaping rules."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pitr_pipelines.postgres.tablespace_map import format_tablespace_map, parse_tablespace_map

_locations = st.text(st.characters(blacklist_characters="\0", blacklist_categories=["Cs"]), min_size=1)


@given(st.dictionaries(st.integers(1, 2**32 - 1), _locations))
def test_what_is_written_is_read_back(locations: dict[int, str]) -> None:
    assert parse_tablespace_map(format_tablespace_map(locations)) == locations


def read_as_postgres_does(content: bytes) -> dict[int, bytes]:
    """A transcript of read_tablespace_map() in xlogrecovery.c, byte by byte."""
    found: dict[int, bytes] = {}
    line = bytearray()
    escaped = False
    for byte in content:
        if not escaped and byte in b"\r\n":
            if line:
                oid, _, path = bytes(line).partition(b" ")
                found[int(oid)] = path
                line.clear()
        elif not escaped and byte == ord("\\"):
            escaped = True
        else:
            line.append(byte)
            escaped = False
    assert not line
    assert not escaped
    return found


@given(st.dictionaries(st.integers(1, 2**32 - 1), _locations))
def test_postgres_reads_what_is_written(locations: dict[int, str]) -> None:
    content = format_tablespace_map(locations)
    assert read_as_postgres_does(content) == {oid: place.encode() for oid, place in locations.items()}


def test_spaces_backslashes_and_line_breaks_in_a_location() -> None:
    content = b"16384 /a b\n16385  /c\\\\d\n16386 /e\\\nf\\\rg\n"
    assert parse_tablespace_map(content) == {16384: "/a b", 16385: " /c\\d", 16386: "/e\nf\rg"}


@pytest.mark.parametrize("content", [b"16384\n", b"x /a\n", b"16384 /a", b"16384 /a\\", b"16384 /a\n\xff\n"])
def test_anything_else_is_refused(content: bytes) -> None:
    with pytest.raises(ValueError, match="not a line of a tablespace map"):
        parse_tablespace_map(content)
