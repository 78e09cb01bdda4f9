"""The state of the watch: open incidents, who was told what, and what a look has to remember.

It is one file in storage, `alerts/state.json`, so that Dagster and `pitr watch` on any machine are
one watcher. When the storage is full or gone, which has to be told above all, the state is kept in
a file of this machine instead, and the newer one counts. Written whole or not at all; one watcher
at a time. It holds no address and no secret.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from pitr_pipelines import durable
from pitr_pipelines.catalog.layout import Layout
from pitr_pipelines.catalog.records import Moment, to_json
from pitr_pipelines.errors import PitrError
from pitr_pipelines.watch.lives import Life, Told
from pitr_pipelines.watch.memory import Memory, SpaceMemory

_FALLBACK_MODE = 0o600


class _Part(BaseModel):
    model_config = ConfigDict(extra="ignore")


class Known(_Part):
    """What one recipient was told, by the incident's key, and when he got his last message."""

    last_sent_at: Moment | None = None
    told: dict[str, Told] = {}


class State(_Part):
    """Everything that the next look needs."""

    format: Literal[1] = 1
    written_at: Moment | None = None
    lives: dict[str, Life] = {}
    recipients: dict[str, Known] = {}
    databases: dict[str, Memory] = {}
    space: SpaceMemory = SpaceMemory()
    offsite_looked_at: Moment | None = None


class StateFile:
    """Where the state of one storage is kept."""

    def __init__(
        self, backup_root: Path, *, local: Path | None = None, absent: PitrError | None = None
    ) -> None:
        """`absent` says why the storage cannot be used; it is then left alone."""
        self._root = backup_root
        self._local = local
        self._absent = absent
        self.path = Layout(backup_root).alerts
        digest = hashlib.sha256(os.fsencode(backup_root)).hexdigest()[:12]
        local = local or Path(tempfile.gettempdir())
        self.fallback = local / f"pitr-alerts-{os.geteuid()}-{digest}.json"

    def without_storage(self, absent: PitrError) -> StateFile:
        """Return the same state, as far as it can be kept without the storage."""
        return StateFile(self._root, local=self._local, absent=absent)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Be the one watcher. Raises ArtifactBusy if another is at it."""
        subject = "the alerts"
        local = self.fallback.with_suffix(".lock")
        with ExitStack() as held:
            try:
                if self._absent is not None:
                    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self._root))
                self.path.parent.mkdir(mode=durable.DIRECTORY_MODE, exist_ok=True)  # never its parent
                lock = durable.exclusive_lock(self.path.with_name(".lock"), subject=subject, wait=False)
                held.enter_context(lock)
            except OSError:
                held.enter_context(durable.exclusive_lock(local, subject=subject, wait=False))
            yield

    def read(self) -> State:
        """Return the newest state; an empty one if there is none, or none that can be read."""
        stored = _read(self.path) if self._absent is None else None
        found = [state for state in (stored, self._read_fallback()) if state is not None]
        return max(found, key=_written, default=State())

    def write(self, state: State, *, now: datetime) -> str | None:
        """Keep the state, and return why it could not be kept in storage, if so.

        Raises OSError if it could not be kept at all.
        """
        text = to_json(state.model_copy(update={"written_at": now}).model_dump(mode="json"))
        problem = self._write_in_storage(text)
        if problem is None:
            self.fallback.unlink(missing_ok=True)
        else:
            durable.write_whole(self.fallback, text, mode=_FALLBACK_MODE)
        return problem

    def _write_in_storage(self, text: str) -> str | None:
        if self._absent is not None:
            return self._absent.what
        try:
            self.path.parent.mkdir(mode=durable.DIRECTORY_MODE, exist_ok=True)
            durable.write_whole(self.path, text)
        except OSError as error:
            return f"{self.path}: {error.strerror}"
        return None

    def _read_fallback(self) -> State | None:
        """Read the local file, if it is ours: anybody can put one into a directory for everybody."""
        try:
            status = self.fallback.lstat()
        except OSError:
            return None
        if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid():
            return None
        return _read(self.fallback)


def _read(path: Path) -> State | None:
    try:
        return State.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None


def _written(state: State) -> float:
    return state.written_at.timestamp() if state.written_at else 0.0
