"""A tar file is read like tarfile reads it, however it is cut into chunks; damage never passes."""

from __future__ import annotations

import gzip
import hashlib
import io
import random
import tarfile
from pathlib import Path

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pitr_pipelines.postgres.tar_stream import MemberKind, TarStream

_quick = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def make_tar(files: dict[str, bytes], directories: tuple[str, ...] = ()) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name in directories:
            info = tarfile.TarInfo(name)
            info.type = tarfile.DIRTYPE
            tar.addfile(info)
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def compress(content: bytes, suffix: str) -> bytes:
    match suffix:
        case ".tar.gz":
            return gzip.compress(content, 1)
        case ".tar.zst":
            return zstandard.compress(content)
        case _:
            return content


def read(path: Path, *, chunk_bytes: int = 1024) -> dict[str, bytes]:
    with TarStream(path, chunk_bytes=chunk_bytes) as stream:
        return {
            member.name: b"".join(bytes(view) for view in stream.content())
            for member in stream
            if member.kind is MemberKind.FILE
        }


suffixes = pytest.mark.parametrize("suffix", [".tar", ".tar.gz", ".tar.zst"])


def test_a_member_read_at_once_survives_the_reading_of_the_next_ones(tmp_path: Path) -> None:
    content = {str(n): random.Random(n).randbytes(50_000) for n in range(5)}
    path = tmp_path / "base.tar"
    path.write_bytes(make_tar(content))
    with TarStream(path, chunk_bytes=1000) as stream:
        assert {member.name: stream.read() for member in stream} == content


@suffixes
@_quick
@given(sizes=st.lists(st.integers(0, 3000), max_size=6), chunk_bytes=st.integers(1, 3000), seed=st.integers())
def test_members_come_out_as_they_went_in(
    tmp_path: Path, suffix: str, sizes: list[int], chunk_bytes: int, seed: int
) -> None:
    content = random.Random(seed)
    files = {f"dir/{number}": content.randbytes(size) for number, size in enumerate(sizes)}
    path = tmp_path / f"base{suffix}"
    path.write_bytes(compress(make_tar(files, ("dir",)), suffix))
    assert read(path, chunk_bytes=chunk_bytes) == files


@suffixes
def test_the_digest_is_that_of_the_file_on_disk(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"base{suffix}"
    path.write_bytes(compress(make_tar({"a": random.Random(1).randbytes(5000)}), suffix))
    with TarStream(path) as stream:
        assert [member.name for member in stream] == ["a"]
    assert stream.digest.name == path.name
    assert stream.digest.size_bytes == path.stat().st_size
    assert stream.digest.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


@suffixes
@_quick
@given(data=st.data())
def test_a_file_that_is_cut_short_is_refused(tmp_path: Path, suffix: str, data: st.DataObject) -> None:
    tar = make_tar({"a": random.Random(2).randbytes(3000), "b": b""})
    whole = compress(tar[: tar.index(b"\0" * 1024 + b"\0" * 512) + 1536], suffix)
    path = tmp_path / f"base{suffix}"
    path.write_bytes(
        whole[: data.draw(st.integers(0, len(whole) - 600 if suffix == ".tar" else len(whole) - 16))]
    )
    with pytest.raises(ValueError, match=r"it is cut short|it does not decompress"):
        read(path)


@suffixes
def test_leaving_early_ends_the_reading_thread(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"base{suffix}"
    path.write_bytes(compress(make_tar({"a": random.Random(3).randbytes(200_000)}), suffix))
    with TarStream(path, chunk_bytes=512) as stream:
        next(iter(stream))
    assert stream.bytes_read <= path.stat().st_size


@pytest.mark.parametrize("name", ["/etc/passwd", "../a", "a/../../b", "a//b", "./../c", "a/./b"])
def test_a_name_that_leads_elsewhere_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / "base.tar"
    path.write_bytes(make_tar({name: b"x"}))
    with pytest.raises(ValueError, match="not allowed"):
        read(path)


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_are_refused(tmp_path: Path, kind: bytes) -> None:
    info = tarfile.TarInfo("a")
    info.type, info.linkname = kind, "/etc"
    path = tmp_path / "base.tar"
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        tar.addfile(info)
    with pytest.raises(ValueError, match="unknown kind"):
        read(path)


def test_something_after_the_end_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "base.tar"
    path.write_bytes(make_tar({"a": b"x"}) + b"y" * 512)
    with pytest.raises(ValueError, match="after its end"):
        read(path)


def test_a_file_that_is_not_there_is_an_error_of_the_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot be opened"):
        TarStream(tmp_path / "base.tar")
