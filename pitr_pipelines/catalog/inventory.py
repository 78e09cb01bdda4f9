"""What exists of one database: its bases, its bundles, its raw WAL.

Reading never changes anything. A record that cannot be read is listed as a problem and left out:
one bad file, or one bad database, never hides the rest. Records do not change once written, so those
already seen are remembered by size and mtime, and the work grows with what is new.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from datetime import date, datetime
from pathlib import Path
from typing import Generic, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from pitr_pipelines import durable
from pitr_pipelines.catalog.coverage import Coverage, Gap, Window, follow, windows
from pitr_pipelines.catalog.layout import BASE_RECORD, Layout
from pitr_pipelines.catalog.records import (
    BaseRecord,
    BundleRecord,
    BundleState,
    SealRecord,
    WalRun,
    read_record,
)
from pitr_pipelines.errors import ArtifactDamaged
from pitr_pipelines.wal import archive
from pitr_pipelines.wal.archive import ArchivedFile
from pitr_pipelines.wal.hours import Hour
from pitr_pipelines.wal.lsn import WalFileKind
from pitr_pipelines.wal.timelines import TimelineHistory

Entry = TypeVar("Entry", bound=BaseModel)


class BundleEntry(BaseModel):
    """A bundle's record without its members: what planning and the manifest need of it.

    Sizes in bytes: of the bundle file, and of the WAL in it when unpacked.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    hour: Hour
    state: BundleState
    system_identifier: str | None
    wal_segment_size: int | None
    seal: SealRecord | None
    runs: tuple[WalRun, ...]
    size_bytes: int
    raw_bytes: int
    segments: int

    @classmethod
    def of(cls, record: BundleRecord) -> BundleEntry:
        return cls(
            hour=record.hour,
            state=record.state,
            system_identifier=record.system_identifier,
            wal_segment_size=record.wal_segment_size,
            seal=record.seal,
            runs=record.runs,
            size_bytes=record.file.size_bytes if record.file else 0,
            raw_bytes=record.raw_bytes,
            segments=len(record.segments),
        )

    @property
    def closed_at(self) -> datetime | None:
        """When the server closed the newest segment in it."""
        return max((run.closed_at for run in self.runs), default=None)


class Remembered(BaseModel, Generic[Entry]):
    """What was read from a record file of this size and mtime."""

    size_bytes: int
    mtime_ns: int
    entry: Entry


class RecordCache(BaseModel):
    """The records of one database that were read before, by file name."""

    bases: dict[str, Remembered[BaseRecord]] = {}
    bundles: dict[str, Remembered[BundleEntry]] = {}

    @property
    def newest_ns(self) -> int:
        """When the newest record was written, in nanoseconds since 1970; 0 if there is none."""
        written = [held.mtime_ns for held in self.bases.values()]
        written += [held.mtime_ns for held in self.bundles.values()]
        return max(written, default=0)


@dataclass(frozen=True, slots=True)
class Inventory:
    """Everything that exists of one database, oldest first.

    `problems` names, in a line each, the records that could not be read.
    """

    database: str
    bases: tuple[BaseRecord, ...]
    bundles: tuple[BundleEntry, ...]
    raw: tuple[ArchivedFile, ...]
    histories: Mapping[int, TimelineHistory]
    problems: tuple[str, ...]

    @property
    def segment_size(self) -> int | None:
        """The cluster's WAL segment size in bytes, or None while nothing tells it."""
        if self.bases:
            return self.bases[-1].wal_segment_size
        for entry in reversed(self.bundles):
            if entry.wal_segment_size is not None:
                return entry.wal_segment_size
        for file in self.raw:
            if file.kind is WalFileKind.SEGMENT:
                return file.size_bytes
        return None

    def coverage(self, *, raw: bool = True) -> Coverage:
        """Return the WAL that exists, wherever it lies; without the raw archive if `raw` is false."""
        runs = [run for entry in self.bundles for run in entry.runs]
        if raw:
            runs += [
                WalRun(first=file.segment, last=file.segment, closed_at=file.closed_at)
                for file in self.raw
                if file.kind is WalFileKind.SEGMENT
            ]
        seals = [entry.seal for entry in self.bundles if entry.seal is not None]
        return Coverage.of(runs, self.segment_size or 1, bases=self.bases, seals=seals)

    def branch(self, timeline: int | None = None, *, raw: bool = True) -> TimelineHistory | None:
        """Return the history of a timeline; by default of the one the server wrote last."""
        timeline = timeline or self.coverage(raw=raw).newest_timeline()
        if timeline is None:
            return None
        return self.histories.get(timeline, TimelineHistory(timeline))

    def without(self, artifacts: Collection[date | Hour | str]) -> Inventory:
        """Return what is left without some bases (by day), bundles (by hour) and raw files (by name)."""
        return replace(
            self,
            bases=tuple(base for base in self.bases if base.day not in artifacts),
            bundles=tuple(entry for entry in self.bundles if entry.hour not in artifacts),
            raw=tuple(file for file in self.raw if file.name not in artifacts),
        )

    def windows(self, *, raw: bool = True) -> tuple[list[Window], list[Gap]]:
        """Return the spans that can be restored, oldest first, and the gaps that end them."""
        branch = self.branch(raw=raw)
        return windows(self.bases, self.coverage(raw=raw), branch) if branch else ([], [])

    def bases_on_branch(self) -> list[BaseRecord]:
        """Return the bases from which recovery leads to the newest WAL, if nothing is missing between."""
        branch = self.branch()
        return [b for b in self.bases if branch is not None and branch.includes(b.timeline, b.end_lsn)]

    def gaps(self) -> list[Gap]:
        """Return every gap between the oldest base and the newest WAL, oldest first."""
        branch, bases = self.branch(), self.bases_on_branch()
        return follow(bases[0].first_segment, self.coverage(), branch) if branch and bases else []

    def base_after(self, gap: Gap) -> BaseRecord | None:
        """Return the oldest base on the branch that starts after a gap, or None."""
        size = self.segment_size or 1
        later = (b for b in self.bases_on_branch() if b.first_segment.number(size) > gap.first.number(size))
        return next(later, None)


def read_inventory(layout: Layout, database: str) -> Inventory:
    """Read what exists of a database, with the help of what was read before. Writes nothing."""
    return take_inventory(layout, database, read_cache(layout, database))[0]


def take_inventory(layout: Layout, database: str, cache: RecordCache) -> tuple[Inventory, RecordCache]:
    """Read what exists of a database; return it with the cache for the next time."""
    problems: list[str] = []
    bases: dict[str, Remembered[BaseRecord]] = {}
    for directory in _names(layout.bases(database)):
        path = layout.bases(database) / directory / BASE_RECORD
        _recall(path, directory, cache.bases, bases, read_base_record, problems)
    bundles: dict[str, Remembered[BundleEntry]] = {}
    for name in _names(layout.bundles(database)):
        if name.endswith(".json") and not name.endswith(".seal.json"):
            path = layout.bundles(database) / name
            _recall(path, name, cache.bundles, bundles, _read_bundle, problems)
    raw = archive.scan_archive(layout.wal(database))
    histories = {}
    for file in raw:
        if file.kind is WalFileKind.HISTORY:
            try:
                history = archive.read_history(file.path)
                histories[history.timeline] = history
            except ArtifactDamaged as error:
                problems.append(error.what)
    inventory = Inventory(
        database,
        tuple(sorted((held.entry for held in bases.values()), key=lambda base: base.ended_at)),
        tuple(sorted((held.entry for held in bundles.values()), key=lambda entry: entry.hour)),
        tuple(raw),
        histories,
        tuple(problems),
    )
    return inventory, RecordCache(bases=bases, bundles=bundles)


def read_cache(layout: Layout, database: str) -> RecordCache:
    """Read what is remembered of a database's records; nothing, if that cannot be used."""
    try:
        return RecordCache.model_validate_json(_cache_file(layout, database).read_bytes())
    except (OSError, ValidationError):
        return RecordCache()


def write_cache(layout: Layout, database: str, cache: RecordCache) -> None:
    """Remember the records of a database."""
    durable.write_whole(_cache_file(layout, database), cache.model_dump_json())


def _cache_file(layout: Layout, database: str) -> Path:
    return layout.manifest.with_name(f".{database}.records.json")


def _names(directory: Path) -> list[str]:
    try:
        return sorted(path.name for path in directory.iterdir() if not path.name.startswith("."))
    except FileNotFoundError:
        return []


def _recall(
    path: Path,
    name: str,
    known: Mapping[str, Remembered[Entry]],
    found: dict[str, Remembered[Entry]],
    read: Callable[[Path], Entry],
    problems: list[str],
) -> None:
    try:
        status = path.stat()
        held = known.get(name)
        if held is None or (held.size_bytes, held.mtime_ns) != (status.st_size, status.st_mtime_ns):
            held = Remembered(size_bytes=status.st_size, mtime_ns=status.st_mtime_ns, entry=read(path))
        found[name] = held
    except (FileNotFoundError, NotADirectoryError):
        return  # no record, no artifact
    except ArtifactDamaged as error:
        problems.append(error.what)
    except OSError as error:
        problems.append(f"the record {path} cannot be read: {error.strerror}")


def read_base_record(path: Path) -> BaseRecord:
    """Read a base's record. Raises FileNotFoundError, or ArtifactDamaged if it is bad or misplaced."""
    record = read_record(path, BaseRecord)
    _check_place(path, path.parent.parent.name, record.database, path.parent.name, str(record.day))
    return record


def read_bundle_record(path: Path) -> BundleRecord:
    """Read a bundle's record. Raises FileNotFoundError, or ArtifactDamaged if it is bad or misplaced."""
    record = read_record(path, BundleRecord)
    _check_place(path, path.parent.name, record.database, path.stem, str(record.hour))
    return record


def _read_bundle(path: Path) -> BundleEntry:
    return BundleEntry.of(read_bundle_record(path))


def _check_place(path: Path, database: str, its_database: str, key: str, its_key: str) -> None:
    """Refuse a record that is not where it belongs: a copy, or another database's."""
    if (database, key) != (its_database, its_key):
        raise ArtifactDamaged(
            f"the record {path} is about {its_key} of {its_database}",
            remedy="Move it, with the artifact beside it, back to where it belongs.",
        )
