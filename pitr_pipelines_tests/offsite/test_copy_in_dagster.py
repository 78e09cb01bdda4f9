"""The off-site copy as Dagster makes it: asked for when due, called once, and told truly.

Real store behind the counting proxy, real definitions; the databases are files whose servers are gone.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import dagster as dg
import pytest

from pitr_pipelines.catalog.layout import Layout
from pitr_pipelines.defs.build import build_definitions
from pitr_pipelines.defs.names import DAILY_OFFSITE_COPY, OFFSITE_COPY
from pitr_pipelines.defs.offsite_copy import evaluate
from pitr_pipelines.offsite.budget import days
from pitr_pipelines.settings import Settings
from pitr_pipelines_tests.offsite.copy_scene import MakeSettings, clock_at, copied
from pitr_pipelines_tests.offsite.s3_server import CountingProxy

AT_FIVE = clock_at(5)()


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as ephemeral:
        yield ephemeral


def today() -> str:
    return datetime.now(UTC).date().isoformat()


def launch(settings: Settings, instance: dg.DagsterInstance, day: str) -> dg.ExecuteInProcessResult:
    job = build_definitions(settings).resolve_job_def(DAILY_OFFSITE_COPY)
    return job.execute_in_process(partition_key=day, instance=instance, raise_on_error=False)


def failure_of(result: dg.ExecuteInProcessResult) -> str:
    events = [event for event in result.all_events if event.is_step_failure]
    assert len(events) == 1
    error = events[0].step_failure_data.error
    assert error is not None
    return error.message


def checks_of(result: dg.ExecuteInProcessResult) -> dict[str, bool]:
    return {found.check_name: found.passed for found in result.get_asset_check_evaluations()}


def test_a_run_makes_the_days_call_and_tells_what_went(
    make_settings: MakeSettings, proxy: CountingProxy, instance: dg.DagsterInstance
) -> None:
    settings = make_settings(deadline="00:00")

    result = launch(settings, instance, today())

    assert result.success
    assert proxy.writes == 1
    (made,) = result.asset_materializations_for_node("offsite_copy")
    assert made.partition == today()
    assert made.metadata["state"].value == "confirmed"
    assert made.metadata["missing"].value == "order-db, users"
    assert isinstance(made.metadata["size_bytes"].value, int)
    table = made.metadata["databases"].value
    assert isinstance(table, dg.TableMetadataValue) or table
    assert checks_of(result) == {"delivered": True, "every_database_is_in_it": False}


def test_executed_again_it_makes_no_second_call(
    make_settings: MakeSettings, proxy: CountingProxy, instance: dg.DagsterInstance
) -> None:
    settings = make_settings(deadline="00:00")
    launch(settings, instance, today())

    again = launch(settings, instance, today())

    assert again.success
    assert proxy.writes == 1
    (told,) = again.asset_materializations_for_node("offsite_copy")
    assert told.metadata["made_by_this_run"].value is False


def test_a_backfill_of_past_days_makes_no_call(
    make_settings: MakeSettings, proxy: CountingProxy, instance: dg.DagsterInstance
) -> None:
    settings = make_settings(deadline="00:00")

    for back in (1, 2, 30):
        day = (datetime.now(UTC) - timedelta(days=back)).date().isoformat()
        assert "only be made for today" in failure_of(launch(settings, instance, day))

    assert proxy.writes == 0
    assert days(Layout(settings.backup_root).ledger) == []


def test_a_refused_call_fails_the_run_and_says_what_to_do(
    make_settings: MakeSettings, proxy: CountingProxy, instance: dg.DagsterInstance
) -> None:
    settings = make_settings(deadline="00:00")
    proxy.mishap = "answer"
    proxy.answer = (
        b"HTTP/1.1 403 Forbidden\r\nContent-Type: application/xml\r\nContent-Length: 48\r\n\r\n"
        b"<Error><Code>SignatureDoesNotMatch</Code></Error>"[:48]
    )

    result = launch(settings, instance, today())

    assert "is refused" in failure_of(result)
    assert "spent" not in failure_of(result)
    assert proxy.writes == 1
    assert checks_of(launch(settings, instance, today())) == {}, "a run that fails runs no checks"
    assert proxy.writes == 1


def test_it_is_asked_for_when_every_base_is_there_and_once(
    make_settings: MakeSettings, instance: dg.DagsterInstance
) -> None:
    settings = make_settings()

    asked = evaluate(settings, instance, AT_FIVE).run_requests

    assert asked is not None
    assert [request.partition_key for request in asked] == ["2026-01-29"]
    same_hour = evaluate(settings, instance, AT_FIVE + timedelta(minutes=20)).run_requests
    assert same_hour is not None
    assert same_hour[0].run_key == asked[0].run_key, "Dagster launches one run for a key"
    next_hour = evaluate(settings, instance, AT_FIVE + timedelta(hours=1)).run_requests
    assert next_hour is not None
    assert next_hour[0].run_key != asked[0].run_key, "what fails before the call is tried again"


def test_it_waits_for_a_base_that_is_missing_until_the_deadline(
    make_settings: MakeSettings, instance: dg.DagsterInstance
) -> None:
    settings = make_settings(deadline="06:00")
    Layout(settings.backup_root).base_record("users", AT_FIVE.date()).unlink()

    waiting = evaluate(settings, instance, AT_FIVE)

    assert not waiting.run_requests
    assert waiting.skip_reason is not None
    assert waiting.skip_reason.skip_message == "Waiting for the base backup of users until 06:00 UTC."
    assert evaluate(settings, instance, AT_FIVE + timedelta(hours=1)).run_requests


def test_a_copy_made_at_a_terminal_is_reported_once_and_not_asked_for(
    make_settings: MakeSettings, instance: dg.DagsterInstance
) -> None:
    settings = make_settings()
    copied(settings)

    tick = evaluate(settings, instance, AT_FIVE + timedelta(hours=1))

    assert not tick.run_requests
    (event,) = tick.asset_events
    assert isinstance(event, dg.AssetMaterialization)
    assert (event.asset_key, event.partition) == (OFFSITE_COPY, "2026-01-29")
    instance.report_runless_asset_event(event)
    assert not evaluate(settings, instance, AT_FIVE + timedelta(hours=1)).asset_events


def test_nothing_is_asked_for_while_a_run_is_under_way(
    make_settings: MakeSettings, instance: dg.DagsterInstance
) -> None:
    settings = make_settings()
    job = build_definitions(settings).resolve_job_def(DAILY_OFFSITE_COPY)
    instance.create_run_for_job(job, status=dg.DagsterRunStatus.STARTED)

    assert not evaluate(settings, instance, AT_FIVE).run_requests
