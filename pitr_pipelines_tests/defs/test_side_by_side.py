"""The databases of one run are bundled side by side: one that hangs holds up no other."""

from __future__ import annotations

import threading
from datetime import timedelta
from pathlib import Path

import dagster as dg
import pytest

from pitr_pipelines.catalog.layout import Layout
from pitr_pipelines.catalog.manifest import Manifest, read_manifest, refresh_manifest
from pitr_pipelines.defs import side_by_side, wal_bundle
from pitr_pipelines.defs.build import build_definitions
from pitr_pipelines.errors import ArchiveStalled
from pitr_pipelines.progress import Report
from pitr_pipelines.settings import Settings
from pitr_pipelines.wal.bundles import BundleOutcome, make_bundle
from pitr_pipelines.wal.hours import Hour
from pitr_pipelines_tests.defs.storage import make_settings, put_segment

HOUR = Hour.parse("2026-03-10-08")
NAMES = tuple(f"db-{number}" for number in range(6))


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    settings = make_settings(tmp_path, *NAMES)
    for name in NAMES:
        put_segment(Layout(settings.backup_root), name, 1, HOUR.start + timedelta(minutes=5))
        put_segment(Layout(settings.backup_root), name, 2, HOUR.end + timedelta(minutes=5))
    return settings


def _run(
    settings: Settings, instance: dg.DagsterInstance, *names: str, raise_on_error: bool = True
) -> dg.ExecuteInProcessResult:
    keys = [dg.AssetKey([name.replace("-", "_"), "wal_bundle"]) for name in names]
    return (
        build_definitions(settings)
        .resolve_job_def("hourly_bundles")
        .execute_in_process(
            instance=instance,
            partition_key=str(HOUR),
            asset_selection=keys or None,
            raise_on_error=raise_on_error,
        )
    )


def test_they_are_at_work_at_the_same_time_and_each_step_tells_its_own(
    settings: Settings, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    meeting = threading.Barrier(len(NAMES), timeout=60)

    def together(settings: Settings, database: str, hour: Hour, *, report: Report) -> BundleOutcome:
        meeting.wait()  # breaks if one of them is waited for before the others began
        return make_bundle(settings, database, hour, report=report)

    monkeypatch.setattr(wal_bundle, "make_bundle", together)

    result = _run(settings, instance)

    told = {
        event.step_key: event.step_materialization_data.materialization.asset_key.path[0]
        for event in result.all_events
        if event.is_step_materialization
    }
    assert told == {f"db_{number}__wal_bundle": f"db_{number}" for number in range(len(NAMES))}
    for number in range(len(NAMES)):
        lines = [
            record.user_message
            for record in instance.all_logs(result.run_id)
            if record.step_key == f"db_{number}__wal_bundle" and record.user_message.startswith("db-")
        ]
        assert len(lines) == 1
        assert lines[0].startswith(f"db-{number}, hour {HOUR}")
    assert not side_by_side._rounds


def test_one_that_fails_fails_alone(
    settings: Settings, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(settings: Settings, database: str, hour: Hour, *, report: Report) -> BundleOutcome:
        if database == "db-3":
            raise ArchiveStalled("db-3 stands still", remedy="Look into its log.")
        if database == "db-4":
            raise RuntimeError("nobody foresaw this")
        return make_bundle(settings, database, hour, report=report)

    monkeypatch.setattr(wal_bundle, "make_bundle", failing)

    result = _run(settings, instance, raise_on_error=False)

    failed = {event.step_key for event in result.all_events if event.is_step_failure}
    assert failed == {"db_3__wal_bundle", "db_4__wal_bundle"}
    made = {event.step_key for event in result.all_events if event.is_step_materialization}
    assert len(made) == 4
    assert not side_by_side._rounds


@pytest.mark.parametrize("failing", [(), ("db-2",), ("db-5",), NAMES])
@pytest.mark.parametrize("foreseen", [True, False])
def test_the_manifest_is_refreshed_once_a_run_and_knows_all_that_was_made(
    settings: Settings,
    instance: dg.DagsterInstance,
    monkeypatch: pytest.MonkeyPatch,
    failing: tuple[str, ...],
    foreseen: bool,
) -> None:
    """Also when the last step is the one that fails, db-5's."""
    refreshed: list[Settings] = []

    def bundle(settings: Settings, database: str, hour: Hour, *, report: Report) -> BundleOutcome:
        if database in failing:
            raise ArchiveStalled("stands still", remedy="") if foreseen else RuntimeError("unforeseen")
        return make_bundle(settings, database, hour, report=report)

    def refresh(settings: Settings) -> Manifest:
        refreshed.append(settings)
        return refresh_manifest(settings)

    monkeypatch.setattr(wal_bundle, "make_bundle", bundle)
    monkeypatch.setattr(wal_bundle, "refresh_manifest", refresh)

    _run(settings, instance, raise_on_error=False)

    assert len(refreshed) == 1
    held = read_manifest(Layout(settings.backup_root)).databases
    known = {name for name, of in held.items() if of.system_identifier is not None}
    assert known == set(NAMES) - set(failing)
    assert not side_by_side._rounds


def test_a_manifest_that_cannot_be_refreshed_fails_the_last_step_and_no_other(
    settings: Settings, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refresh(settings: Settings) -> Manifest:
        raise OSError(28, "No space left on device", "restore-points.json")

    monkeypatch.setattr(wal_bundle, "refresh_manifest", refresh)

    result = _run(settings, instance, raise_on_error=False)

    failed = {event.step_key for event in result.all_events if event.is_step_failure}
    assert failed == {"db_5__wal_bundle"}
    for name in NAMES:
        key = dg.AssetKey([name.replace("-", "_"), "wal_bundle"])
        assert instance.get_materialized_partitions(key) == {str(HOUR)}, "it is made all the same"


def test_only_the_databases_of_the_run_are_worked_on(
    settings: Settings, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []

    def noting(settings: Settings, database: str, hour: Hour, *, report: Report) -> BundleOutcome:
        seen.append(database)
        return make_bundle(settings, database, hour, report=report)

    monkeypatch.setattr(wal_bundle, "make_bundle", noting)

    _run(settings, instance, "db-1", "db-4")
    assert sorted(seen) == ["db-1", "db-4"]
    _run(settings, instance, "db-2")
    assert seen[-1] == "db-2"
    assert not side_by_side._rounds
