"""In-place recovery: for the night when there is no second disk, a restore takes its original's place.

The promise: the old data directory is moved aside, never deleted and never written to; it stays where
it is until the new one beside it is whole, proved and on disk; and the change can be undone. How far
it has come is in a journal, written before anything is moved, so a kill or a power cut leaves the old
one or the new one, and the next call settles which. No server is started or stopped here.
"""

from __future__ import annotations

import fcntl
import logging
import os
import pwd
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pitr_pipelines import durable
from pitr_pipelines.catalog.inventory import read_inventory
from pitr_pipelines.catalog.layout import Layout
from pitr_pipelines.catalog.records import read_record, write_record
from pitr_pipelines.errors import ArtifactBusy, ArtifactDamaged, BadRequest, PitrError, RecoveryFailed
from pitr_pipelines.progress import Report, silent
from pitr_pipelines.restore.destination import INCOMPLETE, Destination, choose_destination, space_needed
from pitr_pipelines.restore.in_place_checks import (
    UNTOUCHED,
    InPlaceRefused,
    Original,
    check_identity,
    check_stopped,
    examine,
)
from pitr_pipelines.restore.in_place_handover import TakingOver
from pitr_pipelines.restore.in_place_record import InPlaceRecord, State
from pitr_pipelines.restore.in_place_start import ask_configuration, how_to_start, in_its_place
from pitr_pipelines.restore.in_place_swap import Stage, Swap, stage_of, swap_directories
from pitr_pipelines.restore.in_place_text import losses
from pitr_pipelines.restore.in_place_wal import highest_timeline, only_here
from pitr_pipelines.restore.plan import Plan
from pitr_pipelines.restore.restore import DEFAULT_VERIFICATION, Verification, restore, terminable
from pitr_pipelines.restore.wal_source import WalIndex
from pitr_pipelines.settings import Settings
from pitr_pipelines.units import show_bytes

logger = logging.getLogger(__name__)

RECORD = "in-place.json"
"""The journal, in the directory of the restore beside the data directory."""


@dataclass(frozen=True, slots=True)
class InPlace:
    """A restore in place that can be carried out: everything that can be checked before was.

    `aside` is what the old data directory will be called; `warnings` say, in a line each, what a
    person gives up.
    """

    original: Original
    plan: Plan
    destination: Destination
    stamp: str
    highest_timeline: int
    needed_bytes: int
    free_bytes: int
    warnings: tuple[str, ...]

    @property
    def aside(self) -> Path:
        return beside(self.original.path, "before-restore", self.stamp)

    @property
    def tablespaces(self) -> Path:
        return beside(self.original.path, "tablespaces", self.stamp)


def beside(path: Path, what: str, stamp: str) -> Path:
    """Return the name of something that belongs to a data directory and lies beside it."""
    return path.with_name(f"{path.name}.{what}-{stamp}")


@contextmanager
def alone(directory: Path) -> Iterator[None]:
    """Keep others from replacing a data directory here, for the length of the block; leaves no trace.

    Raises ArtifactBusy, or InPlaceRefused if there is no such place.
    """
    parent = directory.absolute().resolve().parent
    try:
        descriptor = os.open(parent, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise InPlaceRefused(
            f"{parent} cannot be opened: {error.strerror}",
            remedy=f"Name the data directory that is to be replaced. {UNTOUCHED}",
        ) from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with terminable():
            yield
    except BlockingIOError:
        raise ArtifactBusy(
            f"another process is replacing a data directory in {parent}",
            remedy=f"Wait until it has finished. {UNTOUCHED}",
        ) from None
    finally:
        os.close(descriptor)


def prepare(settings: Settings, plan: Plan, original: Original) -> InPlace:
    """Check a plan against the data directory that it is to replace, and what will be lost.

    Raises InPlaceRefused; DestinationUnusable or DestinationInUse if there can be no restore beside
    it; and BinariesNotFound.
    """
    original = check_identity(settings, original, plan.base, plan.database)
    stamp = _new_stamp(original.path)
    work = beside(original.path, "restore", stamp)
    status = os.statvfs(original.path.parent)
    free, needed = status.f_bavail * status.f_frsize, space_needed(plan)
    if free < needed:
        raise InPlaceRefused(
            f"the new data directory has no room beside the old one: {original.path.parent} has "
            f"{show_bytes(free)} free, and the restore needs {show_bytes(needed)}",
            remedy=f"Make room there{_leftovers(original.path)}, or restore onto another file system (--to). "
            "Nothing is deleted here: that is what makes it possible to go back. " + UNTOUCHED,
        )
    settings = _as_owner(settings, original)
    destination = choose_destination(settings, plan, to=work, port=None, keep_running=False)
    layout = Layout(settings.backup_root)
    inventory = read_inventory(layout, plan.database)
    names: list[str] = []
    unarchived = []
    if original.pg_wal.is_dir():
        names = [path.name for path in original.pg_wal.iterdir()]
        unarchived = only_here(original.pg_wal, WalIndex(layout, inventory), plan.base, original.control)
    return InPlace(
        original,
        plan,
        destination,
        stamp,
        max(highest_timeline(inventory, names, original.control or {}), plan.branch.timeline),
        needed,
        free,
        (
            *losses(original, plan, unarchived, beside(original.path, "tablespaces", stamp)),
            *(f"left by an interrupted restore, delete it: {path}" for path in _interrupted(original.path)),
        ),
    )


def carry_out(
    settings: Settings,
    wanted: InPlace,
    *,
    verification: Verification = DEFAULT_VERIFICATION,
    report: Report = silent,
    log: Callable[[str], None] = logger.info,
) -> InPlaceRecord:
    """Restore beside the data directory, and when that is whole, let the two change places.

    The caller holds `alone`. Raises what `restore` does, and PitrError if the directories cannot be
    renamed; until the new one is whole the old one stays where it is, whatever happens.
    """
    original, plan = wanted.original, wanted.plan
    settings = _as_owner(settings, original)
    handover = TakingOver(
        original, wanted.destination, plan.branch.timeline, wanted.highest_timeline, wanted.tablespaces
    )
    done = restore(
        settings,
        plan,
        wanted.destination,
        verification=verification,
        successor=handover,
        report=report,
        log=log,
    )
    if done.timeline <= wanted.highest_timeline:
        raise RecoveryFailed(
            f"the restored server is on timeline {done.timeline}, and the WAL archive of {plan.database} may "
            f"have WAL up to timeline {wanted.highest_timeline} already",
            remedy=f"{original.path} is as it was. Delete {wanted.destination.directory}, and report this.",
        )
    _check_again(original, done.data_directory)
    start = how_to_start(original.path, done)
    notes = (
        *original.notes,
        *(note for note in done.notes if note not in handover.adapted and "subscriptions" not in note),
        *handover.notes,
        *wanted.warnings,
    )
    record = InPlaceRecord(
        database=plan.database,
        stamp=wanted.stamp,
        state=State.REPLACING,
        swap=Swap.of(original.path, done.data_directory, wanted.aside),
        restored=done.model_copy(
            update={
                "data_directory": original.path,
                "notes": notes,
                "start": start,
                "stop_command": in_its_place(done.stop_command, original.path, done),
                "connect": "",
            }
        ),
    )
    journal = wanted.destination.directory / RECORD
    write_record(journal, record)
    durable.fsync_directory(original.path.parent)
    wanted.destination.report_file.unlink()  # the journal holds it, with the right paths
    log(f"{original.path} and {done.data_directory} change places")
    record = _finish(journal, record)
    asked = ask_configuration(settings, original.path, plan.base.major)
    told: dict[str, Any] = {"notes": (*record.restored.notes, *asked.notes)}
    if asked.port is not None:
        told |= {"port": asked.port, "connect": f"psql -p {asked.port} -d postgres"}
    record = record.model_copy(update={"restored": record.restored.model_copy(update=told)})
    write_record(journal, record)
    return record


def _check_again(original: Original, restored: Path) -> None:
    """Check what may have changed while the restore took its time."""
    left = f" The restored one is whole, in {restored}; delete {restored.parent} if you do not want it."
    try:
        check_stopped(original.path)
        moved = original.path.stat().st_ino != original.inode
    except InPlaceRefused as refused:
        refused.remedy += left
        raise
    except FileNotFoundError:
        moved = True
    if moved:
        raise InPlaceRefused(
            f"{original.path} is no longer the directory that it was when this restore began",
            remedy=f"Somebody has moved it. {UNTOUCHED}{left}",
        )


def check_settled(directory: Path) -> None:
    """Raise InPlaceRefused if there is something to settle."""
    for _, record in _journals(directory):
        if _is_unfinished(record):
            raise InPlaceRefused(
                f"an earlier call was interrupted while it was {record.state} {record.swap.place}",
                remedy=f"Create nothing there. Ask again without --plan: then that is settled. {UNTOUCHED}",
            )


def _is_unfinished(record: InPlaceRecord) -> bool:
    return record.state in (State.REPLACING, State.UNDOING)


def settle(directory: Path) -> InPlaceRecord | None:
    """Finish what an interrupted call had begun to move; return what came of it, or None.

    What was only about to be moved is given up: the directory that is in its place may have been used
    since. The caller holds `alone`. Raises PitrError if somebody else has moved them.
    """
    for journal, record in _journals(directory):
        if _is_unfinished(record):
            if stage_of(record.swap, record.swap.look()) is not Stage.NOT_BEGUN:
                return _finish(journal, record)
            given_up = _given_up(record)
            write_record(journal, given_up)
            return given_up if given_up.state is State.GIVEN_UP else None
    return None


def undoable(database: str, directory: Path) -> InPlaceRecord:
    """Return the restore in place that would be undone: the one whose result is there now.

    Raises BadRequest if there is none.
    """
    records = [record for _, record in _journals(directory) if record.state is State.IN_PLACE]
    if not records:
        raise BadRequest(
            f"there is no restore in place of {directory} to undo",
            remedy="They are recorded beside it, in directories called "
            f"{directory.name}.restore-…/{RECORD}. {UNTOUCHED}",
        )
    there = directory.stat().st_ino if directory.is_dir() else None
    record = next((r for r in records if there in (None, r.swap.incoming_inode)), None)
    if record is None:
        raise BadRequest(
            f"{directory} is not what a restore in place has put there: somebody else has replaced it since",
            remedy=f"Undo by hand, while no server runs: move it aside, and {records[0].swap.aside} back to "
            f"its name. {UNTOUCHED}",
        )
    if record.database != database:
        raise BadRequest(
            f"{directory} was replaced by a restore of {record.database}, not of {database}",
            remedy=f"Name {record.database}. {UNTOUCHED}",
        )
    return record


def check_undo(settings: Settings, record: InPlaceRecord) -> None:
    """Check that a restore in place can be undone, touching nothing.

    Raises InPlaceRefused if a server runs in either directory, or one of them is not there any more.
    """
    place, old = record.swap.place, record.swap.aside
    if not place.is_dir():
        raise InPlaceRefused(
            f"{place} is not there, so there is nothing to put aside",
            remedy=f"Put the old one back by hand: mv '{old}' '{place}'. {UNTOUCHED}",
        )
    if not old.is_dir():
        raise InPlaceRefused(
            f"{old}, which was {place} before the restore, is not there any more",
            remedy=f"If it was moved, move it back to that name and ask again. {UNTOUCHED}",
        )
    examine(settings, record.database, place)
    check_stopped(old)
    aside = beside(place, "undone", record.stamp)
    if os.path.lexists(aside):
        raise InPlaceRefused(
            f"{aside} exists already, and the restored data directory was to get that name",
            remedy=f"Rename it. {UNTOUCHED}",
        )


def undo(settings: Settings, record: InPlaceRecord) -> InPlaceRecord:
    """Put the old data directory back, and the restored one aside. The caller holds `alone`.

    Raises InPlaceRefused as `check_undo` does, PitrError if they cannot be renamed.
    """
    check_undo(settings, record)
    place, old = record.swap.place, record.swap.aside
    swap = Swap.of(place, old, beside(place, "undone", record.stamp))
    journal = beside(place, "restore", record.stamp) / RECORD
    record = record.model_copy(update={"state": State.UNDOING, "swap": swap})
    write_record(journal, record)
    return _finish(journal, record)


def _finish(journal: Path, record: InPlaceRecord) -> InPlaceRecord:
    """Carry out the swap of a record, or what is left of it, and write down that it is done."""
    try:
        swap_directories(record.swap)
    except OSError as error:
        begun = stage_of(record.swap, record.swap.look()) is not Stage.NOT_BEGUN
        if not begun:
            write_record(journal, _given_up(record))
        raise PitrError(
            f"{record.swap.place} and {record.swap.incoming} cannot change places: {error.strerror}",
            remedy=(
                "Ask again when that is mended: then it is finished."
                if begun
                else f"Both are whole and where they were; {record.swap.place} is as it was before. Move "
                "them by hand (mv), or let the server use the new one where it is."
            ),
        ) from error
    over = State.IN_PLACE if record.state is State.REPLACING else State.UNDONE
    record = record.model_copy(update={"state": over})
    write_record(journal, record)
    return record


def _given_up(record: InPlaceRecord) -> InPlaceRecord:
    if record.state is State.REPLACING:
        return record.model_copy(update={"state": State.GIVEN_UP})
    # The undoing never began, so what it was to undo still stands.
    swap = record.swap
    back = Swap(
        place=swap.place,
        incoming=beside(swap.place, "restore", record.stamp) / "data",
        aside=swap.incoming,
        incoming_inode=swap.outgoing_inode,
        outgoing_inode=swap.incoming_inode,
    )
    return record.model_copy(update={"state": State.IN_PLACE, "swap": back})


def _journals(directory: Path) -> list[tuple[Path, InPlaceRecord]]:
    """Return the records of all restores in place of a data directory, the newest first."""
    path = directory.absolute().resolve()
    found = sorted(path.parent.glob(f"{_literally(path.name)}.restore-*/{RECORD}"), reverse=True)
    records = [(journal, read_record(journal, InPlaceRecord)) for journal in found]
    for journal, record in records:
        swap, stamp = record.swap, record.stamp
        ours = {beside(path, what, stamp) for what in ("before-restore", "undone")}
        ours.add(beside(path, "restore", stamp) / "data")
        # Others may be able to write here, and what it names is renamed, perhaps by root.
        if (
            swap.place != path
            or not {swap.incoming, swap.aside} <= ours
            or journal.parent.name != (beside(path, "restore", stamp).name)
        ):
            raise ArtifactDamaged(
                f"{journal} is not about {path}, or was changed",
                remedy=f"Move it away if it is not needed. {UNTOUCHED}",
            )
    return records


def _literally(name: str) -> str:
    return "".join(f"[{character}]" if character in "*?[" else character for character in name)


def _new_stamp(path: Path) -> str:
    first = stamp = f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}"
    number = 1
    while any(
        os.path.lexists(beside(path, what, stamp))
        for what in ("restore", "before-restore", "undone", "tablespaces")
    ):
        number += 1
        stamp = f"{first}-{number}"
    return stamp


def _interrupted(path: Path) -> list[Path]:
    found = path.parent.glob(f"{_literally(path.name)}.restore-*/{INCOMPLETE}")
    return sorted(marker.parent for marker in found)


def _leftovers(path: Path) -> str:
    """Name what earlier restores in place left beside a data directory, for somebody who needs room."""
    names = [f"{path.name}.{what}-" for what in ("restore", "before-restore", "undone", "tablespaces")]
    found = sorted(p.name for p in path.parent.iterdir() if p.name.startswith(tuple(names)))
    return f" (of earlier restores in place there are {', '.join(found)})" if found else ""


def _as_owner(settings: Settings, original: Original) -> Settings:
    """Return settings with which restored servers run as the owner of the original, if he has a name."""
    if os.geteuid() != 0 or original.uid == 0:
        return settings
    try:
        name = pwd.getpwuid(original.uid).pw_name
    except KeyError:
        return settings
    return settings.model_copy(update={"run_as": name})
