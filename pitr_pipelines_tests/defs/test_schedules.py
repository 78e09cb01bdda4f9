"""The schedules ask for what is due, and for what an outage of Dagster left out."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta

import dagster as dg
import pytest

from pitr_pipelines.catalog.layout import Layout
from pitr_pipelines.catalog.records import BundleState
from pitr_pipelines.defs.build import build_definitions
from pitr_pipelines.defs.look_back import look_back_span
from pitr_pipelines.defs.stored import look_at_hours
from pitr_pipelines.settings import RetentionSettings, Settings
from pitr_pipelines.wal.hours import Hour
from pitr_pipelines_tests.defs.storage import put_base, put_bundle, put_segment

TICK = datetime(2026, 3, 10, 14, 1, tzinfo=UTC)


def _evaluate(
    settings: Settings, instance: dg.DagsterInstance, schedule: str, tick: datetime
) -> list[dg.RunRequest] | str:
    definitions = build_definitions(settings)
    context = dg.build_schedule_context(
        instance=instance,
        scheduled_execution_time=tick,
        repository_def=definitions.get_repository_def(),
    )
    data = definitions.resolve_schedule_def(schedule).evaluate_tick(context)
    return list(data.run_requests or ()) or str(data.skip_message)


def _missing(layout: Layout, database: str, now: datetime) -> list[Hour]:
    return list(look_at_hours(layout, database, now).missing)


def _hour(text: str) -> Hour:
    return Hour.parse(f"2026-03-{text}")


def test_the_base_backup_of_a_tick_is_of_its_day_in_utc(
    settings: Settings, instance: dg.DagsterInstance
) -> None:
    settings = settings.model_copy(update={"timezone": "Asia/Tokyo"})
    tick = datetime.fromisoformat("2026-03-11T03:00:00+09:00")

    (request,) = list(_evaluate(settings, instance, "base_backup_schedule", tick))

    assert isinstance(request, dg.RunRequest)
    assert request.partition_key == "2026-03-10"
    assert request.asset_selection is None


def test_the_bundles_of_a_tick_are_of_the_hour_that_just_ended(
    settings: Settings, lasting_instance: dg.DagsterInstance
) -> None:
    (request,) = list(_evaluate(settings, lasting_instance, "bundle_schedule", TICK))

    assert isinstance(request, dg.RunRequest)
    assert request.partition_key == "2026-03-10-13"
    assert request.asset_selection is None


@pytest.mark.parametrize("schedule", ["base_backup_schedule", "bundle_schedule"])
def test_without_its_storage_a_schedule_says_so_and_asks_for_nothing(
    settings: Settings, instance: dg.DagsterInstance, schedule: str
) -> None:
    settings.backup_root.rmdir()

    reason = _evaluate(settings, instance, schedule, TICK)

    assert isinstance(reason, str)
    assert str(settings.backup_root) in reason
    assert not settings.backup_root.exists()


def test_hours_that_an_outage_of_dagster_left_out_are_asked_for_after_it_as_one_run(
    settings: Settings, layout: Layout, lasting_instance: dg.DagsterInstance
) -> None:
    put_bundle(layout, "order-db", _hour("10-08"))
    put_segment(layout, "order-db", 9, TICK - timedelta(seconds=30))

    ended, missing = list(_evaluate(settings, lasting_instance, "bundle_schedule", TICK))

    assert isinstance(ended, dg.RunRequest)
    assert isinstance(missing, dg.RunRequest)
    assert (ended.partition_key, ended.asset_selection) == ("2026-03-10-13", None)
    assert _range(missing) == ("2026-03-10-09", "2026-03-10-12")
    assert missing.asset_selection == [dg.AssetKey(["order_db", "wal_bundle"])]


def test_an_outage_of_three_days_is_made_up_for_in_two_ticks(
    settings: Settings, layout: Layout, lasting_instance: dg.DagsterInstance
) -> None:
    put_segment(layout, "order-db", 1, TICK - timedelta(hours=72))
    put_segment(layout, "order-db", 9, TICK)

    requests = _evaluate(settings, lasting_instance, "bundle_schedule", TICK)

    assert len(requests) == 6
    ranges = [_range(request) for request in requests[1:] if isinstance(request, dg.RunRequest)]
    assert ranges[0] == ("2026-03-07-14", "2026-03-08-01")
    assert ranges[-1] == ("2026-03-09-14", "2026-03-10-01")


def _range(request: dg.RunRequest) -> tuple[str, str]:
    first, last = "dagster/asset_partition_range_start", "dagster/asset_partition_range_end"
    return request.tags[first], request.tags[last]


def test_hours_before_the_first_wal_are_not_missing(layout: Layout) -> None:
    put_base(layout, "order-db", date(2026, 3, 1))
    put_segment(layout, "order-db", 1, TICK - timedelta(hours=3))
    put_segment(layout, "order-db", 9, TICK)

    assert _missing(layout, "order-db", TICK) == [_hour("10-11"), _hour("10-12")]


def test_an_hour_that_is_open_though_it_is_over_is_missing(layout: Layout) -> None:
    for number in (10, 12):
        put_bundle(layout, "order-db", _hour(f"10-{number}"))
    put_bundle(layout, "order-db", _hour("10-11"), state=BundleState.OPEN)

    assert _missing(layout, "order-db", TICK) == [_hour("10-11")]


def test_while_nothing_is_archived_nothing_is_asked_for_that_could_not_be_closed(layout: Layout) -> None:
    put_bundle(layout, "order-db", _hour("10-08"))
    put_segment(layout, "order-db", 9, _hour("10-10").start)

    # The server has been down since 10:00: 10 to 12 cannot be closed, 09 can.
    assert _missing(layout, "order-db", TICK) == [_hour("10-09")]


def test_however_old_raw_wal_is_its_hours_are_found_and_hours_without_any_for_a_week(layout: Layout) -> None:
    put_bundle(layout, "order-db", _hour("01-08"))
    put_segment(layout, "order-db", 9, TICK)
    hours = _missing(layout, "order-db", TICK)
    assert (hours[0], hours[-1]) == (_hour("03-14"), _hour("10-12"))

    put_segment(layout, "order-db", 1, TICK - timedelta(days=8))
    assert _missing(layout, "order-db", TICK)[0] == _hour("02-14")


def test_an_unreadable_record_counts_as_missing_and_stops_nothing(layout: Layout) -> None:
    put_bundle(layout, "order-db", _hour("10-11"))
    put_bundle(layout, "order-db", _hour("10-12"))
    layout.bundle_record("order-db", _hour("10-11")).write_text("{")

    assert _missing(layout, "order-db", TICK) == [_hour("10-11")]


def test_hours_that_retention_has_removed_are_not_asked_for_again(layout: Layout, settings: Settings) -> None:
    put_bundle(layout, "order-db", _hour("06-08"))
    put_bundle(layout, "order-db", _hour("10-12"))
    keep = {"hourly_days": 1, "daily": 7, "weekly": 0, "monthly": 0}
    forgetful = settings.model_copy(
        update={"retention": RetentionSettings.model_validate({"keep": keep, "require_offsite": False})}
    )

    spans = (look_back_span(settings), look_back_span(forgetful))
    everything, recent = (look_at_hours(layout, "order-db", TICK, look_back=span).missing for span in spans)

    assert min(everything) == _hour("06-09")
    assert min(recent) == _hour("09-14")
