"""The steps, run by Dagster in this process on real files; no server is needed for what they show."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta

import dagster as dg
import pytest

from pitr_pipelines.catalog.layout import Layout
from pitr_pipelines.catalog.manifest import read_manifest
from pitr_pipelines.defs import wal_bundle
from pitr_pipelines.defs.build import build_definitions
from pitr_pipelines.progress import Report
from pitr_pipelines.settings import Settings
from pitr_pipelines.wal.bundles import BundleOutcome, make_bundle
from pitr_pipelines.wal.hours import Hour
from pitr_pipelines_tests.defs.storage import IDENTIFIER, put_base, put_bundle, put_segment

BUNDLE = dg.AssetKey(["order_db", "wal_bundle"])
FIRST = Hour.parse("2026-03-10-08")


def _hours(count: int) -> list[Hour]:
    return [Hour(FIRST.start + timedelta(hours=number)) for number in range(count)]


def _run(
    settings: Settings,
    instance: dg.DagsterInstance,
    job: str,
    *,
    partition: str | None = None,
    hours: list[Hour] | None = None,
) -> dg.ExecuteInProcessResult:
    tags = {}
    if hours:
        tags = {
            "dagster/asset_partition_range_start": str(hours[0]),
            "dagster/asset_partition_range_end": str(hours[-1]),
        }
    definition = build_definitions(settings).resolve_job_def(job)
    keys = [key for key in definition.asset_layer.executable_asset_keys if key.path[0] != "inventory_db"]
    return definition.execute_in_process(
        instance=instance,
        partition_key=partition,
        tags=tags,
        raise_on_error=False,
        asset_selection=keys,
    )


def _failure(result: dg.ExecuteInProcessResult) -> str:
    (event,) = [event for event in result.all_events if event.is_step_failure]
    data = event.step_failure_data
    assert data.user_failure_data is not None, data.error
    return data.user_failure_data.description or ""


def _materialized(instance: dg.DagsterInstance) -> dict[str, dict[str, object]]:
    records = instance.fetch_materializations(BUNDLE, limit=100).records
    found: dict[str, dict[str, object]] = {}
    for record in records:
        assert record.asset_materialization is not None
        assert record.partition_key not in found, "told twice"
        metadata = record.asset_materialization.metadata
        found[record.partition_key or ""] = {name: entry.value for name, entry in metadata.items()}
    return found


def test_a_range_of_hours_is_one_run_in_which_each_hour_tells_its_own(
    settings: Settings, layout: Layout, instance: dg.DagsterInstance
) -> None:
    hours = _hours(4)
    for number, hour in enumerate(hours):
        for extra in range(number + 1):
            put_segment(layout, "order-db", 10 * number + extra, hour.start + timedelta(minutes=10 + extra))
    put_segment(layout, "order-db", 99, hours[-1].end + timedelta(minutes=1))

    result = _run(settings, instance, "hourly_bundles", hours=hours)

    assert result.success
    told = _materialized(instance)
    assert {key: values["segments"] for key, values in told.items()} == {
        str(hour): number + 1 for number, hour in enumerate(hours)
    }
    assert {values["state"] for values in told.values()} == {"closed"}
    assert told[str(hours[1])]["start_lsn"] == "0/A00000"
    assert told[str(hours[1])]["end_lsn"] == "0/C00000"
    assert told[str(hours[1])]["timeline"] == 1
    assert told[str(hours[1])]["raw_bytes"] == 2 * 1024 * 1024
    assert isinstance(told[str(hours[1])]["compression_ratio"], float)
    assert told[str(hours[1])]["made_by_this_run"] is True


def test_doing_it_again_changes_nothing_and_says_so(
    settings: Settings, layout: Layout, instance: dg.DagsterInstance
) -> None:
    put_segment(layout, "order-db", 1, FIRST.start + timedelta(minutes=5))
    put_segment(layout, "order-db", 2, FIRST.end + timedelta(minutes=5))
    _run(settings, instance, "hourly_bundles", partition=str(FIRST))
    before = layout.bundle_record("order-db", FIRST).stat().st_mtime_ns

    with dg.DagsterInstance.ephemeral() as other:
        assert _run(settings, other, "hourly_bundles", partition=str(FIRST)).success
        assert _materialized(other)[str(FIRST)]["made_by_this_run"] is False

    assert layout.bundle_record("order-db", FIRST).stat().st_mtime_ns == before


def test_an_hour_that_fails_stops_no_other_and_is_named_at_the_end(
    settings: Settings, layout: Layout, instance: dg.DagsterInstance
) -> None:
    hours = _hours(3)
    for number, hour in enumerate(hours):
        put_segment(layout, "order-db", number, hour.start + timedelta(minutes=10))
    put_segment(layout, "order-db", 9, hours[-1].end + timedelta(minutes=1))
    damaged = layout.wal("order-db") / "000000010000000000000001"
    status = damaged.stat()
    damaged.write_bytes(bytes(1024 * 1024))
    os.utime(damaged, (status.st_mtime, status.st_mtime))

    result = _run(settings, instance, "hourly_bundles", hours=hours)

    assert not result.success
    failure = _failure(result)
    assert str(hours[1]) in failure
    assert str(damaged) in failure
    assert "the others were finished" in failure
    assert set(_materialized(instance)) == {str(hours[0]), str(hours[2])}
    assert read_manifest(layout).databases["order-db"].restore_points == ()


def test_hours_that_only_a_later_hour_of_the_same_run_lets_close_are_closed_by_it(
    settings: Settings, layout: Layout, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with an idle database, whose archive moves on only when its newest hour is sealed.

    The seal, which needs a server, is played by a segment that arrives with the last hour.
    """
    hours = _hours(3)
    put_segment(layout, "order-db", 1, hours[0].start + timedelta(minutes=10))
    real = make_bundle

    def sealing(settings: Settings, database: str, hour: Hour, *, report: Report) -> BundleOutcome:
        if hour == hours[-1]:
            put_segment(layout, database, 2, hour.end + timedelta(seconds=1))
        return real(settings, database, hour, report=report)

    monkeypatch.setattr(wal_bundle, "make_bundle", sealing)

    assert _run(settings, instance, "hourly_bundles", hours=hours).success
    assert {values["state"] for values in _materialized(instance).values()} == {"closed"}


def test_an_hour_that_is_over_but_cannot_be_closed_is_a_failure_after_the_work(
    settings: Settings, layout: Layout, instance: dg.DagsterInstance
) -> None:
    put_segment(layout, "order-db", 1, FIRST.start + timedelta(minutes=5))

    result = _run(settings, instance, "hourly_bundles", partition=str(FIRST))

    assert not result.success
    assert "does not reach the end of the hour" in _failure(result)
    assert "Bundle it again" in _failure(result)
    assert layout.bundle("order-db", FIRST).exists()
    assert _materialized(instance) == {}


def test_a_server_that_does_not_answer_is_named_with_what_to_do(
    settings: Settings, layout: Layout, instance: dg.DagsterInstance
) -> None:
    hour = Hour.containing(datetime.now(UTC))
    put_segment(layout, "order-db", 1, datetime.now(UTC))

    result = _run(settings, instance, "hourly_bundles", partition=str(hour))

    assert not result.success
    assert "Is the server running" in _failure(result)


def test_a_base_backup_of_a_past_day_is_a_clean_refusal(
    settings: Settings, instance: dg.DagsterInstance
) -> None:
    result = _run(settings, instance, "daily_base_backups", partition="2026-03-10")

    assert not result.success
    description = _failure(result)
    assert description.startswith("a base backup of a past day cannot be taken from the server")
    assert "pitr restore order-db" in description
    (event,) = [event for event in result.all_events if event.is_step_failure]
    error = event.step_failure_data.error
    assert error is not None
    assert error.cause is None
    assert error.context is None


def test_an_existing_base_backup_of_the_day_is_told_and_not_taken_again(
    settings: Settings, layout: Layout, instance: dg.DagsterInstance
) -> None:
    record = put_base(layout, "order-db", datetime(2026, 3, 10, tzinfo=UTC).date())
    (layout.base("order-db", record.day) / "base.tar.zst").write_bytes(bytes(1_000_000))

    result = _run(settings, instance, "daily_base_backups", partition="2026-03-10")

    assert result.success
    (event,) = result.get_asset_materialization_events()
    metadata = event.materialization.metadata
    assert metadata["made_by_this_run"].value is False
    assert metadata["server_version"].value == "18.6"
    assert metadata["system_identifier"].value == IDENTIFIER
    assert metadata["rate_mib_per_s"].value == pytest.approx(0.2)


def test_restore_points_tell_windows_and_the_newest_points(
    settings: Settings, layout: Layout, instance: dg.DagsterInstance
) -> None:
    put_base(layout, "order-db", FIRST.start.date(), ended_at=FIRST.start + timedelta(minutes=1))
    for number, hour in enumerate(_hours(60)):
        put_bundle(layout, "order-db", hour, number=number + 1)

    result = _run(settings, instance, "refresh_restore_points")

    assert result.success
    (event,) = result.get_asset_materialization_events()
    metadata = event.materialization.metadata
    assert metadata["restore_points"].value == 60
    assert metadata["gaps"].value == 0
    assert metadata["databases_without_window"].value == 1
    points = metadata["newest_restore_points"]
    assert isinstance(points, dg.TableMetadataValue)
    assert len(points.records) == 50
    assert points.records[0].data["at"] == "2026-03-12 20:00:00+00:00"
    assert points.records[0].data["name"] == "pitr-order-db-2026-03-12-19"
    windows = metadata["windows"]
    assert isinstance(windows, dg.TableMetadataValue)
    assert [record.data["database"] for record in windows.records] == ["order-db"]
    assert windows.records[0].data["from"] == "2026-03-10 08:01:00+00:00"


def test_a_storage_that_cannot_be_written_is_explained(
    settings: Settings, instance: dg.DagsterInstance
) -> None:
    settings.backup_root.rmdir()
    settings.backup_root.write_text("a file, not a directory")

    result = _run(settings, instance, "refresh_restore_points")

    assert not result.success
    assert "Is the volume mounted" in _failure(result)
