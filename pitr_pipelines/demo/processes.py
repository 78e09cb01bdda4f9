"""The demo's processes: known by a mark in their environment or by their directory, never by name.

Everything that Dagster starts inherits our mark, whatever process group or session it moves to; the
PostgreSQL servers, which have clean environments, are found by the postmaster.pid in directories
below ours. So all of them can be ended, also by a later demo when theirs was killed. Orphans become
our children as far as Linux lets us, so that none stays a zombie where nobody else buries them, as
in many containers.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pitr_pipelines.errors import PitrError
from pitr_pipelines.postgres.account import server_account
from pitr_pipelines.postgres.binaries import Binaries
from pitr_pipelines.postgres.server import Cluster

MARK = "PITR_DEMO_PLACE"
"""The environment variable that marks the processes of the demo in the directory it names."""

GRACE_S = 8.0
_POLL_S = 0.05
_LOG_LINES = 25
_SET_CHILD_SUBREAPER = 36  # prctl(2), Linux


class ProcessEnded(PitrError):
    """A process that the demo needs has ended."""


@dataclass(frozen=True)
class Process:
    """A process we started, in a session of its own so that Ctrl-C reaches only us."""

    name: str
    log_file: Path
    popen: subprocess.Popen[bytes]

    @classmethod
    def start(cls, name: str, argv: Sequence[str], log_file: Path, env: Mapping[str, str]) -> Process:
        """Start a program with its output in `log_file`; `env` is all of its environment."""
        with log_file.open("ab") as log:
            popen = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=dict(env),
                start_new_session=True,
            )
        return cls(name, log_file, popen)

    @property
    def lives(self) -> bool:
        return self.popen.poll() is None

    def check(self) -> None:
        """Raise ProcessEnded, with the end of its log, if the process does not run any more."""
        code = self.popen.poll()
        if code is not None:
            lines = self.log_file.read_text(errors="replace").splitlines()[-_LOG_LINES:]
            raise ProcessEnded(
                f"{self.name} ended by itself (exit status {code}); its log ends with\n"
                + "\n".join(f"  {line}" for line in lines),
                remedy="Correct what the log names, then run the demo again.",
            )


def adopt_orphans() -> None:
    """Become the parent of every descendant whose own parent ends; does nothing where that cannot be."""
    with suppress(AttributeError, OSError):  # no Linux
        ctypes.CDLL(None).prctl(_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def bury_children(patience_s: float = 2.0) -> None:
    """Take leave of every child that has ended, when all have been told to."""
    deadline = time.monotonic() + patience_s
    with suppress(ChildProcessError):  # there is none left
        while time.monotonic() < deadline:
            if os.waitpid(-1, os.WNOHANG) == (0, 0):
                time.sleep(_POLL_S)


def marked_environment(place: Path, added: Mapping[str, str]) -> dict[str, str]:
    """Return our environment with the mark of `place`, without what could lead a child elsewhere."""
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("PG", "PITR_", "DAGSTER_"))
    }
    return {**kept, **added, MARK: str(place)}


def marked_processes(place: Path) -> Iterator[int]:
    """Yield the numbers of all living processes with the mark of `place`, except ourselves."""
    mark = f"{MARK}={place}".encode()
    for entry in Path("/proc").glob("[0-9]*"):
        # Those that are gone meanwhile, and those of other users, are none of ours.
        with suppress(OSError):
            if mark in (entry / "environ").read_bytes().split(b"\0") and int(entry.name) != os.getpid():
                yield int(entry.name)


def end_marked(place: Path, grace_s: float = GRACE_S) -> None:
    """End every process with the mark of `place`: politely, then not. Raises ProcessError if any stays."""
    for pid in marked_processes(place):
        _send(pid, signal.SIGTERM)
    _wait(place, grace_s)
    deadline = time.monotonic() + grace_s
    while left := list(marked_processes(place)):
        # Again and again: one that is being born has its parent's mark a moment later.
        for pid in left:
            _send(pid, signal.SIGKILL)
        if time.monotonic() > deadline:
            raise ProcessEnded(
                f"processes do not go away: {', '.join(map(str, left))}", remedy="Look at them with ps."
            )
        time.sleep(_POLL_S)


def end_servers(place: Path, binaries: Binaries) -> None:
    """End every PostgreSQL server whose data directory is below `place`, without a checkpoint."""
    account = server_account(None)
    for file in place.rglob("postmaster.pid"):
        cluster = Cluster(file.parent, binaries, account)
        pid = cluster.pid()
        if pid is None:
            continue
        try:
            cluster.stop("immediate", timeout_s=GRACE_S)
        except PitrError:
            _send(pid, signal.SIGKILL)


def _wait(place: Path, patience_s: float) -> None:
    deadline = time.monotonic() + patience_s
    while any(True for _ in marked_processes(place)) and time.monotonic() < deadline:
        time.sleep(_POLL_S)


def _send(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)
