"""Whether an archived segment really is the one that the server sealed.

A copy of the server with the same system identifier, started from a disk snapshot say, goes on along the same
timeline, and so writes segments of the same names. If it archives one first, wal-archive.sh refuses the
server's own, and the archive holds another history under a name of ours. A seal's restore point tells
the two apart: it is at that LSN in the server's WAL, and in no other's. Reads a hundred bytes.
Source: xl_restore_point in PostgreSQL's src/include/access/xlog_internal.h, and xlogrecord.h.
"""

from __future__ import annotations

import struct
from pathlib import Path

from pitr_pipelines.errors import ForeignWal
from pitr_pipelines.wal import archive
from pitr_pipelines.wal.lsn import Lsn, SegmentName

_NAME_BYTES = 64
"""MAXFNAMELEN: how much room a restore point's name has at the end of its record."""
_PADDING = 6
"""The name ends the record, of 24 (XLogRecord) + 2 + 8 (time) + 64 bytes, and records are aligned to 8."""
_PAGE_SIZE_AT = 36
_SHORT_PAGE_HEADER = 24
_LONG_PAGE_HEADER = 40


def check_sealed_segment(
    directory: Path, segment: SegmentName, lsn: Lsn, restore_point: str, *, database: str
) -> None:
    """Check that the archived `segment` holds the restore point whose record ends at `lsn`.

    Raises ForeignWal if it does not, and ArtifactDamaged if it is no segment.
    """
    path = directory / str(segment)
    with path.open("rb") as file:
        first_bytes = file.read(_LONG_PAGE_HEADER)
        header = archive.parse_header(first_bytes, path)
        (page_size,) = struct.unpack_from("=I", first_bytes, _PAGE_SIZE_AT)
        start = int(segment.start(header.segment_size))
        found = b""
        position = int(lsn) - start
        # Backwards, page by page: a record goes on behind the header of the next page.
        while len(found) < _NAME_BYTES + _PADDING:
            page = (position - 1) // page_size * page_size
            begin = page + (_SHORT_PAGE_HEADER if page else _LONG_PAGE_HEADER)
            length = max(0, min(position - begin, _NAME_BYTES + _PADDING - len(found)))
            file.seek(position - length)
            found = file.read(length) + found
            if not page:
                break
            position = page
    in_segment_before = _NAME_BYTES + _PADDING - len(found)
    # Behind the name's end is whatever was there: PostgreSQL does not clear it.
    expected = (restore_point.encode() + b"\0")[in_segment_before:]
    if not found.startswith(expected):
        raise ForeignWal(
            f"{path} is not what the server of {database} wrote: the restore point {restore_point!r} is not "
            f"in it at {lsn}. Another server, a copy with the same system identifier, has archived a segment "
            "of that name before it",
            remedy="Stop that copy's archiving (archive_mode = off). The server keeps its own WAL and tries "
            "again: move the copy's segments out of the archive, this one and those before it that the "
            f"server's log says were refused. Then `pitr backup --replace {database}`, and bundle the hour "
            "again. docs/timelines.md says how to tell them.",
        )
