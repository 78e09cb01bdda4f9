"""What may go is removed, all of it and nothing else; killed at any moment, the catalog is true."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from pitr_pipelines import durable
from pitr_pipelines.catalog.expiry import expire, last_run, propose
from pitr_pipelines.catalog.health import check_chain
from pitr_pipelines.catalog.holds import HoldRecord, hold, reading
from pitr_pipelines.catalog.inventory import read_inventory
from pitr_pipelines.catalog.manifest import describe
from pitr_pipelines.catalog.retention import Keep, Verdict
from pitr_pipelines.errors import ArtifactDamaged, StorageFailed
from pitr_pipelines_tests.catalog.retention_worlds import reachable_seals
from pitr_pipelines_tests.wal.test_bundles import Killer, run_killed
from pitr_pipelines_tests.wal_files import (
    DATABASE,
    Store,
    at,
    base_record,
    bundle_record,
    hour_of,
    put_segment,
    seal_record,
    segment,
)

DAYS = 5
KEEP = Keep(timedelta(days=1), daily=3, weekly=0, monthly=0)
NOW = at(24 * DAYS, 5)
STEP = 6
"""A bundle of six hours' WAL stands for each six hours."""


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def fill(store: Store) -> None:
    """Five days, each with a base after midnight and four sealed bundles; files have their sizes."""
    number = 1
    for hour in range(0, 24 * DAYS, STEP):
        end = hour + STEP
        if hour % 24 == 0:
            base = base_record(number, number, at(hour, 20))
            store.add_bases([base])
            (store.layout.base(DATABASE, base.day) / "base.tar").write_bytes(bytes(1000))
        closed_at = {segment(number): at(end - 1, 30), segment(number + 1): at(end, 0, 0.02)}
        seal = seal_record(end - 1, number + 1, at(end, 0, 0.01))
        record = bundle_record(end - 1, closed_at, seal=seal)
        store.add_bundles([record])
        store.add_seals([seal])
        store.layout.bundle(DATABASE, record.hour).write_bytes(b"x")
        number += 2


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path)
    fill(store)
    return store


def tree(store: Store) -> set[str]:
    """Return every file of the artifacts, hidden ones too, but for locks."""
    found = set()
    for directory in (store.layout.root / "base", store.layout.root / "bundles"):
        found |= {str(p.relative_to(store.layout.root)) for p in directory.rglob("*") if p.is_file()}
    return {name for name in found if not name.endswith(("/.lock", "/.reading"))}


def run(store: Store) -> None:
    expire(store.layout, DATABASE, KEEP, now=NOW)


def days(store: Store) -> list[int]:
    return [(base.ended_at - at(0)).days for base in read_inventory(store.layout, DATABASE).bases]


def test_what_was_proposed_is_removed_and_nothing_else(store: Store) -> None:
    before = tree(store)
    found = propose(store.layout, DATABASE, KEEP, now=NOW)
    assert tree(store) == before
    done = expire(store.layout, DATABASE, KEEP, now=NOW)
    assert done.retention == found
    assert done.removed
    assert done.freed_bytes == found.size_bytes(Verdict.REMOVE) > 0
    gone = {
        f"base/{DATABASE}/{day}/{name}"
        for day in found.bases(Verdict.REMOVE)
        for name in ("base.tar", "backup.json")
    }
    for hour in found.hours(Verdict.REMOVE):
        gone |= {f"bundles/{DATABASE}/{hour}{suffix}" for suffix in (".json", ".seal.json", ".tar.gz")}
    assert before - tree(store) == gone
    assert not tree(store) - before
    assert days(store) == [2, 3, 4]
    assert last_run(store.layout, DATABASE) is not None
    assert not expire(store.layout, DATABASE, KEEP, now=NOW).removed


def test_a_generation_keeps_the_wal_to_its_first_restore_point(store: Store) -> None:
    run(store)
    hours = [str(entry.hour) for entry in read_inventory(store.layout, DATABASE).bundles]
    assert hours[:2] == [str(hour_of(2 * 24 + 5)), str(hour_of(3 * 24 + 5))]
    assert len(hours) == 1 + 4 + 4


def test_what_retention_removed_is_no_gap_and_what_is_lost_is_one(store: Store) -> None:
    run(store)
    found = read_inventory(store.layout, DATABASE)
    assert found.gaps() == []
    assert found.windows()[1] == []
    assert describe(found).gaps == ()
    health = check_chain(found)
    assert not health.findings
    assert health.segments == 2 * 9
    store.layout.bundle_record(DATABASE, hour_of(24 * 3 + 11)).unlink()
    lost = read_inventory(store.layout, DATABASE)
    assert [str(gap.first) for gap in lost.gaps()] == [str(segment(27))]
    assert lost.gaps() == [*lost.windows()[1]]


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_killed_at_any_step_the_catalog_is_true_and_the_next_run_finishes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: bool
) -> None:
    whole = Store(tmp_path / "whole")
    fill(whole)
    counter = Killer(-1, after)
    run_killed(monkeypatch, counter, lambda: run(whole))
    since = NOW - timedelta(days=1, seconds=300)
    promised = set(reachable_seals(read_inventory(whole.layout, DATABASE)))
    assert counter.calls > 30
    template = Store(tmp_path / "template")
    fill(template)
    for call in range(1, counter.calls + 1):
        shutil.copytree(template.root, tmp_path / f"killed-{call}")
        store = Store(tmp_path / f"killed-{call}")
        killer = Killer(call, after)
        run_killed(monkeypatch, killer, lambda store=store: run(store))  # type: ignore[misc]
        assert killer.dead
        found = read_inventory(store.layout, DATABASE)
        reachable = reachable_seals(found)
        assert promised <= reachable.keys(), f"call {call}"
        assert {(point.name, 1) for point in describe(found).restore_points} <= reachable.keys(), (
            f"call {call}"
        )
        assert not found.problems
        assert not found.gaps(), f"call {call}"
        assert [w.end for w in found.windows()[0] if w.end >= since]
        run(store)
        assert tree(store) == tree(whole), f"call {call}"
        shutil.rmtree(store.root)


def test_a_bundle_that_an_interrupted_bundling_left_is_not_touched(store: Store) -> None:
    """It may hold the only copy of its WAL."""
    store.layout.bundle_record(DATABASE, hour_of(11)).unlink()
    run(store)
    assert store.layout.bundle(DATABASE, hour_of(11)).exists()


def test_an_hour_that_was_bundled_again_after_a_kill_is_not_hidden(store: Store) -> None:
    record = store.layout.bundle_record(DATABASE, hour_of(24 * 4 + 5))
    record.with_name(f".{hour_of(24 * 4 + 5)}.expired").write_text("{}")
    run(store)
    assert record.exists()
    assert store.layout.bundle(DATABASE, hour_of(24 * 4 + 5)).exists()
    assert not list(record.parent.glob(".*.expired"))


def test_while_somebody_restores_nothing_is_removed(store: Store) -> None:
    before = tree(store)
    with reading(store.settings, DATABASE), reading(store.settings, DATABASE):
        done = expire(store.layout, DATABASE, KEEP, now=NOW)
        assert not done.removed
        assert done.skipped == f"{DATABASE} is being restored from right now, so nothing was removed"
        assert tree(store) == before
        assert done.retention.hours(Verdict.REMOVE)
    assert expire(store.layout, DATABASE, KEEP, now=NOW).removed


def test_while_a_base_backup_is_made_nothing_is_removed(store: Store) -> None:
    before = tree(store)
    with durable.exclusive_lock(store.layout.base_lock(DATABASE), subject="a base", wait=False):
        done = expire(store.layout, DATABASE, KEEP, now=NOW)
    assert done.skipped == f"a base backup of {DATABASE} is being made right now, so nothing was removed"
    assert tree(store) == before


def test_where_no_lock_can_be_had_a_restore_goes_on(
    store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(path: Path, *_: object) -> int:
        raise PermissionError(13, "Read-only file system", str(path))

    monkeypatch.setattr(os, "open", refuse)
    with reading(store.settings, DATABASE):
        pass
    assert "cannot be held" in caplog.text


def stand(store: Store, directory: Path, at_target: str = "pause", day: int = 0) -> HoldRecord:
    """Leave a restore that stands at its target, from the base of a day, and its hold."""
    directory.mkdir(parents=True, exist_ok=True)
    told = {"database": DATABASE, "directory": str(directory), "at_target": at_target, "more": 1}
    (directory / "restore.json").write_text(json.dumps(told))
    record = HoldRecord(
        database=DATABASE,
        directory=directory,
        base_day=at(24 * day).date(),
        timeline=1,
        made_at=NOW,
    )
    assert hold(store.layout, record)
    return record


def test_a_restore_that_stands_keeps_its_base_and_all_wal_after_it(store: Store, tmp_path: Path) -> None:
    stand(store, tmp_path / "restore" / "one", day=1)
    done = expire(store.layout, DATABASE, KEEP, now=NOW)
    assert days(store) == [1, 2, 3, 4]
    first = read_inventory(store.layout, DATABASE).bundles[0]
    assert first.hour == hour_of(24 + 5)
    assert done.retention.hours(Verdict.REMOVE) == [hour_of(h + 5) for h in (0, 6, 12, 18)]
    told = next(one for one in done.retention.decisions if one.base == at(24).date())
    assert told.reason.text == f"held: {tmp_path}/restore/one stands at its target and may be moved on"


def promoted(store: Store, directory: Path) -> None:
    stand(store, directory, "promote")


def deleted(store: Store, directory: Path) -> None:
    shutil.rmtree(directory)


def interrupted(store: Store, directory: Path) -> None:
    (directory / "INCOMPLETE").touch()


@pytest.mark.parametrize("what", [promoted, deleted, interrupted])
def test_a_hold_ends_with_the_standing(
    store: Store, tmp_path: Path, what: Callable[[Store, Path], None]
) -> None:
    directory = tmp_path / "restore" / "one"
    stand(store, directory)
    what(store, directory)
    run(store)
    assert days(store) == [2, 3, 4]
    assert not list(store.layout.holds(DATABASE).iterdir())


def test_a_hold_whose_place_cannot_be_seen_counts(store: Store, tmp_path: Path) -> None:
    stand(store, tmp_path / "volume" / "one")
    shutil.rmtree(tmp_path / "volume")
    run(store)
    assert days(store) == [0, 2, 3, 4]
    assert len(read_inventory(store.layout, DATABASE).bundles) == 4 * DAYS


def test_a_hold_that_cannot_be_read_stops_everything(store: Store, tmp_path: Path) -> None:
    stand(store, tmp_path / "restore" / "one")
    (path,) = store.layout.holds(DATABASE).iterdir()
    path.write_text("{")
    before = tree(store)
    with pytest.raises(ArtifactDamaged, match="which backups a restore still needs"):
        run(store)
    assert tree(store) == before


def test_a_base_without_its_files_does_not_count_and_stays(store: Store) -> None:
    (store.layout.base(DATABASE, at(24 * 3).date()) / "base.tar").unlink()
    done = expire(store.layout, DATABASE, KEEP, now=NOW)
    assert days(store) == [1, 2, 3, 4]
    told = next(one for one in done.retention.decisions if one.base == at(24 * 3).date())
    assert told.reason.text.startswith("damaged, so it counts for nothing: ")


def test_a_bundle_without_its_file_proves_nothing_and_stays(store: Store) -> None:
    store.layout.bundle(DATABASE, hour_of(24 * 5 - 1)).unlink()
    done = expire(store.layout, DATABASE, KEEP, now=NOW)
    assert done.retention.since is not None
    assert done.retention.since < NOW - timedelta(days=1, hours=6)
    store.layout.bundle(DATABASE, hour_of(5)).unlink(missing_ok=True)


def test_old_raw_wal_that_no_bundle_holds_is_named(store: Store) -> None:
    put_segment(store.wal, segment(500, timeline=1), at(10))
    done = expire(store.layout, DATABASE, KEEP, now=NOW)
    assert (store.wal / str(segment(500))).exists()
    assert any("stays in" in note and str(segment(500)) in note for note in done.retention.notes)


def test_without_storage_nothing_is_made(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with pytest.raises(StorageFailed):
        run(store)
    assert not store.layout.root.exists()


def test_a_database_without_backups_is_left_alone(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.layout.root.mkdir()
    run(store)
    assert list(store.layout.root.iterdir()) == []
