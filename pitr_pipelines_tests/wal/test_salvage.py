"""A bundle without a record gives back what it holds, or says that it cannot."""

from __future__ import annotations

import gzip
import os
import tarfile
from pathlib import Path

import pytest

from pitr_pipelines.errors import ArtifactDamaged
from pitr_pipelines.wal.archive import scan_archive
from pitr_pipelines.wal.bundles import make_bundle
from pitr_pipelines.wal.salvage import return_to_archive
from pitr_pipelines_tests.wal_files import (
    DATABASE,
    Store,
    at,
    hour_of,
    make_archive,
    put_file,
    segment,
    segment_bytes,
)

GZIP = b"\x1f\x8b\x08"
"""How each member of a bundle begins."""
CLOSED_AT = {segment(n): at(9, n, 0.000001 * n + 0.9) for n in range(1, 5)}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Hour 9 is bundled, its raw files are gone, and so is its record."""
    store = Store(tmp_path)
    make_archive(store.wal, {**CLOSED_AT, segment(5): at(10, 5)})
    make_bundle(store.settings, DATABASE, hour_of(9), now=at(12), seal=False)
    assert len(scan_archive(store.wal)) == 1
    store.layout.bundle_record(DATABASE, hour_of(9)).unlink()
    return store


def give_back(store: Store) -> int:
    return return_to_archive(store.layout, DATABASE, hour_of(9))


def test_members_come_back_with_their_bytes_and_mtimes(store: Store) -> None:
    assert give_back(store) == 4
    files = {file.segment: file for file in scan_archive(store.wal)}
    for name, moment in CLOSED_AT.items():
        assert files[name].closed_at == moment
        assert files[name].path.read_bytes() == segment_bytes(name)
    assert give_back(store) == 0


def test_files_that_the_archive_has_are_left_alone(store: Store) -> None:
    mine = put_file(store.wal, str(segment(2)), b"mine", at(9))
    assert give_back(store) == 3
    assert mine.read_bytes() == b"mine"


def test_a_bundle_with_a_record_is_left_alone(store: Store) -> None:
    store.layout.bundle_record(DATABASE, hour_of(9)).write_text("whatever")
    assert give_back(store) == 0


@pytest.mark.parametrize("keep", [0, 10, -1, -30, "member"])
def test_a_file_that_was_cut_is_named_and_not_taken_for_all_there_was(store: Store, keep: int | str) -> None:
    bundle = store.layout.bundle(DATABASE, hour_of(9))
    content = bundle.read_bytes()
    if isinstance(keep, str):  # between two members, where nothing seems to be missing
        keep = content.rindex(GZIP, 0, content.rindex(GZIP))
    bundle.write_bytes(content[:keep])
    with pytest.raises(ArtifactDamaged, match=str(bundle)):
        give_back(store)


def test_a_damaged_file_is_named(store: Store) -> None:
    bundle = store.layout.bundle(DATABASE, hour_of(9))
    content = bytearray(bundle.read_bytes())
    content[len(content) // 2] ^= 0xFF
    bundle.write_bytes(content)
    with pytest.raises(ArtifactDamaged, match=str(bundle)):
        give_back(store)
    assert not list(store.wal.glob(".*"))


def test_a_disk_that_is_full_is_not_taken_for_a_damaged_bundle(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else we would tell people to remove the only copy."""

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pitr_pipelines.wal.salvage._put", full)
    with pytest.raises(OSError, match="No space left"):
        give_back(store)


def test_what_a_killed_process_left_does_not_stand_in_the_way(store: Store) -> None:
    leftovers = [store.wal / f".{segment(1)}.{pid}.tmp" for pid in (os.getpid(), 999999)]
    for leftover in leftovers:
        leftover.write_bytes(b"half")
    other = store.wal / ".wal-archive.000000010000000000000009.tmp"
    other.write_bytes(b"not ours")
    assert give_back(store) == 4
    assert not any(leftover.exists() for leftover in leftovers)
    assert other.exists()


def test_members_with_foreign_names_stay_where_they_are(store: Store, tmp_path: Path) -> None:
    bundle = store.layout.bundle(DATABASE, hour_of(9))
    content = bundle.read_bytes()
    end = content[content.rindex(GZIP) :]
    evil = tmp_path / "evil.tar.gz"
    with gzip.open(evil, "wb") as packed, tarfile.open(fileobj=packed, mode="w|") as tar:
        for name in ("../outside", "/tmp/absolute", ".hidden", "notes.txt"):
            tar.addfile(tarfile.TarInfo(name))
        link = tarfile.TarInfo(str(segment(7)))
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    bundle.write_bytes(evil.read_bytes() + end)
    before = {path.name for path in store.wal.iterdir()}
    assert give_back(store) == 0
    assert {path.name for path in store.wal.iterdir()} == before
    assert not (store.wal.parent / "outside").exists()
