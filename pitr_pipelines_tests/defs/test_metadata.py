"""What a materialization tells: numbers that plot, and links to what belongs together."""

from __future__ import annotations

from datetime import UTC, datetime

import dagster as dg
import pytest

from pitr_pipelines.catalog.layout import Layout
from pitr_pipelines.catalog.records import BundleMember, BundleRecord, BundleState, FileDigest
from pitr_pipelines.defs.metadata import Metadata, base_metadata, bundle_metadata
from pitr_pipelines.wal.hours import Hour
from pitr_pipelines.wal.lsn import SegmentName, WalFileKind
from pitr_pipelines_tests.defs.storage import SEGMENT_SIZE, put_base, put_bundle

HOUR = Hour.parse("2026-03-10-08")


def _with_segments(record: BundleRecord, count: int) -> BundleRecord:
    members = tuple(
        BundleMember(
            name=str(SegmentName.numbered(number, 1, SEGMENT_SIZE)),
            kind=WalFileKind.SEGMENT,
            closed_at=HOUR.end,
            size_bytes=SEGMENT_SIZE,
            sha256="0" * 64,
            offset=0,
            length=1,
        )
        for number in range(1, count + 1)
    )
    file = FileDigest(name=f"{HOUR}.tar.gz", size_bytes=SEGMENT_SIZE, sha256="0" * 64)
    return record.model_copy(update={"members": members, "file": file})


def _plain(metadata: Metadata) -> dict[str, object]:
    return {name: entry.value for name, entry in metadata.items()}


def test_a_bundle_tells_how_much_wal_its_hour_wrote_a_second(layout: Layout) -> None:
    record = _with_segments(put_bundle(layout, "order-db", HOUR), 36)
    told = bundle_metadata(layout, record)
    assert isinstance(told["wal_mib_per_s"], dg.FloatMetadataValue), "only numbers plot"
    assert told["wal_mib_per_s"].value == pytest.approx(0.01)
    assert told["compression_ratio"].value == 36


def test_an_hour_without_wal_has_a_rate_of_nothing_and_a_running_hour_none(layout: Layout) -> None:
    assert _plain(bundle_metadata(layout, put_bundle(layout, "order-db", HOUR)))["wal_mib_per_s"] == 0
    running = put_bundle(layout, "order-db", HOUR, state=BundleState.OPEN)
    assert "wal_mib_per_s" not in bundle_metadata(layout, running)


def test_base_and_bundle_lead_to_each_other(layout: Layout) -> None:
    day = datetime(2026, 3, 10, tzinfo=UTC).date()
    base = _plain(base_metadata(layout, put_base(layout, "order-db", day)))
    bundle = _plain(bundle_metadata(layout, put_bundle(layout, "order-db", HOUR)))
    assert base["see_wal_bundle"] == dg.AssetKey(["order_db", "wal_bundle"])
    assert bundle["see_base_backup"] == dg.AssetKey(["order_db", "base_backup"])
