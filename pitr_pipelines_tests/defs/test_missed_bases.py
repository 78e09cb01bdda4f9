"""Today's base backup is asked for where it was missed or failed: on its day, and not without end."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta

import dagster as dg
import pytest
from dagster._core.test_utils import create_run_for_test

from pitr_pipelines import durable
from pitr_pipelines.catalog.layout import Layout
from pitr_pipelines.defs.asked import ASKED_AT
from pitr_pipelines.defs.missed_bases import ask_for_missed, due_on
from pitr_pipelines.defs.names import DAILY_BASE_BACKUPS
from pitr_pipelines.settings import Settings
from pitr_pipelines_tests.defs.storage import make_settings, put_base

LATE = datetime(2026, 3, 10, 5, 0, tzinfo=UTC)
YESTERDAY, TODAY = date(2026, 3, 9), date(2026, 3, 10)
ORDER, INVENTORY = dg.AssetKey(["order_db", "base_backup"]), dg.AssetKey(["inventory_db", "base_backup"])


def _put_run(
    instance: dg.DagsterInstance,
    asked_at: datetime,
    status: dg.DagsterRunStatus = dg.DagsterRunStatus.FAILURE,
    selection: frozenset[dg.AssetKey] | None = None,
) -> None:
    tags = {"dagster/partition": asked_at.date().isoformat(), ASKED_AT: asked_at.isoformat()}
    create_run_for_test(instance, DAILY_BASE_BACKUPS, status=status, asset_selection=selection, tags=tags)


def _selected(asked: dg.RunRequest | dg.SkipReason) -> list[dg.AssetKey]:
    return list(asked.asset_selection or ()) if isinstance(asked, dg.RunRequest) else []


def test_it_is_asked_for_where_it_is_missing(
    settings: Settings, layout: Layout, instance: dg.DagsterInstance
) -> None:
    for name in settings.databases:
        put_base(layout, name, YESTERDAY)
    put_base(layout, "order-db", TODAY)

    request = ask_for_missed(settings, instance, LATE)

    assert isinstance(request, dg.RunRequest)
    assert request.partition_key == "2026-03-10"
    assert request.asset_selection == [INVENTORY]


def test_the_schedule_itself_gets_a_quarter_of_an_hour(
    settings: Settings, layout: Layout, instance: dg.DagsterInstance
) -> None:
    put_base(layout, "order-db", YESTERDAY)
    assert isinstance(ask_for_missed(settings, instance, LATE.replace(hour=3, minute=10)), dg.SkipReason)
    assert isinstance(ask_for_missed(settings, instance, LATE.replace(hour=3, minute=16)), dg.RunRequest)


def test_a_day_that_is_over_cannot_be_made_up_for(
    settings: Settings, layout: Layout, instance: dg.DagsterInstance
) -> None:
    put_base(layout, "order-db", date(2026, 3, 8))
    assert isinstance(ask_for_missed(settings, instance, LATE.replace(hour=2)), dg.SkipReason)


def test_a_database_that_never_had_one_waits_for_its_time(
    settings: Settings, instance: dg.DagsterInstance
) -> None:
    assert isinstance(ask_for_missed(settings, instance, LATE), dg.SkipReason)


def test_a_first_one_that_failed_at_its_time_is_asked_for_again(
    settings: Settings, instance: dg.DagsterInstance
) -> None:
    _put_run(instance, LATE - timedelta(hours=2))
    assert _selected(ask_for_missed(settings, instance, LATE)) == [ORDER, INVENTORY]


def test_one_that_fails_is_asked_for_five_times_a_day_and_more_and_more_rarely(
    settings: Settings, layout: Layout, instance: dg.DagsterInstance
) -> None:
    put_base(layout, "order-db", YESTERDAY)
    due = datetime(2026, 3, 10, 3, 0, tzinfo=UTC)
    _put_run(instance, due)
    asked = []
    for minutes in range(5, 21 * 60, 5):
        now = due + timedelta(minutes=minutes)
        if _selected(ask_for_missed(settings, instance, now)):
            asked.append(minutes)
            _put_run(instance, now)

    assert asked == [15, 75, 255, 615]


def test_what_failed_for_one_database_is_not_asked_of_another(
    settings: Settings, layout: Layout, instance: dg.DagsterInstance
) -> None:
    for name in settings.databases:
        put_base(layout, name, YESTERDAY)
    put_base(layout, "inventory-db", TODAY)
    _put_run(instance, LATE - timedelta(hours=2))

    assert _selected(ask_for_missed(settings, instance, LATE)) == [ORDER]


def test_what_is_under_way_is_not_asked_for_again_while_a_lock_says_that_it_lives(
    settings: Settings, layout: Layout, instance: dg.DagsterInstance
) -> None:
    for name in settings.databases:
        put_base(layout, name, YESTERDAY)
    _put_run(instance, LATE - timedelta(minutes=9), dg.DagsterRunStatus.STARTED, frozenset({ORDER}))

    assert _selected(ask_for_missed(settings, instance, LATE)) == [INVENTORY]
    later = LATE + timedelta(hours=9)
    with durable.exclusive_lock(layout.base_lock("order-db"), subject="it", wait=False):
        assert _selected(ask_for_missed(settings, instance, later)) == [INVENTORY]
    # The machine was restarted, say, and Dagster still takes the run for one at work.
    assert _selected(ask_for_missed(settings, instance, later)) == [ORDER, INVENTORY]


@pytest.mark.parametrize(
    ("zone", "cron", "day", "due"),
    [
        # 02:30 does not exist on 29 March, and exists twice on 25 October.
        ("Europe/Berlin", "30 2 * * *", "2026-03-29", "2026-03-29T01:00Z"),
        ("Europe/Berlin", "30 2 * * *", "2026-10-25", "2026-10-25T01:30Z"),
        # The tick moves from 23:30 to 00:30 in UTC: Sunday has none.
        ("America/New_York", "30 19 * * *", "2026-10-31", "2026-10-31T23:30Z"),
        ("America/New_York", "30 19 * * *", "2026-11-01", "2026-11-01T23:30Z"),
        ("America/New_York", "30 19 * * *", "2026-11-02", "2026-11-02T00:30Z"),
        # And from 00:30 to 23:30: Sunday has two.
        ("America/New_York", "30 19 * * *", "2026-03-08", "2026-03-08T00:30Z"),
        ("America/New_York", "30 19 * * *", "2026-03-09", "2026-03-09T23:30Z"),
        # Once a week is not once a day.
        ("UTC", "0 3 * * 0", "2026-03-10", None),
        ("UTC", "0 0 * * *", "2026-03-10", "2026-03-10T00:00Z"),
    ],
)
def test_every_day_has_one_time_at_which_it_is_due_whatever_the_clocks_do(
    settings: Settings, zone: str, cron: str, day: str, due: str | None
) -> None:
    settings = make_settings(settings.backup_root.parent, timezone=zone, schedules={"base_backup": cron})
    found = due_on(settings, date.fromisoformat(day))
    assert found == (datetime.fromisoformat(due) if due else None)
