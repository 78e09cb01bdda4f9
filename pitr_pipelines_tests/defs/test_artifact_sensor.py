"""What was made at a terminal shows up in Dagster, once, and what Dagster made is not told twice."""

from __future__ import annotations

import json
import time
from datetime import UTC, date, datetime, timedelta

import dagster as dg
import pytest

from pitr_pipelines.catalog.layout import BASE_RECORD, Layout
from pitr_pipelines.catalog.records import BundleState
from pitr_pipelines.defs import artifact_sensor
from pitr_pipelines.defs.build import build_definitions
from pitr_pipelines.settings import Settings
from pitr_pipelines.wal.hours import Hour
from pitr_pipelines_tests.defs.storage import age, put_base, put_bundle

BUNDLE = dg.AssetKey(["order_db", "wal_bundle"])
BASE = dg.AssetKey(["order_db", "base_backup"])
HOUR = Hour.parse("2026-03-10-13")
DAY = date(2026, 3, 10)


class Daemon:
    """Evaluates the sensor as Dagster's daemon does: keeps the cursor, stores the events.

    `later_s` is by how much its clock is ahead, because what is younger than a second waits.
    """

    def __init__(self, settings: Settings, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch):
        self.instance = instance
        self.definitions = build_definitions(settings)
        self.cursor: str | None = None
        self.later_s = 5.0
        monkeypatch.setattr(artifact_sensor, "datetime", self)

    def now(self, zone: object) -> datetime:
        return datetime.now(UTC) + timedelta(seconds=self.later_s)

    def tick(self) -> tuple[list[str], int]:
        """Return the reported `asset|partition`s, and how many refreshes were asked for."""
        repository = self.definitions.get_repository_def()
        context = dg.build_sensor_context(
            instance=self.instance, cursor=self.cursor, repository_def=repository
        )
        data = repository.get_sensor_def("artifacts_made_elsewhere").evaluate_tick(context)
        self.cursor = data.cursor
        reported = []
        for event in data.asset_events:
            assert isinstance(event, dg.AssetMaterialization)
            self.instance.report_runless_asset_event(event)
            reported.append(f"{event.asset_key.to_user_string()}|{event.partition}")
        return reported, len(data.run_requests or ())


@pytest.fixture
def daemon(settings: Settings, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch) -> Daemon:
    return Daemon(settings, instance, monkeypatch)


def _run_making(instance: dg.DagsterInstance, partition: str, *, job: str = "hourly_bundles") -> str:
    """Store a run that has begun, as one whose step is at work looks."""
    run = instance.create_run_for_job(
        dg.GraphDefinition(name=job).to_job(), tags={"dagster/partition": partition}
    )
    started = dg.DagsterEvent(dg.DagsterEventType.RUN_START.value, job)
    instance.report_dagster_event(started, run_id=run.run_id)
    return run.run_id


def test_what_a_terminal_made_is_reported_once(layout: Layout, daemon: Daemon) -> None:
    put_base(layout, "order-db", DAY)
    put_bundle(layout, "order-db", HOUR)

    assert daemon.tick() == (["order_db/base_backup|2026-03-10", "order_db/wal_bundle|2026-03-10-13"], 1)
    assert daemon.tick() == ([], 0)

    event = daemon.instance.get_latest_materialization_event(BASE)
    assert event is not None
    assert event.asset_materialization is not None
    metadata = event.asset_materialization.metadata
    assert metadata["made_by"].value == "outside Dagster"
    assert metadata["compression_ratio"].value == 4.0
    assert metadata["start_lsn"].value == "0/100028"
    assert metadata["copy_s"].value == 20.0


def test_what_dagster_made_is_not_reported_again(layout: Layout, daemon: Daemon) -> None:
    put_bundle(layout, "order-db", HOUR)
    daemon.instance.report_runless_asset_event(dg.AssetMaterialization(BUNDLE, partition=str(HOUR)))

    assert daemon.tick()[0] == []


def test_nor_is_it_after_the_cursor_was_lost(layout: Layout, daemon: Daemon) -> None:
    put_bundle(layout, "order-db", HOUR)
    daemon.tick()
    daemon.cursor = "of another version"

    assert daemon.tick()[0] == []


def test_what_was_made_again_is_reported_again(layout: Layout, daemon: Daemon) -> None:
    record = put_bundle(layout, "order-db", HOUR)
    daemon.instance.report_runless_asset_event(dg.AssetMaterialization(BUNDLE, partition=str(HOUR)))
    daemon.tick()
    assert record.state is BundleState.CLOSED
    time.sleep(1.1)
    put_bundle(layout, "order-db", HOUR, number=2)

    assert daemon.tick() == (["order_db/wal_bundle|2026-03-10-13"], 1)


def test_what_a_run_is_making_is_left_to_it(
    layout: Layout, daemon: Daemon, instance: dg.DagsterInstance
) -> None:
    _run_making(instance, str(HOUR))
    put_bundle(layout, "order-db", HOUR)

    assert daemon.tick() == ([], 0)


def test_but_not_for_ever_because_its_worker_may_be_dead(
    layout: Layout, daemon: Daemon, instance: dg.DagsterInstance
) -> None:
    _run_making(instance, str(HOUR))
    put_bundle(layout, "order-db", HOUR)
    daemon.later_s = 3700

    assert daemon.tick() == (["order_db/wal_bundle|2026-03-10-13"], 1)


def test_a_run_over_other_hours_holds_up_nothing(
    layout: Layout, daemon: Daemon, instance: dg.DagsterInstance
) -> None:
    _run_making(instance, "2026-03-10-12")
    put_bundle(layout, "order-db", HOUR)

    assert daemon.tick()[0] == ["order_db/wal_bundle|2026-03-10-13"]


def test_the_manifest_waits_for_a_run_over_all_bundles(
    layout: Layout, daemon: Daemon, instance: dg.DagsterInstance
) -> None:
    _run_making(instance, "2026-03-10-12")
    put_bundle(layout, "order-db", HOUR)
    assert daemon.tick()[1] == 0
    daemon.later_s = 700

    assert daemon.tick()[1] == 1


def test_an_hour_that_is_over_but_open_stays_what_it_is_in_dagster(layout: Layout, daemon: Daemon) -> None:
    put_bundle(layout, "order-db", HOUR, state=BundleState.OPEN)
    assert daemon.tick()[0] == []


def test_the_running_hour_bundled_early_is_reported(layout: Layout, daemon: Daemon) -> None:
    daemon.later_s = 3
    hour = Hour.containing(datetime.now(UTC) + timedelta(seconds=30))
    put_bundle(layout, "order-db", hour, state=BundleState.OPEN)

    assert daemon.tick()[0] == [f"order_db/wal_bundle|{hour}"]


def test_a_vanished_artifact_makes_the_manifest_follow(layout: Layout, daemon: Daemon) -> None:
    put_bundle(layout, "order-db", HOUR)
    daemon.tick()
    layout.bundle_record("order-db", HOUR).unlink()

    assert daemon.tick() == ([], 1)
    assert daemon.tick() == ([], 0)


def test_a_base_backup_whose_record_comes_after_its_directory_is_seen(layout: Layout, daemon: Daemon) -> None:
    layout.base("order-db", DAY).mkdir(parents=True)
    assert daemon.tick() == ([], 0)
    put_base(layout, "order-db", DAY)

    assert daemon.tick()[0] == ["order_db/base_backup|2026-03-10"]


def test_a_copy_with_an_old_mtime_is_seen(layout: Layout, daemon: Daemon) -> None:
    put_bundle(layout, "order-db", HOUR)
    daemon.tick()
    time.sleep(0.01)
    put_bundle(layout, "order-db", HOUR.preceding())
    age(layout.bundle_record("order-db", HOUR.preceding()), 86400)

    assert daemon.tick()[0] == ["order_db/wal_bundle|2026-03-10-12"]


def test_a_long_history_is_reported_over_several_ticks(
    layout: Layout, daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(artifact_sensor, "REPORTS_PER_TICK", 10)
    hours = [Hour(HOUR.start + timedelta(hours=number)) for number in range(25)]
    for hour in hours:
        put_bundle(layout, "order-db", hour)

    ticks = [daemon.tick()[0] for _ in range(4)]

    assert [len(reported) for reported in ticks] == [10, 10, 5, 0]
    assert {entry for reported in ticks for entry in reported} == {
        f"order_db/wal_bundle|{hour}" for hour in hours
    }


def test_what_is_younger_than_a_second_waits_for_the_next_tick(layout: Layout, daemon: Daemon) -> None:
    daemon.later_s = 0
    put_bundle(layout, "order-db", HOUR)
    assert daemon.tick()[0] == []
    daemon.later_s = 2

    assert daemon.tick()[0] == ["order_db/wal_bundle|2026-03-10-13"]


def test_a_directory_that_did_not_change_is_not_read(
    layout: Layout, daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_bundle(layout, "order-db", HOUR)
    put_base(layout, "order-db", DAY)
    daemon.tick()
    monkeypatch.setattr("pitr_pipelines.defs.new_records._names", lambda directory: pytest.fail("read"))

    assert daemon.tick() == ([], 0)


def test_an_unreadable_record_is_passed_over(layout: Layout, daemon: Daemon) -> None:
    put_base(layout, "order-db", DAY)
    (layout.base("order-db", DAY) / BASE_RECORD).write_text("{")
    put_bundle(layout, "order-db", HOUR)

    assert daemon.tick()[0] == ["order_db/wal_bundle|2026-03-10-13"]


def test_days_before_the_first_partition_are_not_reported(layout: Layout, daemon: Daemon) -> None:
    put_base(layout, "order-db", date(2025, 12, 31))
    assert daemon.tick() == ([], 1)


def test_an_empty_storage_asks_for_nothing_and_an_absent_one_says_so(
    settings: Settings, daemon: Daemon, instance: dg.DagsterInstance
) -> None:
    assert daemon.tick() == ([], 0)
    assert json.loads(daemon.cursor or "")["refreshed"] == ""
    settings.backup_root.rmdir()
    repository = daemon.definitions.get_repository_def()
    context = dg.build_sensor_context(instance=instance, repository_def=repository)
    data = repository.get_sensor_def("artifacts_made_elsewhere").evaluate_tick(context)
    assert str(settings.backup_root) in (data.skip_message or "")
