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
from pitr_pipelines.catalog.records import Moment, to_json
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


class StateFile:
    """Where the state of one storage is kept."""

    def __init__(self, backup_root: Path, *, local: Path | None = None) -> None:
        self._root = backup_root
        self.path = backup_root / "alerts" / "state.json"
        digest = hashlib.sha256(os.fsencode(backup_root)).hexdigest()[:12]
        local = local or Path(tempfile.gettempdir())
        self.fallback = local / f"pitr-alerts-{os.geteuid()}-{digest}.json"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Be the one watcher. Raises ArtifactBusy if another is at it."""
        subject = "the alerts"
        local = self.fallback.with_suffix(".lock")
        with ExitStack() as held:
            try:
                if not self._root.is_dir():  # which a lock would make
                    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self._root))
                lock = durable.exclusive_lock(self.path.with_name(".lock"), subject=subject, wait=False)
                held.enter_context(lock)
            except OSError:
                held.enter_context(durable.exclusive_lock(local, subject=subject, wait=False))
            yield

    def read(self) -> State:
        """Return the newest state; an empty one if there is none, or none that can be read."""
        found = [state for state in (_read(self.path), self._read_fallback()) if state is not None]
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
        if not self._root.is_dir():
            return f"{self._root} is not there"
        try:
            durable.make_directory(self.path.parent)
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
