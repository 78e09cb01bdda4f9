"""Records: the small JSON file beside each artifact that says what it holds.

A record is written last, atomically; an artifact without one does not exist. Records hold no
secret, and nothing that differs between two makings of the same content: the same hour bundled
again gives the same bytes.
"""

from __future__ import annotations

import json
from datetime import UTC, date
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from pitr_pipelines import durable
from pitr_pipelines.errors import ArtifactDamaged
from pitr_pipelines.wal.hours import Hour
from pitr_pipelines.wal.lsn import Lsn, SegmentName, WalFileKind, check_segment_size

Moment = Annotated[AwareDatetime, AfterValidator(lambda moment: moment.astimezone(UTC))]
SegmentSize = Annotated[int, AfterValidator(check_segment_size)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]*$")]
"""A plain file name: whatever a record says, it cannot lead out of its directory."""


DatabaseName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,39}$")]
"""As in the settings: it becomes a directory, and so must not lead elsewhere."""


class Record(BaseModel):
    """What every record has: its format and the database it is about."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    database: DatabaseName


class FileDigest(BaseModel):
    """A file of an artifact: `sha256` is over the bytes on disk."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: FileName
    size_bytes: int
    sha256: Sha256


class Tablespace(BaseModel):
    """A tablespace of a base backup; `location` is its directory on the source server."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    oid: int
    location: str


class BaseRecord(Record):
    """One base backup, written only after it was verified.

    `started_at` and `ended_at` are the server's clock before the backup began and after it ended;
    a target must lie after `ended_at`. `uncompressed_bytes` is what a restore writes, without WAL.
    """

    kind: Literal["base_backup"] = "base_backup"
    day: date
    system_identifier: str
    server_version: int
    """As in server_version_num: 150019."""
    timeline: int
    start_lsn: Lsn
    end_lsn: Lsn
    started_at: Moment
    ended_at: Moment
    wal_segment_size: SegmentSize
    data_checksums: bool
    compression: Literal["zstd", "gzip", "none"]
    uncompressed_bytes: int
    tablespaces: tuple[Tablespace, ...] = ()
    files: tuple[FileDigest, ...]

    @property
    def major(self) -> int:
        return self.server_version // 10000

    @property
    def first_segment(self) -> SegmentName:
        """The segment from which recovery starts."""
        return SegmentName.containing(self.start_lsn, self.timeline, self.wal_segment_size)

    @property
    def last_segment(self) -> SegmentName:
        """The last segment that the base itself carries, in pg_wal.tar."""
        return SegmentName.containing(self.end_lsn - 1, self.timeline, self.wal_segment_size)

    @property
    def size_bytes(self) -> int:
        return sum(file.size_bytes for file in self.files)

    @property
    def packed_bytes(self) -> int:
        """What `uncompressed_bytes` came to: the base's files without its WAL and manifest."""
        return sum(
            file.size_bytes for file in self.files if not file.name.startswith(("pg_wal.", "backup_manifest"))
        )


class SealRecord(Record):
    """The seal of one hour: a commit at `at` (server clock) and a restore point at `lsn`.

    `segment` is the segment that holds both; it was archived before this record was written.
    """

    kind: Literal["seal"] = "seal"
    hour: Hour
    segment: SegmentName
    lsn: Lsn
    restore_point: str
    at: Moment


class BundleState(StrEnum):
    OPEN = "open"
    """Made before its hour was over, or while the archive did not reach the hour's end."""
    CLOSED = "closed"
    """Complete: the archive provably goes past the end of the hour."""


class WalRun(BaseModel):
    """Consecutive segments of one timeline, from `first` to `last`, both included.

    `closed_at` is the preserved mtime of `last`: when the server last wrote it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    first: SegmentName
    last: SegmentName
    closed_at: Moment

    @property
    def timeline(self) -> int:
        return self.first.timeline


class BundleMember(BaseModel):
    """One file in a bundle. `offset` and `length` delimit its gzip member in the bundle file.

    `size_bytes` and `sha256` are of the unpacked WAL file; `closed_at` is its preserved mtime.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: FileName
    kind: WalFileKind
    closed_at: Moment
    size_bytes: int
    sha256: Sha256
    offset: int
    length: int


class BundleRecord(Record):
    """One hour of WAL of one database. `file` is None when the hour had none.

    `runs` says which segments there are, `members` where each lies in the file.
    """

    kind: Literal["bundle"] = "bundle"
    hour: Hour
    state: BundleState
    system_identifier: str | None
    wal_segment_size: SegmentSize | None
    seal: SealRecord | None
    runs: tuple[WalRun, ...]
    file: FileDigest | None
    members: tuple[BundleMember, ...]

    @property
    def raw_bytes(self) -> int:
        return sum(member.size_bytes for member in self.members)

    @property
    def segments(self) -> tuple[BundleMember, ...]:
        return tuple(member for member in self.members if member.kind is WalFileKind.SEGMENT)


AnyRecord = TypeVar("AnyRecord", bound=BaseModel)


def read_record(path: Path, model: type[AnyRecord]) -> AnyRecord:
    """Read one record. Raises FileNotFoundError if there is none, ArtifactDamaged if it is bad."""
    text = path.read_bytes()
    try:
        return model.model_validate_json(text)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in problem["loc"]) or "the file"
        raise ArtifactDamaged(
            f"the record {path} cannot be used: {where}: {problem['msg']}",
            remedy="Make the artifact again (a bundle gives its record back), or put back a copy of it; "
            "`pitr verify` lists everything that is affected.",
        ) from None


def write_record(path: Path, record: BaseModel) -> None:
    """Publish a record: after this returns, the artifact exists, durably."""
    durable.write_whole(path, to_json(record.model_dump(mode="json")))


def to_json(value: Any) -> str:
    """Return JSON as every file here is written: readable, stable, one trailing newline."""
    return json.dumps(value, indent=1, ensure_ascii=False) + "\n"
