"""Each segment is found where it lies, in the place that can be trusted most."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from pitr_pipelines.catalog.inventory import read_inventory
from pitr_pipelines.catalog.records import BundleState
from pitr_pipelines.restore.wal_source import InArchive, InBase, InBundle, WalIndex, artifact_of
from pitr_pipelines.wal.lsn import Lsn
from pitr_pipelines.wal.timelines import TimelineHistory
from pitr_pipelines_tests.wal_files import (
    DATABASE,
    SEGMENT_SIZE,
    Store,
    at,
    base_record,
    bundle_record,
    hour_of,
    put_file,
    segment,
)

BASE = base_record(1, 2, at(3))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path)
    store.add_bases([BASE])
    return store


def index(store: Store) -> WalIndex:
    return WalIndex(store.layout, read_inventory(store.layout, DATABASE))


def test_what_the_base_carries_is_taken_from_it(store: Store) -> None:
    store.add_bundles([bundle_record(3, {segment(1): at(3, 1)})])
    put_file(store.wal, str(segment(1)), b"", at(3, 1))
    found = index(store).find(segment(1), BASE)
    assert found is not None
    assert found.place == InBase(BASE.day)
    assert artifact_of(found) == BASE.day
    assert str(found.place) == "base 2026-01-29"


def test_the_last_segment_of_a_base_may_be_cut_off_so_an_archived_copy_is_preferred(store: Store) -> None:
    last = BASE.last_segment
    found = index(store).find(last, BASE)
    assert found is not None
    assert found.place == InBase(BASE.day)
    store.add_bundles([bundle_record(3, {last: at(3, 1)})])
    found = index(store).find(last, BASE)
    assert found is not None
    assert isinstance(found.place, InBundle)


def test_a_closed_bundle_is_preferred_to_a_raw_file_and_that_to_an_open_bundle(store: Store) -> None:
    store.add_bundles(
        [
            bundle_record(3, {segment(3): at(3, 1)}),
            bundle_record(4, {segment(4): at(4, 1)}, state=BundleState.OPEN),
            bundle_record(5, {segment(5): at(5, 1)}, state=BundleState.OPEN),
        ]
    )
    for number in (3, 4, 6):
        put_file(store.wal, str(segment(number)), b"", at(number, 1))
    found = {number: index(store).find(segment(number), BASE) for number in range(3, 8)}
    places = {number: one.place if one else None for number, one in found.items()}
    assert isinstance(places[3], InBundle)
    assert isinstance(places[4], InArchive)
    assert isinstance(places[5], InBundle)
    assert isinstance(places[6], InArchive)
    assert places[7] is None
    assert [artifact_of(one) for one in found.values() if one] == [
        hour_of(3),
        str(segment(4)),
        hour_of(5),
        str(segment(6)),
    ]
    assert all(one.closed_at == at(number, 1) for number, one in found.items() if one)


def test_another_base_is_the_last_resort(store: Store) -> None:
    store.add_bases([base_record(7, 8, at(9), day=at(24).date())])
    found = index(store).find(segment(8), BASE)
    assert found is not None
    assert found.place == InBase(at(24).date())
    assert found.closed_at == at(9)


def test_an_early_bundle_that_spans_many_closed_ones_is_found(store: Store) -> None:
    store.add_bundles(
        [bundle_record(9, {segment(n): at(9, n) for n in range(10, 40)}, state=BundleState.OPEN)]
        + [bundle_record(10 + n, {segment(10 + 3 * n): at(10 + n, 1)}) for n in range(9)]
    )
    for number in range(10, 40):
        found = index(store).find(segment(number), BASE)
        assert found is not None
        closed = number < 37 and number % 3 == 1
        assert found.place == InBundle(
            hour_of(10 + (number - 10) // 3) if closed else hour_of(9),
            found.place.member,  # type: ignore[union-attr]
        )


def test_every_segment_of_every_bundle_is_found_whatever_their_runs(tmp_path: Path) -> None:
    chance = random.Random(11)
    for attempt in range(25):
        store = Store(tmp_path / str(attempt))
        store.add_bases([BASE])
        held: dict[int, set[int]] = {}
        for hour in range(3, 9):
            held[hour] = {n for n in range(3, 30) if chance.random() < 0.3}
            state = BundleState.OPEN if chance.random() < 0.3 else BundleState.CLOSED
            store.add_bundles(
                [bundle_record(hour, {segment(n): at(hour, n) for n in held[hour]}, state=state)]
            )
        there = index(store)
        for number in range(3, 30):
            found = there.find(segment(number), BASE)
            assert (found is not None) == any(number in numbers for numbers in held.values())
            if found is not None:
                assert isinstance(found.place, InBundle)
                assert number in held[found.place.hour.start.hour]


def test_the_chain_follows_the_branch_and_ends_where_a_segment_is_missing(store: Store) -> None:
    for number in (3, 4, 5, 6):
        put_file(store.wal, str(segment(number)), b"", at(3, number))
    for number in (5, 6, 8):
        put_file(store.wal, str(segment(number, 2)), b"", at(4, number))
    branch = TimelineHistory.parse(2, f"1\t{Lsn(5 * SEGMENT_SIZE + 0x500)}\tx\n")
    names = [str(one.name) for one in index(store).chain(BASE, branch)]
    assert names == [str(segment(n)) for n in (1, 2, 3, 4)] + [str(segment(n, 2)) for n in (5, 6)]


def test_bundle_records_are_read_only_when_they_are_asked_for(store: Store) -> None:
    store.add_bundles([bundle_record(hour, {segment(hour): at(hour, 1)}) for hour in (3, 4, 5)])
    there = index(store)
    for hour in (3, 5):
        store.layout.bundle_record(DATABASE, hour_of(hour)).unlink()
    assert there.find(segment(4), BASE) is not None
