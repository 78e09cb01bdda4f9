"""What keeps artifacts from being removed although they are old: whoever restores from them.

A restore, a drill and a resumption hold the database's reading lock from their planning until they have
read the last byte; the kernel frees it on any death. Retention takes that lock alone, without waiting, so
it never runs beside them, and whoever begins while it works waits for a moment. A restore that stands at
its target reads nothing now, but may be moved on: it leaves a hold, a small file that counts for as long
as its directory says that it still stands there.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from pitr_pipelines import durable
from pitr_pipelines.catalog.layout import Layout
from pitr_pipelines.catalog.records import Moment, Record, read_record, write_record
from pitr_pipelines.errors import ArtifactDamaged
from pitr_pipelines.settings import Settings

log = logging.getLogger(__name__)

_REPORT = "restore.json"
_INCOMPLETE = "INCOMPLETE"
_STANDS = ("pause", "shutdown")


class HoldRecord(Record):
    """A restore that stands in `directory`, from the base of `base_day`, on the branch of `timeline`."""

    kind: str = "hold"
    directory: Path
    base_day: date
    timeline: int
    made_at: Moment


@dataclass(frozen=True, slots=True)
class Hold:
    """What a restore that stands at its target may still need: its base, and all WAL after it."""

    base_day: date
    timeline: int
    reason: str


class _Report(BaseModel):
    """The part of a restore's report that says whether it stands."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    database: str
    directory: Path
    at_target: str


@contextmanager
def reading(settings: Settings, database: str) -> Iterator[None]:
    """Keep retention off a database's artifacts for the length of the block. May be nested.

    Where that is not possible, as on a volume that is mounted read-only, it is logged and nothing else: it
    must not keep a restore from being done. Raises BadRequest for an unknown database.
    """
    settings.database(database)
    layout = Layout(settings.backup_root)
    if not layout.bases(database).is_dir():
        yield  # there is nothing to hold
        return
    with durable.shared_lock(layout.reading_lock(database)) as held:
        if not held:
            log.warning(
                "%s cannot be held: do not run `pitr retention %s` anywhere while this reads its backups",
                layout.reading_lock(database),
                database,
            )
        yield


def hold(layout: Layout, record: HoldRecord) -> bool:
    """Put down that a restore stands; return whether that was possible."""
    path = layout.holds(record.database) / _name(record.directory)
    try:
        durable.make_directory(path.parent)
        write_record(path, record)
    except OSError as error:
        log.warning("%s cannot be written, so retention will not know of it: %s", path, error.strerror)
        return False
    return True


def find_holds(layout: Layout, database: str) -> tuple[list[Hold], list[Path]]:
    """Return the holds that count, and the files of those that do not any more.

    In doubt one counts: if the place of its directory is not there (a volume that is not mounted), or
    its report there cannot be read. Changes nothing. Raises ArtifactDamaged for a hold that cannot be read.
    """
    counting: list[Hold] = []
    over: list[Path] = []
    try:
        paths = sorted(layout.holds(database).glob("[0-9a-f]*.json"))
    except OSError:
        paths = []
    for path in paths:
        try:
            record = read_record(path, HoldRecord)
        except FileNotFoundError:
            continue
        except ArtifactDamaged:
            raise ArtifactDamaged(
                f"{path} says which backups a restore still needs, and cannot be read",
                remedy="If no restore of this database stands at its target (paused, shut down), delete it.",
            ) from None
        reason = _why(record, path)
        if reason is None:
            over.append(path)
        else:
            counting.append(Hold(record.base_day, record.timeline, reason))
    return counting, over


def _why(record: HoldRecord, path: Path) -> str | None:
    """Say why a hold counts; None if it does not."""
    directory = record.directory
    try:
        report = _Report.model_validate_json((directory / _REPORT).read_bytes())
    except FileNotFoundError:
        if directory.parent.is_dir():
            return None  # the restore was deleted
        return f"{directory} cannot be seen from here and may be moved on; if it is gone, delete {path}"
    except (OSError, ValidationError):
        return f"it is not known whether {directory} still stands at its target; if not, delete {path}"
    stands = report.at_target in _STANDS and report.directory == directory
    if not stands or report.database != record.database or (directory / _INCOMPLETE).exists():
        return None
    return f"{directory} stands at its target and may be moved on"


def _name(directory: Path) -> str:
    return f"{hashlib.sha256(str(directory).encode()).hexdigest()[:16]}.json"
