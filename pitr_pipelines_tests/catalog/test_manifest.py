"""The manifest is a pure function of the records, and writers do not lose each other's entries."""

from __future__ import annotations

import json
import multiprocessing
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pitr_pipelines.catalog.layout import Layout
from pitr_pipelines.catalog.manifest import read_manifest, rebuild_manifest, refresh_manifest
from pitr_pipelines.catalog.records import BundleState
from pitr_pipelines.errors import ArtifactDamaged
from pitr_pipelines_tests.wal_files import (
    DATABASE,
    Store,
    at,
    base_record,
    bundle_record,
    hour_of,
    make_settings,
    put_segment,
    seal_record,
    segment,
)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A base at 9:10, and bundles of 9 to 11, of which the first two are sealed."""
    store = Store(tmp_path)
    store.add_bases([base_record(1, 2, at(9, 10))])
    nine = {segment(n): at(9, 10 * n) for n in range(1, 6)} | {segment(6): at(10, 0, 1)}
    ten = {segment(7): at(10, 30), segment(8): at(11, 1)}
    store.add_bundles(
        [
            bundle_record(9, nine, seal=seal_record(9, 6, at(10))),
            bundle_record(10, ten, seal=seal_record(10, 8, at(11))),
            bundle_record(11, {segment(9): at(11, 40)}),
        ]
    )
    return store


def text(store: Store) -> bytes:
    return store.layout.manifest.read_bytes()


def test_it_offers_the_end_of_each_hour_that_can_be_reached(store: Store) -> None:
    manifest = refresh_manifest(store.settings)
    assert read_manifest(store.layout) == manifest
    found = manifest.databases[DATABASE]
    assert [(point.at, point.kind, point.name) for point in found.restore_points] == [
        (at(10), "hour", f"pitr-{DATABASE}-2026-01-29-09"),
        (at(11), "hour", f"pitr-{DATABASE}-2026-01-29-10"),
    ]
    assert [(window.start, window.end) for window in found.windows] == [(at(9, 10), at(11, 39, 59))]
    assert [base.day for base in found.bases] == [at(9).date()]
    assert found.problems == ()


def test_an_early_point_is_offered_as_such(store: Store) -> None:
    early = seal_record(11, 10, at(11, 50)).model_copy(update={"restore_point": "pitr-early"})
    closed_at = {segment(9): at(11, 40), segment(10): at(11, 50)}
    store.add_bundles([bundle_record(11, closed_at, state=BundleState.OPEN, seal=early)])
    points = refresh_manifest(store.settings).databases[DATABASE].restore_points
    assert (points[2].at, points[2].kind, points[2].name) == (at(11, 50), "early", "pitr-early")


def test_the_same_records_give_the_same_bytes_from_scratch_or_not(store: Store) -> None:
    refresh_manifest(store.settings)
    first = text(store)
    mtime = store.layout.manifest.stat().st_mtime_ns
    refresh_manifest(store.settings)
    assert (text(store), store.layout.manifest.stat().st_mtime_ns) == (first, mtime)
    rebuild_manifest(store.settings)
    assert text(store) == first
    store.layout.manifest.unlink()
    for cache in store.layout.manifest.parent.glob(".*.json"):
        cache.unlink()
    refresh_manifest(store.settings)
    assert text(store) == first
    store.layout.manifest.write_text("something else")
    refresh_manifest(store.settings)
    assert text(store) == first


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(order=st.permutations(range(9, 14)))
def test_the_order_in_which_records_appear_does_not_matter(
    tmp_path_factory: pytest.TempPathFactory, order: list[int]
) -> None:
    store = Store(tmp_path_factory.mktemp("store"))
    store.add_bases([base_record(9, 9, at(9, 5))])
    for hour in order:
        store.add_bundles([bundle_record(hour, {segment(hour): at(hour, 30)})])
        manifest = refresh_manifest(store.settings)
    assert rebuild_manifest(store.settings) == manifest
    assert len(manifest.databases[DATABASE].restore_points) == 4


def test_raw_wal_does_not_count_because_it_has_no_record(store: Store) -> None:
    refresh_manifest(store.settings)
    before = text(store)
    for number, timeline in ((10, 1), (10, 2), (40, 3)):
        put_segment(store.wal, segment(number, timeline), at(11, 55))
    refresh_manifest(store.settings)
    assert text(store) == before


def test_gaps_are_listed_and_what_lies_behind_them_is_not_offered(store: Store) -> None:
    later = [bundle_record(12, {segment(12): at(12, 30)}), bundle_record(13, {segment(13): at(13, 1)})]
    store.add_bundles(later)
    found = refresh_manifest(store.settings).databases[DATABASE]
    assert [(gap.first, gap.last) for gap in found.gaps] == [(segment(10), segment(11))]
    assert max(point.at for point in found.restore_points) == at(11)


def test_wal_that_is_not_bundled_yet_is_no_gap_before_todays_base(store: Store) -> None:
    for number in (10, 11, 12):
        put_segment(store.wal, segment(number), at(12, number))
    todays = base_record(13, 13, at(12, 20) + timedelta(days=1))
    store.add_bases([todays])
    found = refresh_manifest(store.settings).databases[DATABASE]
    assert found.gaps == ()
    assert [window.start for window in found.windows] == [at(9, 10), todays.ended_at]
    (store.wal / str(segment(11))).unlink()
    found = refresh_manifest(store.settings).databases[DATABASE]
    assert [(gap.first, gap.last) for gap in found.gaps] == [(segment(11), segment(11))]


def test_a_damaged_record_is_a_problem_of_its_database_and_of_no_other(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.settings = make_settings(tmp_path, ("order-db", "other-db", "third-db"))
    for name in ("order-db", "other-db"):
        store.add_bases([base_record(9, 9, at(9, 5), database=name)])
        store.add_bundles(
            [bundle_record(hour, {segment(hour): at(hour, 30)}, database=name) for hour in (9, 10, 11)]
        )
    good = refresh_manifest(store.settings).databases
    store.layout.bundle_record("order-db", hour_of(11)).write_text("{}")
    found = refresh_manifest(store.settings).databases
    assert found["other-db"] == good["other-db"]
    assert found["third-db"] == good["third-db"]
    assert "2026-01-29-11.json" in found["order-db"].problems[0]
    assert found["order-db"].bases == good["order-db"].bases
    assert found["order-db"].restore_points == good["order-db"].restore_points[:1]


def test_databases_stand_in_the_order_of_the_settings(tmp_path: Path) -> None:
    settings = make_settings(tmp_path, ("zeta", "alpha"))
    refresh_manifest(settings)
    held = json.loads(Layout(settings.backup_root).manifest.read_text())
    assert list(held["databases"]) == ["zeta", "alpha"]


@pytest.mark.parametrize("content", ["", "{}", '{"format": 2, "databases": {}}', '{"databases": 1}'])
def test_what_is_no_manifest_is_named(store: Store, content: str) -> None:
    store.layout.manifest.parent.mkdir(parents=True)
    store.layout.manifest.write_text(content)
    with pytest.raises(ArtifactDamaged, match=r"restore-points\.json"):
        read_manifest(store.layout)


def test_a_missing_manifest_is_no_damage(store: Store) -> None:
    with pytest.raises(FileNotFoundError):
        read_manifest(store.layout)


def add_bundles_one_by_one(root: Path, database: str, hours: list[int]) -> None:
    """One writer of several: each adds records of its own and refreshes the manifest each time."""
    store = Store(root)
    store.settings = make_settings(root, ("order-db", "other-db"))
    for hour in hours:
        store.add_bundles([bundle_record(hour, {segment(hour): at(hour, 30)}, database=database)])
        refresh_manifest(store.settings)


def test_writers_at_the_same_time_do_not_lose_each_others_entries(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for name in ("order-db", "other-db"):
        store.add_bases([base_record(9, 9, at(9, 5), database=name)])
    context = multiprocessing.get_context("spawn")
    shares = [("order-db", [9, 11, 13]), ("order-db", [10, 12, 14]), ("other-db", [9, 10, 11])]
    writers = [context.Process(target=add_bundles_one_by_one, args=(tmp_path, *share)) for share in shares]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
        assert writer.exitcode == 0
    held = read_manifest(store.layout)
    points = {name: [point.hour for point in found.restore_points] for name, found in held.databases.items()}
    assert points == {
        "order-db": [hour_of(hour) for hour in range(9, 14)],
        "other-db": [hour_of(hour) for hour in range(9, 11)],
    }
    store.settings = make_settings(tmp_path, ("order-db", "other-db"))
    assert rebuild_manifest(store.settings) == held


def test_a_point_whose_hour_ends_where_the_window_does_is_offered(store: Store) -> None:
    """The seal's segment is closed within milliseconds of the hour's end: the margin must not hide it."""
    store.add_bundles(
        [
            bundle_record(
                11, {segment(9): at(12) + timedelta(milliseconds=30)}, seal=seal_record(11, 9, at(12))
            )
        ]
    )
    points = refresh_manifest(store.settings).databases[DATABASE].restore_points
    assert at(12) in [point.at for point in points]
