"""Drills in Dagster: weeks as partitions, the age of the last good one as a check."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta

import dagster as dg
import pytest

from pitr_pipelines.catalog.drills import (
    CheckResult,
    DrillOutcome,
    DrillReport,
    DrillSeconds,
    drill_history,
    last_good_drill,
    record_file,
    stamp_of,
)
from pitr_pipelines.catalog.layout import Layout
from pitr_pipelines.catalog.records import write_record
from pitr_pipelines.defs.build import build_definitions
from pitr_pipelines.defs.partitions import Partitions
from pitr_pipelines.defs.restore_drill import check_week, drill_metadata, judge_age
from pitr_pipelines.errors import BadRequest
from pitr_pipelines.settings import Settings

NOW = datetime(2026, 1, 29, 12, tzinfo=UTC)


def put_drill(
    layout: Layout, finished_at: datetime, outcome: DrillOutcome = DrillOutcome.PASSED
) -> DrillReport:
    failed = outcome is DrillOutcome.FAILED
    report = DrillReport(
        database="order-db",
        started_at=finished_at - timedelta(seconds=30),
        finished_at=finished_at,
        outcome=outcome,
        problems=("something",) if failed else (),
        remedy=None,
        target=finished_at - timedelta(hours=5),
        seed=7,
        server_version="18.6",
        recovered_to_lsn=None,
        last_transaction_at=None,
        plan=None,
        seconds=DrillSeconds(recovery_time=12.5, total=30.0),
        checks=(
            CheckResult(check="select 1", dbname="shop", expected="1", found="1", problem=None, took_s=0.01),
        ),
    )
    layout.drills("order-db").mkdir(parents=True, exist_ok=True)
    write_record(record_file(layout, "order-db", stamp_of(layout, "order-db", report.started_at)), report)
    return report


def test_the_check_fails_without_a_good_drill_and_when_the_last_one_is_too_old(
    settings: Settings, layout: Layout
) -> None:
    assert not judge_age(settings, "order-db", NOW).passed
    put_drill(layout, NOW - timedelta(days=2), DrillOutcome.FAILED)
    result = judge_age(settings, "order-db", NOW)
    assert not result.passed
    assert "pitr drill order-db" in str(result.description)
    put_drill(layout, NOW - timedelta(days=7))
    result = judge_age(settings, "order-db", NOW)
    assert result.passed
    assert result.metadata["age_days"].value == 7
    assert result.metadata["recovery_time_s"].value == 12.5
    assert not judge_age(settings, "order-db", NOW + timedelta(days=2)).passed


def test_history_is_newest_first_also_within_a_second_and_passes_over_what_cannot_be_read(
    layout: Layout,
) -> None:
    drills = [put_drill(layout, NOW), put_drill(layout, NOW, DrillOutcome.FAILED)]
    newest = put_drill(layout, NOW + timedelta(days=1), DrillOutcome.FAILED)
    (layout.drills("order-db") / "20991231T000000Z.json").write_text("{")
    assert list(drill_history(layout, "order-db")) == [newest, drills[1], drills[0]]
    assert last_good_drill(layout, "order-db") == drills[0]
    assert last_good_drill(layout, "inventory-db") is None


def test_the_check_runs_as_a_job_of_its_own(settings: Settings, instance: dg.DagsterInstance) -> None:
    put_drill(Layout(settings.backup_root), datetime.now(UTC))
    job = build_definitions(settings).resolve_job_def("drill_ages")
    result = job.execute_in_process(instance=instance)
    assert result.success
    found = {
        evaluation.asset_key.to_user_string(): evaluation.passed
        for evaluation in result.get_asset_check_evaluations()
    }
    assert found == {"order_db/restore_drill": True, "inventory_db/restore_drill": False}


def test_recovery_time_is_a_number_and_the_checks_are_a_table(layout: Layout) -> None:
    metadata = drill_metadata(put_drill(layout, NOW))
    assert metadata["recovery_time_s"].value == 12.5
    assert isinstance(metadata["recovery_time_s"], dg.FloatMetadataValue)
    table = metadata["checks"]
    assert isinstance(table, dg.TableMetadataValue)
    assert [record.data["result"] for record in table.records] == ["ok"]


@pytest.mark.parametrize("first_day", [date(2026, 1, 1), date(2026, 1, 4), date(2026, 1, 10)])
def test_weeks_begin_with_the_one_of_the_first_day_and_go_up_to_the_present(first_day: date) -> None:
    partitions = Partitions.since(first_day)
    with dg.partition_loading_context(NOW):
        keys = partitions.weeks.get_partition_keys()
    noon = datetime(first_day.year, first_day.month, first_day.day, 12, tzinfo=UTC)
    assert keys[0] == partitions.week_of(noon)
    assert keys[-1] == partitions.week_of(NOW) == "2026-01-25"


def test_only_the_present_week_can_be_drilled() -> None:
    check_week("2026-01-25", NOW)
    check_week("2026-01-25", NOW + timedelta(days=3))
    for key in ("2026-01-18", "2026-02-01"):
        with pytest.raises(BadRequest, match="can only be done in that week"):
            check_week(key, NOW)


def test_the_schedule_asks_for_the_week_of_its_tick(settings: Settings, instance: dg.DagsterInstance) -> None:
    definitions = build_definitions(settings)
    tick = datetime(2026, 2, 1, 5, tzinfo=UTC)
    context = dg.build_schedule_context(
        instance=instance, scheduled_execution_time=tick, repository_def=definitions.get_repository_def()
    )
    data = definitions.resolve_schedule_def("drill_schedule").evaluate_tick(context)
    assert data.run_requests is not None
    (request,) = data.run_requests
    assert request.partition_key == "2026-02-01"
