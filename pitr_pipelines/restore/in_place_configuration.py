"""The configuration of a data directory: what in it is neither PostgreSQL's data nor its logs.

It is told by exclusion, because anything may be included, referred to or read by an extension:
postgresql.conf and the access rules, certificates and keys, directories such as conf.d. What is
large is no configuration. The data directory it is read from is never changed.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from pitr_pipelines.restore.conf_file import AUTO, MAIN

LARGE_BYTES = 1024**2
"""What is larger is no configuration."""

WRITTEN_BY_RESTORE = tuple(
    f"{name}{suffix}" for name in (MAIN, AUTO, "pg_hba.conf", "pg_ident.conf") for suffix in ("", ".original")
)
"""What an ordinary restore may have put into the data directory, or changed there."""

_DATA = re.compile(
    r"base|global|pgsql_tmp.*|pg_[a-z_]+|PG_VERSION|backup_label.*|tablespace_map.*|backup_manifest.*"
    r"|postmaster\.(pid|opts)|.*\.signal|current_logfiles.*|promote|core(\.\d+)?|log|logs|logfile|.*\.log|lost\+found"
)


def entries(data_directory: Path) -> tuple[list[str], list[str]]:
    """Return the names of what is configuration, and of what is neither that nor PostgreSQL's."""
    carried: list[str] = []
    left: list[str] = []
    for path in sorted(data_directory.iterdir()):
        if _DATA.fullmatch(path.name):
            continue
        if path.is_symlink() or path.is_file() or path.is_dir():
            (carried if _size(path) <= LARGE_BYTES else left).append(path.name)
    return carried, left


def unreadable(data_directory: Path) -> Path | None:
    """Return a file or directory of the configuration that cannot be read by us, or None."""
    if not os.access(data_directory, os.R_OK | os.X_OK):
        return data_directory
    for name in entries(data_directory)[0]:
        for path in _all(data_directory / name):
            if not path.is_symlink() and not os.access(path, os.R_OK):
                return path
    return None


def copy_configuration(source: Path, target: Path) -> list[str]:
    """Copy the configuration of a data directory into `target`, over what is there; return the names.

    Links stay links; owners, modes and times are kept, owners as far as we may.
    """
    carried = entries(source)[0]
    for name in carried:
        copy_entry(source / name, target / name)
    return carried


def copy_entry(source: Path, target: Path) -> None:
    """Copy one file, link or directory, in place of what is there."""
    remove_entry(target)
    if source.is_dir() and not source.is_symlink():
        shutil.copytree(source, target, symlinks=True)
    else:
        shutil.copy2(source, target, follow_symlinks=False)
    if os.geteuid() == 0:
        for path in _all(source):
            status = path.lstat()
            os.chown(target / path.relative_to(source), status.st_uid, status.st_gid, follow_symlinks=False)


def remove_entry(path: Path) -> None:
    """Remove a copied file, link or directory, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _size(path: Path) -> int:
    size = 0
    for part in _all(path):
        with suppress(OSError):
            size += part.lstat().st_size
        if size > LARGE_BYTES:
            break
    return size


def _all(path: Path) -> Iterator[Path]:
    """Yield a path and, if it is a directory, everything below it. Links are not followed."""
    yield path
    if path.is_dir() and not path.is_symlink():
        for parent, directories, files in os.walk(path):
            yield from (Path(parent) / name for name in (*directories, *files))
