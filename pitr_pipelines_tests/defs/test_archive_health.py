"""The sensor shows what the watch sees, tells of Dagster's failed runs, and hangs on nothing."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from pitr_pipelines.catalog.layout import Layout
from pitr_pipelines.defs.archive_health import ARCHIVE_HEALTH, describe
from pitr_pipelines.defs.build import build_definitions
from pitr_pipelines.defs.failed_checks import look_at_checks
from pitr_pipelines.defs.failed_runs import EndedRun, look_at_runs, unhealed_failure
from pitr_pipelines.settings import Settings
from pitr_pipelines.watch.round import watch_once
from pitr_pipelines.watch.state import StateFile
from pitr_pipelines_tests.defs.storage import SEGMENT_SIZE, make_settings, put_base, put_segment
from pitr_pipelines_tests.watch.conftest import VARIABLE
from pitr_pipelines_tests.watch.webhook import Webhook, running_webhook

NOW = datetime(2026, 3, 10, 14, 1, tzinfo=UTC)
A, B = dg.AssetKey(["a", "wal_bundle"]), dg.AssetKey(["b", "wal_bundle"])


@pytest.fixture
def webhook(monkeypatch: pytest.MonkeyPatch) -> Iterator[Webhook]:
    with running_webhook() as hook:
        monkeypatch.setenv(VARIABLE, hook.url)
        yield hook


def metadata_of(settings: Settings, database: str) -> dict[str, Any]:
    done = watch_once(settings, now=NOW)
    (seen,) = (seen for seen in done.observations if seen.database == database)
    return {name: value.value for name, value in describe(seen).metadata.items()}


def evaluate(settings: Settings, instance: dg.DagsterInstance) -> tuple[list[str], str | None]:
    repository = build_definitions(settings).get_repository_def()
    context = dg.build_sensor_context(instance=instance, repository_def=repository)
    data = repository.get_sensor_def(ARCHIVE_HEALTH).evaluate_tick(context)
    return [event.asset_key.to_user_string() for event in data.asset_events], data.skip_message


def test_it_tells_the_newest_segment_its_lag_and_the_raw_files(settings: Settings, layout: Layout) -> None:
    put_segment(layout, "order-db", 8, NOW - timedelta(minutes=10))
    put_segment(layout, "order-db", 9, NOW - timedelta(seconds=90))
    (layout.wal("order-db") / "00000002.history").write_text("1\t0/900000\tno recovery target specified\n")
    (layout.wal("order-db") / ".half.tmp").write_text("not WAL")

    metadata = metadata_of(settings, "order-db")

    assert metadata["lag_s"] == 90.0
    assert metadata["last_segment"] == "000000010000000000000009"
    assert metadata["raw_files"] == 3
    assert metadata["raw_bytes"] // SEGMENT_SIZE == 2
    assert metadata["free_bytes"] > 0
    assert metadata["server_answers"] == 0
    assert "does not accept our connection" in metadata["server"]


def test_an_archive_that_got_nothing_yet_has_no_lag(settings: Settings) -> None:
    metadata = metadata_of(settings, "order-db")
    assert metadata["raw_files"] == 0
    assert "lag_s" not in metadata


def test_every_database_is_observed_also_while_the_storage_is_gone_which_is_told(
    tmp_path: Path, instance: dg.DagsterInstance, webhook: Webhook, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = make_settings(tmp_path, alerts={"to_env": [VARIABLE], "min_free_percent": 0})
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert evaluate(settings, instance)[0] == ["order_db/wal_archive", "inventory_db/wal_archive"]
    (settings.backup_root / "alerts" / "state.json").unlink()
    (settings.backup_root / "alerts" / ".lock").unlink()
    (settings.backup_root / "alerts").rmdir()
    settings.backup_root.rmdir()

    observed, said = evaluate(settings, instance)

    assert observed == ["order_db/wal_archive", "inventory_db/wal_archive"]
    assert said is not None
    assert "storage/storage-gone" in said
    assert webhook.titles() == ["storage/storage-gone"]
    evaluate(settings, instance)
    assert webhook.take() == []
    assert not settings.backup_root.exists()


def test_rights_that_are_wrong_are_told_by_the_sensor_with_the_command_that_mends_them(
    tmp_path: Path, layout: Layout, instance: dg.DagsterInstance, webhook: Webhook
) -> None:
    settings = make_settings(tmp_path, alerts={"to_env": [VARIABLE], "min_free_percent": 0})
    put_segment(layout, "order-db", 8, NOW)
    script = layout.archive_script
    script.parent.mkdir(mode=0o755)
    script.touch()
    script.chmod(0o777)

    said = evaluate(settings, instance)[1]

    assert said is not None
    assert "order-db/rights-wrong" in said
    text = "".join(str(message) for message in webhook.take())
    assert f"everybody can change {script}, which belongs to uid {os.geteuid()}" in text
    assert f"chmod go-w {script}" in text


def test_a_hundred_databases_of_which_ten_never_answer_take_seconds(
    tmp_path: Path, instance: dg.DagsterInstance
) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=128) as silent:
        hosts = [f"host=127.0.0.1 port={silent.getsockname()[1]} user=pitr"] * 10
        hosts += ["host=127.0.0.1 port=1 user=pitr"] * 90
        databases = {f"db-{number}": {"dsn": dsn} for number, dsn in enumerate(hosts)}
        settings = make_settings(tmp_path, databases=databases)

        began = time.monotonic()
        observed, _ = evaluate(settings, instance)

    assert len(observed) == 100
    assert time.monotonic() - began < 30


def test_what_is_seen_is_observed_every_five_minutes_and_at_once_when_something_is_new(
    tmp_path: Path, instance: dg.DagsterInstance
) -> None:
    settings = make_settings(tmp_path, "order-db", alerts={"min_free_percent": 0})
    repository = build_definitions(settings).get_repository_def()
    sensor = repository.get_sensor_def(ARCHIVE_HEALTH)

    def observed(cursor: str | None) -> tuple[int, str | None]:
        context = dg.build_sensor_context(instance=instance, repository_def=repository, cursor=cursor)
        data = sensor.evaluate_tick(context)
        return len(data.asset_events), data.cursor

    count, cursor = observed(None)
    assert count == 1
    assert observed(cursor) == (0, cursor)
    assert observed((datetime.now(UTC) - timedelta(minutes=6)).isoformat())[0] == 1
    assert observed("of another version")[0] == 1
    run_job(instance, "hourly_bundles", breaks)
    assert observed(cursor)[0] == 1


@dg.op
def breaks() -> None:
    raise dg.Failure("order-db does not answer\nStart it.", allow_retries=False)


@dg.op
def works() -> None:
    pass


def run_job(instance: dg.DagsterInstance, name: str, op: dg.OpDefinition) -> None:
    @dg.job(name=name)
    def job() -> None:
        op()

    job.execute_in_process(instance=instance, raise_on_error=False)


def test_a_failed_run_is_told_once_with_its_reason_and_again_when_a_later_one_succeeded(
    tmp_path: Path, instance: dg.DagsterInstance, webhook: Webhook
) -> None:
    settings = make_settings(
        tmp_path, "order-db", alerts={"to_env": [VARIABLE], "gap_s": 0, "min_free_percent": 0}
    )
    now = datetime.now(UTC)

    def look(minutes: float) -> list[dict[str, str]]:
        moment = now + timedelta(minutes=minutes)
        runs = look_at_runs(instance, settings, moment)
        file = StateFile(settings.backup_root, local=tmp_path)
        watch_once(settings, now=moment, more=[runs], state_file=file)
        return webhook.take()

    assert look(0) == []
    run_job(instance, "hourly_bundles", breaks)

    (message,) = look(1)
    assert message["title"].endswith("dagster/run-failed/hourly_bundles")
    assert "breaks: order-db does not answer" in message["message"]
    assert look(2) == []
    # `pitr watch` sees no runs, and so it ends no incident of theirs.
    watch_once(settings, now=now + timedelta(minutes=2.5), state_file=StateFile(settings.backup_root))

    run_job(instance, "hourly_bundles", works)
    look(3)  # by now the server that is not there is told
    (message,) = look(10)
    assert message["title"].endswith("over: dagster/run-failed/hourly_bundles")


def test_a_failed_restore_is_told_once_and_never_again(
    tmp_path: Path, instance: dg.DagsterInstance, webhook: Webhook
) -> None:
    settings = make_settings(tmp_path, "order-db")
    run_job(instance, "restore", breaks)

    found = look_at_runs(instance, settings, datetime.now(UTC))

    assert [incident.kind for incident in found.incidents] == ["restore-failed"]
    assert found.incidents[0].once
    assert look_at_runs(instance, settings, datetime.now(UTC) + timedelta(days=2)).incidents == ()


def test_a_gap_in_the_wal_is_told_by_its_check_and_over_when_the_check_passes(
    tmp_path: Path, instance: dg.DagsterInstance
) -> None:
    settings = make_settings(tmp_path, "order-db")
    layout, now = Layout(settings.backup_root), datetime.now(UTC)
    put_base(layout, "order-db", now.date())
    for number in (1, 2, 4):
        put_segment(layout, "order-db", number, now - timedelta(minutes=10 - number))
    repository = build_definitions(settings).get_repository_def()

    def check() -> list[str]:
        repository.get_job("check_artifacts").execute_in_process(instance=instance, raise_on_error=False)
        return [
            f"{incident.key}: {incident.what}" for incident in look_at_checks(instance, settings).incidents
        ]

    gap = "dagster/check-failed/order_db/wal_bundle/wal_continuous: WAL is missing: 000000010000000000000003"
    assert look_at_checks(instance, settings).incidents == ()
    assert any(told.startswith(gap) for told in check())
    put_segment(layout, "order-db", 3, now - timedelta(minutes=7))
    assert not [told for told in check() if "wal_continuous" in told]


def ended(minute: int, *, failed: bool = False, keys: set[dg.AssetKey] | None = None) -> EndedRun:
    return EndedRun(
        str(minute), NOW + timedelta(minutes=minute), failed, frozenset(keys) if keys is not None else None
    )


@pytest.mark.parametrize(
    ("runs", "open_failure"),
    [
        ([], None),
        ([ended(1)], None),
        ([ended(1, failed=True)], "1"),
        ([ended(1, failed=True), ended(2)], None),
        ([ended(1), ended(2, failed=True)], "2"),
        ([ended(1, failed=True), ended(2, keys={A})], "1"),
        ([ended(1, failed=True), ended(2, keys={A}), ended(3, keys={B})], None),
        ([ended(1, failed=True, keys={A}), ended(2, keys={A})], None),
        ([ended(1, failed=True, keys={A}), ended(2, keys={B})], "1"),
        ([ended(1, failed=True, keys={A}), ended(2)], None),
    ],
)
def test_a_failure_is_healed_when_later_runs_made_what_it_did_not(
    runs: list[EndedRun], open_failure: str | None
) -> None:
    for order in (runs, runs[::-1]):
        found = unhealed_failure(order, frozenset({A, B}))
        assert (found.run_id if found else None) == open_failure


def test_a_job_that_makes_no_assets_is_healed_by_any_success() -> None:
    refresh = dg.AssetKey("restore_points")
    runs = [ended(1, failed=True, keys={refresh}), ended(2)]
    assert unhealed_failure(runs, frozenset()) is None
