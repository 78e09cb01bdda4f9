"""A gap asks for a new base backup; today's is replaced by itself only where that loses nothing."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from pitr_pipelines.catalog.gap_cure import Cure, cure_of
from pitr_pipelines.catalog.inventory import read_inventory
from pitr_pipelines_tests.wal_files import (
    DATABASE,
    DAY,
    Store,
    at,
    base_record,
    bundle_record,
    put_file,
    segment,
    segment_bytes,
)

TODAY = DAY.date()
YESTERDAY = TODAY - timedelta(days=1)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


def _cure(store: Store) -> tuple[Cure, str]:
    found = cure_of(read_inventory(store.layout, DATABASE), TODAY)
    return found.cure, found.reason


def _put_wal(store: Store, hours: range, *, without: tuple[int, ...] = ()) -> None:
    """Two segments an hour, numbered from the first hour of yesterday on."""
    for hour in hours:
        numbers = [number for number in (2 * hour + 100, 2 * hour + 101) if number not in without]
        closed_at = {segment(number): at(hour, 10 + 20 * (number % 2)) for number in numbers}
        store.add_bundles([bundle_record(hour, closed_at)])


def test_without_a_gap_there_is_nothing_to_do(store: Store) -> None:
    _put_wal(store, range(-24, 12))
    store.add_bases([base_record(60, 60, at(-20), day=YESTERDAY)])
    assert _cure(store)[0] is Cure.NOTHING


def test_without_a_base_backup_of_today_todays_is_taken(store: Store) -> None:
    _put_wal(store, range(-24, 12), without=(110,))
    store.add_bases([base_record(60, 60, at(-20), day=YESTERDAY)])
    cure, reason = _cure(store)
    assert cure is Cure.TAKE
    assert str(segment(110)) in reason


def test_todays_is_replaced_where_an_older_one_leads_to_all_that_it_leads_to(store: Store) -> None:
    _put_wal(store, range(-24, 12), without=(118, 119))
    store.add_bases([base_record(60, 60, at(-20), day=YESTERDAY), base_record(106, 106, at(3, 15))])
    assert _cure(store)[0] is Cure.REPLACE


def test_a_base_backup_that_is_the_only_one_is_never_replaced_by_itself(store: Store) -> None:
    _put_wal(store, range(12), without=(118, 119))
    store.add_bases([base_record(106, 106, at(3, 15))])
    cure, reason = _cure(store)
    assert cure is Cure.WAIT
    assert "pitr backup --replace order-db" in reason
    assert "03:15:00" in reason


def test_a_second_gap_of_the_day_does_not_take_away_what_lies_between_the_two(store: Store) -> None:
    _put_wal(store, range(-24, 12), without=(110, 118, 119))
    store.add_bases([base_record(60, 60, at(-20), day=YESTERDAY), base_record(113, 113, at(6, 40))])
    assert _cure(store)[0] is Cure.WAIT


def test_a_base_backup_after_the_gap_is_the_cure(store: Store) -> None:
    _put_wal(store, range(-24, 12), without=(110,))
    store.add_bases([base_record(60, 60, at(-20), day=YESTERDAY), base_record(113, 113, at(6, 40))])
    assert _cure(store)[0] is Cure.NOTHING


def test_a_base_backup_that_alone_leads_along_a_branch_that_was_left_is_kept(store: Store) -> None:
    """Timeline 2 left timeline 1 behind this morning's base: the tail of timeline 1 hangs on it alone."""
    _put_wal(store, range(-24, 7), without=(104,))
    start = segment(107).start(1024 * 1024)
    put_file(store.wal, "00000002.history", f"1\t0/{int(start):X}\tno recovery target\n".encode(), at(7))
    for number in (107, 108, 110, 111):
        put_file(store.wal, str(segment(number, 2)), segment_bytes(segment(number, 2)), at(9, number - 100))
    store.add_bases([base_record(60, 60, at(-20), day=YESTERDAY), base_record(106, 106, at(3, 15))])
    cure, _ = _cure(store)
    assert cure is Cure.WAIT
