"""WAL archives, bundles and bases that are made up, for tests that need no server.

The segments are of the smallest size that PostgreSQL allows and hold no records, but their headers are
what PostgreSQL writes, and each segment's bytes are its own.
"""

from __future__ import annotations

import os
import random
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

from pitr_pipelines.catalog.layout import Layout
from pitr_pipelines.catalog.records import (
    BaseRecord,
    BundleMember,
    BundleRecord,
    BundleState,
    FileDigest,
    SealRecord,
    WalRun,
    write_record,
)
from pitr_pipelines.settings import Settings, parse_settings
from pitr_pipelines.wal.hours import Hour
from pitr_pipelines.wal.lsn import Lsn, SegmentName, WalFileKind

SEGMENT_SIZE = 1024 * 1024
SYSTEM_IDENTIFIER = "7301234567890123456"
DATABASE = "order-db"
DAY = datetime(2026, 1, 29, tzinfo=UTC)
_PAGE = 8192
_MAGIC = 0xD116
_LONG_HEADER = 0x0002


def at(hour: float, minute: float = 0, second: float = 0) -> datetime:
    """Return a moment of the day on which everything here happens; hours may go past 24."""
    return DAY + timedelta(hours=hour, minutes=minute, seconds=second)


def hour_of(hour: int) -> Hour:
    return Hour(at(hour))


def segment(number: int, timeline: int = 1) -> SegmentName:
    """Return the name of the segment with a running number."""
    return SegmentName.numbered(number, timeline, SEGMENT_SIZE)


def segment_bytes(
    name: SegmentName,
    *,
    system_identifier: str = SYSTEM_IDENTIFIER,
    segment_size: int = SEGMENT_SIZE,
    written_on: int | None = None,
) -> bytes:
    """Return a segment: the long page header, then text that is the segment's own."""
    header = struct.pack(
        "=HHIQI4xQII",
        _MAGIC,
        _LONG_HEADER,
        written_on or name.timeline,
        int(name.start(segment_size)),
        0,
        int(system_identifier),
        segment_size,
        _PAGE,
    )
    noise = random.Random(str(name)).randbytes(512)
    page = (noise + f"a row of {name} ".encode() * 64).ljust(_PAGE, b"\0")[:_PAGE]
    return header + (page * (segment_size // _PAGE))[len(header) :]


def put_file(directory: Path, name: str, content: bytes, closed_at: datetime) -> Path:
    """Put a file into an archive as wal-archive.sh does: with the source's mtime."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / name
    path.write_bytes(content)
    microseconds = (closed_at - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)
    os.utime(path, ns=(microseconds * 1000, microseconds * 1000))
    return path


def put_segment(directory: Path, name: SegmentName, closed_at: datetime, **header: Any) -> Path:
    """Put one segment into an archive."""
    return put_file(directory, str(name), segment_bytes(name, **header), closed_at)


def make_archive(directory: Path, closed_at: Mapping[SegmentName, datetime]) -> None:
    """Make an archive of the given segments, each with its mtime."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, moment in closed_at.items():
        put_segment(directory, name, moment)


def make_settings(root: Path, databases: Sequence[str] = (DATABASE,), **values: Any) -> Settings:
    """Return settings below `root`, with one bundling thread and nothing kept after bundling."""
    return parse_settings(
        {
            "backup_root": "backup",
            "restore_root": "restore",
            "databases": {name: {"dsn": "host=nowhere.invalid"} for name in databases},
            "bundle": {"workers": 1, "keep_raw_hours": 0},
            **values,
        },
        source=root / "pitr.yaml",
    )


def seal_record(hour: int, number: int, moment: datetime, timeline: int = 1) -> SealRecord:
    """Return the seal of an hour, in the segment with the given number."""
    return SealRecord(
        database=DATABASE,
        hour=hour_of(hour),
        segment=segment(number, timeline),
        lsn=Lsn(segment(number, timeline).start(SEGMENT_SIZE) + 0x100),
        restore_point=f"pitr-{DATABASE}-{hour_of(hour)}",
        at=moment,
    )


def base_record(
    first: int,
    last: int,
    ended_at: datetime,
    *,
    day: date | None = None,
    timeline: int = 1,
    took: timedelta = timedelta(seconds=20),
    database: str = DATABASE,
) -> BaseRecord:
    """Return the record of a base backup that carries the segments `first` to `last`."""
    return BaseRecord(
        database=database,
        day=day or ended_at.date(),
        system_identifier=SYSTEM_IDENTIFIER,
        server_version=150019,
        timeline=timeline,
        start_lsn=Lsn(first * SEGMENT_SIZE + 0x28),
        end_lsn=Lsn(last * SEGMENT_SIZE + 0x100),
        started_at=ended_at - took,
        ended_at=ended_at,
        wal_segment_size=SEGMENT_SIZE,
        data_checksums=True,
        compression="none",
        uncompressed_bytes=1000,
        files=(FileDigest(name="base.tar", size_bytes=1000, sha256="0" * 64),),
    )


def bundle_record(
    hour: int,
    closed_at: Mapping[SegmentName, datetime],
    *,
    state: BundleState = BundleState.CLOSED,
    seal: SealRecord | None = None,
    database: str = DATABASE,
) -> BundleRecord:
    """Return the record of a bundle of the given segments, whose file is not there."""
    members = tuple(
        BundleMember(
            name=str(name),
            kind=WalFileKind.SEGMENT,
            closed_at=closed_at[name],
            size_bytes=SEGMENT_SIZE,
            sha256="0" * 64,
            offset=0,
            length=1,
        )
        for name in sorted(closed_at)
    )
    file = FileDigest(name=f"{hour_of(hour)}.tar.gz", size_bytes=1, sha256="0" * 64)
    return BundleRecord(
        database=database,
        hour=hour_of(hour),
        state=state,
        system_identifier=SYSTEM_IDENTIFIER if members else None,
        wal_segment_size=SEGMENT_SIZE if members else None,
        seal=seal,
        runs=runs_of(closed_at),
        file=file if members else None,
        members=members,
    )


def runs_of(closed_at: Mapping[SegmentName, datetime]) -> tuple[WalRun, ...]:
    """Return the runs of consecutive segments, one by one as a bundle's record has them."""
    runs: list[WalRun] = []
    for name in sorted(closed_at):
        follows = runs and runs[-1].last.following(SEGMENT_SIZE) == name
        first = runs.pop().first if follows else name
        runs.append(WalRun(first=first, last=name, closed_at=closed_at[name]))
    return tuple(runs)


@dataclass
class Store:
    """A backup storage that a test fills; records are written, artifacts are not."""

    root: Path
    settings: Settings = field(init=False)

    def __post_init__(self) -> None:
        self.settings = make_settings(self.root)

    @property
    def layout(self) -> Layout:
        return Layout(self.settings.backup_root)

    @property
    def wal(self) -> Path:
        return self.layout.wal(DATABASE)

    def add_bases(self, records: Iterable[BaseRecord]) -> None:
        for record in records:
            path = self.layout.base_record(record.database, record.day)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_record(path, record)

    def add_bundles(self, records: Iterable[BundleRecord]) -> None:
        for record in records:
            path = self.layout.bundle_record(record.database, record.hour)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_record(path, record)

    def add_seals(self, records: Iterable[SealRecord]) -> None:
        for record in records:
            path = self.layout.seal_record(record.database, record.hour)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_record(path, record)
