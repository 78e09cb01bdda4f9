"""Storage as a server and the core would leave it, made by hand: real records, small real segments."""

from __future__ import annotations

import os
import struct
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

from pitr_pipelines.catalog.layout import BASE_RECORD, Layout
from pitr_pipelines.catalog.records import (
    BaseRecord,
    BundleRecord,
    BundleState,
    FileDigest,
    SealRecord,
    WalRun,
    write_record,
)
from pitr_pipelines.settings import Settings, parse_settings
from pitr_pipelines.wal.hours import Hour
from pitr_pipelines.wal.lsn import Lsn, SegmentName

SEGMENT_SIZE = 1024 * 1024
IDENTIFIER = "7000000000000000001"


def make_settings(directory: Path, *databases: str, **keys: Any) -> Settings:
    """Return settings whose servers nobody answers for; backup_root exists."""
    (directory / "backup").mkdir(exist_ok=True)
    names = databases or ("order-db", "inventory-db")
    return parse_settings(
        {
            "backup_root": str(directory / "backup"),
            "restore_root": str(directory / "restore"),
            "databases": {
                name: {"dsn": "host=127.0.0.1 port=1 user=pitr connect_timeout=2"} for name in names
            },
            **keys,
        },
        source=directory / "pitr.yaml",
    )


def put_segment(layout: Layout, database: str, number: int, closed_at: datetime) -> Path:
    """Put a whole WAL segment of timeline 1 into the archive, closed at a moment."""
    name = SegmentName.numbered(number, 1, SEGMENT_SIZE)
    header = struct.pack(
        "=HHIQI4xQII", 0xD110, 0x0002, 1, name.start(SEGMENT_SIZE), 0, int(IDENTIFIER), SEGMENT_SIZE, 8192
    )
    path = layout.wal(database) / str(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(header.ljust(SEGMENT_SIZE, b"\0"))
    os.utime(path, (closed_at.timestamp(), closed_at.timestamp()))
    return path


def put_base(layout: Layout, database: str, day: date, *, ended_at: datetime | None = None) -> BaseRecord:
    """Put the record of a base backup into storage; of its files there is only the record's word."""
    ended_at = ended_at or datetime(day.year, day.month, day.day, 3, 0, 20, tzinfo=UTC)
    record = BaseRecord(
        database=database,
        day=day,
        system_identifier=IDENTIFIER,
        server_version=180006,
        timeline=1,
        start_lsn=Lsn(SEGMENT_SIZE + 40),
        end_lsn=Lsn(SEGMENT_SIZE + 400),
        started_at=ended_at - timedelta(seconds=20),
        ended_at=ended_at,
        wal_segment_size=SEGMENT_SIZE,
        data_checksums=True,
        compression="zstd",
        uncompressed_bytes=4_000_000,
        files=(FileDigest(name="base.tar.zst", size_bytes=1_000_000, sha256="0" * 64),),
    )
    layout.base(database, day).mkdir(parents=True, exist_ok=True)
    write_record(layout.base(database, day) / BASE_RECORD, record)
    return record


def put_bundle(
    layout: Layout, database: str, hour: Hour, *, state: BundleState = BundleState.CLOSED, number: int = 1
) -> BundleRecord:
    """Put the record of a sealed bundle with one segment into storage."""
    segment = SegmentName.numbered(number, 1, SEGMENT_SIZE)
    record = BundleRecord(
        database=database,
        hour=hour,
        state=state,
        system_identifier=IDENTIFIER,
        wal_segment_size=SEGMENT_SIZE,
        seal=SealRecord(
            database=database,
            hour=hour,
            segment=segment,
            lsn=Lsn(number * SEGMENT_SIZE + 100),
            restore_point=f"pitr-{database}-{hour}",
            at=hour.end,
        ),
        runs=(WalRun(first=segment, last=segment, closed_at=hour.end),),
        file=None,
        members=(),
    )
    layout.bundles(database).mkdir(parents=True, exist_ok=True)
    write_record(layout.bundle_record(database, hour), record)
    return record


def age(path: Path, seconds: float) -> None:
    """Make a file as old as that by its mtime; its ctime, which nobody can set, is now."""
    then = path.stat().st_mtime - seconds
    os.utime(path, (then, then))
