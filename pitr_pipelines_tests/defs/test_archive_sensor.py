"""The lag of an archive is observed from the file system alone."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import dagster as dg

from pitr_pipelines.catalog.layout import Layout
from pitr_pipelines.defs.archive_sensor import observe
from pitr_pipelines.defs.build import build_definitions
from pitr_pipelines.settings import Settings
from pitr_pipelines_tests.defs.storage import SEGMENT_SIZE, put_segment

NOW = datetime(2026, 3, 10, 14, 1, tzinfo=UTC)


def test_it_tells_the_newest_segment_its_lag_and_the_backlog(settings: Settings, layout: Layout) -> None:
    put_segment(layout, "order-db", 8, NOW - timedelta(minutes=10))
    put_segment(layout, "order-db", 9, NOW - timedelta(seconds=90))
    (layout.wal("order-db") / "00000002.history").write_text("1\t0/900000\tno recovery target specified\n")
    (layout.wal("order-db") / ".half.tmp").write_text("not WAL")

    metadata = observe(settings, "order-db", NOW).metadata

    assert metadata["lag_s"].value == 90.0
    assert metadata["last_segment"].value == "000000010000000000000009"
    assert metadata["raw_files"].value == 3
    assert isinstance(metadata["raw_bytes"].value, int)
    assert metadata["raw_bytes"].value // SEGMENT_SIZE == 2


def test_an_archive_that_got_nothing_yet_has_no_lag(settings: Settings) -> None:
    metadata = observe(settings, "order-db", NOW).metadata
    assert metadata["raw_files"].value == 0
    assert "lag_s" not in metadata


def test_every_database_is_observed_and_an_absent_storage_is_a_reason_to_skip(
    settings: Settings, instance: dg.DagsterInstance
) -> None:
    repository = build_definitions(settings).get_repository_def()
    sensor = repository.get_sensor_def("wal_archive_lag")

    def evaluate() -> tuple[list[str], str | None]:
        context = dg.build_sensor_context(instance=instance, repository_def=repository)
        data = sensor.evaluate_tick(context)
        return [event.asset_key.to_user_string() for event in data.asset_events], data.skip_message

    assert evaluate()[0] == ["order_db/wal_archive", "inventory_db/wal_archive"]
    settings.backup_root.rmdir()
    observed, reason = evaluate()
    assert observed == []
    assert reason is not None
    assert str(settings.backup_root) in reason
