"""Whatever is wrong with an artifact, verification names it, and goes on with the rest."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pitr_pipelines.catalog.manifest import refresh_manifest
from pitr_pipelines.catalog.verify import Verified, verify_database, verify_manifest
from pitr_pipelines.errors import BadRequest
from pitr_pipelines.wal.bundles import make_bundle
from pitr_pipelines_tests.wal_files import (
    DATABASE,
    Store,
    at,
    base_record,
    hour_of,
    make_archive,
    put_segment,
    segment,
    segment_bytes,
)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Three bundles whose raw files are gone, and two raw segments; no base."""
    store = Store(tmp_path)
    make_archive(store.wal, {segment(n): at(8, 20 * n) for n in range(1, 12)})
    for hour in (8, 9, 10):
        make_bundle(store.settings, DATABASE, hour_of(hour), now=at(20), seal=False)
    refresh_manifest(store.settings)
    return store


def problems(store: Store) -> list[Verified]:
    return [found for found in verify_database(store.settings, DATABASE) if found.problem]


def test_all_is_well(store: Store) -> None:
    found = list(verify_database(store.settings, DATABASE))
    assert [one.artifact for one in found] == [
        "bundle 2026-01-29-08",
        "bundle 2026-01-29-09",
        "bundle 2026-01-29-10",
        *[f"segment {segment(n)}" for n in (9, 10, 11)],
    ]
    assert all(one.problem is None for one in found)
    assert verify_manifest(store.settings).problem is None


def flip_a_byte(store: Store) -> str:
    path = store.layout.bundle(DATABASE, hour_of(9))
    content = bytearray(path.read_bytes())
    content[1000] ^= 1
    path.write_bytes(content)
    return path.name


def cut_a_bundle(store: Store) -> str:
    path = store.layout.bundle(DATABASE, hour_of(9))
    path.write_bytes(path.read_bytes()[:-1])
    return path.name


def lose_a_bundle(store: Store) -> str:
    path = store.layout.bundle(DATABASE, hour_of(9))
    path.unlink()
    return path.name


def lose_a_record(store: Store) -> str:
    store.layout.bundle_record(DATABASE, hour_of(9)).unlink()
    return "2026-01-29-09.tar.gz has no record"


def damage_a_record(store: Store) -> str:
    path = store.layout.bundle_record(DATABASE, hour_of(9))
    path.write_bytes(path.read_bytes()[:-5])
    return path.name


def put_a_directory_in_place_of_a_bundle(store: Store) -> str:
    path = store.layout.bundle(DATABASE, hour_of(9))
    path.unlink()
    path.mkdir()
    return path.name


def cut_a_raw_segment(store: Store) -> str:
    path = store.wal / str(segment(10))
    path.write_bytes(path.read_bytes()[:-1])
    return path.name


def misname_a_raw_segment(store: Store) -> str:
    path = store.wal / str(segment(10))
    path.write_bytes(segment_bytes(segment(5)))
    return path.name


def lose_a_base(store: Store) -> str:
    store.add_bases([base_record(1, 1, at(8, 20))])
    return "base.tar"


def lose_a_raw_segment(store: Store) -> str:
    store.add_bases([base_record(1, 1, at(8, 20))])
    (store.wal / str(segment(10))).unlink()
    return f"{segment(10)} of {DATABASE} is neither"


def take_another_clusters_segment(store: Store) -> str:
    store.add_bases([base_record(1, 1, at(8, 20))])
    put_segment(store.wal, segment(10), at(11, 20), system_identifier="42")
    return f"{segment(10)} is of another cluster"


@pytest.mark.parametrize(
    "spoil",
    [
        flip_a_byte,
        cut_a_bundle,
        lose_a_bundle,
        lose_a_record,
        damage_a_record,
        put_a_directory_in_place_of_a_bundle,
        cut_a_raw_segment,
        misname_a_raw_segment,
        lose_a_base,
        lose_a_raw_segment,
        take_another_clusters_segment,
    ],
)
def test_each_kind_of_damage_is_named_with_what_to_do(store: Store, spoil: Callable[[Store], str]) -> None:
    named = spoil(store)
    found = problems(store)
    assert any(named in str(one.problem) for one in found)
    assert all(one.remedy for one in found)


def test_one_finding_does_not_stop_the_rest(store: Store) -> None:
    named = [spoil(store) for spoil in (damage_a_record, cut_a_raw_segment, lose_a_base)]
    path = store.layout.bundle(DATABASE, hour_of(10))
    path.unlink()
    found = " ".join(str(one.problem) for one in problems(store))
    assert all(part in found for part in [*named, path.name])


def test_nothing_is_changed(store: Store) -> None:
    flip_a_byte(store)
    before = sorted((path, path.stat().st_mtime_ns, path.stat().st_size) for path in store.root.rglob("*"))
    problems(store)
    verify_manifest(store.settings)
    after = sorted((path, path.stat().st_mtime_ns, path.stat().st_size) for path in store.root.rglob("*"))
    assert after == before


def test_an_unknown_database_is_refused(store: Store) -> None:
    with pytest.raises(BadRequest):
        list(verify_database(store.settings, "nobody"))


def test_a_manifest_that_is_missing_damaged_or_behind_is_named(store: Store) -> None:
    make_archive(store.wal, {segment(12): at(12, 20)})
    store.add_bases([base_record(1, 1, at(8, 20))])
    behind = verify_manifest(store.settings)
    assert DATABASE in str(behind.problem)
    assert "manifest rebuild" in str(behind.remedy)
    store.layout.manifest.write_text("{")
    assert "restore-points.json" in str(verify_manifest(store.settings).problem)
    store.layout.manifest.unlink()
    assert "missing" in str(verify_manifest(store.settings).problem)
