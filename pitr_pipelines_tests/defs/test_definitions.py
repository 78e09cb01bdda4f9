"""Two databases or two hundred are a matter of settings."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import dagster as dg
import pytest

import pitr_pipelines
from pitr_pipelines.defs.build import build_definitions
from pitr_pipelines.settings import Settings
from pitr_pipelines.wal.hours import Hour
from pitr_pipelines_tests.defs.storage import make_settings

ASSETS = {"wal_archive", "base_backup", "wal_bundle", "restored_cluster", "restore_drill"}


def _names(count: int) -> list[str]:
    return [f"db-{number}" for number in range(count)]


@pytest.mark.parametrize("count", [1, 2, 200])
def test_every_database_has_its_own_assets_in_its_own_group(tmp_path: Path, count: int) -> None:
    settings = make_settings(tmp_path, *_names(count))

    graph = build_definitions(settings).resolve_asset_graph()

    assert len(graph.get_all_asset_keys()) == len(ASSETS) * count + 1
    for number in range(count):
        group = f"db_{number}"
        for asset in ASSETS:
            assert graph.get(dg.AssetKey([group, asset])).group_name == group


def test_two_hundred_databases_are_a_matter_of_settings(tmp_path: Path) -> None:
    settings = make_settings(tmp_path, *_names(200))

    build_definitions(settings).get_repository_def().load_all_definitions()


def test_days_and_hours_go_up_to_the_present_in_utc(settings: Settings) -> None:
    settings = settings.model_copy(update={"timezone": "America/New_York"})
    graph = build_definitions(settings).resolve_asset_graph()
    base = graph.get(dg.AssetKey(["order_db", "base_backup"])).partitions_def
    bundle = graph.get(dg.AssetKey(["order_db", "wal_bundle"])).partitions_def
    assert base is not None
    assert bundle is not None
    now = datetime(2026, 3, 29, 23, 30, tzinfo=UTC)

    with dg.partition_loading_context(now):
        assert base.get_first_partition_key() == "2026-01-01"
        assert base.get_last_partition_key() == "2026-03-29"
        assert bundle.get_first_partition_key() == "2026-01-01-00"
        assert bundle.get_last_partition_key() == str(Hour.containing(now))


def test_lineage_goes_from_the_archive_to_the_restored_cluster(settings: Settings) -> None:
    graph = build_definitions(settings).resolve_asset_graph()

    def parents(*key: str) -> set[str]:
        return {parent.to_user_string() for parent in graph.get(dg.AssetKey(key)).parent_keys}

    assert parents("order_db", "wal_bundle") == {"order_db/wal_archive"}
    assert parents("order_db", "restored_cluster") == {"order_db/base_backup", "order_db/wal_bundle"}
    assert parents("restore_points") == {
        f"{database}/{asset}"
        for database in ("order_db", "inventory_db")
        for asset in ("base_backup", "wal_bundle")
    }
    assert not graph.get(dg.AssetKey(["order_db", "wal_archive"])).is_executable
    assert not graph.get(dg.AssetKey(["order_db", "restored_cluster"])).is_executable


def test_a_range_of_hours_is_one_run(settings: Settings) -> None:
    graph = build_definitions(settings).resolve_asset_graph()
    policy = graph.get(dg.AssetKey(["order_db", "wal_bundle"])).backfill_policy
    assert policy == dg.BackfillPolicy.single_run()


def test_no_job_lets_dagster_retry_a_run(settings: Settings) -> None:
    repository = build_definitions(settings).get_repository_def()
    for name in (
        "daily_base_backups",
        "hourly_bundles",
        "refresh_restore_points",
        "restore",
        "check_artifacts",
        "weekly_drills",
    ):
        assert repository.get_job(name).run_tags["dagster/max_retries"] == "0"


def test_schedules_and_sensors_are_on(settings: Settings) -> None:
    definitions = build_definitions(settings)
    repository = definitions.get_repository_def()
    assert {schedule.name for schedule in repository.schedule_defs} == {
        "base_backup_schedule",
        "bundle_schedule",
        "check_schedule",
        "drill_schedule",
        "drill_age_schedule",
        "purge_schedule",
    }
    for schedule in repository.schedule_defs:
        assert schedule.default_status is dg.DefaultScheduleStatus.RUNNING
    for sensor in repository.sensor_defs:
        assert sensor.default_status is dg.DefaultSensorStatus.RUNNING


def test_building_touches_no_storage(tmp_path: Path) -> None:
    settings = make_settings(tmp_path)
    settings.backup_root.rmdir()

    build_definitions(settings).get_repository_def().load_all_definitions()

    assert list(tmp_path.iterdir()) == []


def _load(directory: Path) -> subprocess.CompletedProcess[str]:
    code = (
        "import sys, pitr_pipelines.definitions\n"
        "print([name for name in ('psycopg', 'pandas', 'boto3', 'rich') if name in sys.modules])"
    )
    package = Path(pitr_pipelines.__file__).parents[1]
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=directory,
        env={**os.environ, "PYTHONPATH": str(package)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_loading_imports_nothing_heavy_and_warns_of_nothing(tmp_path: Path) -> None:
    (tmp_path / "pitr.yaml").write_text(
        "backup_root: /nowhere/backup\nrestore_root: /nowhere/restore\ndatabases: {order-db: {dsn: host=h}}\n"
    )
    done = _load(tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
    assert "Warning" not in done.stderr


def test_a_missing_settings_file_is_our_own_error(tmp_path: Path) -> None:
    done = _load(tmp_path)
    assert done.returncode == 1
    assert "SettingsError: cannot read the settings pitr.yaml" in done.stderr
    assert "PITR_CONFIG" in done.stderr
