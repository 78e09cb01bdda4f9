"""The WAL archive of one database: the raw files that wal-archive.sh put into `wal/<database>/`.

Reading it never changes it. A file that has a temporary or foreign name does not exist for us; a
segment that is not what its name says is an error that names the file, never a quiet omission.

The directory is the server's user's to write to, so nothing is taken on trust there: no link is
followed, and what is no regular file is not read.
"""

from __future__ import annotations

import errno
import io
import os
import stat
import struct
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from pitr_pipelines.errors import ArtifactDamaged
from pitr_pipelines.wal.lsn import Lsn, SegmentName, WalFileKind, check_segment_size, classify
from pitr_pipelines.wal.timelines import TimelineHistory

LONG_HEADER_BYTES = 40
IDENTITY_FILE = "system_identifier"
"""In it, wal-archive.sh keeps the system identifier of the cluster that an archive belongs to."""
_LONG_HEADER = struct.Struct("=HHIQI4xQII")
_FLAG_LONG_HEADER = 0x0002
_IDENTITY_BYTES = 64
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class ArchivedFile:
    """One raw file; `closed_at` is its preserved mtime, when the server last wrote it."""

    path: Path
    kind: WalFileKind
    size_bytes: int
    closed_at: datetime

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def segment(self) -> SegmentName:
        """The segment's name. Raises ValueError if this is no whole segment."""
        return SegmentName.parse(self.name)


@dataclass(frozen=True, slots=True)
class SegmentHeader:
    """What the first page of a segment says about it."""

    system_identifier: str
    segment_size: int
    timeline: int
    start: Lsn


def scan_archive(directory: Path) -> list[ArchivedFile]:
    """List a WAL archive by name. A directory that is not there yet is an empty archive."""
    try:
        entries = os.scandir(directory)
    except FileNotFoundError:
        return []
    files = []
    with entries:
        for entry in entries:
            kind = classify(entry.name)
            if kind is None or not entry.is_file(follow_symlinks=False):
                continue
            try:
                status = entry.stat(follow_symlinks=False)
            except FileNotFoundError:  # pruned since the directory was read
                continue
            files.append(ArchivedFile(Path(entry.path), kind, status.st_size, _moment(status.st_mtime_ns)))
    return sorted(files, key=lambda file: file.name)


def open_file(path: Path) -> io.BufferedReader:
    """Open a file of an archive for reading.

    Raises ArtifactDamaged if it is a link, or a pipe that would be waited for, or another thing that only
    has a file's name; OSError like open().
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):  # a link, a socket
            raise _no_file(path) from None
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise _no_file(path)
    return open(descriptor, "rb")


def read_file(path: Path) -> bytes:
    """Return what a file of an archive holds. Raises as `open_file` does."""
    with open_file(path) as file:
        return file.read()


def _no_file(path: Path) -> ArtifactDamaged:
    return ArtifactDamaged(
        f"{path} is no regular file, and it is not read",
        remedy="wal-archive.sh makes nothing else. Only who can write to that directory can have put it "
        "there: find out who did, and why, and move it away.",
    )


def parse_header(first_bytes: bytes | bytearray | memoryview, path: Path) -> SegmentHeader:
    """Read a segment's long page header. Raises ArtifactDamaged if there is none."""
    if len(first_bytes) >= LONG_HEADER_BYTES:
        _magic, info, timeline, page, _rest, identifier, size, _block = _LONG_HEADER.unpack(
            first_bytes[:LONG_HEADER_BYTES]
        )
        if info & _FLAG_LONG_HEADER:
            try:
                return SegmentHeader(str(identifier), check_segment_size(size), timeline, Lsn(page))
            except ValueError:
                pass
    raise ArtifactDamaged(
        f"{path} does not begin like a WAL segment",
        remedy="If the server's pg_wal, a bundle or another copy still has this segment, put that in its "
        "place; otherwise `pitr backup --replace`, because recovery cannot pass this point.",
    )


def read_header(path: Path) -> SegmentHeader:
    """Read the header of a segment file. Raises ArtifactDamaged if it has none."""
    with open_file(path) as file:
        return parse_header(file.read(LONG_HEADER_BYTES), path)


def owner(directory: Path, files: Iterable[ArchivedFile]) -> str | None:
    """Return the system identifier of the cluster whose WAL archive this is; None if nothing tells.

    wal-archive.sh keeps it in a file; in an archive that something else filled, the first segment says.
    """
    try:
        return read_identity(directory)
    except FileNotFoundError:
        pass
    for file in files:
        if file.kind is WalFileKind.SEGMENT:
            with suppress(ArtifactDamaged):
                return read_header(file.path).system_identifier
    return None


def read_identity(directory: Path) -> str:
    """Return what the identity file of an archive says. Raises FileNotFoundError, ArtifactDamaged."""
    with open_file(directory / IDENTITY_FILE) as file:
        return file.read(_IDENTITY_BYTES).decode("ascii", "replace").strip()


def check_segment(header: SegmentHeader, path: Path, size_bytes: int) -> None:
    """Check that a segment is the one its name says, and whole. Raises ArtifactDamaged."""
    name = SegmentName.parse(path.name.split(".")[0])
    problem = None
    if size_bytes != header.segment_size:
        problem = f"has {size_bytes} bytes where its header says {header.segment_size}"
    elif header.start != name.start(header.segment_size):
        problem = f"holds the WAL from {header.start}, not from {name.start(header.segment_size)}"
    elif header.timeline > name.timeline:
        # A segment copied at a switch keeps the ancestor's number on its first page.
        problem = f"was written on timeline {header.timeline}"
    if problem:
        raise ArtifactDamaged(
            f"the archived segment {path} {problem}",
            remedy="If the server's pg_wal or another copy still has it whole, put that in its place; "
            "otherwise `pitr backup --replace`, because recovery cannot pass this point.",
        )


def read_history(path: Path) -> TimelineHistory:
    """Read a timeline history file. Raises ArtifactDamaged if it is not one."""
    return parse_history(path.name, read_file(path), str(path))


def parse_history(name: str, content: bytes | memoryview, where: str) -> TimelineHistory:
    """Read the history file `name`, which lies at `where`. Raises ArtifactDamaged if it is not one.

    PostgreSQL writes at least one line, and ends each: a file without is one that was cut off.
    """
    # What it gives as the reason may hold a restore point's name, in whatever encoding.
    text = bytes(content).decode("utf-8", errors="replace")
    try:
        if not text.endswith("\n"):
            raise ValueError("it is cut off" if text else "it is empty")
        return TimelineHistory.parse(int(name[:8], 16), text)
    except ValueError as error:
        raise ArtifactDamaged(
            f"{where} is not a timeline history file: {error}",
            remedy="Copy it again from pg_wal of a server that is on this timeline, or from a bundle.",
        ) from None


def _moment(mtime_ns: int) -> datetime:
    return _EPOCH + timedelta(microseconds=mtime_ns // 1000)
