"""The bundle's file format: a plain `.tar.gz` that can also be read member by member.

Each tar entry, header and content, is a gzip member of its own, so that `tar xzf` reads the file
like any other while we compress members in parallel and read one alone by its offset. A POSIX.1-2001
header keeps each file's mtime to the microsecond. The same content always gives the same bytes.

What is packed is unpacked again at once, and it is the unpacked bytes whose SHA-256 goes on record: so a
bundle file that has the bytes that were written is known to give back the WAL.
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
from typing import BinaryIO, Protocol

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
_END = isal_zlib.compress(bytes(2 * _BLOCK), _LEVEL, _GZIP)
"""The last gzip member of every bundle: tar's end of archive."""
_WINDOW_BYTES = 256 * 1024 * 1024
"""How much WAL may be on its way into a bundle at once."""
_CHUNK_BYTES = 256 * 1024
"""Files are read, packed and unpacked in pieces that stay in a core's cache. The pieces shape the
compressed bytes, so a different size makes different (equally valid) bundles of the same WAL."""


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
        data = _check_member(self.bundle, self.member)  # a damaged member must not be carried on
        return PackedMember(
            self.member.name,
            self.member.kind,
            self.member.closed_at,
            self.member.size_bytes,
            self.member.sha256,
            data,
        )


def pack_member(
    name: str, kind: WalFileKind, closed_at: datetime, size_bytes: int, content: BinaryIO
) -> PackedMember:
    """Compress the `size_bytes` of `content` into a member, and prove it by unpacking it.

    Raises EOFError if there is less, ValueError if it did not come out as it went in.
    """
    packer = isal_zlib.compressobj(_LEVEL, isal_zlib.DEFLATED, _GZIP)
    header = _header(name, closed_at, size_bytes)
    parts = [packer.compress(header)]
    buffer = memoryview(bytearray(min(_CHUNK_BYTES, size_bytes)))
    left = size_bytes
    while left:
        piece = buffer[: min(_CHUNK_BYTES, left)]
        count = content.readinto(piece)  # type: ignore[attr-defined]  # buffered: fills the piece
        if count != len(piece):
            raise EOFError(f"{name} ended {left - count} bytes early")
        parts.append(packer.compress(piece))
        left -= count
    parts += [packer.compress(bytes(-size_bytes % _BLOCK)), packer.flush()]
    data = b"".join(parts)
    return PackedMember(name, kind, closed_at, size_bytes, _content_digest(data, header, size_bytes), data)


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
        file.write(_END)
        digest.update(_END)
        offset += len(_END)
        file.flush()
        os.fsync(file.fileno())
        # What is read back shall come from the disk, and not from our own write.
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
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


def read_beginning(bundle: Path, member: BundleMember, size_bytes: int) -> bytes:
    """Read the first `size_bytes` of a file in a bundle, without reading all of it, unchecked.

    Raises ArtifactDamaged if it cannot be unpacked.
    """
    header = len(_header(member.name, member.closed_at, member.size_bytes))
    wanted = header + min(size_bytes, member.size_bytes)
    unpacker = igzip_lib.IgzipDecompressor(igzip_lib.DECOMP_GZIP)
    found = b""
    try:
        with bundle.open("rb") as file:
            file.seek(member.offset)
            left = member.length
            while len(found) < wanted and left:
                packed = file.read(min(_CHUNK_BYTES, left))
                if not packed:
                    raise EOFError("it is cut off")
                left -= len(packed)
                found += unpacker.decompress(packed, wanted - len(found))
                while len(found) < wanted and not unpacker.needs_input and not unpacker.eof:
                    found += unpacker.decompress(b"", wanted - len(found))
    except FileNotFoundError:
        raise _damaged(bundle, None, "is missing, though its record is there") from None
    except UNPACKING_ERRORS as error:
        raise _damaged(bundle, member.name, f"cannot be unpacked ({error})") from None
    return found[header:wanted]


def is_whole(bundle: Path) -> bool:
    """Tell whether a bundle file has its end; a cut between two members is visible nowhere else."""
    with bundle.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - len(_END)))
        return file.read() == _END


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
        for _ in pool.map(lambda member: len(_check_member(bundle, member)), record.members):
            pass


def _check_member(bundle: Path, member: BundleMember) -> bytes:
    """Unpack a member and compare it with the record; return its packed bytes."""
    data = _read_range(bundle, member)
    header = _header(member.name, member.closed_at, member.size_bytes)
    try:
        found = _content_digest(data, header, member.size_bytes)
    except UNPACKING_ERRORS as error:
        raise _damaged(bundle, member.name, f"cannot be unpacked ({error})") from None
    if found != member.sha256:
        raise _damaged(bundle, member.name, "differs from the SHA-256 in the record")
    return data


def _content_digest(data: bytes, header: bytes, size_bytes: int) -> str:
    """Unpack a gzip member, check its tar header and length, and return the content's SHA-256."""
    digest = hashlib.sha256()
    unpacked = _unpack(data)
    first = next(unpacked)
    if not first.startswith(header):
        raise ValueError("its tar header is another")
    piece = memoryview(first)[len(header) :]
    left = size_bytes
    padding = b""
    while True:
        digest.update(piece[:left])
        if len(piece) > left:
            padding += piece[left:]
        left -= min(left, len(piece))
        following = next(unpacked, None)
        if following is None:
            break
        piece = memoryview(following)
    if left or padding != bytes(-size_bytes % _BLOCK):
        raise ValueError("it is not as long as its tar header says")
    return digest.hexdigest()


def _unpack(data: bytes) -> Iterator[bytes]:
    """Unpack one gzip member in pieces; its own checksum is compared at its end."""
    unpacker = igzip_lib.IgzipDecompressor(igzip_lib.DECOMP_GZIP)
    piece = unpacker.decompress(data, _CHUNK_BYTES)
    while piece:
        yield piece
        if unpacker.eof:
            break
        piece = unpacker.decompress(b"", _CHUNK_BYTES)
    if not unpacker.eof:
        raise EOFError("it is cut off")
    if unpacker.unused_data:
        raise ValueError("other bytes follow it")


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
