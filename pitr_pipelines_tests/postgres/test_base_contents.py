"""One flipped, lost or added byte in a base backup is found and named, by every way of reading it.

The base backups are real ones, one of each compression, of the newest server this machine has.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from pitr_pipelines.catalog.layout import Layout
from pitr_pipelines.catalog.records import BaseRecord, FileDigest
from pitr_pipelines.errors import ArtifactDamaged, BadRequest, DestinationInUse, PitrError
from pitr_pipelines.postgres.account import Account, make_owned_directory
from pitr_pipelines.postgres.backup_manifest import WalRange
from pitr_pipelines.postgres.base_backup import take_base_backup
from pitr_pipelines.postgres.base_contents import extract_base, verify_base
from pitr_pipelines.postgres.base_wal import check_wal, verify_base_contents
from pitr_pipelines.postgres.binaries import Binaries
from pitr_pipelines.progress import Progress
from pitr_pipelines_tests.servers import (
    ServerFactory,
    SettingsMaker,
    Templates,
    binaries_of,
    make_reachable_directory,
    remove_directory,
)

COMPRESSIONS = ("zstd", "gzip", "none")


@dataclass(frozen=True)
class Base:
    """A copy of a base backup that a test may damage."""

    directory: Path
    record: BaseRecord
    binaries: Binaries
    account: Account
    room: Path

    def verify(self) -> None:
        verify_base(self.directory, self.record)

    def verify_contents(self) -> None:
        verify_base_contents(self.directory, self.record, self.binaries)

    def extract(self) -> Path:
        data_directory = make_owned_directory(
            self.room / f"data-{len(list(self.room.iterdir()))}", self.account
        )
        extract_base(
            self.directory, self.record, data_directory, self.tablespaces(data_directory), self.account
        )
        return data_directory

    def tablespaces(self, data_directory: Path) -> dict[int, Path]:
        return {
            tablespace.oid: data_directory.with_name(f"{data_directory.name}-{tablespace.oid}")
            for tablespace in self.record.tablespaces
        }

    @property
    def readers(self) -> tuple[Callable[[], object], ...]:
        return (self.verify, self.verify_contents, self.extract)

    def path(self, kind: str) -> Path:
        return next(path for path in self.directory.iterdir() if path.name.startswith(kind))

    def recorded_as_it_is(self) -> Base:
        """The same base with a record that agrees with the files as they are now."""
        files = tuple(
            FileDigest(
                name=file.name,
                size_bytes=(self.directory / file.name).stat().st_size,
                sha256=hashlib.sha256((self.directory / file.name).read_bytes()).hexdigest(),
            )
            for file in self.record.files
        )
        record = self.record.model_copy(update={"files": files})
        return Base(self.directory, record, self.binaries, self.account, self.room)


@pytest.fixture(scope="module")
def originals(templates: Templates, account: Account) -> Iterator[dict[str, tuple[Path, BaseRecord]]]:
    """One base backup for each compression, of the same server with a tablespace."""
    directory = make_reachable_directory()
    factory = ServerFactory(directory, templates)
    try:
        server = factory(archiving=False)
        place = make_owned_directory(directory / "a place", account)
        server.execute(f"CREATE TABLESPACE elsewhere LOCATION '{place}'")
        server.execute("CREATE TABLE there TABLESPACE elsewhere AS SELECT generate_series(1, 5000) AS n")
        server.execute("CREATE ROLE pitr LOGIN REPLICATION IN ROLE pg_monitor")
        bases = {}
        for compression in COMPRESSIONS:
            make = SettingsMaker(directory / compression)
            make.directory.mkdir()
            settings = make(server, base_backup={"compression": compression})
            record = take_base_backup(settings, server.name)
            bases[compression] = (Layout(settings.backup_root).base(server.name, record.day), record)
        yield bases
    finally:
        factory.stop_all()
        remove_directory(directory)


@pytest.fixture
def make_base(
    originals: dict[str, tuple[Path, BaseRecord]], reachable_tmp: Path, account: Account
) -> Callable[[str], Base]:
    def make(compression: str) -> Base:
        original, record = originals[compression]
        shutil.copytree(original, reachable_tmp / "base")
        (reachable_tmp / "room").mkdir(mode=0o755)
        return Base(reachable_tmp / "base", record, binaries_of(None), account, reachable_tmp / "room")

    return make


@pytest.fixture(params=COMPRESSIONS)
def base(request: pytest.FixtureRequest, make_base: Callable[[str], Base]) -> Base:
    return make_base(request.param)


def flip(path: Path, position: int) -> None:
    with path.open("r+b") as file:
        file.seek(position)
        (byte,) = file.read(1)
        file.seek(position)
        file.write(bytes([byte ^ 0x10]))


def test_an_intact_base_is_found_whole(base: Base) -> None:
    seen: list[Progress] = []
    verify_base(base.directory, base.record, progress=seen.append)
    assert seen[-1].done == seen[-1].total == base.record.size_bytes
    base.verify_contents()
    base.extract()


def test_the_record_lists_every_file_sorted(base: Base) -> None:
    names = [file.name for file in base.record.files]
    assert names == sorted(path.name for path in base.directory.iterdir() if path.name != "backup.json")
    assert len([name for name in names if name[0].isdigit()]) == len(base.record.tablespaces) == 1


@pytest.mark.parametrize("kind", ["base.tar", "pg_wal.tar", "backup_manifest", "1"])
def test_a_flipped_byte_is_named_by_every_reader(base: Base, kind: str) -> None:
    path = base.path(kind)
    size = path.stat().st_size
    for position in (0, 300, size // 3, size // 2, size - 1):
        flip(path, position)
        for read in base.readers:
            with pytest.raises(ArtifactDamaged) as caught:
                read()
            assert str(path) in caught.value.what
        flip(path, position)
    base.verify()


@pytest.mark.parametrize("kind", ["base.tar", "pg_wal.tar", "backup_manifest", "1"])
def test_a_truncated_file_is_named_with_both_sizes(base: Base, kind: str) -> None:
    path = base.path(kind)
    size = path.stat().st_size
    os.truncate(path, size - 1)
    for read in base.readers:
        with pytest.raises(
            ArtifactDamaged, match=f"{path.name} is damaged: it should have {size} bytes and has"
        ):
            read()
    assert list(base.room.glob("*/*")) == []


@pytest.mark.parametrize("kind", ["base.tar", "pg_wal.tar", "backup_manifest", "1"])
def test_a_missing_file_is_named(base: Base, kind: str) -> None:
    path = base.path(kind)
    path.unlink()
    for read in base.readers:
        with pytest.raises(ArtifactDamaged, match=f"{path.name} is damaged: it is missing"):
            read()


def test_a_file_too_many_is_named(base: Base) -> None:
    (base.directory / "99999.tar").write_bytes(b"")
    for read in base.readers:
        with pytest.raises(ArtifactDamaged, match=r"99999\.tar is damaged: it is not part of"):
            read()


def test_names_that_start_with_a_dot_are_nobodys_business(base: Base) -> None:
    (base.directory / ".nfs0001").write_bytes(b"x")
    base.verify()
    base.verify_contents()
    base.extract()


def test_a_data_file_that_differs_from_the_manifest_is_named_even_if_the_record_agrees(
    make_base: Callable[[str], Base],
) -> None:
    base = make_base("none")
    path = base.path("base.tar")
    flip(path, _offset_of(path, "PG_VERSION"))
    base = base.recorded_as_it_is()
    base.verify()
    for read in (base.verify_contents, base.extract):
        with pytest.raises(
            ArtifactDamaged, match=r"base\.tar is damaged: PG_VERSION in it should have SHA-256"
        ):
            read()


def _offset_of(tar_file: Path, name: str) -> int:
    with tarfile.open(tar_file) as tar:
        return tar.getmember(name).offset_data


def test_a_file_that_no_tar_holds_is_named(make_base: Callable[[str], Base]) -> None:
    base = make_base("none")
    path = base.path("1")
    content = path.read_bytes()
    path.write_bytes(b"\0" * len(content))
    base = base.recorded_as_it_is()
    for read in (base.verify_contents, base.extract):
        with pytest.raises(
            ArtifactDamaged, match=r"no tar file holds pg_tblspc/\d+/PG_.* which backup_manifest"
        ):
            read()


def test_wal_that_cannot_be_read_is_named_even_if_the_record_agrees(make_base: Callable[[str], Base]) -> None:
    base = make_base("none")
    path = base.path("pg_wal.tar")
    segment = str(base.record.first_segment)
    start = _offset_of(path, segment)
    flip(path, start + base.record.start_lsn % base.record.wal_segment_size + 60)
    base = base.recorded_as_it_is()
    base.verify()
    with pytest.raises(ArtifactDamaged, match=r"pg_wal\.tar is damaged: its WAL from .* cannot be read"):
        base.verify_contents()


def test_wal_that_is_not_there_is_named(make_base: Callable[[str], Base], tmp_path: Path) -> None:
    base = make_base("none")
    wal_range = WalRange(base.record.timeline, base.record.start_lsn, base.record.end_lsn)
    with pytest.raises(ArtifactDamaged, match=r"pg_wal\.tar is damaged"):
        check_wal(base.directory, tmp_path, wal_range, base.binaries)


def test_an_extracted_base_is_closed_to_others_and_belongs_to_the_account(base: Base) -> None:
    data_directory = base.extract()
    for root in (data_directory, *base.tablespaces(data_directory).values()):
        for path in (root, *root.rglob("*")):
            status = path.lstat()
            assert status.st_uid == base.account.uid, path
            if not path.is_symlink():
                assert status.st_mode & 0o777 == (0o700 if path.is_dir() else 0o600), path
    assert (data_directory / "backup_label").is_file()
    assert (data_directory / "pg_wal" / str(base.record.first_segment)).is_file()


def test_a_base_is_only_extracted_into_empty_directories(make_base: Callable[[str], Base]) -> None:
    base = make_base("zstd")
    full = base.room / "full"
    full.mkdir()
    (full / "mine").write_text("precious")
    empty = base.room / "empty"
    empty.mkdir()
    (oid,) = (tablespace.oid for tablespace in base.record.tablespaces)
    for data_directory, tablespace in ((full, base.room / "new"), (empty, full)):
        with pytest.raises(DestinationInUse, match="full is not empty"):
            extract_base(base.directory, base.record, data_directory, {oid: tablespace}, base.account)
    assert [path.name for path in full.iterdir()] == ["mine"]
    assert list(empty.iterdir()) == []


def test_every_tablespace_needs_a_new_place(make_base: Callable[[str], Base]) -> None:
    base = make_base("zstd")
    data_directory = base.room / "data"
    data_directory.mkdir()
    with pytest.raises(BadRequest, match="has no new location; there is no tablespace 7 in"):
        extract_base(base.directory, base.record, data_directory, {7: base.room / "x"}, base.account)
    assert list(data_directory.iterdir()) == []


def test_failing_to_write_is_not_called_damage(make_base: Callable[[str], Base]) -> None:
    base = make_base("zstd")
    data_directory = base.room / "data"
    data_directory.mkdir()
    (base.room / "file").write_text("")
    (oid,) = (tablespace.oid for tablespace in base.record.tablespaces)
    with pytest.raises(PitrError, match=r"cannot write .*: Not a directory") as caught:
        extract_base(
            base.directory, base.record, data_directory, {oid: base.room / "file" / "x"}, base.account
        )
    assert not isinstance(caught.value, ArtifactDamaged)
