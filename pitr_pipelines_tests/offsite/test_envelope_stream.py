"""An envelope as a stream: exactly as long as planned, what tar and age unpack, or never complete."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import pitr_pipelines
from pitr_pipelines.catalog.layout import Layout
from pitr_pipelines.errors import ArtifactDamaged
from pitr_pipelines.offsite.encryption import Recipients, generate_identity, parse_recipients
from pitr_pipelines.offsite.envelope_stream import EnvelopeStream
from pitr_pipelines_tests.offsite.scenes import fill, plan_of, write_envelope

DATABASES = ("order-db", "users")
SECRET, PUBLIC = generate_identity()


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    made = Layout(tmp_path / "backup")
    fill(made, DATABASES)
    return made


@pytest.fixture(params=["plain", "encrypted"])
def recipients(request: pytest.FixtureRequest) -> Recipients | None:
    return parse_recipients([PUBLIC]) if request.param == "encrypted" else None


def drain(stream: EnvelopeStream) -> int:
    size = 0
    while piece := stream.read(65536):
        size += len(piece)
    return size


def unpack(envelope: Path, into: Path, *, offset: int = 0, length: int = -1) -> None:
    into.mkdir()
    with envelope.open("rb") as file:
        file.seek(offset)
        subprocess.run(["tar", "xf", "-"], input=file.read(length), cwd=into, check=True)


def files_below(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_it_is_exactly_as_long_as_was_planned(
    layout: Layout, recipients: Recipients | None, tmp_path: Path
) -> None:
    plan = plan_of(layout, DATABASES, recipients=recipients)

    # What pyrage adds to a header is of another length each time.
    for number in range(5):
        assert write_envelope(plan, layout, tmp_path / f"{number}.tar").stat().st_size == plan.size_bytes


def test_tar_alone_unpacks_one_that_is_not_encrypted(layout: Layout, tmp_path: Path) -> None:
    envelope = write_envelope(plan_of(layout, DATABASES), layout, tmp_path / "e.tar")

    unpack(envelope, tmp_path / "out")

    out = files_below(tmp_path / "out")
    assert "index.json" in out.pop("README.txt").decode()
    assert b"order-db" in out.pop("index.json")
    assert out == files_below(layout.root)


def test_one_range_of_it_is_a_tar_by_itself(
    layout: Layout, recipients: Recipients | None, tmp_path: Path
) -> None:
    plan = plan_of(layout, DATABASES, recipients=recipients)
    envelope = write_envelope(plan, layout, tmp_path / "e.tar")
    entry = plan.index.of_database("users")[2]

    unpack(envelope, tmp_path / "out", offset=entry.offset, length=entry.length)

    assert list(files_below(tmp_path / "out")) == [plan.index.name_of(entry)]


def test_tar_and_age_alone_unpack_an_encrypted_one_as_its_readme_says(layout: Layout, tmp_path: Path) -> None:
    if shutil.which("age") is None:
        if os.environ.get("PITR_REQUIRE_AGE") == "1":
            pytest.fail("age is not installed, and PITR_REQUIRE_AGE=1 asks for it")
        pytest.skip("age is not installed; test_envelope_reader opens envelopes with pyrage")
    plan = plan_of(layout, DATABASES, recipients=parse_recipients([PUBLIC]))
    envelope = write_envelope(plan, layout, tmp_path / "e.tar")

    unpack(envelope, tmp_path / "out")
    (tmp_path / "key.txt").write_text(SECRET)
    readme = (tmp_path / "out/README.txt").read_text()
    command = next(line for line in readme.splitlines() if "age -d" in line)
    subprocess.run(["sh", "-c", command.replace("key.txt", "../key.txt")], cwd=tmp_path / "out", check=True)

    out = {name: content for name, content in files_below(tmp_path / "out").items() if name[-4:] != ".age"}
    assert out.pop("README.txt")
    assert out.pop("index.json") == plan.index_text
    assert out == files_below(layout.root)


def test_nothing_names_a_database_in_what_is_not_encrypted(layout: Layout, tmp_path: Path) -> None:
    plan = plan_of(layout, DATABASES, recipients=parse_recipients([PUBLIC]))
    envelope = write_envelope(plan, layout, tmp_path / "e.tar")

    with envelope.open("rb") as file:
        beginning = file.read(plan.index.members[0].offset)

    assert b"order-db" not in beginning


def test_it_reads_in_pieces_of_any_size_and_knows_the_digest_of_what_it_gave(layout: Layout) -> None:
    plan = plan_of(layout)
    with EnvelopeStream(plan, layout.root) as stream:
        whole = stream.read()
        assert stream.read(10) == b""
        assert len(stream) == len(whole) == stream.tell()
        assert stream.sha256 == hashlib.sha256(whole).hexdigest()
    with EnvelopeStream(plan, layout.root) as stream:
        assert b"".join(iter(lambda: stream.read(7919), b"")) == whole


def shorten(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def lengthen(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"x")


def change(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(100)
        byte = file.read(1)
        file.seek(100)
        file.write(bytes([byte[0] ^ 1]))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (shorten, "1 bytes shorter than its record says"),
        (lengthen, "longer than"),
        (change, "differs from the SHA-256"),
        (Path.unlink, "is missing"),
    ],
    ids=["shrank", "grew", "changed", "vanished"],
)
@pytest.mark.parametrize(
    "victim",
    ["base/users/2026-01-29/base.tar", "bundles/users/2026-01-29-04.json", "manifests/restore-points.json"],
)
def test_with_a_file_that_is_no_longer_what_was_planned_it_is_never_complete(
    layout: Layout, recipients: Recipients | None, damage: Callable[[Path], None], message: str, victim: str
) -> None:
    plan = plan_of(layout, DATABASES, recipients=recipients)
    path = layout.root / victim
    if path.stat().st_size < 101 and damage is change:
        path.write_bytes(bytes(path.stat().st_size))
    else:
        damage(path)

    with EnvelopeStream(plan, layout.root) as stream:
        with pytest.raises(ArtifactDamaged, match=message) as refused:
            drain(stream)
        assert str(path) in refused.value.what
        assert stream.tell() < plan.size_bytes
        with pytest.raises(ArtifactDamaged, match=message):
            stream.read(1)


def test_200_mb_pass_through_in_a_few_mb_of_memory(tmp_path: Path) -> None:
    code = f"""
import hashlib, resource, sys
from datetime import date, datetime, UTC
from pathlib import Path
from pitr_pipelines.offsite.encryption import generate_identity, parse_recipients
from pitr_pipelines.offsite.envelope import plan_envelope
from pitr_pipelines.offsite.envelope_index import Artifact
from pitr_pipelines.offsite.envelope_stream import EnvelopeStream
root = Path({str(tmp_path)!r})
size = 200_000_000
with (root / "base.tar").open("wb") as file:
    file.truncate(size)
with (root / "base.tar").open("rb") as file:
    digest = hashlib.file_digest(file, "sha256").hexdigest()
file = Artifact(path="base.tar", kind="base_backup", unit="base", size_bytes=size, sha256=digest)
to = parse_recipients([generate_identity()[1]])
plan = plan_envelope([file], day=date(2026, 1, 29), made_at=datetime(2026, 1, 29, tzinfo=UTC), recipients=to)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
given = 0
with EnvelopeStream(plan, root) as stream:
    while piece := stream.read(65536):
        given += len(piece)
assert given == plan.size_bytes > size
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(Path(pitr_pipelines.__file__).parent.parent)},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 20 * 1024, f"{done.stdout} KiB"
