"""Finding the WAL records of CREATE TABLESPACE, and taking the location out of them.

Replaying such a record, PostgreSQL uses the directory that it names: on the machine of the original
that is the original's own tablespace, with its live files. A record whose location is empty makes it
use a directory inside the data directory instead ("in place"). So a record here keeps its length and
its place, loses its location, and gets the checksum that then belongs to it.

The promise: no record of CREATE TABLESPACE that could be replayed is overlooked. What merely looks
like one is reported too; whoever changes WAL must first ask PostgreSQL whether a record begins there.
Source: tblspc_redo() in src/backend/commands/tablespace.c, XLogRecordAssemble() in
src/backend/access/transam/xloginsert.c, src/include/access/xlogrecord.h and xlog_internal.h.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass

Content = bytes | bytearray | memoryview

PAGE_HEADER_BYTES = 24
LONG_PAGE_HEADER_BYTES = 40
"""Of the first page of a segment."""

_PAGE_BYTES_AT = 36
_HEADER = struct.Struct("<IIQBBHI")  # length, xid, previous record, info, resource manager, padding, CRC
_CRC_AT = 20
_MANAGER_AT = 17
_TABLESPACE = 5
_CREATE = 0x00
_KIND = 0xF0
_MAX_BYTES = 4096
"""A location is shorter than MAXPGPATH, 1024 bytes."""

_ORIGIN, _TOP_LEVEL, _LONG, _SHORT = 253, 252, 254, 255
# From the resource manager on: two bytes of padding and the CRC, what may come before the record's own
# data, the tablespace's oid, and the / with which a location begins.
_LOOK = re.compile(
    # Looked ahead at, so that what only looks like one does not hide one that begins within it.
    rb"\x05\x00\x00(?=.{4}(?:\xfd..)?(?:\xfc....)?(?:\xff.|\xfe....)..../)",
    re.DOTALL,
)
_REACH = 64
"""What `_LOOK` looks at, together with the header before it, is shorter than this."""


@dataclass(frozen=True, slots=True)
class Creation:
    """What a record of CREATE TABLESPACE says, and the same record without its location."""

    oid: int
    location: str
    replacement: bytes


def page_bytes(segment: Content) -> int:
    """Return the size of a segment's pages, from its long header. Raises ValueError if that is none."""
    if len(segment) < LONG_PAGE_HEADER_BYTES:
        raise ValueError("it has no header")
    (size,) = struct.unpack_from("<I", segment, _PAGE_BYTES_AT)
    if size not in (1024, 2048, 4096, 8192, 16384, 32768, 65536) or len(segment) % size:
        raise ValueError(f"it gives its pages a size of {size} bytes")
    return int(size)


def candidates(segment: Content, following: Content) -> Iterator[int]:
    """Yield the offset in a segment of everything that may begin a record of CREATE TABLESPACE.

    `following` is the beginning of the next segment, or empty where there is none. The offsets come
    in no order. Raises ValueError if it is no segment.
    """
    size = page_bytes(segment)
    found = {match.start() - _MANAGER_AT for match in _LOOK.finditer(segment)}
    # A header that is interrupted by the header of a page is not found like that.
    with memoryview(segment) as whole, memoryview(following) as after:
        for page in range(size, len(whole) + 1, size):
            last = page == len(whole)
            next_page, skipped = (
                (after, LONG_PAGE_HEADER_BYTES) if last else (whole, page + PAGE_HEADER_BYTES)
            )
            joined = bytes(whole[page - _REACH : page]) + bytes(next_page[skipped : skipped + _REACH])
            if b"\x05\x00\x00" in joined:
                found |= {
                    page - _REACH + match.start() - _MANAGER_AT
                    for match in _LOOK.finditer(joined)
                    if match.start() - _MANAGER_AT < _REACH
                }
    yield from (offset for offset in found if offset >= LONG_PAGE_HEADER_BYTES and offset % 8 == 0)


def pieces(offset: int, length: int, size: int, segment_bytes: int) -> Iterator[tuple[int, int]]:
    """Yield offset and length of each piece of WAL that begins in a segment, without page headers.

    `size` is that of a page; offsets from `segment_bytes` on are in the next segment.
    """
    while length:
        if offset % size == 0:
            offset += LONG_PAGE_HEADER_BYTES if offset % segment_bytes == 0 else PAGE_HEADER_BYTES
        taken = min(length, size - offset % size)
        yield offset, taken
        offset += taken
        length -= taken


def read(segment: Content, following: Content, offset: int, length: int) -> bytes:
    """Return WAL without its page headers; less than asked for where it ends."""
    found = b""
    for at, taken in pieces(offset, length, page_bytes(segment), len(segment)):
        inside = at < len(segment)
        source, start = (segment, at) if inside else (following, at - len(segment))
        found += bytes(source[start : start + taken])
    return found


def parse_creation(record: Content) -> Creation | None:
    """Return what a whole record says, or None if it is no CREATE TABLESPACE with a location."""
    record = bytes(record)
    length, _xid, _previous, info, manager, _padding, crc = _HEADER.unpack_from(record)
    if manager != _TABLESPACE or info & _KIND != _CREATE or length != len(record) or crc != checksum(record):
        return None
    at = _HEADER.size
    if record[at] == _ORIGIN:
        at += 3
    if record[at] == _TOP_LEVEL:
        at += 5
    at += {_SHORT: 2, _LONG: 5}[record[at]]
    (oid,) = struct.unpack_from("<I", record, at)
    location = record[at + 4 :].split(b"\0", 1)[0]
    if not location:
        return None
    bare = bytearray(record)
    bare[at + 4 :] = bytes(len(record) - at - 4)
    struct.pack_into("<I", bare, _CRC_AT, checksum(bare))
    return Creation(oid, location.decode(errors="replace"), bytes(bare))


def record_bytes(header: Content) -> int | None:
    """Return how long the record is whose header this is; None if CREATE TABLESPACE writes none such."""
    if len(header) < _HEADER.size:
        return None
    length, _xid, _previous, info, manager, _padding, _crc = _HEADER.unpack_from(header)
    fits = manager == _TABLESPACE and info & _KIND == _CREATE and _HEADER.size < length <= _MAX_BYTES
    return int(length) if fits else None


def checksum(record: Content) -> int:
    """Return the CRC-32C that belongs into a record: of what follows its header, then of the header."""
    crc = 0xFFFFFFFF
    for part in (record[_HEADER.size :], record[:_CRC_AT]):
        for byte in bytes(part):
            crc = _CRC_TABLE[(crc ^ byte) & 0xFF] ^ crc >> 8
    return crc ^ 0xFFFFFFFF


def _crc_table() -> list[int]:
    table = []
    for byte in range(256):
        crc = byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
        table.append(crc)
    return table


_CRC_TABLE = _crc_table()
