"""What a tick asks for: nothing twice, nothing that is closed, and what fails with growing patience."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import dagster as dg
import pytest
from dagster._core.test_utils import create_run_for_test

from pitr_pipelines import durable
from pitr_pipelines.catalog.layout import Layout
from pitr_pipelines.catalog.records import BundleState
from pitr_pipelines.defs.asked import ASKED_AT, Asked
from pitr_pipelines.defs.look_back import AT_WORK, Stretch, Wanted, look_back, stretches_of
from pitr_pipelines.defs.names import HOURLY_BUNDLES
from pitr_pipelines.settings import Settings
from pitr_pipelines.wal.hours import Hour
from pitr_pipelines_tests.defs.storage import make_settings, put_bundle, put_segment

TICK = datetime(2026, 3, 10, 14, 1, tzinfo=UTC)
ENDED = Hour.parse("2026-03-10-13")
ORDER, INVENTORY = dg.AssetKey(["order_db", "wal_bundle"]), dg.AssetKey(["inventory_db", "wal_bundle"])

Look = Callable[..., Wanted]


@pytest.fixture
def look(settings: Settings, instance: dg.DagsterInstance) -> Look:
    def look_at(tick: datetime = TICK) -> Wanted:
        return look_back(settings, Asked(instance, HOURLY_BUNDLES, tick, AT_WORK), tick)

    return look_at


def _ago(hours: int) -> Hour:
    return Hour(ENDED.start - timedelta(hours=hours))


def _put_run(
    instance: dg.DagsterInstance,
    status: dg.DagsterRunStatus,
    *hours: Hour,
    selection: frozenset[dg.AssetKey] | None = None,
    job: str = HOURLY_BUNDLES,
    asked_at: datetime = TICK - timedelta(minutes=10),
) -> None:
    tags = {"dagster/partition": str(hours[0]), ASKED_AT: asked_at.isoformat()}
    if len(hours) > 1:
        tags = {
            "dagster/asset_partition_range_start": str(hours[0]),
            "dagster/asset_partition_range_end": str(hours[-1]),
            ASKED_AT: asked_at.isoformat(),
        }
    create_run_for_test(instance, job, status=status, asset_selection=selection, tags=tags)


def test_all_databases_of_an_hour_are_one_run(settings: Settings, look: Look) -> None:
    assert look() == Wanted(Stretch(ENDED, ENDED, tuple(settings.databases)), (), ())


def test_a_closed_hour_is_never_asked_for_again(layout: Layout, look: Look) -> None:
    """As when a clock is stepped back, or somebody bundled it at a terminal."""
    put_bundle(layout, "order-db", ENDED)
    assert look().ended == Stretch(ENDED, ENDED, ("inventory-db",))
    put_bundle(layout, "inventory-db", ENDED)
    assert look() == Wanted(None, (), ())


def test_what_is_closed_in_the_future_stays_as_it_is(layout: Layout, look: Look) -> None:
    for hour in (_ago(2), _ago(1), ENDED, Hour.containing(TICK), Hour.containing(TICK).following()):
        put_bundle(layout, "order-db", hour)
        put_bundle(layout, "inventory-db", hour)
    assert look(TICK - timedelta(hours=1)) == Wanted(None, (), ())


@pytest.mark.parametrize("status", [dg.DagsterRunStatus.NOT_STARTED, dg.DagsterRunStatus.STARTED])
def test_what_is_under_way_is_not_asked_for_again(
    instance: dg.DagsterInstance, layout: Layout, look: Look, status: dg.DagsterRunStatus
) -> None:
    put_segment(layout, "order-db", 1, _ago(4).start)
    put_segment(layout, "order-db", 2, TICK)
    lately = TICK - timedelta(minutes=1)
    selection = frozenset({INVENTORY})
    _put_run(instance, status, ENDED, job="__ASSET_JOB", selection=selection, asked_at=lately)
    _put_run(instance, status, _ago(3), _ago(1), asked_at=lately)

    wanted = look()

    assert wanted.ended == Stretch(ENDED, ENDED, ("order-db",))
    assert wanted.missing == (Stretch(_ago(4), _ago(4), ("order-db",)),)


def test_a_run_at_work_is_waited_for_while_somebody_holds_the_lock_and_no_longer(
    instance: dg.DagsterInstance, layout: Layout, look: Look
) -> None:
    put_segment(layout, "order-db", 1, _ago(1).start)
    put_segment(layout, "order-db", 2, TICK)
    again = (Stretch(_ago(1), _ago(1), ("order-db",)),)
    _put_run(instance, dg.DagsterRunStatus.STARTED, _ago(1), asked_at=TICK)

    assert look(TICK + timedelta(minutes=2)).missing == ()
    assert look(TICK + timedelta(minutes=3)).missing == again
    with durable.exclusive_lock(layout.bundle_lock("order-db"), subject="it", wait=False):
        assert look(TICK + timedelta(minutes=30)).missing == ()


def test_nor_is_it_for_ever_if_its_step_hangs(
    instance: dg.DagsterInstance, layout: Layout, look: Look
) -> None:
    put_segment(layout, "order-db", 1, _ago(1).start)
    put_segment(layout, "order-db", 2, TICK)
    _put_run(instance, dg.DagsterRunStatus.STARTED, _ago(1), asked_at=TICK - timedelta(hours=1, minutes=1))
    with durable.exclusive_lock(layout.bundle_lock("order-db"), subject="it", wait=False):
        assert look().missing == (Stretch(_ago(1), _ago(1), ("order-db",)),)


def test_a_queue_that_stands_still_is_not_made_longer(instance: dg.DagsterInstance, look: Look) -> None:
    _put_run(instance, dg.DagsterRunStatus.NOT_STARTED, ENDED, asked_at=TICK - timedelta(hours=5))
    assert look().ended is None


def test_an_hour_that_fails_again_and_again_is_asked_for_more_and_more_rarely(
    instance: dg.DagsterInstance, layout: Layout, look: Look
) -> None:
    put_segment(layout, "order-db", 1, ENDED.start)
    put_segment(layout, "order-db", 2, ENDED.end)
    asked = []
    for hours in range(1, 49):
        tick = TICK + timedelta(hours=hours)
        put_bundle(layout, "order-db", Hour.containing(tick).preceding())
        put_bundle(layout, "inventory-db", Hour.containing(tick).preceding())
        if look(tick).missing:
            asked.append(hours)
            _put_run(instance, dg.DagsterRunStatus.FAILURE, ENDED, asked_at=tick)

    assert asked == [1, 2, 4, 8, 16, 32]


def test_a_database_of_which_nothing_arrives_is_asked_more_and_more_rarely_for_a_week(
    settings: Settings, layout: Layout, instance: dg.DagsterInstance
) -> None:
    settings = make_settings(settings.backup_root.parent, "order-db")
    put_bundle(layout, "order-db", ENDED)
    failed = []
    for hours in range(1, 24 * 7 + 1):
        tick = TICK + timedelta(hours=hours)
        asked = Asked(instance, HOURLY_BUNDLES, tick, AT_WORK)
        wanted = look_back(settings, asked, tick)
        assert not wanted.missing
        if wanted.ended is not None:
            failed.append(hours)
            put_bundle(layout, "order-db", wanted.ended.first, state=BundleState.OPEN)
            # Bundling writes down what there is; there is no WAL of that hour, and no seal.

    assert failed[:9] == [1, 2, 3, 6, 9, 12, 15, 18, 24]
    assert len(failed) < 40


def test_when_it_returns_it_is_asked_at_once_and_for_all_that_is_missing(layout: Layout, look: Look) -> None:
    put_bundle(layout, "inventory-db", ENDED)
    put_bundle(layout, "order-db", _ago(20))
    for hours in (19, 18, 17, 14, 11, 8, 5, 2):
        put_bundle(layout, "order-db", _ago(hours), state=BundleState.OPEN)
    assert look(TICK).resting == ("order-db",)

    put_segment(layout, "order-db", 2, TICK - timedelta(minutes=2))

    wanted = look()
    assert wanted.resting == ()
    assert wanted.ended == Stretch(ENDED, ENDED, ("order-db",))
    assert wanted.missing == (
        Stretch(_ago(19), _ago(8), ("order-db",)),
        Stretch(_ago(7), _ago(1), ("order-db",)),
    )


def test_a_stretch_is_of_consecutive_hours_of_the_same_databases() -> None:
    both, one = ["a", "b"], ["a"]
    missing = {_ago(9): both, _ago(8): both, _ago(7): one, _ago(5): one, _ago(4): one}
    assert list(stretches_of(missing)) == [
        Stretch(_ago(9), _ago(8), ("a", "b")),
        Stretch(_ago(7), _ago(7), ("a",)),
        Stretch(_ago(5), _ago(4), ("a",)),
    ]


def test_the_past_before_the_first_day_is_left_alone(settings: Settings, layout: Layout, look: Look) -> None:
    put_segment(layout, "order-db", 1, TICK)
    assert look(datetime(2026, 1, 1, 0, 1, tzinfo=UTC)) == Wanted(None, (), ())
