"""Reading an envelope piece by piece: its index, and then only what is asked for.

What is fetched lies as under `backup_root` (catalog/layout.py), so that an ordinary inventory is read from
it. A file has its name only once it is whole, durable and has the SHA-256 that the index says. Whatever
an index says, nothing is written outside the directory that was named, and through no symbolic link.
"""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
from collections.abc import Collection, Generator, Iterable
from contextlib import closing, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Protocol

from pitr_pipelines import durable
from pitr_pipelines.catalog.records import BundleMember
from pitr_pipelines.errors import ArtifactDamaged, BadRequest
from pitr_pipelines.offsite.encryption import Identities, Readable, WrongKey, decrypt
from pitr_pipelines.offsite.envelope_index import (
    BLOCK,
    INDEX_NAME,
    README_NAME,
    SUFFIX,
    EnvelopeIndex,
    IndexEntry,
    entry_header,
    padded,
    parse_index,
)
from pitr_pipelines.offsite.envelope_stream import Pieces
from pitr_pipelines.progress import Progress, Report, silent
from pitr_pipelines.wal.bundle_file import read_member

BEGINNING_BYTES = 64 * 1024
"""What is read first. It holds the index of a small envelope, and says where that of a large one ends."""
_PIECE_BYTES = 256 * 1024
_LARGEST_INDEX_BYTES = 256 * 1024**2
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class RangeSource(Protocol):
    """An object in a store that ranges are read from. `name` is what errors call it."""

    @property
    def name(self) -> str: ...

    def get_range(self, offset: int, length: int) -> Generator[bytes, None, None]:
        """Yield `length` bytes from `offset` on, in pieces; fewer only where the object ends.

        It is closed when no more is wanted.
        """
        ...


class EnvelopeReader:
    """One envelope, open for reading: its index was read, and a key was there to read it with."""

    def __init__(self, source: RangeSource, index: EnvelopeIndex, identities: Identities | None) -> None:
        self.source = source
        self.index = index
        self._identities = identities

    def fetch(
        self,
        entries: Iterable[IndexEntry],
        root: Path,
        *,
        replace: bool = False,
        durably: bool = True,
        report: Report = silent,
    ) -> list[Path]:
        """Fetch members into `root`, in the envelope's order: an artifact's record after the artifact.

        What is there already, and the same, is not fetched again. Without `durably`, which is for what is
        looked at again before it is used, a crash of the machine may lose it. Returns the paths of all of
        them. Raises BadRequest, unless `replace`, where another file has the name, ArtifactDamaged if a
        member is not what the index says; then what was fetched before it is whole and stays.
        """
        ordered = sorted(entries, key=lambda entry: entry.offset)
        total = sum(entry.length for entry in ordered)
        done = 0
        paths = []
        for entry in ordered:
            path = _place(root, entry)
            if not _is_there(path, entry, replace=replace):
                self._fetch(entry, path, durably=durably)
            paths.append(path)
            done += entry.length
            report(Progress("fetch", done, total))
        return paths

    def read_wal_file(self, entry: IndexEntry, member: BundleMember, scratch: Path) -> bytes:
        """Return one file of a bundle, checked; `scratch` is a directory for what must be fetched for it.

        Of an envelope that is not encrypted, only that file's bytes are fetched. An encrypted bundle is one
        age file, which standard programs open from its beginning only: it is fetched whole.
        """
        bundle = _place(scratch, entry)
        if self.index.encrypted or bundle.exists():
            self.fetch([entry], scratch)
            return bytes(read_member(bundle, member))
        begin = entry.offset + len(entry_header(entry.artifact.path, 0)) + member.offset
        if member.offset + member.length > entry.artifact.size_bytes:
            raise _damaged(self.source.name, f"has no {member.name} in {entry.artifact.path}")
        part = durable.temporary_name(bundle)
        durable.make_directory(part.parent)
        try:
            with part.open("wb") as file:
                for piece in _exactly(self.source, begin, member.length):
                    file.write(piece)
            return bytes(read_member(part, member.model_copy(update={"offset": 0})))
        finally:
            part.unlink(missing_ok=True)

    def _fetch(self, entry: IndexEntry, path: Path, *, durably: bool) -> None:
        file = entry.artifact
        durable.make_directory(path.parent)
        temporary = durable.temporary_name(path)
        temporary.unlink(missing_ok=True)
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
            with open(os.open(temporary, flags, durable.FILE_MODE), "wb") as opened:
                sink = _Checked(opened)
                self._copy(entry, sink)
                if sink.size_bytes != file.size_bytes or sink.digest.hexdigest() != file.sha256:
                    raise _damaged(self.source.name, f"has a {file.path} that is not what its index says")
                opened.flush()
                if file.modified_at is not None:
                    moment = (file.modified_at - _EPOCH) // timedelta(microseconds=1) * 1000
                    os.utime(opened.fileno(), ns=(moment, moment))
                if durably:
                    os.fsync(opened.fileno())
            if durably:
                durable.replace_durably(temporary, path)
            else:
                temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise

    def _copy(self, entry: IndexEntry, sink: _Checked) -> None:
        name = self.index.name_of(entry)
        with closing(_exactly(self.source, entry.offset, entry.length)) as pieces:
            stored = Pieces(pieces)
            self._copy_content(entry, name, stored, sink)
            while (
                stored.read()
            ):  # padding: a request that was read to its end leaves a connection to use again
                pass

    def _copy_content(self, entry: IndexEntry, name: str, stored: Readable, sink: _Checked) -> None:
        start = len(entry_header(name, 0))
        header = _take(stored, start)
        info = _parse_header(header[-BLOCK:], self.source.name)
        if header != _same_header(info, name) or start + padded(info.size) > entry.length:
            raise _damaged(self.source.name, f"does not have {name} where its index says")
        content = Limited(stored, info.size)
        if self._identities is not None and self.index.encrypted:
            decrypt(content, sink, self._identities, what=f"{name} in the envelope {self.source.name}")
        else:
            while piece := content.read(_PIECE_BYTES):
                sink.write(piece)


def open_envelope(source: RangeSource, identities: Identities | None = None) -> EnvelopeReader:
    """Read the index of an envelope, with one small read, or two if it is long.

    Raises WrongKey before anything else is fetched, if it is encrypted and no key that is there fits;
    ArtifactDamaged if it is no envelope, or its beginning is damaged.
    """
    beginning = b"".join(source.get_range(0, BEGINNING_BYTES))
    readme = _parse_header(beginning[:BLOCK], source.name)
    at = BLOCK + padded(readme.size)
    if readme.name != README_NAME or at + BLOCK > len(beginning):
        raise _no_envelope(source.name)
    index = _parse_header(beginning[at : at + BLOCK], source.name)
    encrypted = index.name == INDEX_NAME + SUFFIX
    if not (encrypted or index.name == INDEX_NAME) or index.size > _LARGEST_INDEX_BYTES:
        raise _no_envelope(source.name)
    begin, end = at + BLOCK, at + BLOCK + index.size
    what = f"the index of the envelope {source.name}"
    if encrypted and identities is None:
        raise WrongKey(
            f"the envelope {source.name} is encrypted, and no secret key was given",
            remedy="Give the key file that belongs to a public key which was in the settings on that day.",
        )
    text = beginning[begin:end]
    if end > len(beginning):
        text += b"".join(_exactly(source, len(beginning), end - len(beginning)))
    if encrypted and identities is not None:
        plain = io.BytesIO()
        decrypt(io.BytesIO(text), plain, identities, what=what)
        text = plain.getvalue()
    parsed = parse_index(text, name=source.name)
    if parsed.encrypted != encrypted or (parsed.members and parsed.members[0].offset < end):
        raise _damaged(source.name, "has an index that contradicts itself")
    return EnvelopeReader(source, parsed, identities)


def choose(index: EnvelopeIndex, databases: Collection[str]) -> list[IndexEntry]:
    """Return the members about these databases. Raises BadRequest if there is nothing of one of them."""
    known = {entry.artifact.database for entry in index.members} - {None}
    missing = sorted(set(databases) - known)
    if missing:
        raise BadRequest(
            f"the envelope of {index.day} holds nothing of {', '.join(missing)}",
            remedy=f"It holds {', '.join(sorted(str(name) for name in known)) or 'no database'}.",
        )
    return [entry for entry in index.members if entry.artifact.database in databases]


class Limited:
    """The next so many bytes of something, as something that is read from."""

    def __init__(self, source: Readable, size_bytes: int) -> None:
        self._source = source
        self._left = size_bytes

    def read(self, size: int = -1, /) -> bytes:
        wanted = self._left if size < 0 else min(size, self._left)
        data = self._source.read(wanted) if wanted else b""
        self._left -= len(data)
        return data


class _Checked:
    """A file that is written to, with the digest of what was."""

    def __init__(self, file: io.BufferedWriter) -> None:
        self._file = file
        self.digest = hashlib.sha256()
        self.size_bytes = 0

    def write(self, data: bytes, /) -> int:
        self.digest.update(data)
        self.size_bytes += len(data)
        return self._file.write(data)


def _place(root: Path, entry: IndexEntry) -> Path:
    """Return where a member goes. Raises BadRequest if a symbolic link stands on the way."""
    path = root
    for part in entry.artifact.path.split("/"):
        path = path / part
        if path.is_symlink():
            raise BadRequest(
                f"{path} is a symbolic link, and what is fetched must stay below {root}",
                remedy="Fetch into an empty directory.",
            )
    return path


def _is_there(path: Path, entry: IndexEntry, *, replace: bool) -> bool:
    with suppress(FileNotFoundError):
        if path.stat().st_size == entry.artifact.size_bytes:
            with path.open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() == entry.artifact.sha256:
                    return True
        if not replace:
            raise BadRequest(
                f"{path} is there already, and is another than the one in the envelope",
                remedy="Fetch into an empty directory, or say that what is there shall be replaced.",
            )
    return False


def _exactly(source: RangeSource, offset: int, length: int) -> Generator[bytes, None, None]:
    left = length
    with closing(source.get_range(offset, length)) as pieces:
        for piece in pieces:
            if len(piece) > left:
                raise _damaged(source.name, "gave more bytes than were asked for")
            left -= len(piece)
            yield piece
    if left:
        raise _damaged(source.name, f"is cut off: it ends {left} bytes before {offset + length}")


def _take(source: Readable, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = source.read(size - len(data))
        if not piece:
            break
        data += piece
    return data


def _parse_header(block: bytes, name: str) -> tarfile.TarInfo:
    try:
        info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        raise _no_envelope(name) from None
    return info


def _same_header(info: tarfile.TarInfo, name: str) -> bytes:
    """Return the header that this software would have written for an entry of this size and time."""
    return entry_header(name, info.size, _EPOCH + timedelta(seconds=info.mtime))


def _no_envelope(name: str) -> ArtifactDamaged:
    return ArtifactDamaged(
        f"{name} does not begin as an envelope does",
        remedy="Is it the right object? Another program may have written it, or it was damaged; "
        "`tar tf` shows what is left of it.",
    )


def _damaged(name: str, problem: str) -> ArtifactDamaged:
    return ArtifactDamaged(
        f"the envelope {name} {problem}",
        remedy="Fetch it again; if that does not help, take another envelope.",
    )
