"""Files that are either whole or absent, whatever happens in between.

An artifact is published by: write under a temporary name, fsync, rename, fsync the directory. A
temporary name starts with a dot, so that nothing here or in a shell glob takes it for an artifact.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pitr_pipelines.errors import ArtifactBusy

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2

FILE_MODE = 0o640
DIRECTORY_MODE = 0o750


def fsync_file(path: Path) -> None:
    """Make the content of a file durable."""
    _fsync(path, os.O_RDONLY)


def fsync_directory(path: Path) -> None:
    """Make the entries of a directory durable."""
    _fsync(path, os.O_RDONLY | os.O_DIRECTORY)


def sync_file_system(path: Path) -> None:
    """Make everything on the file system that holds `path` durable, with one call."""
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = os.open(path, os.O_RDONLY)
    try:
        if libc.syncfs(descriptor) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), str(path))
    finally:
        os.close(descriptor)


def make_directory(path: Path) -> Path:
    """Create a directory and its parents, durably, if they are not there yet."""
    missing = []
    while not path.is_dir():
        missing.append(path)
        path = path.parent
    for directory in reversed(missing):
        with suppress(FileExistsError):
            directory.mkdir(mode=DIRECTORY_MODE)
        fsync_directory(directory.parent)
    return missing[0] if missing else path


def temporary_name(path: Path) -> Path:
    """Return the name under which this thread writes `path` before it is whole."""
    # Two containers' first processes have the same number, but not the same host name.
    who = f"{socket.gethostname()}-{os.getpid()}-{threading.get_native_id()}"
    return path.with_name(f".{path.name}.{who}.tmp")


def replace_durably(temporary: Path, path: Path) -> None:
    """Give a whole, fsynced file its final name, replacing what was there."""
    temporary.replace(path)
    fsync_directory(path.parent)


def exchange(first: Path, second: Path) -> None:
    """Let two files or directories of one file system swap their names, in one atomic step.

    Where the file system cannot do that, there is a moment in which neither has the name `second`.
    """
    if exchange_at_once(first, second):
        return
    aside = temporary_name(second).with_suffix(".aside.tmp")
    second.rename(aside)
    first.rename(second)
    aside.rename(first)


def exchange_at_once(first: Path, second: Path) -> bool:
    """Let two files or directories swap their names, or return False if the file system cannot do that.

    Source: renameat2(2), RENAME_EXCHANGE.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.renameat2(_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number not in (errno.EINVAL, errno.ENOSYS):
        raise OSError(number, os.strerror(number), str(second))
    return False


def write_whole(path: Path, content: bytes | str, *, mode: int = FILE_MODE) -> None:
    """Replace `path` with `content` so that a reader or a crash sees the old or the new, whole.

    Another user may own the directory: created exclusively, the file is no link that he put there,
    and it never exists under its name without its content and `mode`.
    """
    data = content.encode() if isinstance(content, str) else content
    temporary = temporary_name(path)
    temporary.unlink(missing_ok=True)
    try:
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            os.fchmod(file.fileno(), mode)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        replace_durably(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def remove_durably(path: Path) -> None:
    """Remove a file, if it is there, and make its absence durable."""
    path.unlink(missing_ok=True)
    fsync_directory(path.parent)


@contextmanager
def exclusive_lock(path: Path, *, subject: str, wait: bool) -> Iterator[None]:
    """Hold the lock file `path` for the length of the block; the kernel frees it on any death.

    `subject` names in the error what is being worked on. Raises ArtifactBusy when another process
    holds the lock and `wait` is false.
    """
    make_directory(path.parent)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, FILE_MODE)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            raise ArtifactBusy(
                f"another process is working on {subject} right now (it holds {path})",
                remedy="Wait until it has finished, then ask again; nothing was changed.",
            ) from None
        yield
    finally:
        os.close(descriptor)


@contextmanager
def shared_lock(path: Path) -> Iterator[bool]:
    """Hold the lock file `path` together with others, against `exclusive_lock`, for the length of the block.

    Waits for whoever holds it alone. Yields False, and holds nothing, where the file can neither be opened
    nor made (a volume mounted read-only, say): what is held off here must not keep a restore from being done.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, FILE_MODE)
        except OSError:
            yield False
            return
    except OSError:
        yield False
        return
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH)
            held = True
        except OSError:
            held = False  # a file system without locks
        yield held
    finally:
        os.close(descriptor)


def is_locked(path: Path) -> bool:
    """Tell whether somebody holds the lock file `path` just now. Creates nothing."""
    if not path.exists():
        return False
    try:
        with exclusive_lock(path, subject=path.name, wait=False):
            return False
    except ArtifactBusy:
        return True


def _fsync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
