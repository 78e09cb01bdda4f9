"""The restore job: what is asked for is understood or refused; a server is only in integration/."""

from __future__ import annotations

import socket
from dataclasses import replace
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import dagster as dg
import pytest
from dagster._core.execution.backfill import BulkActionStatus, PartitionBackfill

from pitr_pipelines.dagster_settings import DagsterSettings
from pitr_pipelines.defs.build import build_definitions
from pitr_pipelines.defs.restore_config import WhatAtTarget, WhereTo, filled_in, what_to_restore
from pitr_pipelines.defs.restore_job import check_hour, choose_target, keeps_running
from pitr_pipelines.errors import BadRequest
from pitr_pipelines.restore.at_target import AtTarget
from pitr_pipelines.restore.stop import StopAtConsistency, StopAtXid
from pitr_pipelines.restore.target import (
    HourTarget,
    ImmediateTarget,
    LsnTarget,
    NameTarget,
    TimeTarget,
    XidTarget,
    parse_target,
)
from pitr_pipelines.settings import Settings
from pitr_pipelines.wal.hours import Hour
from pitr_pipelines.wal.lsn import Lsn
from pitr_pipelines_tests.restore.scenes import MOMENT, plan_by_hand

HOUR = Hour.parse("2026-03-10-13")
NOW = datetime(2026, 3, 10, 15, 20, tzinfo=UTC)
UTC_ZONE = ZoneInfo("UTC")


def test_without_a_time_it_is_the_end_of_the_hour() -> None:
    assert choose_target(HOUR, None, UTC_ZONE, NOW) == HourTarget(HOUR)
    assert choose_target(HOUR, " ", UTC_ZONE, NOW) == HourTarget(HOUR)


def test_a_time_is_read_in_the_configured_zone_unless_it_has_an_offset() -> None:
    moment = datetime(2026, 3, 10, 13, 30, tzinfo=UTC)
    paris = ZoneInfo("Europe/Paris")
    for text in ("2026-03-10 14:30:00", "2026-03-10 13:30:00Z", "2026-03-10T08:30:00-05:00"):
        target = choose_target(HOUR, text, paris, NOW)
        assert isinstance(target, TimeTarget)
        assert target.moment == moment


@pytest.mark.parametrize("text", ["2026-03-10 13:00:00", "2026-03-10 14:00:00"])
def test_both_ends_belong_to_the_hour(text: str) -> None:
    assert isinstance(choose_target(HOUR, text, UTC_ZONE, NOW), TimeTarget)


def test_a_time_outside_the_hour_is_refused_with_both_and_with_its_own_hour() -> None:
    with pytest.raises(BadRequest) as refused:
        choose_target(HOUR, "2026-03-10 14:30:00", UTC_ZONE, NOW)
    assert "2026-03-10 14:30:00+00:00 is not in the chosen hour 2026-03-10-13" in refused.value.what
    assert "2026-03-10-14" in refused.value.remedy


def test_the_end_of_the_running_hour_is_refused_with_a_time_that_works() -> None:
    running = Hour.containing(NOW)
    with pytest.raises(BadRequest) as refused:
        choose_target(running, None, UTC_ZONE, NOW)
    assert "is not over" in refused.value.what
    assert "'2026-03-10 15:20:00+00:00'" in refused.value.remedy
    assert str(running.preceding()) in refused.value.remedy
    assert isinstance(choose_target(running, "2026-03-10 15:20:00+00:00", UTC_ZONE, NOW), TimeTarget)


def _launch(
    settings: Settings,
    instance: dg.DagsterInstance,
    config: dict[str, Any],
    where: dict[str, Any] | None = None,
    **run: Any,
) -> dg.ExecuteInProcessResult:
    job = build_definitions(settings).resolve_job_def("restore")
    ops = {
        "plan_restore": {"config": {"database": "order-db", **config}},
        "run_restore": {"config": where or {}},
    }
    return job.execute_in_process(instance=instance, run_config={"ops": ops}, raise_on_error=False, **run)


def _refusal(result: dg.ExecuteInProcessResult) -> str:
    (event,) = [event for event in result.all_events if event.is_step_failure]
    data = event.step_failure_data
    assert event.step_key == "plan_restore"
    assert data.user_failure_data is not None, data.error
    return data.user_failure_data.description or ""


def test_a_run_without_an_hour_is_refused(settings: Settings, instance: dg.DagsterInstance) -> None:
    assert _refusal(_launch(settings, instance, {})).startswith("no hour was chosen")


def test_a_run_over_several_hours_is_refused(settings: Settings, instance: dg.DagsterInstance) -> None:
    tags = {
        "dagster/asset_partition_range_start": "2026-03-10-13",
        "dagster/asset_partition_range_end": "2026-03-10-14",
    }
    refusal = _refusal(_launch(settings, instance, {}, tags=tags))
    assert refusal.startswith("a restore goes to one hour")


def test_what_cannot_be_restored_is_refused_before_anything_is_touched(
    settings: Settings, instance: dg.DagsterInstance
) -> None:
    refusal = _refusal(_launch(settings, instance, {}, partition_key="2026-03-10-13"))
    assert refusal.startswith("there is no base backup of order-db")
    assert "pitr backup order-db" in refusal
    assert not settings.restore_root.exists()
    refusal = _refusal(_launch(settings, instance, {"timeline": 7}, partition_key="2026-03-10-13"))
    assert refusal.startswith("there is no timeline 7 of order-db")


def test_only_configured_databases_can_be_chosen(settings: Settings, instance: dg.DagsterInstance) -> None:
    with pytest.raises(dg.DagsterInvalidConfigError, match=r"not in enum type \(order-db.*\) got other-db"):
        _launch(settings, instance, {"database": "other-db"}, partition_key="2026-03-10-13")


def test_the_launchpad_is_filled_in_for_the_chosen_hour_and_no_more_than_people_change(
    settings: Settings,
) -> None:
    job = build_definitions(settings).resolve_job_def("restore")
    assert job.partitioned_config is not None

    config = job.partitioned_config.get_run_config_for_partition_key("2026-03-10-13")

    assert config == {
        "ops": {
            "plan_restore": {"config": {"database": "order-db", "target_time": "2026-03-10 14:00:00+00:00"}},
            "run_restore": {"config": {"at_target": "promote", "directory": None, "port": None}},
        }
    }


def _time_filled_in(settings: Settings, hour: Hour) -> str:
    time = filled_in(settings, hour, NOW.replace(microsecond=7))["ops"]["plan_restore"]["config"][
        "target_time"
    ]
    assert isinstance(time, str)
    return time


def test_the_time_that_is_filled_in_can_be_restored(settings: Settings) -> None:
    abroad = settings.model_copy(update={"timezone": "Europe/Paris"})
    assert _time_filled_in(abroad, HOUR) == "2026-03-10 15:00:00+01:00"
    assert _time_filled_in(settings, Hour.containing(NOW)) == "2026-03-10 15:20:00+00:00"
    for hour in (HOUR, Hour.containing(NOW)):
        target = choose_target(hour, _time_filled_in(abroad, hour), abroad.zone, NOW)
        assert isinstance(target, TimeTarget)
        assert target.moment == min(hour.end, NOW)


def test_the_launchpad_explains_every_setting_and_fills_in_none_before_an_hour_is_chosen() -> None:
    what = what_to_restore(["order-db"])
    for name, field in {**what.model_fields, **WhereTo.model_fields}.items():
        assert field.description, name
        assert name == "database" or not field.get_default(call_default_factory=True), name


def test_an_unknown_database_is_answered_with_those_there_are() -> None:
    few, many = ([f"db-{number}" for number in range(count)] for count in (3, 40))
    assert _names(few) == "(db-0 | db-1 | db-2)"
    assert _names(many).startswith("(db-0 | db-1 | ")
    assert "28 more in pitr.yaml" in _names(many)
    # Dagster takes two enums of one name for the same.
    assert _names(many) != _names([*many[:-1], "other"])


def _names(databases: list[str]) -> str:
    annotation = what_to_restore(databases).model_fields["database"].annotation
    assert annotation is not None
    return annotation.__name__


def test_a_backfill_is_refused_and_the_rest_of_it_called_off(
    settings: Settings, instance: dg.DagsterInstance
) -> None:
    backfill = PartitionBackfill(
        "abcdefgh",
        status=BulkActionStatus.REQUESTED,
        from_failure=False,
        tags={},
        backfill_timestamp=NOW.timestamp(),
        partition_names=["2026-03-10-13", "2026-03-10-14"],
    )
    instance.add_backfill(backfill)
    for _ in backfill.partition_names or ():
        tags = {"dagster/backfill": backfill.backfill_id}
        refusal = _refusal(_launch(settings, instance, {}, partition_key="2026-03-10-13", tags=tags))
        assert refusal.startswith("a restore goes to one hour, not to every one of a backfill")
        assert "Launchpad" in refusal
        kept = instance.get_backfill(backfill.backfill_id)
        assert kept is not None
        assert kept.status is BulkActionStatus.FAILING
        assert kept.error is not None
        assert kept.error.message == refusal


def test_a_place_that_cannot_be_is_refused_before_any_backup_is_read(
    settings: Settings, instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    full = tmp_path / "full"
    full.mkdir()
    (full / "precious").touch()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        asked: list[tuple[dict[str, Any], str]] = [
            ({"directory": str(full)}, f"{full} is not empty (it holds precious)"),
            ({"directory": "here"}, "the directory 'here' is not an absolute path"),
            ({"directory": str(settings.backup_root / "x")}, "lies in the backups themselves"),
            ({"port": port}, f"the port {port} of 127.0.0.1 is taken"),
            ({"at_target": "pause", "keep_running": False}, "cannot be left stopped"),
        ]
        for where, expected in asked:
            result = _launch(settings, instance, {}, where, partition_key="2026-03-10-13")
            # There is no base backup at all: that would be said first if anything had been read.
            assert expected in _refusal(result)
    where = {"directory": None, "port": None, "keep_running": False, "at_target": "shutdown"}
    refusal = _refusal(_launch(settings, instance, {}, where, partition_key="2026-03-10-13"))
    assert refusal.startswith("there is no base backup of order-db")


def test_a_server_is_left_running_only_where_its_run_does_not_take_it_along(settings: Settings) -> None:
    assert keeps_running(settings, None)
    assert not keeps_running(settings, False)
    contained = settings.model_copy(update={"dagster": DagsterSettings(restored_servers="stop")})
    assert not keeps_running(contained, None)
    with pytest.raises(BadRequest, match="cannot be left running here") as refused:
        keeps_running(contained, True)
    assert "docker compose run" in refused.value.remedy


def test_other_targets_than_times_can_be_given() -> None:
    lsn = choose_target(HOUR, None, UTC_ZONE, NOW, lsn="0/3000028", exclusive=True)
    assert lsn == LsnTarget(Lsn(0x3000028), inclusive=False)
    assert choose_target(HOUR, None, UTC_ZONE, NOW, name="deploy") == NameTarget("deploy")
    assert choose_target(HOUR, None, UTC_ZONE, NOW, xid=740) == XidTarget(740)
    with pytest.raises(BadRequest, match="several targets are given: a time, an xid"):
        choose_target(HOUR, "2026-03-10 13:20", UTC_ZONE, NOW, xid=740)
    with pytest.raises(BadRequest, match="exclusive does not go with an hour"):
        choose_target(HOUR, None, UTC_ZONE, NOW, exclusive=True)


def test_a_base_backup_alone_can_be_chosen_by_its_day_and_by_nothing_else() -> None:
    assert choose_target(HOUR, None, UTC_ZONE, NOW, immediate=True) == ImmediateTarget()
    chosen = choose_target(HOUR, None, UTC_ZONE, NOW, immediate=True, base="2026-03-09")
    assert chosen == ImmediateTarget(date(2026, 3, 9))
    with pytest.raises(BadRequest, match="'yesterday' is not a day"):
        choose_target(HOUR, None, UTC_ZONE, NOW, immediate=True, base="yesterday")
    with pytest.raises(BadRequest, match="a base backup is chosen, but the target is an hour"):
        choose_target(HOUR, None, UTC_ZONE, NOW, base="2026-03-09")
    with pytest.raises(BadRequest, match="a base backup is chosen, but the target is a time"):
        choose_target(HOUR, "2026-03-10 13:30", UTC_ZONE, NOW, base="2026-03-09")
    with pytest.raises(BadRequest, match="exclusive does not go with immediate"):
        choose_target(HOUR, None, UTC_ZONE, NOW, immediate=True, exclusive=True)


def test_a_base_backup_of_another_hour_is_refused_with_its_own() -> None:
    plan = replace(plan_by_hand(target=ImmediateTarget()), stop=StopAtConsistency())
    check_hour(plan, Hour.containing(plan.base.ended_at), UTC_ZONE)
    with pytest.raises(BadRequest, match="the newest base backup is not in the chosen hour") as caught:
        check_hour(plan, Hour.containing(plan.base.ended_at).following(), UTC_ZONE)
    assert str(Hour.containing(plan.base.ended_at)) in caught.value.remedy


@pytest.mark.parametrize(
    "words",
    [
        {"time": "yesterday"},
        {"lsn": "here"},
        {"xid": "2"},
        {"lsn": "0/3000028", "name": "deploy"},
        {"time": "2026-03-10 13:30", "immediate": True},
        {"name": "deploy", "exclusive": True},
        {"immediate": True, "base": "first"},
        {"lsn": "0/3000028", "base": "2026-03-09"},
    ],
)
def test_the_job_refuses_with_the_words_of_the_command(words: dict[str, Any]) -> None:
    with pytest.raises(BadRequest) as by_command:
        parse_target(UTC_ZONE, **words)
    job = {**words, "xid": int(words["xid"])} if "xid" in words else dict(words)
    with pytest.raises(BadRequest) as by_job:
        choose_target(HOUR, job.pop("time", None), UTC_ZONE, NOW, **job)
    assert (by_job.value.what, by_job.value.remedy) == (by_command.value.what, by_command.value.remedy)


def test_what_happens_at_the_target_has_the_words_of_the_command() -> None:
    assert {choice.name: choice.value for choice in WhatAtTarget} == {str(a): a for a in AtTarget}


def test_a_transaction_of_another_hour_is_refused() -> None:
    plan = replace(plan_by_hand(target=XidTarget(740)), stop=StopAtXid(740, True, True, MOMENT))
    check_hour(plan, Hour.containing(MOMENT), UTC_ZONE)
    with pytest.raises(BadRequest, match="the transaction 740 is not in the chosen hour") as caught:
        check_hour(plan, Hour.containing(MOMENT).preceding(), UTC_ZONE)
    assert "2026-01-29-14" in caught.value.remedy
