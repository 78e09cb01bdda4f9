"""An inventory shows all there is; what cannot be read is named and hides nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydantic import BaseModel

from pitr_pipelines.catalog import inventory
from pitr_pipelines.catalog.inventory import (
    BundleEntry,
    Inventory,
    RecordCache,
    read_cache,
    read_inventory,
    take_inventory,
    write_cache,
)
from pitr_pipelines.catalog.records import read_record
from pitr_pipelines_tests.wal_files import (
    DATABASE,
    SEGMENT_SIZE,
    Store,
    at,
    base_record,
    bundle_record,
    hour_of,
    put_file,
    put_segment,
    segment,
)

BASES = [base_record(1, 1, at(3)), base_record(4, 4, at(27))]
BUNDLES = [bundle_record(hour, {segment(hour): at(hour, 30)}) for hour in (9, 10, 11)]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path)
    store.add_bases(BASES)
    store.add_bundles(BUNDLES)
    put_segment(store.wal, segment(12), at(12, 1))
    put_file(store.wal, "00000002.history", f"1\t{segment(13).start(SEGMENT_SIZE)}\tx\n".encode(), at(12))
    return store


def test_everything_is_listed_oldest_first(store: Store) -> None:
    found = read_inventory(store.layout, DATABASE)
    assert found.bases == tuple(BASES)
    assert found.bundles == tuple(BundleEntry.of(record) for record in BUNDLES)
    assert [file.name for file in found.raw] == [str(segment(12)), "00000002.history"]
    assert list(found.histories) == [2]
    assert found.problems == ()
    assert found.segment_size == SEGMENT_SIZE
    assert found.bundles[0].closed_at == at(9, 30)


def test_nothing_at_all_is_an_empty_inventory(tmp_path: Path) -> None:
    found = read_inventory(Store(tmp_path).layout, DATABASE)
    assert found == Inventory(DATABASE, (), (), (), {}, ())
    assert found.segment_size is None
    assert found.branch() is None
    assert found.windows() == ([], [])


def damage_base(store: Store) -> Path:
    path = store.layout.base_record(DATABASE, BASES[0].day)
    path.write_text("{")
    return path


def damage_bundle(store: Store) -> Path:
    path = store.layout.bundle_record(DATABASE, hour_of(10))
    path.write_bytes(path.read_bytes()[:-10])
    return path


def empty_bundle(store: Store) -> Path:
    path = store.layout.bundle_record(DATABASE, hour_of(10))
    path.write_bytes(b"")
    return path


def damage_history(store: Store) -> Path:
    return put_file(store.wal, "00000002.history", b"\0", at(12))


def directory_in_its_place(store: Store) -> Path:
    path = store.layout.bundle_record(DATABASE, hour_of(12))
    path.mkdir()
    return path


def link_to_nowhere_but_itself(store: Store) -> Path:
    path = store.layout.bundle_record(DATABASE, hour_of(12))
    path.symlink_to(path)
    return path


def copy_of_a_bundles_record(store: Store) -> Path:
    path = store.layout.bundle_record(DATABASE, hour_of(12))
    path.write_bytes(store.layout.bundle_record(DATABASE, hour_of(9)).read_bytes())
    return path


def copy_of_a_base(store: Store) -> Path:
    path = store.layout.bases(DATABASE) / "2026-01-29.old" / "backup.json"
    path.parent.mkdir()
    path.write_bytes(store.layout.base_record(DATABASE, BASES[0].day).read_bytes())
    return path


def record_of_another_database(store: Store) -> Path:
    store.add_bundles([bundle_record(12, {segment(7): at(12, 1)}, database="other-db")])
    path = store.layout.bundle_record(DATABASE, hour_of(12))
    path.write_bytes(store.layout.bundle_record("other-db", hour_of(12)).read_bytes())
    return path


@pytest.mark.parametrize(
    "spoil",
    [
        damage_base,
        damage_bundle,
        empty_bundle,
        damage_history,
        directory_in_its_place,
        link_to_nowhere_but_itself,
        copy_of_a_bundles_record,
        copy_of_a_base,
        record_of_another_database,
    ],
)
def test_a_record_that_cannot_be_used_is_named_and_hides_nothing_else(store: Store, spoil: object) -> None:
    assert callable(spoil)
    path = spoil(store)
    found = read_inventory(store.layout, DATABASE)
    (problem,) = found.problems
    assert str(path) in problem
    gone = {damage_base: 1, damage_bundle: 1, empty_bundle: 1}.get(spoil, 0)
    assert len(found.bases) + len(found.bundles) == len(BASES) + len(BUNDLES) - gone


def test_notes_and_seals_and_files_being_written_are_no_records(store: Store) -> None:
    (store.layout.bases(DATABASE) / "README").write_text("a note")
    (store.layout.bases(DATABASE) / "2026-02-01").mkdir()
    (store.layout.bases(DATABASE) / ".2026-02-01.tmp").mkdir()
    (store.layout.bundles(DATABASE) / ".2026-01-29-12.json.1.tmp").write_text("{")
    (store.layout.bundles(DATABASE) / "2026-01-29-12.seal.json").write_text("{")
    (store.layout.bundles(DATABASE) / "2026-01-29-12.tar.gz").write_text("a bundle without its record")
    found = read_inventory(store.layout, DATABASE)
    assert found.problems == ()
    assert len(found.bases) + len(found.bundles) == len(BASES) + len(BUNDLES)


def test_records_that_were_read_before_are_not_read_again(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, cache = take_inventory(store.layout, DATABASE, RecordCache())
    store.layout.manifest.parent.mkdir(parents=True)
    write_cache(store.layout, DATABASE, cache)
    store.add_bundles([bundle_record(13, {segment(13): at(13, 30)})])
    read: list[str] = []

    def counting(path: Path, model: type[BaseModel]) -> BaseModel:
        read.append(path.name)
        return read_record(path, model)

    monkeypatch.setattr(inventory, "read_record", counting)
    second = read_inventory(store.layout, DATABASE)
    assert read == ["2026-01-29-13.json"]
    assert second.bundles[:-1] == first.bundles
    assert second.bases == first.bases


def test_a_record_that_was_replaced_is_read_again(store: Store) -> None:
    _, cache = take_inventory(store.layout, DATABASE, RecordCache())
    store.add_bundles([bundle_record(10, {segment(10): at(10, 30), segment(20): at(10, 40)})])
    found, again = take_inventory(store.layout, DATABASE, cache)
    assert len(found.bundles[1].runs) == 2
    assert again != cache
    store.layout.bundle_record(DATABASE, hour_of(10)).unlink()
    assert len(take_inventory(store.layout, DATABASE, again)[0].bundles) == 2


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"bases": {"x": 1}}', b"\xff"])
def test_a_cache_that_cannot_be_used_is_as_if_there_were_none(store: Store, content: bytes) -> None:
    path = put_file(store.layout.manifest.parent, f".{DATABASE}.records.json", content, at(9))
    assert read_cache(store.layout, DATABASE) == RecordCache()
    assert len(read_inventory(store.layout, DATABASE).bundles) == 3
    assert path.read_bytes() == content


def test_what_is_remembered_is_what_was_read(store: Store) -> None:
    found, cache = take_inventory(store.layout, DATABASE, RecordCache())
    store.layout.manifest.parent.mkdir(parents=True)
    write_cache(store.layout, DATABASE, cache)
    assert read_cache(store.layout, DATABASE) == cache
    assert read_inventory(store.layout, DATABASE) == found
    json.loads(next(store.layout.manifest.parent.iterdir()).read_text())


def test_reading_writes_nothing(store: Store) -> None:
    before = sorted((path, path.stat().st_mtime_ns) for path in store.root.rglob("*"))
    read_inventory(store.layout, DATABASE)
    assert sorted((path, path.stat().st_mtime_ns) for path in store.root.rglob("*")) == before


def test_without_leaves_out_bases_bundles_and_raw_files_by_their_keys(store: Store) -> None:
    found = read_inventory(store.layout, DATABASE).without({BASES[0].day, hour_of(10), str(segment(12))})
    assert found.bases == (BASES[1],)
    assert [entry.hour for entry in found.bundles] == [hour_of(9), hour_of(11)]
    assert [file.name for file in found.raw] == ["00000002.history"]


def test_a_stray_timeline_that_wrote_before_the_server_did_is_ignored(store: Store) -> None:
    put_segment(store.wal, segment(11, 2), at(11, 30))
    found = read_inventory(store.layout, DATABASE)
    branch = found.branch()
    assert branch is not None
    assert branch.timeline == 1
    other = found.branch(2)
    assert other is not None
    assert [ancestor.timeline for ancestor in other.ancestors] == [1]
