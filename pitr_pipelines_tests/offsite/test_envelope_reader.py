"""Coming back from an envelope: only what is asked for is read, and only what is right gets its name."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from pitr_pipelines.catalog.inventory import read_bundle_record, read_inventory
from pitr_pipelines.catalog.layout import Layout
from pitr_pipelines.errors import ArtifactDamaged, BadRequest
from pitr_pipelines.offsite.encryption import (
    Identities,
    Recipients,
    WrongKey,
    generate_identity,
    parse_identities,
    parse_recipients,
)
from pitr_pipelines.offsite.envelope_index import EnvelopeIndex, MemberKind, build_index
from pitr_pipelines.offsite.envelope_reader import BEGINNING_BYTES, EnvelopeReader, choose, open_envelope
from pitr_pipelines.offsite.envelope_stream import EnvelopeStream
from pitr_pipelines_tests.offsite.scenes import (
    MADE_AT,
    TODAY,
    CountedFile,
    fill,
    plan_of,
    put_bundle,
    write_envelope,
)
from pitr_pipelines_tests.wal_files import hour_of, segment, segment_bytes

DATABASES = ("order-db", "users")
SECRET, PUBLIC = generate_identity()


class Scene:
    """A backup root, its envelope, and what is needed to read it."""

    def __init__(self, directory: Path, *, encrypted: bool) -> None:
        self.layout = Layout(directory / "backup")
        fill(self.layout, DATABASES, base_bytes=1_000_000)
        self.recipients: Recipients | None = parse_recipients([PUBLIC]) if encrypted else None
        self.identities: Identities | None = parse_identities(SECRET) if encrypted else None
        self.plan = plan_of(self.layout, DATABASES, recipients=self.recipients)
        self.source = CountedFile(write_envelope(self.plan, self.layout, directory / "2026-01-29.tar"))

    def open(self) -> EnvelopeReader:
        return open_envelope(self.source, self.identities)

    def flip(self, offset: int) -> None:
        with self.source.path.open("r+b") as file:
            file.seek(offset)
            byte = file.read(1)
            file.seek(offset)
            file.write(bytes([byte[0] ^ 1]))


@pytest.fixture(params=["plain", "encrypted"])
def scene(request: pytest.FixtureRequest, tmp_path: Path) -> Scene:
    return Scene(tmp_path, encrypted=request.param == "encrypted")


@pytest.fixture
def encrypted(tmp_path: Path) -> Scene:
    return Scene(tmp_path, encrypted=True)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def files_below(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_the_index_is_found_with_one_small_read(scene: Scene) -> None:
    assert scene.open().index == scene.plan.index
    assert scene.source.ranges == [(0, BEGINNING_BYTES)]


def test_a_long_index_takes_one_more_read(scene: Scene, tmp_path: Path) -> None:
    for hour in range(24):
        for number in range(10):
            put_bundle(scene.layout, f"database-{number}", hour, first=hour, count=0)
    databases = [f"database-{number}" for number in range(10)]
    plan = plan_of(scene.layout, databases, recipients=scene.recipients)
    source = CountedFile(write_envelope(plan, scene.layout, tmp_path / "long.tar"))

    assert open_envelope(source, scene.identities).index == plan.index
    assert len(source.ranges) == 2
    assert source.bytes_read <= plan.index.members[0].offset


def test_everything_comes_back_and_is_an_ordinary_storage(scene: Scene, out: Path) -> None:
    reader = scene.open()

    paths = reader.fetch(reader.index.members, out)

    assert files_below(out) == files_below(scene.layout.root)
    assert len(paths) == len(files_below(out))
    for database in DATABASES:
        came_back = read_inventory(Layout(out), database)
        was = read_inventory(scene.layout, database)
        assert came_back.bases == was.bases
        assert came_back.bundles == was.bundles
        assert came_back.histories == was.histories
        assert came_back.began == was.began  # the mtime of a history file tells it
        assert not came_back.problems


def test_one_of_two_databases_is_read_without_the_bytes_of_the_other(scene: Scene, out: Path) -> None:
    reader = scene.open()
    entries = choose(reader.index, ["users"])

    reader.fetch(entries, out)

    plain = sum(entry.artifact.size_bytes for entry in entries)
    assert scene.source.bytes_read == BEGINNING_BYTES + sum(entry.length for entry in entries)
    assert scene.source.bytes_read - BEGINNING_BYTES < plain * 1.05
    assert {path.split("/")[1] for path in files_below(out)} == {"users"}


def test_a_segment_of_a_bundle_is_read_alone_where_nothing_is_encrypted(scene: Scene, out: Path) -> None:
    reader = scene.open()
    record = read_bundle_record(scene.layout.bundle_record("order-db", hour_of(3)))
    entry = next(e for e in reader.index.members if e.artifact.path.endswith("order-db/2026-01-29-03.tar.gz"))
    before = scene.source.bytes_read

    content = reader.read_wal_file(entry, record.members[1], out)

    assert content == segment_bytes(segment(31))
    expected = record.members[1].length if scene.recipients is None else entry.length
    assert scene.source.bytes_read - before == expected


def test_what_is_there_already_is_not_read_again(scene: Scene, out: Path) -> None:
    reader = scene.open()
    reader.fetch(reader.index.members, out)
    before = scene.source.bytes_read

    reader.fetch(reader.index.members, out)

    assert scene.source.bytes_read == before


def test_another_file_under_the_name_is_replaced_only_if_that_was_said(scene: Scene, out: Path) -> None:
    reader = scene.open()
    entry = reader.index.members[0]
    path = out / entry.artifact.path
    path.parent.mkdir(parents=True)
    path.write_text("mine")

    with pytest.raises(BadRequest, match="is there already"):
        reader.fetch([entry], out)
    assert path.read_text() == "mine"

    reader.fetch([entry], out, replace=True)
    assert path.read_bytes() == (scene.layout.root / entry.artifact.path).read_bytes()


def test_a_damaged_member_never_gets_its_name(scene: Scene, out: Path) -> None:
    reader = scene.open()
    base = next(entry for entry in reader.index.members if entry.artifact.kind is MemberKind.BASE)
    scene.flip(base.offset + base.length // 2)

    with pytest.raises(ArtifactDamaged, match=r"2026-01-29\.tar"):
        reader.fetch([base], out)

    assert files_below(out) == {}


def test_an_envelope_that_is_cut_off_gives_what_is_whole_and_says_where_it_ends(
    scene: Scene, out: Path
) -> None:
    reader = scene.open()
    first, last = reader.index.members[0], reader.index.members[-1]
    os.truncate(scene.source.path, last.offset + 513)

    with pytest.raises(ArtifactDamaged, match="cut off"):
        reader.fetch([last, first], out)

    assert list(files_below(out)) == [first.artifact.path]


def test_another_tar_is_not_taken_for_an_envelope(tmp_path: Path) -> None:
    for content in (b"", b"no tar", bytes(10240), os.urandom(5000)):
        (tmp_path / "object").write_bytes(content)
        with pytest.raises(ArtifactDamaged, match="object does not begin as an envelope"):
            open_envelope(CountedFile(tmp_path / "object"))


@pytest.mark.parametrize("key", [None, generate_identity()[0]], ids=["none", "another"])
def test_without_the_right_key_only_the_beginning_was_read(encrypted: Scene, key: str | None) -> None:
    with pytest.raises(WrongKey, match=r"2026-01-29\.tar"):
        open_envelope(encrypted.source, parse_identities(key) if key else None)

    assert encrypted.source.bytes_read <= BEGINNING_BYTES


def test_a_damaged_index_is_said_to_be_that(scene: Scene) -> None:
    scene.flip(scene.plan.index.members[0].offset // 2 + 2000)

    with pytest.raises(ArtifactDamaged, match="index"):
        scene.open()


@pytest.mark.parametrize("kind", ["directory", "file"])
def test_nothing_is_written_through_a_symbolic_link(
    scene: Scene, out: Path, kind: str, tmp_path: Path
) -> None:
    reader = scene.open()
    entry = next(e for e in reader.index.members if e.artifact.path == "base/order-db/2026-01-29/base.tar")
    link = out / ("base" if kind == "directory" else entry.artifact.path)
    link.parent.mkdir(parents=True)
    link.symlink_to(tmp_path / "elsewhere")

    with pytest.raises(BadRequest, match="symbolic link"):
        reader.fetch([entry], out)

    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("path", ["../outside", "/tmp/outside", "base/../../outside", "base/./x"])
def test_an_index_that_leads_outside_is_refused(tmp_path: Path, path: str) -> None:
    layout = Layout(tmp_path / "backup")
    fill(layout)
    plan = plan_of(layout)
    good = plan.index.members[0].artifact.path
    bad = plan.index_text.replace(good.encode(), path.ljust(len(good), "x").encode())
    assert len(bad) == len(plan.index_text)
    envelope = tmp_path / "e.tar"
    with EnvelopeStream(replace(plan, index_text=bad), layout.root) as stream:
        envelope.write_bytes(stream.read())

    with pytest.raises(ArtifactDamaged, match=r"index of the envelope e\.tar cannot be used"):
        open_envelope(CountedFile(envelope))


def test_members_that_overlap_or_are_there_twice_are_refused() -> None:
    index, _ = build_index([], day=TODAY, made_at=MADE_AT, recipients=None)
    assert index.members == ()
    for offsets in ((512, 512), (1024, 512), (100, 1024)):
        file = {"kind": "base_backup", "unit": "x", "size_bytes": 1, "sha256": "0" * 64}
        members = [
            {"artifact": {**file, "path": f"base/{number}"}, "offset": offset, "length": 1024}
            for number, offset in enumerate(offsets)
        ]
        with pytest.raises(ValueError, match="cannot lie at"):
            EnvelopeIndex.model_validate({**index.model_dump(), "size_bytes": 99999, "members": members})


def test_a_database_that_is_not_in_it_is_said_to_be_missing(scene: Scene) -> None:
    with pytest.raises(BadRequest, match="nothing of nobody"):
        choose(scene.plan.index, ["nobody", "users"])
