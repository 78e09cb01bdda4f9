"""Whether what is in the archive really is the server's own: the segment it sealed, and its history file.

A copy of the server with the same system identifier, started from a disk snapshot say, goes on along the same
timeline, and so writes segments of the same names. If it archives one first, wal-archive.sh refuses the
server's own, and the archive holds another history under a name of ours. A seal's restore point tells
the two apart: it is at that LSN in the server's WAL, and in no other's. Reads a hundred bytes.
A history file that the archive lacks is put there; nothing that is there is ever changed.
Source: xl_restore_point in PostgreSQL's src/include/access/xlog_internal.h, and xlogrecord.h.
"""

from __future__ import annotations

import os
import struct
from datetime import datetime
from pathlib import Path

from pitr_pipelines import durable
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
    with archive.open_file(path) as file:
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
            "again: move the copy's segments out of the archive, and bundle the hour again; "
            "docs/timelines.md says how to tell them. If some were bundled already, "
            f"`pitr backup --replace {database}` makes later moments restorable.",
        )


def keep_history(directory: Path, name: str, content: bytes, written_at: datetime) -> None:
    """Put the server's own history file `name` into its archive, unless it is there.

    It gets the time at which the server wrote it, as wal-archive.sh would have done. Raises ForeignWal if
    the archive has another history of that timeline, ArtifactDamaged if the one there cannot be read.
    """
    path = directory / name
    ours = archive.parse_history(name, content, f"the server's {name}")
    try:
        if archive.read_history(path) == ours:
            return
    except FileNotFoundError:
        # The server may archive it yet, and then compares: its user must be able to read it.
        durable.write_whole(path, content, mode=0o644)
        os.utime(path, (written_at.timestamp(), written_at.timestamp()))
        return
    raise ForeignWal(
        f"{path} is not the server's own: a copy of it, with the same system identifier, was promoted and "
        "has used the same number",
        remedy="Stop that copy's archiving (archive_mode = off), and move its files out of the archive: "
        f"{name} and the segments whose names begin with {name[:8]} that the server did not write. "
        "docs/timelines.md says how to tell them.",
    )
