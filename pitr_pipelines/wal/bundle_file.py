"""The bundle's file format: a plain `.tar.gz` that can also be read member by member.

Each tar entry, header and content, is a gzip member of its own, so that `tar xzf` reads the file
like any other while we compress members in parallel and read one alone by its offset. A POSIX.1-2001
header keeps each file's mtime to the microsecond. The same content always gives the same bytes.
"""

from __future__ import annotations

import hashlib
import os
import tarfile
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from isal import igzip_lib, isal_zlib

from pitr_pipelines import durable
from pitr_pipelines.catalog.records import BundleMember, BundleRecord, FileDigest
from pitr_pipelines.errors import ArtifactDamaged
from pitr_pipelines.progress import Progress, Report, silent
from pitr_pipelines.wal.lsn import WalFileKind

UNPACKING_ERRORS: tuple[type[Exception], ...] = (
    igzip_lib.IsalError,  # type: ignore[assignment]  # the stubs do not know that it is a class
    EOFError,
    ValueError,
)
_LEVEL = 1
_GZIP = 31
_BLOCK = tarfile.BLOCKSIZE
_WINDOW_BYTES = 256 * 1024 * 1024
"""How much unpacked WAL may be in memory at once."""


class Source(Protocol):
    """Something that becomes a member of a bundle."""

    @property
    def name(self) -> str: ...
    @property
    def size_bytes(self) -> int: ...
    def pack(self) -> PackedMember: ...


@dataclass(frozen=True, slots=True)
class PackedMember:
    """A member ready to be written: its gzip bytes, and its entry but for the place in the file."""

    name: str
    kind: WalFileKind
    closed_at: datetime
    size_bytes: int
    sha256: str
    data: bytes

    def placed(self, offset: int) -> BundleMember:
        return BundleMember(
            name=self.name,
            kind=self.kind,
            closed_at=self.closed_at,
            size_bytes=self.size_bytes,
            sha256=self.sha256,
            offset=offset,
            length=len(self.data),
        )


@dataclass(frozen=True, slots=True)
class MemberOf:
    """A member of an existing bundle, taken over as it is, without unpacking."""

    bundle: Path
    member: BundleMember

    @property
    def name(self) -> str:
        return self.member.name

    @property
    def size_bytes(self) -> int:
        return self.member.size_bytes

    def pack(self) -> PackedMember:
        read_member(self.bundle, self.member)  # a damaged member must not be carried on
        data = _read_range(self.bundle, self.member)
        return PackedMember(
            self.member.name,
            self.member.kind,
            self.member.closed_at,
            self.member.size_bytes,
            self.member.sha256,
            data,
        )


def pack_member(
    name: str, kind: WalFileKind, closed_at: datetime, size_bytes: int, entry: bytearray
) -> PackedMember:
    """Compress one file that was read into its place in `entry` (see `entry_for`)."""
    header = len(_header(name, closed_at, size_bytes))
    content = memoryview(entry)[header : header + size_bytes]
    return PackedMember(
        name,
        kind,
        closed_at,
        size_bytes,
        hashlib.sha256(content).hexdigest(),
        isal_zlib.compress(entry, _LEVEL, _GZIP),
    )


def entry_for(name: str, size_bytes: int, closed_at: datetime) -> tuple[bytearray, memoryview]:
    """Return a tar entry with its header filled in, and the place in it for the content.

    Reading a file straight into its place saves a copy of every segment.
    """
    header = _header(name, closed_at, size_bytes)
    entry = bytearray(len(header) + -(-size_bytes // _BLOCK) * _BLOCK)
    entry[: len(header)] = header
    return entry, memoryview(entry)[len(header) : len(header) + size_bytes]


def write_bundle(
    path: Path,
    sources: Sequence[Source],
    *,
    name: str,
    workers: int | None = None,
    report: Report = silent,
) -> tuple[FileDigest, tuple[BundleMember, ...]]:
    """Write a new bundle file at `path` and make it durable.

    `path` is a temporary name: the caller reads the file back and renames it to `name`. Members are packed by
    `workers` threads (default: one a core) and written in the order of `sources`.
    """
    total = sum(source.size_bytes for source in sources)
    members: list[BundleMember] = []
    digest = hashlib.sha256()
    offset = done = 0
    workers = workers or os.cpu_count() or 1
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, durable.FILE_MODE)
    with open(descriptor, "wb") as file, ThreadPoolExecutor(workers, "pitr-pack") as pool:
        for packed in _in_order(pool, sources, workers):
            file.write(packed.data)
            digest.update(packed.data)
            members.append(packed.placed(offset))
            offset += len(packed.data)
            done += packed.size_bytes
            report(Progress("bundle", done, total))
        end = isal_zlib.compress(bytes(2 * _BLOCK), _LEVEL, _GZIP)
        file.write(end)
        digest.update(end)
        offset += len(end)
        file.flush()
        os.fsync(file.fileno())
    return FileDigest(name=name, size_bytes=offset, sha256=digest.hexdigest()), tuple(members)


def read_member(bundle: Path, member: BundleMember) -> memoryview:
    """Read and unpack one file of a bundle.

    Raises ArtifactDamaged, naming bundle and member, unless it is exactly what the record says.
    """
    try:
        entry = igzip_lib.decompress(
            _read_range(bundle, member), igzip_lib.DECOMP_GZIP, 15, member.size_bytes + 4 * _BLOCK
        )
    except UNPACKING_ERRORS as error:
        raise _damaged(bundle, member.name, f"cannot be unpacked ({error})") from None
    header = len(_header(member.name, member.closed_at, member.size_bytes))
    content = memoryview(entry)[header : header + member.size_bytes]
    if len(content) != member.size_bytes or hashlib.sha256(content).hexdigest() != member.sha256:
        raise _damaged(bundle, member.name, "differs from the SHA-256 in the record")
    return content


def verify_file(bundle: Path, file: FileDigest) -> None:
    """Check a bundle's bytes against its record without unpacking. Raises ArtifactDamaged."""
    try:
        size = bundle.stat().st_size
    except FileNotFoundError:
        raise _damaged(bundle, None, "is missing, though its record is there") from None
    if size != file.size_bytes:
        raise _damaged(bundle, None, f"has {size} bytes where its record says {file.size_bytes}")
    with bundle.open("rb") as opened:
        if hashlib.file_digest(opened, "sha256").hexdigest() != file.sha256:
            raise _damaged(bundle, None, "differs from the SHA-256 in its record")


def verify_members(bundle: Path, record: BundleRecord, *, workers: int | None = None) -> None:
    """Unpack every member and check it against the record. Raises ArtifactDamaged."""
    if record.file is None:
        return
    verify_file(bundle, record.file)
    workers = workers or os.cpu_count() or 1
    with ThreadPoolExecutor(workers, "pitr-verify") as pool:
        for _ in pool.map(lambda member: len(read_member(bundle, member)), record.members):
            pass


def _in_order(pool: ThreadPoolExecutor, sources: Sequence[Source], workers: int) -> Iterator[PackedMember]:
    """Pack ahead of the writer, bounded in memory, and yield in order."""
    waiting: deque[tuple[int, Future[PackedMember]]] = deque()
    held = 0
    for source in sources:
        while waiting and (len(waiting) > workers or held + source.size_bytes > _WINDOW_BYTES):
            size, future = waiting.popleft()
            held -= size
            yield future.result()
        waiting.append((source.size_bytes, pool.submit(source.pack)))
        held += source.size_bytes
    for _, future in waiting:
        yield future.result()


def _header(name: str, closed_at: datetime, size_bytes: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size = size_bytes
    info.mode = 0o600
    moment = closed_at.astimezone(UTC)
    info.mtime = int(moment.timestamp())
    # Always there, so that the header's length does not depend on the time.
    info.pax_headers = {"mtime": f"{int(moment.timestamp())}.{moment.microsecond:06d}"}
    return info.tobuf(tarfile.PAX_FORMAT)


def _read_range(bundle: Path, member: BundleMember) -> bytes:
    try:
        with bundle.open("rb") as file:
            file.seek(member.offset)
            data = file.read(member.length)
    except FileNotFoundError:
        raise _damaged(bundle, None, "is missing, though its record is there") from None
    if len(data) != member.length:
        raise _damaged(bundle, member.name, "is cut off")
    return data


def _damaged(bundle: Path, member: str | None, problem: str) -> ArtifactDamaged:
    what = (
        f"the bundle {bundle} {problem}" if member is None else f"{member} in the bundle {bundle} {problem}"
    )
    return ArtifactDamaged(
        what,
        remedy="Put back a good copy of the bundle (from the off-site copy, say); while its raw "
        "segments are still in the WAL archive, `pitr bundle --hour` makes it again.",
    )
