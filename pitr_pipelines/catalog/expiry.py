"""Carrying out what retention decided: nothing that is kept is ever touched, whatever happens in between.

It is decided under the locks of everybody who makes or reads the database's artifacts, so neither a backup
nor a restore is at work meanwhile. An artifact first loses its name or its record, and so does not exist
any more, by renames that take no time; then the readers are let in again, and its bytes are removed. A kill
at any moment leaves a catalog that tells the truth; what is left under hidden names, the next call removes.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from pathlib import Path

from pitr_pipelines import durable
from pitr_pipelines.catalog.expired import note_expired
from pitr_pipelines.catalog.holds import find_holds
from pitr_pipelines.catalog.inventory import Inventory, read_inventory
from pitr_pipelines.catalog.layout import Layout
from pitr_pipelines.catalog.retention import Facts, Keep, Retention, Verdict, decide, map_inventory
from pitr_pipelines.catalog.wal_map import Stretch, WalMap
from pitr_pipelines.errors import ArtifactBusy, ArtifactDamaged, StorageFailed
from pitr_pipelines.postgres.base_contents import check_files
from pitr_pipelines.wal.hours import Hour
from pitr_pipelines.wal.lsn import WalFileKind
from pitr_pipelines.wal.pruning import prune_raw

Confirm = Callable[[Retention], Collection[date | Hour]]
"""Tells which of the artifacts that may go are known to be off-site."""

_GONE = ".expired.tmp"
_GOING = ".expired"


@dataclass(frozen=True, slots=True)
class Expiry:
    """What came of it: what was decided, whether it was carried out, and why not if it was skipped.

    `raw_files` are the raw WAL files that were removed because bundles hold them.
    """

    retention: Retention
    removed: bool
    skipped: str | None = None
    raw_files: int = 0

    @property
    def freed_bytes(self) -> int:
        return self.retention.size_bytes(Verdict.REMOVE) if self.removed else 0


def propose(
    layout: Layout, database: str, keep: Keep, *, now: datetime, confirm: Confirm | None = None
) -> Retention:
    """Decide what would be removed. Changes nothing.

    Without `confirm` nothing has to be confirmed off-site.
    """
    return _decide(read_inventory(layout, database), layout, keep, now, confirm)[0]


def expire(
    layout: Layout, database: str, keep: Keep, *, now: datetime, confirm: Confirm | None = None
) -> Expiry:
    """Decide, and remove what may go. The manifest is for the caller to refresh.

    If somebody makes a base backup or reads the backups right now, nothing is removed, and the result says
    why. Raises StorageFailed if the storage is not there, ArtifactDamaged for a hold that cannot be read.
    """
    if not layout.root.is_dir():
        raise StorageFailed(
            f"backup_root {layout.root} is not there",
            remedy="Is its volume mounted, and is the path in the settings right?",
        )
    if not layout.bases(database).is_dir():
        return Expiry(propose(layout, database, keep, now=now, confirm=confirm), removed=False)
    durable.make_directory(layout.bundles(database))
    with durable.exclusive_lock(layout.bundle_lock(database), subject=f"{database}'s bundles", wait=True):
        try:
            with _alone(layout.base_lock(database), f"a base backup of {database} is being made"):
                _remove_hidden(layout, database)
                with _alone(layout.reading_lock(database), f"{database} is being restored from"):
                    done = _hide(layout, database, keep, now, confirm)
                _remove_hidden(layout, database)
                durable.make_directory(layout.retention_ran(database).parent)
                layout.retention_ran(database).touch(mode=durable.FILE_MODE)
                return done
        except _Busy as busy:
            found = propose(layout, database, keep, now=now, confirm=confirm)
            return Expiry(found, removed=False, skipped=f"{busy} right now, so nothing was removed")


def last_run(layout: Layout, database: str) -> datetime | None:
    """Return when retention was last carried out; None if it never was."""
    try:
        return datetime.fromtimestamp(layout.retention_ran(database).stat().st_mtime, UTC)
    except FileNotFoundError:
        return None


class _Busy(Exception):
    """Somebody holds a lock."""


@contextmanager
def _alone(lock: Path, what: str) -> Iterator[None]:
    entered = False
    try:
        with durable.exclusive_lock(lock, subject=what, wait=False):
            entered = True
            yield
    except ArtifactBusy:
        if entered:
            raise
        raise _Busy(what) from None


def _decide(
    inventory: Inventory, layout: Layout, keep: Keep, now: datetime, confirm: Confirm | None
) -> tuple[Retention, list[Path]]:
    """Decide; return with it the holds that are over."""
    holds, over = find_holds(layout, inventory.database)
    facts = Facts(
        damaged_bases=dict(_damaged_bases(layout, inventory)),
        damaged_bundles=dict(_damaged_bundles(layout, inventory)),
        holds=tuple(holds),
    )
    wal = map_inventory(inventory, facts)
    found = decide(inventory, keep, now=now, facts=facts, wal=wal)
    if confirm is not None:
        found = decide(inventory, keep, now=now, facts=facts, wal=wal, confirmed=confirm(found))
    return _with_notes(found, inventory, wal), over


def _with_notes(found: Retention, inventory: Inventory, wal: WalMap) -> Retention:
    """Name the raw WAL that stays although it is old, because no bundle holds it."""
    since, size = found.since, wal.segment_size
    stays = [
        file
        for file in inventory.raw
        if since is not None and file.kind is WalFileKind.SEGMENT and file.closed_at < since
    ]
    for file in stays:
        number, timeline = file.segment.number(size), file.segment.timeline
        if next(wal.holders(Stretch(timeline, number, number)), None) is None:
            note = (
                f"raw WAL from before the window stays in {file.path.parent}, {file.name} for one, until it "
                f"is bundled: `pitr bundle {found.database} --hour {Hour.containing(file.closed_at)}`"
            )
            return replace(found, notes=(*found.notes, note))
    return found


def _damaged_bases(layout: Layout, inventory: Inventory) -> Iterator[tuple[date, str]]:
    for base in inventory.bases:
        try:
            check_files(layout.base(base.database, base.day), base)
        except ArtifactDamaged as error:
            yield base.day, error.what
        except OSError as error:
            yield base.day, f"{error.filename} cannot be read: {error.strerror}"


def _damaged_bundles(layout: Layout, inventory: Inventory) -> Iterator[tuple[Hour, str]]:
    """Find the bundles whose file is missing or has another size. No content is read."""
    try:
        with os.scandir(layout.bundles(inventory.database)) as entries:
            sizes = {entry.name: entry.stat().st_size for entry in entries if entry.name.endswith(".tar.gz")}
    except FileNotFoundError:
        sizes = {}
    for entry in inventory.bundles:
        size = sizes.get(f"{entry.hour}.tar.gz")
        if entry.size_bytes and size != entry.size_bytes:
            there = "is missing" if size is None else f"has {size} bytes"
            yield entry.hour, f"its file {there}; it should have {entry.size_bytes} bytes"


def _hide(layout: Layout, database: str, keep: Keep, now: datetime, confirm: Confirm | None) -> Expiry:
    """Take the names from what may go: bases first, because they are what moments are restored from."""
    _finish_hiding(layout.bundles(database))
    inventory = read_inventory(layout, database)
    found, over = _decide(inventory, layout, keep, now, confirm)
    for path in over:
        durable.remove_durably(path)
    raw_files = 0
    if found.since is not None:
        before = Hour.containing(found.since)
        raw_files = prune_raw(layout, database, bundled=before, before=before.start)
    days, hours = found.bases(Verdict.REMOVE), found.hours(Verdict.REMOVE)
    going = {*hours}
    runs = [run for entry in inventory.bundles if entry.hour in going for run in entry.runs]
    if runs:
        note_expired(layout, database, runs, inventory.segment_size or 1)
    for day in days:
        base = layout.base(database, day)
        _remove(base.with_name(f".{day}{_GONE}"))
        base.rename(base.with_name(f".{day}{_GONE}"))
    if days:
        durable.fsync_directory(layout.bases(database))
    for hour in hours:
        record = layout.bundle_record(database, hour)
        record.rename(record.with_name(f".{hour}{_GOING}"))
    if hours:
        durable.fsync_directory(layout.bundles(database))
        _finish_hiding(layout.bundles(database))
    return Expiry(found, removed=bool(days or hours), raw_files=raw_files)


def _finish_hiding(bundles: Path) -> None:
    """Hide the files of the bundles whose records are hidden, also of a call that was killed.

    A bundle that lost its record otherwise may hold the only copy of its WAL, and is none of ours.
    """
    going = sorted(bundles.glob(f".[0-9]*{_GOING}"))
    for record in going:
        key = record.name.removeprefix(".").removesuffix(_GOING)
        if (bundles / f"{key}.json").exists():
            continue  # it was bundled again since
        (bundles / f"{key}.seal.json").unlink(missing_ok=True)
        if (bundles / f"{key}.tar.gz").exists():
            (bundles / f"{key}.tar.gz").rename(bundles / f".{key}{_GONE}")
    if going:
        durable.fsync_directory(bundles)
        for record in going:
            record.unlink()
        durable.fsync_directory(bundles)


def _remove_hidden(layout: Layout, database: str) -> None:
    """Remove what has lost its name, in this call or in one that was killed."""
    for directory in (layout.bases(database), layout.bundles(database)):
        left = sorted(directory.glob(f".[0-9]*{_GONE}"))
        for path in left:
            _remove(path)
        if left:
            durable.fsync_directory(directory)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
