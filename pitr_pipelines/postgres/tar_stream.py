"""Reading one tar file of a base backup, from its first byte to its last, once.

Decompression and the digest of the bytes on disk run in a thread of their own, a few blocks ahead,
so that checking and writing the content costs no extra time on a second core. Nothing in the file
is trusted: anything that pg_basebackup would not have written raises ValueError.

Only what pg_basebackup writes is understood: ustar headers for files and directories. Names are at
most 100 bytes there, so there are no extension headers; and with a tablespace map, which it always
asks for with this format, there are no links.
"""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType
from typing import IO, Protocol, cast

from pitr_pipelines.catalog.records import FileDigest

SUFFIXES = (".tar", ".tar.gz", ".tar.zst")
"""The tar files that can be read: plain, gzip and zstd."""

_BLOCK = 512
_CHUNK_BYTES = 1024 * 1024
_CHUNKS_AHEAD = 6


class MemberKind(StrEnum):
    FILE = "file"
    DIRECTORY = "directory"


_KINDS = {
    tarfile.REGTYPE: MemberKind.FILE,
    tarfile.AREGTYPE: MemberKind.FILE,
    tarfile.DIRTYPE: MemberKind.DIRECTORY,
}


@dataclass(frozen=True, slots=True)
class Member:
    """One entry of a tar file. `name` has no trailing slash and cannot lead out of a directory."""

    name: str
    kind: MemberKind
    size_bytes: int


class TarStream(AbstractContextManager["TarStream"]):
    """One pass over the tar file at `path`, as a context manager.

    Iterate over it for the members; between two members, `content()` yields the current one's
    bytes. When the iteration has ended, `digest` is that of the file on disk. Raises ValueError for
    a file that is damaged, cut short or unreadable; the text says which and goes on after its name.
    """

    def __init__(self, path: Path, *, chunk_bytes: int = _CHUNK_BYTES) -> None:
        self.path = path
        self._source = _DigestingFile(path)
        self._chunk_bytes = chunk_bytes
        self._free: SimpleQueue[bytearray | None] = SimpleQueue()
        self._full: SimpleQueue[tuple[bytearray, int] | None] = SimpleQueue()
        self._buffer = bytearray()
        self._rest = memoryview(b"")
        self._content_left = 0
        self._ended = False
        self._executor = ThreadPoolExecutor(1, thread_name_prefix=f"read {path.name}")
        self._reading: Future[None] | None = None

    def __enter__(self) -> TarStream:
        for _ in range(_CHUNKS_AHEAD):
            self._free.put(bytearray(self._chunk_bytes))
        self._reading = self._executor.submit(self._read_ahead)
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._free.put(None)
        self._executor.shutdown(wait=True)
        self._source.close()

    @property
    def bytes_read(self) -> int:
        """How many bytes of the file on disk have been read so far."""
        return self._source.bytes_read

    @property
    def digest(self) -> FileDigest:
        """Size and SHA-256 of the file on disk, once the iteration has ended."""
        return self._source.digest()

    def __iter__(self) -> Iterator[Member]:
        while True:
            block = self._exactly(_BLOCK)
            if not any(block):
                break
            try:
                info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
            except tarfile.TarError as error:
                raise ValueError(f"it has a broken tar header ({error})") from None
            if info.size < 0:
                raise ValueError(f"it has an entry of a negative size: {info.name!r}")
            member = Member(_safe(info.name), _kind(info), info.size if info.type in _SIZED else 0)
            padding = -member.size_bytes % _BLOCK
            self._content_left = member.size_bytes
            yield member
            for _ in self.content():
                pass
            self._exactly(padding)
        self._exactly(_BLOCK)  # the end is two empty blocks: with one, the file is cut short
        while self._advance():
            if any(self._rest):
                raise ValueError("it has something after its end")
            self._rest = self._rest[:0]

    def content(self) -> Iterator[memoryview]:
        """Yield the current member's bytes; each view is valid until the next is asked for."""
        while self._content_left:
            view = self._some(self._content_left)
            self._content_left -= len(view)
            yield view

    def read(self) -> bytes:
        """Return the current member's bytes at once. (Views collected from `content()` would not last.)"""
        data = bytearray()
        for view in self.content():
            data += view
        return bytes(data)

    def _exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            data += self._some(size - len(data))
        return data

    def _some(self, size: int) -> memoryview:
        if not self._rest and not self._advance():
            raise ValueError("it is cut short")
        view, self._rest = self._rest[:size], self._rest[size:]
        return view

    def _advance(self) -> bool:
        """Go on to the next chunk, unless there is more of this one. False at the end."""
        if self._rest:
            return True
        if self._ended:
            return False
        if self._buffer:
            self._free.put(self._buffer)
        chunk = self._full.get()
        if chunk is None:
            self._ended = True
            cast("Future[None]", self._reading).result()
            return False
        self._buffer, size = chunk
        self._rest = memoryview(self._buffer)[:size]
        return True

    def _read_ahead(self) -> None:
        try:
            with _decompressed(self._source) as stream:
                while (buffer := self._free.get()) is not None:
                    size = stream.readinto(buffer)
                    if not size:
                        return
                    self._full.put((buffer, size))
        finally:
            self._full.put(None)


_SIZED = (tarfile.REGTYPE, tarfile.AREGTYPE)


def _kind(info: tarfile.TarInfo) -> MemberKind:
    try:
        return _KINDS[info.type]
    except KeyError:
        raise ValueError(f"it has an entry of an unknown kind: {info.name!r}") from None


def _safe(name: str) -> str:
    name = name.removeprefix("./").rstrip("/")
    if "\0" in name or any(part in ("", ".", "..") for part in name.split("/")):
        raise ValueError(f"it has an entry with a name that is not allowed: {name!r}")
    return name


class _Readable(Protocol):
    def readinto(self, buffer: bytearray, /) -> int | None: ...


class _DigestingFile(io.RawIOBase):
    """A file that keeps the SHA-256 and the number of the bytes that were read from it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.bytes_read = 0
        try:
            self._file = open(path, "rb", buffering=0)  # noqa: SIM115 - close() closes it
        except OSError as error:
            raise ValueError(f"it cannot be opened: {error.strerror}") from None
        self._sha256 = hashlib.sha256()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview, /) -> int:  # type: ignore[override]
        try:
            size = self._file.readinto(buffer)
        except OSError as error:
            raise ValueError(f"it cannot be read: {error.strerror}") from None
        self._sha256.update(memoryview(buffer)[:size])
        self.bytes_read += size
        return size

    def digest(self) -> FileDigest:
        return FileDigest(name=self.path.name, size_bytes=self.bytes_read, sha256=self._sha256.hexdigest())

    def close(self) -> None:
        self._file.close()
        super().close()


@contextmanager
def _decompressed(source: _DigestingFile) -> Iterator[_Readable]:
    name = source.path.name
    if name.endswith(".tar.zst"):
        import zstandard

        try:
            yield zstandard.ZstdDecompressor().stream_reader(
                cast("IO[bytes]", source), read_size=_CHUNK_BYTES, read_across_frames=True, closefd=False
            )
        except zstandard.ZstdError as error:
            raise ValueError(f"it does not decompress ({error})") from None
    elif name.endswith(".tar.gz"):
        from isal import igzip, igzip_lib

        try:
            yield igzip.IGzipFile(fileobj=source)  # type: ignore[no-untyped-call]
        except (igzip_lib.IsalError, igzip.BadGzipFile, EOFError) as error:  # type: ignore[misc]
            raise ValueError(f"it does not decompress ({error})") from None
    elif name.endswith(".tar"):
        yield source
    else:
        raise ValueError("it is not a tar file that can be read here")
