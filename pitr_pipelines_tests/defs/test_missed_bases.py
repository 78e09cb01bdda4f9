"""A base backup whose tick was missed is asked for once, on its own day."""

from __future__ import annotations

from datetime import UTC, date, datetime

import dagster as dg

from pitr_pipelines.catalog.layout import Layout
from pitr_pipelines.defs.missed_bases import ask_for_missed
from pitr_pipelines.settings import Settings
from pitr_pipelines_tests.defs.storage import put_base

LATE = datetime(2026, 3, 10, 5, 0, tzinfo=UTC)
YESTERDAY, TODAY = date(2026, 3, 9), date(2026, 3, 10)


def test_it_is_asked_for_where_it_is_missing(
    settings: Settings, layout: Layout, instance: dg.DagsterInstance
) -> None:
    for name in settings.databases:
        put_base(layout, name, YESTERDAY)
    put_base(layout, "order-db", TODAY)

    request = ask_for_missed(settings, instance, LATE)

    assert isinstance(request, dg.RunRequest)
    assert request.partition_key == "2026-03-10"
    assert request.asset_selection == [dg.AssetKey(["inventory_db", "base_backup"])]


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


def test_what_a_run_has_tried_is_not_asked_for_again(
    settings: Settings, layout: Layout, instance: dg.DagsterInstance
) -> None:
    put_base(layout, "order-db", YESTERDAY)

    @dg.job(name="daily_base_backups")
    def tried() -> None: ...

    tried.execute_in_process(instance=instance, tags={"dagster/partition": "2026-03-10"})

    reason = ask_for_missed(settings, instance, LATE)
    assert isinstance(reason, dg.SkipReason)
    assert "already" in (reason.skip_message or "")
