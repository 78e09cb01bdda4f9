"""Dagster forgets old runs, but never one whose artifact is still there."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import dagster as dg
from dagster._core.test_utils import create_run_for_test

from pitr_pipelines.catalog.layout import Layout
from pitr_pipelines.defs.build import build_definitions
from pitr_pipelines.defs.purge import purge
from pitr_pipelines.settings import Settings
from pitr_pipelines.wal.hours import Hour
from pitr_pipelines_tests.defs.storage import put_base, put_bundle, put_segment

HOUR = Hour.parse("2026-03-10-08")
LATER = datetime.now(UTC) + timedelta(days=31)


def _put_run(instance: dg.DagsterInstance, job: str, *partitions: str) -> str:
    tags = {"dagster/partition": partitions[0]} if partitions else {}
    if len(partitions) == 2:
        names = ("dagster/asset_partition_range_start", "dagster/asset_partition_range_end")
        tags = dict(zip(names, partitions, strict=True))
    run = create_run_for_test(instance, job, status=dg.DagsterRunStatus.SUCCESS, tags=tags)
    return str(run.run_id)


def _left(instance: dg.DagsterInstance) -> set[str]:
    return {run.run_id for run in instance.get_runs()}


def test_runs_are_forgotten_when_they_are_old_and_what_they_made_is_gone(
    settings: Settings, layout: Layout, instance: dg.DagsterInstance
) -> None:
    put_bundle(layout, "order-db", HOUR)
    put_base(layout, "inventory-db", date(2026, 3, 10))
    kept = {
        _put_run(instance, "hourly_bundles", str(HOUR)),
        _put_run(instance, "hourly_bundles", str(HOUR.preceding()), str(HOUR.following())),
        _put_run(instance, "daily_base_backups", "2026-03-10"),
        _put_run(instance, "restore", str(HOUR.preceding())),
        _put_run(instance, "daily_offsite_copy", "2026-03-10"),
    }
    gone = {
        _put_run(instance, "hourly_bundles", str(HOUR.preceding())),
        _put_run(instance, "daily_base_backups", "2026-03-09"),
        _put_run(instance, "refresh_restore_points"),
    }
    kept |= {
        _put_run(instance, job)
        for job in ("hourly_bundles", "daily_base_backups", "refresh_restore_points", "restore")
    }

    assert purge(settings, instance, now=LATER - timedelta(days=2)) == 0
    assert purge(settings, instance, now=LATER) == len(gone)
    assert _left(instance) == kept


def test_a_run_that_is_not_over_is_left_alone(settings: Settings, instance: dg.DagsterInstance) -> None:
    started = create_run_for_test(instance, "refresh_restore_points", status=dg.DagsterRunStatus.STARTED)
    for _ in range(2):
        _put_run(instance, "refresh_restore_points")
    assert purge(settings, instance, now=LATER) == 1
    assert started.run_id in _left(instance)


def test_on_disk_nothing_is_left_of_a_run(
    settings: Settings, layout: Layout, lasting_instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    put_segment(layout, "order-db", 1, HOUR.start)
    job = build_definitions(settings).resolve_job_def("refresh_restore_points")
    ids = [job.execute_in_process(instance=lasting_instance).run_id for _ in range(3)]

    def files(run_id: str) -> list[Path]:
        return [path for path in (tmp_path / "dagster").rglob("*") if run_id in path.name]

    assert all(files(run_id) for run_id in ids)
    assert purge(settings, lasting_instance, now=LATER) == 2
    assert [bool(files(run_id)) for run_id in ids] == [False, False, True]
