"""A gap in the WAL is answered with a base backup: at once, bounded, and never at the price of another."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta

import dagster as dg
import pytest

from pitr_pipelines.catalog.layout import Layout
from pitr_pipelines.catalog.records import BaseRecord
from pitr_pipelines.defs.build import build_definitions
from pitr_pipelines.defs.gap_bases import NO_GAP, ask_after_gaps
from pitr_pipelines.postgres import base_backup
from pitr_pipelines.settings import Settings
from pitr_pipelines_tests.defs.storage import put_base, put_segment

NOW = datetime(2026, 3, 10, 9, 0, tzinfo=UTC)
TODAY, YESTERDAY = date(2026, 3, 10), date(2026, 3, 9)
ORDER = dg.AssetKey(["order_db", "base_backup"])


class Sensor:
    """The sensor's decisions, tick by tick."""

    def __init__(self, settings: Settings, instance: dg.DagsterInstance) -> None:
        self._settings, self._instance = settings, instance
        self._cursor: str | None = None

    def __call__(self, now: datetime = NOW) -> dg.RunRequest | str:
        result = ask_after_gaps(self._settings, self._instance, now, self._cursor)
        self._cursor = result.cursor
        if result.run_requests:
            (request,) = result.run_requests
            return request
        assert result.skip_reason is not None
        return result.skip_reason.skip_message or ""


@pytest.fixture
def sensor(settings: Settings, instance: dg.DagsterInstance) -> Sensor:
    return Sensor(settings, instance)


def _put_wal(layout: Layout, *numbers: int) -> None:
    for number in numbers:
        put_segment(layout, "order-db", number, NOW - timedelta(minutes=100 - number))


def test_a_gap_that_is_seen_twice_is_asked_about(layout: Layout, sensor: Sensor) -> None:
    put_base(layout, "order-db", YESTERDAY)
    _put_wal(layout, 1, 2, 4)

    assert sensor() == NO_GAP
    request = sensor(NOW + timedelta(minutes=1))

    assert isinstance(request, dg.RunRequest)
    assert request.partition_key == "2026-03-10"
    assert request.asset_selection == [ORDER]
    assert request.run_config == {"ops": {"order_db__base_backup": {"config": {"after_gap": True}}}}
    assert request.tags["pitr_gap/order_db"] == "000000010000000000000003"


def test_a_segment_that_was_only_on_its_way_is_no_gap(layout: Layout, sensor: Sensor) -> None:
    put_base(layout, "order-db", YESTERDAY)
    _put_wal(layout, 1, 2, 4)
    sensor()
    _put_wal(layout, 3)
    assert [sensor(NOW + timedelta(minutes=minutes)) for minutes in (1, 2)] == [NO_GAP, NO_GAP]


def test_where_it_would_cost_restorable_moments_it_says_so_and_waits_for_midnight(
    layout: Layout, sensor: Sensor
) -> None:
    put_base(layout, "order-db", TODAY)
    _put_wal(layout, 1, 2, 4)
    sensor()

    said = sensor(NOW + timedelta(minutes=1))
    assert isinstance(said, str)
    assert "pitr backup --replace order-db" in said

    midnight = datetime(2026, 3, 11, 0, 0, 30, tzinfo=UTC)
    request = sensor(midnight)
    assert isinstance(request, dg.RunRequest)
    assert request.partition_key == "2026-03-11"


def test_it_is_bounded_when_the_base_backup_fails(
    settings: Settings,
    layout: Layout,
    instance: dg.DagsterInstance,
    sensor: Sensor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    put_base(layout, "order-db", YESTERDAY)
    _put_wal(layout, 1, 2, 4)
    job = build_definitions(settings).resolve_job_def("daily_base_backups")
    asked = []
    for minutes in range(0, 14 * 60, 5):
        now = NOW + timedelta(minutes=minutes)
        request = sensor(now)
        if isinstance(request, dg.RunRequest):
            asked.append(minutes)
            # Nobody answers at the dsn, and this is not the day: it fails.
            assert not job.execute_in_process(
                instance=instance,
                partition_key=request.partition_key,
                asset_selection=request.asset_selection,
                run_config=request.run_config,
                tags=request.tags,
                raise_on_error=False,
            ).success

    assert asked == [5, 20, 80, 260, 620]


@pytest.mark.parametrize("older", [True, False])
def test_the_step_itself_decides_whether_todays_may_be_replaced(
    settings: Settings,
    layout: Layout,
    instance: dg.DagsterInstance,
    monkeypatch: pytest.MonkeyPatch,
    older: bool,
) -> None:
    """The server is played by a function that notes what it was asked for."""
    if older:
        put_base(layout, "order-db", YESTERDAY)
    record = put_base(layout, "order-db", TODAY)
    _put_wal(layout, 1, 2, 4)
    told: list[bool] = []

    def take(*_: object, replace: bool, **__: object) -> BaseRecord:
        told.append(replace)
        return record

    monkeypatch.setattr(base_backup, "take_base_backup", take)
    result = (
        build_definitions(settings)
        .resolve_job_def("daily_base_backups")
        .execute_in_process(
            instance=instance,
            partition_key=TODAY.isoformat(),
            asset_selection=[ORDER],
            run_config={"ops": {"order_db__base_backup": {"config": {"after_gap": True}}}},
        )
    )

    assert result.success
    assert told == [older]
