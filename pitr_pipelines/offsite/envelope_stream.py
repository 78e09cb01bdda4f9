"""The envelope as a stream: made while it is sent, straight from the artifacts, with no second copy.

It gives exactly as many bytes as its plan says, or it fails. Each file is held against the SHA-256 on
record while it passes, and the last piece of a file is only given once all of it was right. So an envelope
with a file that changed, shrank, grew or went away in the meantime is never complete, and a store that was
told its length will not take it. Memory is constant: a few pieces, whatever the artifacts' sizes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Iterator
from pathlib import Path

from pitr_pipelines.errors import ArtifactDamaged
from pitr_pipelines.offsite.encryption import Encryptor, encrypted_size
from pitr_pipelines.offsite.envelope import EnvelopePlan
from pitr_pipelines.offsite.envelope_index import (
    END,
    INDEX_NAME,
    SUFFIX,
    Artifact,
    entry_header,
    entry_room,
    filler,
    padded,
    padding,
    readme_entry,
)
from pitr_pipelines.progress import Progress, Report, silent

_PIECE_BYTES = 256 * 1024


class EnvelopeStream:
    """The bytes of a planned envelope, to be read once, from its beginning to its end.

    Use it as a context, or close it: a thread encrypts ahead of the reader. `root` is where the artifacts
    lie. What is damaged is raised as ArtifactDamaged by `read`, this time and every time after.
    """

    def __init__(self, plan: EnvelopePlan, root: Path, *, report: Report = silent) -> None:
        self.plan = plan
        self._root = root
        self._report = report
        self._entries = self._make()
        self._pieces = Pieces(self._entries)
        self._given = 0
        self._digest = hashlib.sha256()
        self._failure: BaseException | None = None

    @property
    def size_bytes(self) -> int:
        """How many bytes this gives in all: the Content-Length."""
        return self.plan.size_bytes

    def __len__(self) -> int:
        return self.size_bytes

    @property
    def sha256(self) -> str:
        """The SHA-256 of what was read so far. Encryption is different each time: none is known before."""
        return self._digest.hexdigest()

    def tell(self) -> int:
        """Return how many bytes were read so far."""
        return self._given

    def read(self, size: int = -1, /) -> bytes:
        """Return `size` bytes, fewer only at the end, and none after it; all of them if it is negative.

        Raises ArtifactDamaged, naming the file, when an artifact is not what its record says.
        """
        wanted = self.size_bytes - self._given if size < 0 else size
        parts: list[bytes] = []
        while wanted:
            piece = self._next(wanted)
            if not piece:
                break
            parts.append(piece)
            wanted -= len(piece)
        data = b"".join(parts)
        self._digest.update(data)
        self._given += len(data)
        self._report(Progress("envelope", self._given, self.size_bytes))
        return data

    def close(self) -> None:
        """Stop, wherever it is."""
        self._entries.close()

    def __enter__(self) -> EnvelopeStream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _next(self, size: int) -> bytes:
        if self._failure is not None:
            raise self._failure
        try:
            return self._pieces.read(size)
        except BaseException as error:
            self._failure = error
            raise

    def _make(self) -> Generator[bytes, None, None]:
        index = self.plan.index
        yield readme_entry(index)
        text = self.plan.index_text
        own = Artifact.model_construct(
            path=INDEX_NAME, size_bytes=len(text), sha256=hashlib.sha256(text).hexdigest(), modified_at=None
        )
        yield from self._entry(own, iter([text]))
        for entry in index.members:
            yield from self._entry(entry.artifact, checked_pieces(self._root, entry.artifact))
        yield END

    def _entry(self, file: Artifact, pieces: Iterator[bytes]) -> Iterator[bytes]:
        """Yield a tar entry, in exactly the room that the plan has for it."""
        moment = file.modified_at or self.plan.index.made_at
        recipients = self.plan.recipients
        if recipients is None:
            yield entry_header(file.path, file.size_bytes, moment)
            yield from pieces
            yield padding(file.size_bytes)
            return
        encryptor = Encryptor(Pieces(pieces), recipients)
        try:
            size = encrypted_size(file.size_bytes, encryptor.header_length())
            header = entry_header(file.path + SUFFIX, size, moment)
            yield header
            given = 0
            while piece := encryptor.read(_PIECE_BYTES):
                given += len(piece)
                yield piece
            if given != size:
                raise AssertionError(f"{file.path} came to {given} bytes encrypted, and not to {size}")
        finally:
            encryptor.close()
        yield padding(size)
        unused = entry_room(file.path, file.size_bytes, recipients) - len(header) - padded(size)
        yield filler(unused, self.plan.index.made_at)


def checked_pieces(root: Path, file: Artifact) -> Iterator[bytes]:
    """Yield an artifact's bytes, the last of them only once all are what the record says.

    Raises ArtifactDamaged, naming the file and what is wrong with it.
    """
    path = root / file.path
    digest = hashlib.sha256()
    left = file.size_bytes
    try:
        with path.open("rb", buffering=0) as opened:
            while True:
                piece = opened.read(min(_PIECE_BYTES, left)) if left else b""
                if left and not piece:
                    raise _damaged(path, f"is {left} bytes shorter than its record says")
                digest.update(piece)
                left -= len(piece)
                if not left:
                    break
                yield piece
            if opened.read(1):
                raise _damaged(path, f"is longer than the {file.size_bytes} bytes that its record says")
    except FileNotFoundError:
        raise _damaged(path, "is missing, though its record is there") from None
    except OSError as error:
        raise _damaged(path, f"cannot be read ({error.strerror})") from None
    if digest.hexdigest() != file.sha256:
        raise _damaged(path, "differs from the SHA-256 on record")
    yield piece


class Pieces:
    """Pieces as something that is read from: up to so many bytes at once, and none only at the end."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._piece = memoryview(b"")

    def read(self, size: int = -1, /) -> bytes:
        while not self._piece:
            piece = next(self._pieces, None)
            if piece is None:
                return b""
            self._piece = memoryview(piece)
        data = bytes(self._piece if size < 0 else self._piece[:size])
        self._piece = self._piece[len(data) :]
        return data


def _damaged(path: Path, problem: str) -> ArtifactDamaged:
    return ArtifactDamaged(
        f"{path} {problem}; the envelope was given up in the middle",
        remedy="`pitr verify` lists everything that is affected. Make the artifact again or put back a good "
        "copy; a file that was replaced while it was sent goes with the next envelope.",
    )
