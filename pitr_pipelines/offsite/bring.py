"""Bringing artifacts of one database back from envelopes, into `backup_root` or a directory laid out alike.

An artifact's record comes after the artifact, so what is interrupted leaves none that only seems to be
there. What is there and right is not fetched again; where another file has the name, it is left alone and
named. A damaged copy is made up for by another envelope's, if there is one; the rest is brought all the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

from pitr_pipelines import durable
from pitr_pipelines.catalog.inventory import read_bundle_record
from pitr_pipelines.catalog.layout import Layout
from pitr_pipelines.catalog.records import BundleState, SealRecord, read_record
from pitr_pipelines.errors import ArtifactDamaged, BadRequest
from pitr_pipelines.offsite.envelope_index import IndexEntry, MemberKind
from pitr_pipelines.offsite.shelf import Copy, Envelope, Shelf
from pitr_pipelines.progress import Progress, Report, silent
from pitr_pipelines.units import show_bytes
from pitr_pipelines.wal.hours import Hour


@dataclass(frozen=True)
class Wanted:
    """What is to be brought of one database: the copies of each artifact, the newest first."""

    database: str
    root: Path
    units: tuple[tuple[Copy, ...], ...]
    kept: tuple[str, ...] = ()
    """Units that are here in another making, which counts."""

    @property
    def size_bytes(self) -> int:
        """How many bytes are to be fetched, by what the sizes of the files here tell."""
        return sum(entry.length for copies in self.units for entry in _absent(copies[0], self.root))

    @property
    def bases(self) -> list[date]:
        return sorted(key for copies in self.units if isinstance(key := _key_of_record(copies), date))

    @property
    def hours(self) -> list[Hour]:
        return sorted(key for copies in self.units if isinstance(key := _key_of_record(copies), Hour))


@dataclass
class Brought:
    """What came of it. `problems` are in a line each what did not come, and why."""

    artifacts: int = 0
    fetched_bytes: int = 0
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def choose_wanted(
    shelf: Shelf, database: str, root: Path, *, since: date | None = None, until: date | None = None
) -> Wanted:
    """Choose what is to be brought: bases and hours of some days (in UTC), and all history files.

    Raises BadRequest if there is nothing of the database in those days.
    """
    units, kept = [], []
    for unit, copies in sorted(shelf.copies(database).items()):
        day = _day(copies[0])
        if day is not None and ((since and day < since) or (until and day > until)):
            continue
        if _is_kept(Layout(root), database, copies[0]):
            kept.append(unit)
        else:
            units.append(tuple(copies))
    if not kept and all(_day(copies[0]) is None for copies in units):
        raise BadRequest(
            f"the envelopes hold nothing of {database} in those days",
            remedy=f"`pitr offsite list {database}` shows what they hold.",
        )
    return Wanted(database, root, tuple(units), tuple(kept))


def wanted_line(wanted: Wanted) -> str:
    """Say in a line what is to be brought, and how much that is."""
    bases, hours = wanted.bases, wanted.hours
    what = f"{_counted(bases, 'base')}, {_counted(hours, 'hour')} of WAL"
    kept = f"; {len(wanted.kept)} that are newer here are left alone" if wanted.kept else ""
    return f"{what}: {show_bytes(wanted.size_bytes)} to fetch into {wanted.root}{kept}"


def bring(shelf: Shelf, wanted: Wanted, report: Report = silent) -> Brought:
    """Bring what was chosen. What was brought stays, also if something is raised.

    Raises StoreUnavailable, OSError, and ArtifactBusy if somebody makes artifacts of the database.
    """
    layout = Layout(wanted.root)
    with ExitStack() as stack:
        for lock in (layout.base_lock(wanted.database), layout.bundle_lock(wanted.database)):
            subject = f"the artifacts of {wanted.database}"
            stack.enter_context(durable.exclusive_lock(lock, subject=subject, wait=False))
        _remove_leftovers(wanted)
        return _bring_all(shelf, wanted, report)


def _remove_leftovers(wanted: Wanted) -> None:
    """Remove what a fetch that was killed left under temporary names. The locks are held."""
    entries = (entry for copies in wanted.units for entry in copies[0].entries)
    places = {wanted.root / e.artifact.path for e in entries if e.artifact.kind is not MemberKind.HISTORY}
    for directory in {path.parent for path in places}:
        for path in directory.glob(".*.tmp"):
            path.unlink(missing_ok=True)


def _bring_all(shelf: Shelf, wanted: Wanted, report: Report) -> Brought:
    brought = Brought()
    total = wanted.size_bytes

    def count(size_bytes: int) -> None:
        brought.fetched_bytes += size_bytes
        report(Progress("fetch", min(brought.fetched_bytes, total), total))

    waiting = list(wanted.units)
    while waiting:
        again = []
        for envelope in shelf.envelopes:
            held = [copies for copies in waiting if copies[0].envelope is envelope]
            for copies, error in _bring(envelope, held, wanted.root, count, brought):
                if len(copies) > 1 and isinstance(error, ArtifactDamaged):
                    again.append(copies[1:])
                    brought.notes.append(
                        f"passed over, for the copy in the envelope of {copies[1].envelope.day}: {error.what}"
                    )
                else:
                    brought.problems.append(error.what)
        waiting = again
    return brought


def _bring(
    envelope: Envelope,
    units: list[tuple[Copy, ...]],
    root: Path,
    count: Callable[[int], None],
    brought: Brought,
) -> Iterator[tuple[tuple[Copy, ...], ArtifactDamaged | BadRequest]]:
    """Bring units from one envelope: all their files in its order, then the records of the whole ones."""
    reader, source = envelope.reader((e for copies in units for e in _absent(copies[0], root)), count)
    units = sorted(units, key=lambda copies: copies[0].entries[0].offset)
    failed = set()
    try:
        for last in (False, True):
            for copies in units:
                copy = copies[0]
                if copy.unit in failed:
                    continue
                try:
                    reader.fetch([copy.record] if last else copy.payload, root)
                except (ArtifactDamaged, BadRequest) as error:
                    failed.add(copy.unit)
                    yield copies, error
        brought.artifacts += len(units) - len(failed)
    finally:
        source.close()


def _absent(copy: Copy, root: Path) -> list[IndexEntry]:
    return [entry for entry in copy.entries if not _seems_there(root / entry.artifact.path, entry)]


def _seems_there(path: Path, entry: IndexEntry) -> bool:
    try:
        return path.stat().st_size == entry.artifact.size_bytes
    except OSError:
        return False


def _is_kept(layout: Layout, database: str, copy: Copy) -> bool:
    """Tell whether what is here of an hour counts, although it is not what was sent.

    A closed bundle does, of an hour that was sent when it was open or was made anew since; and a seal.
    """
    hour, sent = copy.key, copy.record.artifact
    if not isinstance(hour, Hour):
        return False
    path = layout.root / sent.path
    try:
        if hashlib.sha256(path.read_bytes()).hexdigest() == sent.sha256:
            return False
        if sent.kind is MemberKind.SEAL:
            return read_record(path, SealRecord).hour == hour
        record = read_bundle_record(layout.bundle_record(database, hour))
        size = layout.bundle(database, hour).stat().st_size if record.file else None
    except (OSError, ArtifactDamaged):
        return False
    return record.state is BundleState.CLOSED and (record.file is None or size == record.file.size_bytes)


def _counted(keys: Sequence[date] | Sequence[Hour], what: str) -> str:
    if len(keys) < 2:
        return f"1 {what} ({keys[0]})" if keys else f"no {what}"
    return f"{len(keys)} {what}s ({keys[0]} to {keys[-1]})"


def _key_of_record(copies: tuple[Copy, ...]) -> date | Hour | None:
    copy = copies[0]
    return copy.key if copy.record.artifact.kind is MemberKind.RECORD else None


def _day(copy: Copy) -> date | None:
    key = copy.key
    return key.start.date() if isinstance(key, Hour) else key
