"""Retention in Dagster: only with settings for it; what it removed is told; what it cannot is a finding."""

from __future__ import annotations

import os
from pathlib import Path

import dagster as dg
import pytest

from pitr_pipelines.catalog.holds import reading
from pitr_pipelines.catalog.inventory import read_inventory
from pitr_pipelines.defs.build import build_definitions
from pitr_pipelines.defs.retention import judge
from pitr_pipelines.settings import Settings
from pitr_pipelines_tests.catalog.test_expiry import DAYS, NOW, fill
from pitr_pipelines_tests.wal_files import DATABASE, Store, make_settings

RETENTION = {
    "keep": {"hourly_days": 1, "daily": 3, "weekly": 0, "monthly": 0},
    "require_offsite": False,
}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path)
    store.settings = make_settings(tmp_path, retention=RETENTION)
    fill(store)
    return store


def run(settings: Settings, instance: dg.DagsterInstance) -> dg.ExecuteInProcessResult:
    job = build_definitions(settings).resolve_job_def("retention")
    return job.execute_in_process(instance=instance, raise_on_error=False)


def logged(instance: dg.DagsterInstance, result: dg.ExecuteInProcessResult) -> str:
    return "\n".join(entry.user_message for entry in instance.all_logs(result.run_id))


def test_the_job_removes_what_may_go_and_tells_what_it_freed(store: Store) -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        result = run(store.settings, instance)
        assert result.success
        assert "removed base 2026-01-29: older than the last 1 d 0 h" in logged(instance, result)
        (event,) = [e for e in result.all_events if e.event_type is dg.DagsterEventType.STEP_OUTPUT]
        metadata = event.step_output_data.metadata
        assert metadata["freed_bytes"].value == 2 * 1000 + 11
    assert len(read_inventory(store.layout, DATABASE).bases) == DAYS - 2


def test_a_database_that_is_restored_from_is_left_for_the_next_run(store: Store) -> None:
    with dg.DagsterInstance.ephemeral() as instance, reading(store.settings, DATABASE):
        result = run(store.settings, instance)
        assert result.success
        assert "is being restored from right now" in logged(instance, result)
    assert len(read_inventory(store.layout, DATABASE).bases) == DAYS


def test_one_database_that_fails_fails_the_run_and_not_the_others(tmp_path: Path) -> None:
    settings = make_settings(tmp_path, ("another", DATABASE), retention=RETENTION)
    store = Store(tmp_path)
    store.settings = settings
    fill(store)
    (store.layout.holds("another")).mkdir(parents=True)
    (store.layout.holds("another") / "0000000000000000.json").write_text("{")
    store.layout.bases("another").mkdir()
    with dg.DagsterInstance.ephemeral() as instance:
        result = run(settings, instance)
        assert not result.success
        (failed,) = [event.step_failure_data for event in result.all_events if event.is_step_failure]
        assert failed.user_failure_data is not None
        assert "which backups a restore still needs" in (failed.user_failure_data.description or "")
    assert len(read_inventory(store.layout, DATABASE).bases) == DAYS - 2


def test_the_check_fails_softly_until_retention_has_run(store: Store) -> None:
    before = judge(store.settings, NOW)
    assert "has not run yet" in before.text
    assert before.problems
    assert not before.serious
    with dg.DagsterInstance.ephemeral() as instance:
        run(store.settings, instance)
        after = judge(store.settings, NOW)
        assert not after.problems
        assert after.text.startswith("What may go is gone: ")
        ran = store.layout.retention_ran(DATABASE)
        os.utime(ran, (NOW.timestamp(), NOW.timestamp()))
        job = build_definitions(store.settings).resolve_job_def("check_artifacts")
        result = job.execute_in_process(instance=instance, raise_on_error=False)
        told = {one.check_name: one.passed for one in result.get_asset_check_evaluations()}
        assert "retention_keeps_to_settings" in told


def test_without_settings_there_is_no_retention_in_dagster(tmp_path: Path) -> None:
    definitions = build_definitions(make_settings(tmp_path))
    assert "retention_schedule" not in {one.name for one in definitions.get_repository_def().schedule_defs}
    with_it = build_definitions(make_settings(tmp_path, retention=RETENTION)).get_repository_def()
    (schedule,) = [one for one in with_it.schedule_defs if one.name == "retention_schedule"]
    assert schedule.default_status is dg.DefaultScheduleStatus.RUNNING
    assert with_it.get_job("retention").run_tags["dagster/max_retries"] == "0"
