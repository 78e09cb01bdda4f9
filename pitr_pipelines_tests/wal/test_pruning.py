"""A raw file goes only when a closed, intact bundle holds the very same bytes, and its time has come."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from pitr_pipelines.catalog.records import BundleRecord, BundleState, read_record, write_record
from pitr_pipelines.wal.archive import scan_archive
from pitr_pipelines.wal.bundles import make_bundle
from pitr_pipelines.wal.lsn import WalFileKind
from pitr_pipelines.wal.pruning import prune_raw
from pitr_pipelines_tests.wal_files import (
    DATABASE,
    Store,
    at,
    hour_of,
    make_archive,
    make_settings,
    put_file,
    put_segment,
    segment,
)

CLOSED_AT = {
    segment(1): at(8, 30),
    segment(2): at(9, 10),
    segment(3): at(9, 50),
    segment(4): at(10, 20),
    segment(5): at(11, 20),
}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Hours 8 to 10 are bundled, and nothing has been removed yet."""
    store = Store(tmp_path)
    store.settings = make_settings(store.root, bundle={"workers": 1, "keep_raw_hours": 1000})
    make_archive(store.wal, CLOSED_AT)
    for hour in (8, 9, 10):
        make_bundle(store.settings, DATABASE, hour_of(hour), now=at(12), seal=False)
    return store


def prune(store: Store, before: datetime | None = None) -> list[int]:
    """Prune what is older, and return the numbers of the segments that are left."""
    prune_raw(store.layout, DATABASE, bundled=hour_of(10), before=before or at(20))
    return left_in(store)


def left_in(store: Store) -> list[int]:
    return [file.segment.seg for file in scan_archive(store.wal) if file.kind is WalFileKind.SEGMENT]


def test_what_closed_bundles_hold_goes_and_what_they_do_not_hold_stays(store: Store) -> None:
    assert prune(store) == [5]
    assert prune(store) == [5]


def test_files_younger_than_the_limit_stay(store: Store) -> None:
    assert prune(store, before=at(9, 50)) == [3, 4, 5]


@pytest.mark.parametrize(
    ("keep_raw_hours", "left"), [(0, [4, 5]), (2, [3, 4, 5]), (3, [2, 3, 4, 5]), (4, [1, 2, 3, 4, 5])]
)
def test_bundling_removes_what_is_older_than_keep_raw_hours(
    tmp_path: Path, keep_raw_hours: int, left: list[int]
) -> None:
    store = Store(tmp_path)
    store.settings = make_settings(store.root, bundle={"workers": 1, "keep_raw_hours": keep_raw_hours})
    make_archive(store.wal, CLOSED_AT)
    for hour in (8, 9):
        make_bundle(store.settings, DATABASE, hour_of(hour), now=at(11, 40), seal=False)
    assert left_in(store) == left


def damage_bundle(store: Store) -> None:
    path = store.layout.bundle(DATABASE, hour_of(9))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut_bundle(store: Store) -> None:
    path = store.layout.bundle(DATABASE, hour_of(9))
    path.write_bytes(path.read_bytes()[:-1])


def remove_bundle(store: Store) -> None:
    store.layout.bundle(DATABASE, hour_of(9)).unlink()


def remove_record(store: Store) -> None:
    store.layout.bundle_record(DATABASE, hour_of(9)).unlink()


def open_bundle(store: Store) -> None:
    path = store.layout.bundle_record(DATABASE, hour_of(9))
    write_record(path, read_record(path, BundleRecord).model_copy(update={"state": BundleState.OPEN}))


def change_raw_files(store: Store) -> None:
    for number in (2, 3):
        name = segment(number)
        content = bytearray(store.wal.joinpath(str(name)).read_bytes())
        content[5000] ^= 1
        put_file(store.wal, str(name), bytes(content), CLOSED_AT[name])


def extend_raw_files(store: Store) -> None:
    for number in (2, 3):
        name = segment(number)
        content = store.wal.joinpath(str(name)).read_bytes()
        put_file(store.wal, str(name), content + b"x", CLOSED_AT[name])


@pytest.mark.parametrize(
    "spoil",
    [
        damage_bundle,
        cut_bundle,
        remove_bundle,
        remove_record,
        open_bundle,
        change_raw_files,
        extend_raw_files,
    ],
)
def test_nothing_goes_whose_bundle_is_not_closed_intact_and_the_same(
    store: Store, spoil: Callable[[Store], None]
) -> None:
    spoil(store)
    assert prune(store) == [2, 3, 5]


def test_history_files_stay(store: Store) -> None:
    path = put_file(store.wal, "00000002.history", b"1\t0/300000\tx\n", at(1))
    prune(store)
    assert path.exists()


def test_what_a_stepped_clock_put_into_a_distant_hour_goes_too(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.settings = make_settings(store.root, bundle={"workers": 1, "keep_raw_hours": 1000})
    make_archive(store.wal, {segment(1): at(15, 50), segment(2): at(9, 10), segment(3): at(17)})
    make_bundle(store.settings, DATABASE, hour_of(15), now=at(30), seal=False)
    store.wal.joinpath(str(segment(1))).unlink()
    prune_raw(store.layout, DATABASE, bundled=hour_of(15), before=at(30))
    assert left_in(store) == [3]


def test_work_does_not_grow_with_history(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A raw file that no bundle holds must not make every later pruning read all records."""
    put_segment(store.wal, segment(90), at(0) - timedelta(days=300))
    read: list[str] = []

    def counting(path: Path, model: type[BundleRecord]) -> BundleRecord:
        read.append(path.name)
        return read_record(path, model)

    monkeypatch.setattr("pitr_pipelines.wal.pruning.read_record", counting)
    prune(store, before=at(9))
    assert len(read) < 10
