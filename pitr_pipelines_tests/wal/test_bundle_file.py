"""A bundle is a plain .tar.gz of which each member can also be read alone, and checked."""

from __future__ import annotations

import gzip
import hashlib
import os
import random
import subprocess
import tarfile
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from isal import igzip_lib

from pitr_pipelines.catalog.records import BundleMember, BundleRecord, BundleState, FileDigest
from pitr_pipelines.errors import ArtifactDamaged
from pitr_pipelines.wal import bundle_file
from pitr_pipelines.wal.archive import scan_archive
from pitr_pipelines.wal.bundle_file import MemberOf, PackedMember
from pitr_pipelines.wal.lsn import WalFileKind
from pitr_pipelines_tests.wal_files import DATABASE, at, hour_of, put_file, put_segment, segment


@dataclass(frozen=True)
class FileSource:
    """Any file as a bundle's source."""

    path: Path
    kind: WalFileKind
    closed_at: datetime

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def size_bytes(self) -> int:
        return self.path.stat().st_size

    def pack(self) -> PackedMember:
        with self.path.open("rb") as content:
            return bundle_file.pack_member(self.name, self.kind, self.closed_at, self.size_bytes, content)


@dataclass(frozen=True)
class Made:
    path: Path
    file: FileDigest
    members: tuple[BundleMember, ...]

    @property
    def record(self) -> BundleRecord:
        return BundleRecord(
            database=DATABASE,
            hour=hour_of(14),
            state=BundleState.CLOSED,
            system_identifier=None,
            wal_segment_size=None,
            seal=None,
            runs=(),
            file=self.file,
            members=self.members,
        )


def make(directory: Path, sources: list[FileSource], *, workers: int = 2, name: str = "b.tar.gz") -> Made:
    path = directory / name
    return Made(path, *bundle_file.write_bundle(path, sources, name=name, workers=workers))


@pytest.fixture
def sources(tmp_path: Path) -> list[FileSource]:
    """Four segments, a short history file, and an empty file."""
    raw = tmp_path / "raw"
    for number in range(1, 5):
        put_segment(raw, segment(number), at(14, number, number * 0.123457))
    put_file(raw, "00000002.history", b"1\t0/300000\tno recovery target specified\n", at(14, 9, 0.000001))
    put_file(raw, f"{segment(2)}.00000028.backup", b"", at(14, 9))
    return [FileSource(file.path, file.kind, file.closed_at) for file in scan_archive(raw)]


@pytest.fixture
def made(tmp_path: Path, sources: list[FileSource]) -> Made:
    return make(tmp_path, sources)


def test_tar_unpacks_it_to_the_same_files_with_their_mtimes(
    tmp_path: Path, made: Made, sources: list[FileSource]
) -> None:
    unpacked = tmp_path / "unpacked"
    unpacked.mkdir()
    subprocess.run(["tar", "xzf", str(made.path), "-C", str(unpacked)], check=True)
    assert sorted(path.name for path in unpacked.iterdir()) == [source.name for source in sources]
    for source in sources:
        copy = unpacked / source.name
        assert copy.read_bytes() == source.path.read_bytes()
        assert copy.stat().st_mtime_ns == source.path.stat().st_mtime_ns
        assert copy.stat().st_mode & 0o777 == 0o600


def test_pythons_gzip_and_tarfile_read_it(made: Made, sources: list[FileSource]) -> None:
    with gzip.open(made.path, "rb") as unpacked, tarfile.open(fileobj=unpacked) as tar:
        for entry, source in zip(tar, sources, strict=True):
            content = tar.extractfile(entry)
            assert content is not None
            assert (entry.name, content.read()) == (source.name, source.path.read_bytes())


def test_each_member_can_be_read_alone_by_its_place(made: Made, sources: list[FileSource]) -> None:
    for member, source in zip(made.members, sources, strict=True):
        assert bundle_file.read_member(made.path, member) == source.path.read_bytes()
        with made.path.open("rb") as file:
            file.seek(member.offset)
            entry = gzip.decompress(file.read(member.length))
        assert source.path.read_bytes() in entry
        assert (member.name, member.kind, member.closed_at) == (source.name, source.kind, source.closed_at)
        assert member.sha256 == hashlib.sha256(source.path.read_bytes()).hexdigest()


def test_the_digest_is_of_the_file_on_disk(made: Made) -> None:
    content = made.path.read_bytes()
    assert made.file.size_bytes == len(content)
    assert made.file.sha256 == hashlib.sha256(content).hexdigest()
    bundle_file.verify_file(made.path, made.file)
    bundle_file.verify_members(made.path, made.record)
    assert bundle_file.is_whole(made.path)


def test_the_same_content_gives_the_same_bytes_with_any_number_of_threads(
    tmp_path: Path, sources: list[FileSource]
) -> None:
    contents = {
        make(tmp_path, sources, workers=n, name=f"{n}.tar.gz").path.read_bytes() for n in (1, 2, 3, 8)
    }
    assert len(contents) == 1


def test_members_of_another_bundle_are_taken_over_byte_for_byte(tmp_path: Path, made: Made) -> None:
    over = [MemberOf(made.path, member) for member in made.members]
    path = tmp_path / "over.tar.gz"
    file, members = bundle_file.write_bundle(path, over, name=made.path.name)
    assert path.read_bytes() == made.path.read_bytes()
    assert (file, members) == (made.file, made.members)


def flip(path: Path, position: int) -> None:
    with path.open("r+b") as file:
        file.seek(position)
        byte = file.read(1)[0]
        file.seek(position)
        file.write(bytes([byte ^ 0x10]))


def test_every_flipped_byte_is_found_and_named(made: Made) -> None:
    size = made.file.size_bytes
    edges = [edge for member in made.members for edge in (member.offset, member.offset + member.length - 1)]
    positions = {*random.Random(5).sample(range(size), 60), *edges, *range(12), *range(size - 12, size)}
    for position in sorted(positions):
        flip(made.path, position)
        with pytest.raises(ArtifactDamaged, match=r"b\.tar\.gz"):
            bundle_file.verify_members(made.path, made.record)
        flip(made.path, position)
    bundle_file.verify_members(made.path, made.record)


def test_a_member_that_differs_from_the_record_is_found_without_the_files_own_digest(made: Made) -> None:
    """A restore reads single members: what the file as a whole should be does not help it."""
    for member in made.members:
        step = max(1, member.length // 25)
        for position in range(member.offset, member.offset + member.length, step):
            flip(made.path, position)
            # Some bits of a gzip file say nothing about the content; whatever is read is right.
            with suppress(ArtifactDamaged):
                content = bundle_file.read_member(made.path, member)
                assert hashlib.sha256(content).hexdigest() == member.sha256
            flip(made.path, position)


@pytest.mark.parametrize("keep", [0, 1, 100, -1, -20])
def test_a_file_that_was_cut_is_named(made: Made, keep: int) -> None:
    content = made.path.read_bytes()
    made.path.write_bytes(content[:keep])
    with pytest.raises(ArtifactDamaged, match=r"b\.tar\.gz has \d+ bytes"):
        bundle_file.verify_file(made.path, made.file)
    assert not bundle_file.is_whole(made.path)
    cut_members = [m for m in made.members if m.offset + m.length > len(content[:keep])]
    for member in cut_members:
        with pytest.raises(ArtifactDamaged, match=member.name):
            bundle_file.read_member(made.path, member)


def test_a_cut_between_two_members_is_seen(made: Made) -> None:
    made.path.write_bytes(made.path.read_bytes()[: made.members[2].offset])
    assert not bundle_file.is_whole(made.path)


def test_a_missing_file_is_named(made: Made) -> None:
    made.path.unlink()
    for check in (
        lambda: bundle_file.verify_file(made.path, made.file),
        lambda: bundle_file.verify_members(made.path, made.record),
        lambda: bundle_file.read_member(made.path, made.members[0]),
    ):
        with pytest.raises(ArtifactDamaged, match=r"b\.tar\.gz is missing"):
            check()


def test_members_that_the_record_swaps_are_found(made: Made) -> None:
    first, second, *_ = made.members
    swapped = first.model_copy(update={"offset": second.offset, "length": second.length})
    with pytest.raises(ArtifactDamaged, match=first.name):
        bundle_file.read_member(made.path, swapped)


def test_a_damaged_member_is_not_carried_on(tmp_path: Path, made: Made) -> None:
    flip(made.path, made.members[1].offset + made.members[1].length - 6)  # in its checksum
    over = [MemberOf(made.path, member) for member in made.members]
    with pytest.raises(ArtifactDamaged, match=made.members[1].name):
        bundle_file.write_bundle(tmp_path / "over.tar.gz", over, name="over.tar.gz")


def test_a_file_that_shrinks_while_it_is_read_is_an_error(tmp_path: Path) -> None:
    path = put_segment(tmp_path, segment(1), at(14))
    with path.open("rb") as content, pytest.raises(EOFError, match=r"ended 1 bytes early"):
        bundle_file.pack_member(path.name, WalFileKind.SEGMENT, at(14), path.stat().st_size + 1, content)


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        (b"000000010", b"000000020", "tar header is another"),
        (bytes(1024), bytes(1536), "not as long as its tar header says"),
        (b"a row of ", b"", "not as long as its tar header says"),
    ],
)
def test_what_the_packer_got_wrong_is_not_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: bytes, new: bytes, problem: str
) -> None:
    """Packing proves itself: here what comes out differs though gzip's own checksum is right."""
    path = put_segment(tmp_path, segment(1), at(14))
    honest = igzip_lib.IgzipDecompressor

    class Lying:
        def __init__(self, flag: int) -> None:
            self._unpacker = honest(flag)

        def __getattr__(self, name: str) -> object:
            return getattr(self._unpacker, name)

        def decompress(self, data: bytes, max_length: int) -> bytes:
            return bytes(self._unpacker.decompress(data, max_length)).replace(old, new, 1)

    monkeypatch.setattr(igzip_lib, "IgzipDecompressor", Lying)
    with path.open("rb") as content, pytest.raises(ValueError, match=problem):
        bundle_file.pack_member(path.name, WalFileKind.SEGMENT, at(14), path.stat().st_size, content)


def test_a_member_that_does_not_end_where_the_record_says_is_named(made: Made) -> None:
    first = made.members[0]
    longer = first.model_copy(update={"length": first.length + 20})
    record = made.record.model_copy(update={"members": (longer, *made.members[1:])})
    with pytest.raises(ArtifactDamaged, match=first.name):
        bundle_file.verify_members(made.path, record)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=3000), repeat=st.integers(0, 400), micros=st.integers(0, 2**51))
def test_any_content_and_mtime_comes_back(tmp_path: Path, content: bytes, repeat: int, micros: int) -> None:
    closed_at = datetime.fromisoformat("1970-01-01T00:00:00+00:00") + timedelta(microseconds=micros)
    path = tmp_path / "00000002.history"
    path.write_bytes(content * repeat)
    made = make(tmp_path, [FileSource(path, WalFileKind.HISTORY, closed_at)])
    assert bundle_file.read_member(made.path, made.members[0]) == content * repeat
    bundle_file.verify_members(made.path, made.record)
    with tarfile.open(made.path) as tar:
        (entry,) = tar.getmembers()
    seconds, _, fraction = entry.pax_headers["mtime"].partition(".")
    assert int(seconds) * 1_000_000 + int(fraction) == micros


def test_segments_larger_than_memory_allows_at_once_are_packed_one_by_one(
    tmp_path: Path, sources: list[FileSource], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = make(tmp_path, sources, name="whole.tar.gz").path.read_bytes()
    monkeypatch.setattr(bundle_file, "_WINDOW_BYTES", 1)
    assert make(tmp_path, sources, name="little.tar.gz").path.read_bytes() == whole


def test_the_file_is_not_for_everybody(made: Made) -> None:
    assert made.path.stat().st_mode & 0o777 & ~0o640 == 0
    assert os.access(made.path, os.R_OK)
