"""Status says from the storage alone what can be restored, how fresh it is, and what is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pitr_pipelines.catalog.records import BundleState
from pitr_pipelines.catalog.status import read_status, status_json
from pitr_pipelines.errors import BadRequest
from pitr_pipelines_tests.wal_files import (
    DATABASE,
    SEGMENT_SIZE,
    Store,
    at,
    base_record,
    bundle_record,
    hour_of,
    make_settings,
    put_segment,
    segment,
)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path)
    store.add_bases([base_record(1, 1, at(3))])
    store.add_bundles(
        [
            bundle_record(3, {segment(n): at(3, 10 * n) for n in (1, 2, 3)}),
            bundle_record(4, {segment(4): at(4, 10)}, state=BundleState.OPEN),
        ]
    )
    put_segment(store.wal, segment(5), at(4, 40))
    return store


def test_it_says_what_can_be_restored_and_how_fresh_it_is(store: Store) -> None:
    (status,) = read_status(store.settings, [DATABASE], now=at(5))
    assert [(window.start, window.end) for window in status.windows] == [(at(3), at(4, 39, 59))]
    assert status.gaps == ()
    assert (status.last_base, status.last_base_ended_at) == (at(3).date(), at(3))
    assert (status.last_bundle, status.last_bundle_state) == (hour_of(4), BundleState.OPEN)
    archive = status.archive
    assert (archive.last_segment, archive.closed_at, archive.lag_s) == (segment(5), at(4, 40), 1200.0)
    assert (archive.files, archive.size_bytes) == (1, SEGMENT_SIZE)
    assert status.problems == ()


def test_the_lag_counts_from_the_last_bundle_when_no_raw_file_is_left(store: Store) -> None:
    store.wal.joinpath(str(segment(5))).unlink()
    (status,) = read_status(store.settings, [DATABASE], now=at(5))
    assert (status.archive.last_segment, status.archive.lag_s) == (segment(4), 3000.0)
    assert status.archive.files == 0


def test_a_database_of_which_nothing_exists_has_a_status_too(tmp_path: Path) -> None:
    (status,) = read_status(make_settings(tmp_path), [DATABASE], now=at(5))
    assert status.windows == ()
    assert status.last_base is None
    assert status.last_bundle is None
    assert status.archive.lag_s is None


def test_gaps_and_problems_are_shown(store: Store) -> None:
    put_segment(store.wal, segment(8), at(4, 50))
    store.layout.bundle_record(DATABASE, hour_of(5)).write_text("{")
    (status,) = read_status(store.settings, [DATABASE], now=at(5))
    assert [(gap.first, gap.last) for gap in status.gaps] == [(segment(6), segment(7))]
    assert "2026-01-29-05.json" in status.problems[0]


def test_an_unknown_database_is_refused(store: Store) -> None:
    with pytest.raises(BadRequest, match="no database 'nobody'"):
        read_status(store.settings, [DATABASE, "nobody"], now=at(5))


def test_as_json_it_holds_the_same(store: Store) -> None:
    shown = json.loads(json.dumps(status_json(read_status(store.settings, [DATABASE], now=at(5)))))
    assert shown[DATABASE]["windows"] == [{"start": "2026-01-29T03:00:00Z", "end": "2026-01-29T04:39:59Z"}]
    assert shown[DATABASE]["archive"]["last_segment"] == str(segment(5))


def test_nothing_is_written(store: Store) -> None:
    before = sorted(store.root.rglob("*"))
    read_status(store.settings, [DATABASE], now=at(5))
    assert sorted(store.root.rglob("*")) == before
