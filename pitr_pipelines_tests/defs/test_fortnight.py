"""A fortnight in which much goes wrong: at its end, everything that can be there is there, once."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import dagster as dg
import pytest

from pitr_pipelines.catalog.inventory import read_inventory
from pitr_pipelines.catalog.manifest import read_manifest, refresh_manifest
from pitr_pipelines.catalog.records import BundleRecord, BundleState, read_record
from pitr_pipelines.defs.stored import base_days
from pitr_pipelines.offsite.budget import CallState, days, read_entry
from pitr_pipelines.wal.lsn import SegmentName
from pitr_pipelines_tests.defs.fortnight import Fortnight, hours_between
from pitr_pipelines_tests.defs.storage import make_settings

pytestmark = pytest.mark.slow

START = datetime(2025, 10, 19, 0, 0, tzinfo=UTC)
"""A fortnight over the end of summer time: in Berlin, 02:30 comes twice on the 26th."""
END = START + timedelta(days=14, minutes=10)


def _at(day: int, hour: int, minute: int = 0) -> datetime:
    return datetime(2025, 10, 1, tzinfo=UTC) + timedelta(days=day - 1, hours=hour, minutes=minute)


@pytest.fixture
def fortnight(tmp_path: Path, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch) -> Fortnight:
    settings = make_settings(
        tmp_path,
        timezone="Europe/Berlin",
        first_day="2025-10-01",
        schedules={"base_backup": "30 2 * * *"},
        bundle={"workers": 1},
        offsite={"store": {"bucket": "backups"}, "unencrypted": True},
    )
    world = Fortnight(settings, instance, START)
    world.play(monkeypatch)
    return world


def test_every_hour_has_one_bundle_every_day_one_base_and_one_call(fortnight: Fortnight) -> None:
    world = fortnight
    world.daemon_down = [(_at(21, 20), _at(22, 5))]  # nine hours, over the time of the base backup
    world.server_down = {"inventory-db": [(_at(24, 7, 20), _at(24, 12, 20))]}  # five hours
    world.store_down = [(_at(28, 0), _at(28, 9))]

    lost: list[SegmentName] = []

    def lose_a_segment() -> None:
        lost.append(world.archive("order-db"))
        (world.layout.wal("order-db") / str(lost[0])).unlink()

    def step_back() -> None:
        world.now -= timedelta(minutes=90)

    world.run(
        END,
        events=[
            (_at(23, 0), lambda: world.failing_bases.update({"order-db": 2})),
            (_at(29, 12, 40), step_back),
            (_at(30, 14, 25), lose_a_segment),
        ],
    )

    for name in world.settings.databases:
        records = {
            hour: read_record(world.layout.bundle_record(name, hour), BundleRecord)
            for hour in hours_between(START - timedelta(hours=1), END)
        }
        assert {record.state for record in records.values()} == {BundleState.CLOSED}, name
        held = Counter(member.name for record in records.values() for member in record.segments)
        raw = {file.name for file in world.layout.wal(name).iterdir() if len(file.name) == 24}
        assert set(held) | raw == {str(one) for one in world.segments[name] if one not in lost}
        assert max(held.values()) == 1, "a segment is in one bundle"
        assert base_days(world.layout, name) == [START.date() + timedelta(days=n) for n in range(14)]

    taken = Counter(world.bases_taken)
    assert taken.pop(("order-db", date(2025, 10, 30))) == 2, "once more, after the gap"
    assert set(taken.values()) == {1}
    assert world.calls == sorted(set(world.calls)), "at most one call a day"
    assert days(world.layout.ledger) == world.calls == [START.date() + timedelta(days=n) for n in range(14)]
    for day in world.calls:
        entry = read_entry(world.layout.ledger, day)
        assert entry is not None
        assert entry.state is CallState.CONFIRMED

    inventory = read_inventory(world.layout, "order-db")
    (gap,) = inventory.gaps()
    assert str(gap.first) == str(lost[0])
    assert inventory.base_after(gap) is not None
    windows, _ = inventory.windows()
    assert len(windows) == 2, "one before the gap, one after"
    cured = windows[1].start - _at(30, 14, 25)
    assert timedelta(0) < cured <= timedelta(minutes=65)
    assert len(read_inventory(world.layout, "inventory-db").windows()[0]) == 1
    refresh_manifest(world.settings)
    assert len(read_manifest(world.layout).databases["order-db"].gaps) == 1

    failed = Counter(job for _, job in world.failed_runs)
    assert failed["hourly_bundles"] <= 5
    assert failed["daily_base_backups"] == 2
    assert failed["daily_offsite_copy"] <= 9
