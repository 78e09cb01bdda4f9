"""Log sequence numbers and WAL file names, as PostgreSQL writes them.

A segment name is three 32-bit numbers in hexadecimal: timeline, high half of the LSN, and the
segment's place within those 4 GiB. The last part depends on the cluster's segment size, which
therefore every conversion between names and LSNs takes.
Source: PostgreSQL's src/include/access/xlog_internal.h.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

_SEGMENT = re.compile(r"[0-9A-F]{24}")
_PARTIAL = re.compile(r"[0-9A-F]{24}\.partial")
_HISTORY = re.compile(r"[0-9A-F]{8}\.history")
_BACKUP = re.compile(r"[0-9A-F]{24}\.[0-9A-F]{8}\.backup")
_LSN = re.compile(r"([0-9A-Fa-f]{1,8})/([0-9A-Fa-f]{1,8})")
_MIB = 1024 * 1024


class Lsn(int):
    """A byte position in the WAL; prints as PostgreSQL prints it: `0/3000028`."""

    @classmethod
    def parse(cls, text: str) -> Lsn:
        """Read `high/low` in hexadecimal. Raises ValueError for anything else."""
        match = _LSN.fullmatch(text.strip())
        if match is None:
            raise ValueError(f"{text!r} is not an LSN; PostgreSQL writes them as 0/3000028")
        return cls(int(match[1], 16) << 32 | int(match[2], 16))

    def __str__(self) -> str:
        return f"{self >> 32:X}/{self & 0xFFFFFFFF:X}"

    def __repr__(self) -> str:
        return f"Lsn({self})"

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return schema_as_text(cls, cls.parse)


@dataclass(frozen=True, order=True, slots=True)
class SegmentName:
    """The name of one WAL segment file: `0000000100000000000000A3`."""

    timeline: int
    log: int
    seg: int

    @classmethod
    def parse(cls, name: str) -> SegmentName:
        """Read a 24-digit segment name. Raises ValueError for anything else."""
        if not _SEGMENT.fullmatch(name):
            raise ValueError(f"{name!r} is not a WAL segment name (24 upper-case hexadecimal digits)")
        return cls(int(name[:8], 16), int(name[8:16], 16), int(name[16:], 16))

    @classmethod
    def containing(cls, lsn: int, timeline: int, segment_size: int) -> SegmentName:
        """Return the segment of `timeline` that holds the byte at `lsn`."""
        return cls.numbered(int(lsn) // segment_size, timeline, segment_size)

    @classmethod
    def numbered(cls, number: int, timeline: int, segment_size: int) -> SegmentName:
        """Return the segment with the given running number (LSN // segment size)."""
        per_log = 0x1_0000_0000 // segment_size
        return cls(timeline, number // per_log, number % per_log)

    def number(self, segment_size: int) -> int:
        """Return the running number of the segment: consecutive segments differ by one."""
        return self.log * (0x1_0000_0000 // segment_size) + self.seg

    def start(self, segment_size: int) -> Lsn:
        """Return the LSN of the segment's first byte."""
        return Lsn(self.number(segment_size) * segment_size)

    def end(self, segment_size: int) -> Lsn:
        """Return the LSN just past the segment's last byte."""
        return Lsn((self.number(segment_size) + 1) * segment_size)

    def following(self, segment_size: int) -> SegmentName:
        """Return the next segment on the same timeline."""
        return self.numbered(self.number(segment_size) + 1, self.timeline, segment_size)

    def on(self, timeline: int) -> SegmentName:
        """Return the segment of the same position on another timeline."""
        return SegmentName(timeline, self.log, self.seg)

    def __str__(self) -> str:
        return f"{self.timeline:08X}{self.log:08X}{self.seg:08X}"

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return schema_as_text(cls, cls.parse)


class WalFileKind(StrEnum):
    """What PostgreSQL puts into a WAL archive."""

    SEGMENT = "segment"
    PARTIAL = "partial"
    """The last segment of a timeline, incomplete when a standby was promoted."""
    HISTORY = "history"
    BACKUP = "backup"


def classify(name: str) -> WalFileKind | None:
    """Return what kind of archive file `name` is, or None if PostgreSQL writes no such name."""
    if _SEGMENT.fullmatch(name):
        return WalFileKind.SEGMENT
    if _HISTORY.fullmatch(name):
        return WalFileKind.HISTORY
    if _BACKUP.fullmatch(name):
        return WalFileKind.BACKUP
    if _PARTIAL.fullmatch(name):
        return WalFileKind.PARTIAL
    return None


def check_segment_size(size_bytes: int) -> int:
    """Return `size_bytes` if PostgreSQL allows it: a power of two from 1 MiB to 1 GiB."""
    if not (_MIB <= size_bytes <= 1024 * _MIB and size_bytes & (size_bytes - 1) == 0):
        raise ValueError(f"{size_bytes} bytes is not a WAL segment size (a power of two, 1 MiB to 1 GiB)")
    return size_bytes


def schema_as_text(cls: type, parse: Any) -> CoreSchema:
    """Let pydantic keep the value as its text in JSON and as its own type in Python."""
    from_text = core_schema.no_info_after_validator_function(parse, core_schema.str_schema())
    return core_schema.json_or_python_schema(
        json_schema=from_text,
        python_schema=core_schema.union_schema([core_schema.is_instance_schema(cls), from_text]),
        serialization=core_schema.to_string_ser_schema(),
    )
