"""Dagster's steps on a real server, in this process: back up, bundle, backfill, and restore."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
import psycopg
import pytest

from pitr_pipelines.catalog.layout import Layout
from pitr_pipelines.catalog.manifest import read_manifest
from pitr_pipelines.catalog.records import BundleRecord, BundleState, read_record
from pitr_pipelines.defs.build import build_definitions
from pitr_pipelines.postgres.account import server_account
from pitr_pipelines.postgres.binaries import find_binaries
from pitr_pipelines.postgres.server import Cluster
from pitr_pipelines.settings import Settings
from pitr_pipelines.wal.hours import Hour
from pitr_pipelines_tests.servers import ServerFactory, SettingsMaker, TestServer

pytestmark = pytest.mark.slow


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as ephemeral:
        yield ephemeral


@pytest.fixture
def server(server_factory: ServerFactory) -> TestServer:
    server = server_factory()
    server.execute("CREATE TABLE rows (id int)")
    return server


class Run:
    """Runs jobs of the definitions in this process; a run that fails fails the test."""

    def __init__(self, settings: Settings, instance: dg.DagsterInstance) -> None:
        self._definitions = build_definitions(settings)
        self._instance = instance

    def __call__(
        self,
        job: str,
        partition: str | None = None,
        *,
        hours: tuple[Hour, Hour] | None = None,
        config: dict[str, dict[str, object]] | None = None,
    ) -> list[dg.AssetMaterialization]:
        """Return what the run materialized."""
        tags = {}
        if hours:
            # What a backfill with the single-run policy launches.
            tags["dagster/asset_partition_range_start"] = str(hours[0])
            tags["dagster/asset_partition_range_end"] = str(hours[1])
        result = self._definitions.resolve_job_def(job).execute_in_process(
            instance=self._instance,
            partition_key=partition,
            tags=tags,
            run_config={"ops": {op: {"config": values} for op, values in (config or {}).items()}},
        )
        return [
            event.step_materialization_data.materialization
            for event in result.all_events
            if event.is_step_materialization
        ]


def _insert(server: TestServer, number: int) -> datetime:
    """Commit one row; return a moment after it, and before whatever follows."""
    server.execute(f"INSERT INTO rows VALUES ({number})")
    (moment,) = server.execute("SELECT clock_timestamp()")[0]
    assert isinstance(moment, datetime)
    return moment


def _rows(port: int) -> set[int]:
    with psycopg.connect(f"host=127.0.0.1 port={port} user=postgres dbname=postgres") as connection:
        return {row[0] for row in connection.execute("SELECT id FROM rows")}


def test_from_the_first_base_backup_to_a_restored_cluster(
    server: TestServer, pitr_settings: SettingsMaker, instance: dg.DagsterInstance
) -> None:
    settings = pitr_settings(server)
    layout = Layout(settings.backup_root)
    run = Run(settings, instance)
    now = datetime.now(UTC)
    today, running = now.date().isoformat(), Hour.containing(now)

    (base,) = run("daily_base_backups", today)
    assert base.asset_key == dg.AssetKey(["order_db", "base_backup"])
    assert base.partition == today
    assert base.metadata["made_by_this_run"].value is True
    assert base.metadata["size_bytes"].value == sum(
        file.stat().st_size
        for file in layout.base("order-db", now.date()).iterdir()
        if file.name != "backup.json"
    )

    between = _insert(server, 1)
    _insert(server, 2)
    (bundle,) = run("hourly_bundles", str(running))
    assert bundle.partition == str(running)
    assert bundle.metadata["state"].value == "open"
    assert str(bundle.metadata["restore_point"].value).startswith("pitr-order-db-")

    (points,) = run("refresh_restore_points")
    assert points.metadata["restore_points"].value == 1
    assert len(read_manifest(layout).databases["order-db"].windows) == 1

    (restored,) = run(
        "restore",
        str(Hour.containing(between)),
        config={"plan_restore": {"database": "order-db", "target_time": between.isoformat()}},
    )
    assert restored.asset_key == dg.AssetKey(["order_db", "restored_cluster"])
    assert restored.partition == str(Hour.containing(between))
    port = restored.metadata["port"].value
    directory = restored.metadata["directory"].value
    assert isinstance(port, int)
    assert isinstance(directory, str)
    cluster = Cluster(
        Path(directory) / "data", find_binaries(server.major, settings.binaries), server_account(None)
    )
    try:
        assert _rows(port) == {1}
        assert _rows(server.port) == {1, 2}
        assert str(port) in str(restored.metadata["connect"].value)
        assert restored.metadata["running"].value is True
    finally:
        cluster.stop("immediate")


def test_a_backfill_of_24_hours_is_one_run_that_closes_all_that_are_over(
    server: TestServer, pitr_settings: SettingsMaker, instance: dg.DagsterInstance
) -> None:
    settings = pitr_settings(server)
    layout = Layout(settings.backup_root)
    _insert(server, 1)
    running = Hour.containing(datetime.now(UTC))
    first = Hour(running.start - timedelta(hours=23))

    told = Run(settings, instance)("hourly_bundles", hours=(first, running))

    hours = list(first.until(running))
    assert sorted(str(event.partition) for event in told) == [str(hour) for hour in hours]
    assert len(instance.get_runs()) == 1
    records = [read_record(layout.bundle_record("order-db", hour), BundleRecord) for hour in hours]
    assert [record.state for record in records] == [BundleState.CLOSED] * 23 + [BundleState.OPEN]
    by_hour = {event.partition: event.metadata for event in told}
    for record in records:
        assert by_hour[str(record.hour)]["segments"].value == len(record.segments)


def test_the_restored_server_can_be_left_stopped_in_a_directory_of_ones_own(
    server: TestServer, pitr_settings: SettingsMaker, instance: dg.DagsterInstance
) -> None:
    settings = pitr_settings(server)
    directory = settings.restore_root / "here"
    run = Run(settings, instance)
    run("daily_base_backups", datetime.now(UTC).date().isoformat())
    moment = _insert(server, 1)

    (restored,) = run(
        "restore",
        str(Hour.containing(moment)),
        config={
            "plan_restore": {"database": "order-db", "target_time": moment.isoformat()},
            "run_restore": {"directory": str(directory), "keep_running": False},
        },
    )

    assert restored.metadata["directory"].value == str(directory)
    assert restored.metadata["running"].value is False
    assert not (directory / "data" / "postmaster.pid").exists()


def test_a_restore_logs_its_plan_first_and_what_to_do_next_last(
    server: TestServer, pitr_settings: SettingsMaker, instance: dg.DagsterInstance
) -> None:
    run = Run(pitr_settings(server), instance)
    run("daily_base_backups", datetime.now(UTC).date().isoformat())
    moment = _insert(server, 1)
    run(
        "restore",
        str(Hour.containing(moment)),
        config={
            "plan_restore": {"database": "order-db", "target_time": moment.isoformat()},
            "run_restore": {"keep_running": False},
        },
    )

    (newest,) = instance.get_run_records(limit=1)
    entries = instance.all_logs(newest.dagster_run.run_id)
    said = [entry.user_message for entry in entries if not entry.is_dagster_event]
    assert said[0] == f"restore order-db to {moment.astimezone(UTC).isoformat(sep=' ')}"
    labels = [line.split()[0] for line in said if line.startswith("  ")]
    assert labels[-5:] == ["start", "connect", "look", "copy", "be"]
    # The page of a run shows the end of its log: nothing long comes after that.
    last = max(number for number, entry in enumerate(entries) if not entry.is_dagster_event)
    assert not any(
        entry.is_dagster_event and entry.get_dagster_event().is_step_materialization
        for entry in entries[last:]
    )
