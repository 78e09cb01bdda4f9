"""A backup storage with real files, and an envelope of it in a file whose reads are counted."""

from __future__ import annotations

import hashlib
import io
import random
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from pathlib import Path

from pitr_pipelines.catalog.layout import Layout
from pitr_pipelines.catalog.records import BundleRecord, FileDigest, write_record
from pitr_pipelines.offsite.artifacts import find_artifacts
from pitr_pipelines.offsite.encryption import Recipients
from pitr_pipelines.offsite.envelope import EnvelopePlan, plan_envelope
from pitr_pipelines.offsite.envelope_stream import EnvelopeStream
from pitr_pipelines.wal.bundle_file import PackedMember, pack_member, write_bundle
from pitr_pipelines.wal.lsn import WalFileKind
from pitr_pipelines_tests.wal_files import (
    at,
    base_record,
    bundle_record,
    hour_of,
    put_file,
    seal_record,
    segment,
    segment_bytes,
)

TODAY = date(2026, 1, 29)
MADE_AT = datetime(2026, 1, 29, 4, tzinfo=UTC)


@dataclass(frozen=True)
class Packable:
    """A segment that goes into a bundle."""

    name: str
    closed_at: datetime
    content: bytes

    @property
    def size_bytes(self) -> int:
        return len(self.content)

    def pack(self) -> PackedMember:
        return pack_member(
            self.name, WalFileKind.SEGMENT, self.closed_at, len(self.content), io.BytesIO(self.content)
        )


def fill(layout: Layout, databases: Sequence[str] = ("order-db",), *, base_bytes: int = 200_000) -> None:
    """Put a base, two bundles with a seal each, a history file and a manifest under a backup root."""
    for number, database in enumerate(databases):
        put_base(layout, database, at(3), random.Random(database).randbytes(base_bytes))
        for hour in (3, 4):
            put_bundle(layout, database, hour, first=10 * hour + 100 * number)
            seal = seal_record(hour, 10 * hour + 1, at(hour, 59)).model_copy(update={"database": database})
            write_record(layout.seal_record(database, hour_of(hour)), seal)
        put_file(layout.wal(database), "00000002.history", b"1\t0/5000000\tno reason\n", at(2, 0, 0.25))
    layout.manifest.parent.mkdir(parents=True, exist_ok=True)
    layout.manifest.write_text("{}\n")


def put_base(layout: Layout, database: str, ended_at: datetime, content: bytes) -> None:
    """Put a base backup of one tar with its record."""
    directory = layout.base(database, ended_at.date())
    directory.mkdir(parents=True, exist_ok=True)
    files = []
    for name, data in (("base.tar", content), ("backup_manifest", b"{}")):
        (directory / name).write_bytes(data)
        digest = hashlib.sha256(data).hexdigest()
        files.append(FileDigest(name=name, size_bytes=len(data), sha256=digest))
    record = base_record(5, 6, ended_at, database=database).model_copy(update={"files": tuple(files)})
    write_record(layout.base_record(database, ended_at.date()), record)


def put_bundle(layout: Layout, database: str, hour: int, *, first: int, count: int = 3) -> BundleRecord:
    """Put a bundle of `count` segments with its record."""
    names = {segment(first + number): at(hour, 5 + number) for number in range(count)}
    sources: list[Packable] = []
    for name, closed_at in names.items():
        sources.append(Packable(str(name), closed_at, segment_bytes(name)))
    path = layout.bundle(database, hour_of(hour))
    path.parent.mkdir(parents=True, exist_ok=True)
    digest, members = write_bundle(path, sources, name=path.name, workers=1)
    record = bundle_record(hour, names, database=database)
    record = record.model_copy(update={"file": digest, "members": members})
    write_record(layout.bundle_record(database, hour_of(hour)), record)
    return record


def plan_of(
    layout: Layout, databases: Sequence[str] = ("order-db",), *, recipients: Recipients | None = None
) -> EnvelopePlan:
    """Plan the envelope of everything that a backup root holds."""
    found = find_artifacts(layout, databases)
    assert not found.problems
    return plan_envelope(found.artifacts, day=TODAY, made_at=MADE_AT, recipients=recipients)


def write_envelope(plan: EnvelopePlan, layout: Layout, path: Path) -> Path:
    """Read an envelope from its stream into a file, in pieces of an odd size."""
    with EnvelopeStream(plan, layout.root) as stream, path.open("wb") as file:
        while piece := stream.read(70_001):
            file.write(piece)
    return path


@dataclass
class CountedFile:
    """An envelope in a file, read in ranges that are counted, as a store would give them."""

    path: Path
    ranges: list[tuple[int, int]] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def bytes_read(self) -> int:
        return sum(length for _, length in self.ranges)

    def get_range(self, offset: int, length: int) -> Generator[bytes, None, None]:
        given = 0
        try:
            with self.path.open("rb") as file:
                file.seek(offset)
                while given < length and (piece := file.read(min(length - given, 30_011))):
                    given += len(piece)
                    yield piece
        finally:
            self.ranges.append((offset, given))
