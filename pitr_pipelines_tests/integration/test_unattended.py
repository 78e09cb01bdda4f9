"""The real daemon, code server, webserver and workers, killed at one stroke amid work and started again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import dagster as dg
import pytest

from pitr_pipelines import durable
from pitr_pipelines.catalog.records import BundleRecord, BundleState, read_record
from pitr_pipelines.catalog.verify import verify_database, verify_manifest
from pitr_pipelines.defs.asked import WORKER_DIED
from pitr_pipelines.defs.names import BASE_BACKUP, DAILY_BASE_BACKUPS, HOURLY_BUNDLES, WAL_BUNDLE
from pitr_pipelines.defs.stored import base_days, is_closed
from pitr_pipelines.demo.processes import end_marked
from pitr_pipelines.wal.hours import Hour
from pitr_pipelines.wal.lsn import SegmentName
from pitr_pipelines_tests.integration.unattended import HOURS, Installation, write_past_hours
from pitr_pipelines_tests.servers import ServerFactory, SettingsMaker, wait_for

pytestmark = pytest.mark.slow

SLOTS = 6
"""The `max_concurrent_runs` of the dagster.yaml in the docs."""
UNDER_WAY = [dg.DagsterRunStatus.QUEUED, dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED]
PATIENCE_S = 900.0


@pytest.fixture
def archive_hangs(reachable_tmp: Path) -> Path:
    """While this file exists, order-db's archive stands still, as a hung network file system would."""
    return reachable_tmp / "archive-hangs"


@pytest.fixture
def installation(
    server_factory: ServerFactory, pitr_settings: SettingsMaker, reachable_tmp: Path, archive_hangs: Path
) -> Iterator[Installation]:
    wait = f"while test -e {archive_hangs}; do sleep 0.1; done; "
    hanging = {"archive_command": wait + server_factory.make_archive("order-db")}
    servers = [
        server_factory("order-db", wal_segment_size_mb=1, options=hanging),
        server_factory("inventory-db", wal_segment_size_mb=1),
    ]
    first = max(write_past_hours(server) for server in servers)
    settings = pitr_settings(
        *servers,
        first_day=first.start.date().isoformat(),
        schedules={"bundle": "* * * * *", "base_backup": "* * * * *"},
        bundle={"archive_wait_s": 600, "keep_raw_hours": 0},
        dagster={"dead_run_after_s": 25},
    )
    made = Installation(reachable_tmp, settings, pitr_settings.file, first)
    yield made
    end_marked(made.place)


def test_a_machine_that_lost_power_amid_sixty_hours_makes_up_for_all_of_them(
    installation: Installation, archive_hangs: Path
) -> None:
    layout = installation.layout
    archive_hangs.touch()
    installation.start()
    killed = _wait_until_amid_work(installation)

    installation.kill_everything()

    wait_for(lambda: installation.processes() == [], timeout_s=60, what="their end")
    # A process that is ending has no environment any more, and still has its files.
    lock = layout.bundle_lock("order-db")
    wait_for(lambda: not durable.is_locked(lock), timeout_s=60, what="the lock of a dead worker")
    closed = [hour for hour in installation.ended_hours() if is_closed(layout, "order-db", Hour.parse(hour))]
    assert len(closed) < HOURS, "there was nothing left to do"
    archive_hangs.unlink()

    ui = installation.start()
    try:
        wait_for(lambda: _unfinished(installation) == [], timeout_s=PATIENCE_S, every_s=1.0)
    except AssertionError:
        pytest.fail("\n".join(["not done:", *_unfinished(installation)]))

    hours = installation.ended_hours()
    ui.check()
    end_marked(installation.place)
    wait_for(lambda: installation.processes() == [], timeout_s=60, what="their end")
    _check_storage(installation, hours)
    _check_the_dead(installation, killed)


def _wait_until_amid_work(installation: Installation) -> list[str]:
    """Wait until workers hold every slot and one of them seals the hour; return their runs."""
    with installation.instance() as instance:

        def at_work() -> list[dg.DagsterRun]:
            return list(instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED])))

        lock = installation.layout.bundle_lock("order-db")
        wait_for(
            lambda: len(at_work()) == SLOTS and durable.is_locked(lock),
            timeout_s=PATIENCE_S,
            what="every slot to be taken",
            every_s=0.25,
        )
        return [run.run_id for run in at_work()]


def _unfinished(installation: Installation) -> list[str]:
    """Return what storage, or Dagster's view of it, lacks by now."""
    layout, left = installation.layout, []
    hours, today = installation.ended_hours(), datetime.now(UTC).date()
    for name in installation.settings.databases:
        left += [f"{name} {hour} closed" for hour in hours if not is_closed(layout, name, Hour.parse(hour))]
        if today not in base_days(layout, name):
            left.append(f"{name} base of {today}")
    if left:
        return left
    for name, seen in installation.seen_by_dagster().items():
        left += [f"{name} {hour} in Dagster" for hour in hours if hour not in seen[WAL_BUNDLE]]
        left += [
            f"{name} {day} in Dagster"
            for day in base_days(layout, name)
            if day.isoformat() not in seen[BASE_BACKUP]
        ]
    with installation.instance() as instance:
        working = dg.RunsFilter(job_name=HOURLY_BUNDLES, statuses=UNDER_WAY)
        left += [f"run {run.run_id}" for run in instance.get_runs(working)]
    return left


def _check_storage(installation: Installation, hours: list[str]) -> None:
    layout = installation.layout
    assert verify_manifest(installation.settings).problem is None
    for name in installation.settings.databases:
        assert [found for found in verify_database(installation.settings, name) if found.problem] == []
        records = [read_record(layout.bundle_record(name, Hour.parse(h)), BundleRecord) for h in hours]
        assert {record.state for record in records} == {BundleState.CLOSED}
        held = Counter(member.name for record in records for member in record.segments)
        assert set(held.values()) == {1}, "a segment is in two bundles"
        numbers = sorted(SegmentName.parse(segment).number(1024 * 1024) for segment in held)
        assert numbers == list(range(numbers[0], numbers[0] + len(numbers))), "a segment is in none"
        days = [path.name for path in layout.bases(name).iterdir() if not path.name.startswith(".")]
        assert sorted(days) == [day.isoformat() for day in base_days(layout, name)]
        seen = installation.seen_by_dagster()[name]
        assert seen[WAL_BUNDLE] >= set(hours)
        assert seen[BASE_BACKUP] == set(days)


def _check_the_dead(installation: Installation, killed: list[str]) -> None:
    """The runs of the first life ended as failed, because nothing else would have freed their slots."""
    with installation.instance() as instance:
        for run_id in killed:
            run = instance.get_run_by_id(run_id)
            assert run is not None
            if run.job_name in (HOURLY_BUNDLES, DAILY_BASE_BACKUPS):
                assert run.status is dg.DagsterRunStatus.FAILURE
                assert run.tags.get(WORKER_DIED) == "true"
