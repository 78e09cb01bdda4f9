"""A run whose worker died frees its slot; one that lives, or may live, is left alone."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import dagster as dg
import pytest
from dagster._core.test_utils import create_run_for_test

from pitr_pipelines import durable
from pitr_pipelines.catalog.layout import Layout
from pitr_pipelines.defs.asked import WORKER_DIED, Asked
from pitr_pipelines.defs.dead_runs import end_dead_runs
from pitr_pipelines.defs.failed_runs import look_at_runs
from pitr_pipelines.defs.names import HOURLY_BUNDLES, RESTORE, WAL_BUNDLE, asset_key
from pitr_pipelines.settings import Settings

HOUR = "2026-03-10-13"
PATIENCE = timedelta(seconds=120)


@pytest.fixture
def later() -> datetime:
    """A moment at which a run that starts now has been at work for longer than anybody waits."""
    return datetime.now(UTC) + 2 * PATIENCE


def _start(instance: dg.DagsterInstance, job: str = HOURLY_BUNDLES, **run: object) -> str:
    tags = {"dagster/partition": HOUR}
    made = create_run_for_test(instance, job, status=dg.DagsterRunStatus.STARTING, tags=tags, **run)
    event = dg.DagsterEvent(event_type_value=dg.DagsterEventType.RUN_START.value, job_name=job)
    instance.report_dagster_event(event, made.run_id)
    return str(made.run_id)


def _status(instance: dg.DagsterInstance, run_id: str) -> dg.DagsterRunStatus:
    run = instance.get_run_by_id(run_id)
    assert run is not None
    return run.status


@pytest.fixture
def held(settings: Settings) -> Iterator[threading.Event]:
    """The lock of inventory-db's bundles, held until the event is set."""
    taken, release = threading.Event(), threading.Event()
    path = Layout(settings.backup_root).bundle_lock("inventory-db")
    path.parent.mkdir(parents=True)

    def hold() -> None:
        with durable.exclusive_lock(path, subject="it", wait=True):
            taken.set()
            release.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    assert taken.wait(20)
    yield release
    release.set()
    thread.join()


def test_a_run_that_two_looks_find_without_a_lock_is_ended(
    settings: Settings, instance: dg.DagsterInstance, later: datetime
) -> None:
    run_id = _start(instance)

    first = end_dead_runs(settings, instance, later, None)
    assert _status(instance, run_id) is dg.DagsterRunStatus.STARTED
    end_dead_runs(settings, instance, later + PATIENCE, first.cursor)

    assert _status(instance, run_id) is dg.DagsterRunStatus.FAILURE


def test_two_looks_that_follow_at_once_prove_nothing(
    settings: Settings, instance: dg.DagsterInstance, later: datetime
) -> None:
    run_id = _start(instance)
    first = end_dead_runs(settings, instance, later, None)
    end_dead_runs(settings, instance, later + timedelta(seconds=30), first.cursor)
    assert _status(instance, run_id) is dg.DagsterRunStatus.STARTED


def test_a_run_that_just_began_has_time_to_take_its_lock(
    settings: Settings, instance: dg.DagsterInstance
) -> None:
    run_id = _start(instance)
    now = datetime.now(UTC)
    first = end_dead_runs(settings, instance, now, None)
    end_dead_runs(settings, instance, now + PATIENCE / 2, first.cursor)
    assert _status(instance, run_id) is dg.DagsterRunStatus.STARTED


def test_a_lock_of_any_of_its_databases_says_that_it_lives(
    settings: Settings, instance: dg.DagsterInstance, later: datetime, held: threading.Event
) -> None:
    run_id = _start(instance)
    other = _start(instance, asset_selection=frozenset({asset_key("order-db", WAL_BUNDLE)}))

    first = end_dead_runs(settings, instance, later, None)
    end_dead_runs(settings, instance, later + PATIENCE, first.cursor)

    assert _status(instance, run_id) is dg.DagsterRunStatus.STARTED
    assert _status(instance, other) is dg.DagsterRunStatus.FAILURE, "it is about another database"


def test_what_nobody_can_judge_by_a_lock_is_left_alone(
    settings: Settings, instance: dg.DagsterInstance, later: datetime
) -> None:
    run_id = _start(instance, RESTORE)
    first = end_dead_runs(settings, instance, later, None)
    end_dead_runs(settings, instance, later + PATIENCE, first.cursor)
    assert _status(instance, run_id) is dg.DagsterRunStatus.STARTED


def test_its_hours_are_asked_for_without_patience_and_what_was_made_since_heals_it(
    settings: Settings, instance: dg.DagsterInstance, later: datetime
) -> None:
    run_id = _start(instance)
    first = end_dead_runs(settings, instance, later, None)
    healed = create_run_for_test(
        instance,
        HOURLY_BUNDLES,
        status=dg.DagsterRunStatus.STARTED,
        tags={"dagster/partition": "2026-03-10-14"},
    )
    instance.report_dagster_event(
        dg.DagsterEvent(event_type_value=dg.DagsterEventType.RUN_SUCCESS.value, job_name=HOURLY_BUNDLES),
        healed.run_id,
    )
    end_dead_runs(settings, instance, later + PATIENCE, first.cursor)

    run = instance.get_run_by_id(run_id)
    assert run is not None
    assert run.tags[WORKER_DIED] == "true"
    asked = Asked(instance, HOURLY_BUNDLES, later + 2 * PATIENCE, timedelta(hours=1))
    assert asked.tries(asset_key("order-db", WAL_BUNDLE), HOUR, by_themselves=True) == []
    assert len(asked.tries(asset_key("order-db", WAL_BUNDLE), HOUR)) == 1
    assert look_at_runs(instance, settings, later + 2 * PATIENCE).incidents == ()
