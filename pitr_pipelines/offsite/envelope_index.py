"""The envelope's file format: a plain tar that says in its beginning where everything in it lies.

Its entries, in this order: README.txt, which says how to open it by hand; the index (index.json, or
index.json.age); then the members, named as they lie below `backup_root`, with `.age` if they are
encrypted, each on its own. So an envelope is unpacked with `tar` and `age` alone, and a range of it that
the index names is itself a piece of tar: `… | tar x`.

An encrypted member is up to 256 bytes shorter than the room that it has, which is known before it is
encrypted. Where that leaves a whole block of tar's 512 bytes, an entry for the directory `base/` fills it.

Nothing here reads or writes a file.
"""

from __future__ import annotations

import tarfile
from collections.abc import Sequence
from datetime import date, datetime
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from pitr_pipelines.catalog.records import Moment, Sha256, to_json
from pitr_pipelines.errors import ArtifactDamaged
from pitr_pipelines.offsite.encryption import Recipients, encrypted_room

BLOCK = tarfile.BLOCKSIZE
END = bytes(2 * BLOCK)
README_NAME = "README.txt"
INDEX_NAME = "index.json"
SUFFIX = ".age"
_FILLER = "base"
_README = """\
The off-site copy of {day}: base backups and write-ahead log of PostgreSQL.

This is a plain tar. The next entry, {index}, says what is in it: for each member its path, and the offset
and length of its tar entry in this file, so that one can be fetched alone (a range of those bytes is a tar
by itself: pipe it into `tar x`); and the size and SHA-256 of the file itself.
{how}
Below base/ lie base backups of pg_basebackup; below bundles/, one hour of write-ahead log each (tar.gz).
With pitr_pipelines: pitr offsite list, pitr offsite restore.
"""
_SEALED = """
Members whose names end in .age are encrypted (age-encryption.org/v1). With the secret key in key.txt:

    tar xf THIS_FILE
    find . -name '*.age' -exec sh -c 'age -d -i key.txt -o "${1%.age}" "$1"' - {} \\;
"""

MemberPath = Annotated[
    str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]*(/[A-Za-z0-9_][A-Za-z0-9._-]*)*$", max_length=240)
]
"""A path below `backup_root`. No part of it starts with a dot, so it cannot lead out."""


class MemberKind(StrEnum):
    """What a member of an envelope is."""

    BASE = "base_backup"
    BUNDLE = "bundle"
    SEAL = "seal"
    HISTORY = "history"
    RECORD = "record"
    MANIFEST = "manifest"


class Artifact(BaseModel):
    """One file below `backup_root`: what its record says of it.

    `sha256` and `size_bytes` are of the plain file. Files with the same `unit` belong together, and go
    together. `modified_at` is the mtime that must come back with a file, where that means something.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: MemberPath
    kind: MemberKind
    database: str | None = None
    unit: str
    day: date | None = None
    size_bytes: Annotated[int, Field(ge=0)]
    sha256: Sha256
    modified_at: Moment | None = None

    @property
    def identity(self) -> tuple[str, str]:
        """What tells this file from what was or will be under its name: the path and the SHA-256."""
        return self.path, self.sha256


class IndexEntry(BaseModel):
    """A member: what it is, and where its tar entry (header included) lies in the envelope."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    artifact: Artifact
    offset: Annotated[int, Field(ge=0)]
    length: Annotated[int, Field(gt=0)]

    @property
    def end(self) -> int:
        return self.offset + self.length


class EnvelopeIndex(BaseModel):
    """What an envelope holds. `size_bytes` is of the whole object."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    kind: Literal["envelope"] = "envelope"
    day: date
    made_at: Moment
    encrypted: bool
    size_bytes: int
    members: tuple[IndexEntry, ...]

    @model_validator(mode="after")
    def _check_places(self) -> EnvelopeIndex:
        paths: set[str] = set()
        end = 0
        for entry in self.members:
            path = entry.artifact.path
            if path in paths:
                raise ValueError(f"{path} is in it twice")
            if entry.offset < end or entry.offset % BLOCK or entry.length % BLOCK:
                raise ValueError(f"{path} cannot lie at {entry.offset}")
            paths.add(path)
            end = entry.end
        if end + len(END) > self.size_bytes:
            raise ValueError("its members do not fit into it")
        return self

    def name_of(self, entry: IndexEntry) -> str:
        """Return the name of a member in the tar."""
        return entry.artifact.path + (SUFFIX if self.encrypted else "")

    def of_database(self, database: str) -> tuple[IndexEntry, ...]:
        """Return the members that are about one database."""
        return tuple(entry for entry in self.members if entry.artifact.database == database)

    @property
    def delivers(self) -> frozenset[tuple[str, str]]:
        """The identities of what this envelope carries: once it is confirmed, they need not go again."""
        return frozenset(entry.artifact.identity for entry in self.members)


def build_index(
    artifacts: Sequence[Artifact], *, day: date, made_at: datetime, recipients: Recipients | None
) -> tuple[EnvelopeIndex, bytes]:
    """Lay artifacts out, in their order; return the index and its text as it stands in the envelope."""
    first = 0
    while True:
        entries = []
        offset = first
        for artifact in artifacts:
            length = entry_room(artifact.path, artifact.size_bytes, recipients)
            entries.append(IndexEntry(artifact=artifact, offset=offset, length=length))
            offset += length
        index = EnvelopeIndex(
            day=day,
            made_at=made_at,
            encrypted=recipients is not None,
            size_bytes=offset + len(END),
            members=tuple(entries),
        )
        text = to_json(index.model_dump(mode="json", exclude_none=True)).encode()
        begin = len(readme_entry(index)) + entry_room(INDEX_NAME, len(text), recipients)
        if begin == first:
            return index, text
        # A later beginning may need more digits, never fewer: this ends after a few rounds.
        first = begin


def parse_index(text: bytes, *, name: str) -> EnvelopeIndex:
    """Read the text of an index. Raises ArtifactDamaged, naming the envelope `name`, if it is none."""
    try:
        return EnvelopeIndex.model_validate_json(text)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in problem["loc"]) or "the index"
        raise ArtifactDamaged(
            f"the index of the envelope {name} cannot be used: {where}: {problem['msg']}",
            remedy="Was it made by a newer version of this software? Otherwise take another envelope; "
            "`tar` still unpacks what is left of this one.",
        ) from None


def entry_room(path: str, plain_bytes: int, recipients: Recipients | None) -> int:
    """Return how many bytes of the envelope a file takes, with its tar header and padding."""
    if recipients is None:
        return len(entry_header(path, 0)) + padded(plain_bytes)
    return len(entry_header(path + SUFFIX, 0)) + padded(encrypted_room(plain_bytes, recipients))


def entry_header(name: str, size_bytes: int, modified_at: datetime | None = None) -> bytes:
    """Return the tar header of a file. Its length does not depend on the file's size."""
    info = tarfile.TarInfo(name)
    info.size = size_bytes
    info.mode = 0o640
    info.mtime = int(modified_at.timestamp()) if modified_at else 0
    return info.tobuf(tarfile.GNU_FORMAT)


def filler(size_bytes: int, modified_at: datetime) -> bytes:
    """Return so many bytes (a multiple of 512) of tar that come to nothing when it is unpacked."""
    info = tarfile.TarInfo(_FILLER)
    info.type = tarfile.DIRTYPE
    info.mode = 0o750
    info.mtime = int(modified_at.timestamp())
    return info.tobuf(tarfile.GNU_FORMAT) * (size_bytes // BLOCK)


def readme_entry(index: EnvelopeIndex) -> bytes:
    """Return the first entry of an envelope, whole."""
    how = _SEALED if index.encrypted else ""
    text = _README.format(day=index.day, index=INDEX_NAME + (SUFFIX if index.encrypted else ""), how=how)
    content = text.encode()
    return entry_header(README_NAME, len(content), index.made_at) + content + padding(len(content))


def padded(size_bytes: int) -> int:
    """Return a size rounded up to tar's blocks."""
    return size_bytes + -size_bytes % BLOCK


def padding(size_bytes: int) -> bytes:
    """Return the zeros that follow so many bytes of content."""
    return bytes(-size_bytes % BLOCK)
