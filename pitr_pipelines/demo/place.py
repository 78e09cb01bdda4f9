"""The demo's own directory: everything it makes is below it, and goes with it.

It lies where the account that servers run as can reach it, with a path short enough for sockets, on
a file system that lets programs run (the servers run wal-archive.sh from it). A lock says that its
demo lives; a directory of ours whose lock is free was left by one that was killed, and is cleared
away by the next.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import stat
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from pitr_pipelines.errors import PitrError

PARENTS = (Path("/tmp"), Path("/var/tmp"))  # noqa: S108 - the directory's name is new and unguessable
PREFIX = "pitr-demo-"
ROOM_BYTES = 600 * 1024**2
"""What two young clusters, their backups and one restored cluster take, generously."""

_LOCK = "lock"
_YOUNG_S = 10.0


class NoPlace(PitrError):
    """There is no directory in which the demo could run."""

    exit_code = 7


@contextmanager
def workplace(parents: Sequence[Path] = PARENTS) -> Iterator[Path]:
    """Make the demo's directory and lock it until the block ends; removing it is the caller's task.

    Raises NoPlace, which says what is wrong with each directory that was considered.
    """
    place = _suitable(parents) / f"{PREFIX}{secrets.token_hex(4)}"
    place.mkdir(mode=0o700)
    descriptor = os.open(place / _LOCK, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        place.chmod(0o755)
        yield place
    finally:
        os.close(descriptor)


def abandoned(parents: Sequence[Path] = PARENTS) -> Iterator[Path]:
    """Yield the directories of our own demos that were killed, each locked while it is looked at."""
    for parent in parents:
        for place in sorted(parent.glob(f"{PREFIX}*")):
            with suppress(OSError):
                status = place.lstat()
                if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
                    continue
                if time.time() - status.st_ctime < _YOUNG_S:
                    continue  # perhaps being made, and not locked yet
                descriptor = os.open(
                    place / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600
                )
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    yield place
                finally:
                    os.close(descriptor)


def remove(place: Path, patience_s: float = 10.0) -> None:
    """Remove the directory, although what was just ended in it may still write for a moment.

    Raises OSError if something is left.
    """
    deadline = time.monotonic() + patience_s
    while place.exists() and time.monotonic() < deadline:
        shutil.rmtree(place, ignore_errors=True)
        if place.exists():
            time.sleep(0.1)
    if place.exists():
        shutil.rmtree(place)


def _suitable(parents: Sequence[Path]) -> Path:
    reasons = []
    for parent in parents:
        why = _unsuitable(parent)
        if why is None:
            return parent
        reasons.append(f"  {parent}: {why}")
    raise NoPlace(
        "there is no place for the demo:\n" + "\n".join(reasons),
        remedy=f"Let one of them be writable, with {ROOM_BYTES // 1024**2} MiB free, and not mounted noexec.",
    )


def _unsuitable(parent: Path) -> str | None:
    try:
        found = os.statvfs(parent)
    except OSError as error:
        return error.strerror
    if not os.access(parent, os.W_OK | os.X_OK):
        return "is not writable for us"
    if found.f_flag & os.ST_NOEXEC:
        return "is mounted noexec"
    free = found.f_bavail * found.f_frsize
    return None if free >= ROOM_BYTES else f"has only {free // 1024**2} MiB free"
