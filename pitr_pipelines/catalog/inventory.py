"""What exists of one database: its bases, its bundles, its raw WAL.

Reading never changes anything. A record that cannot be read is listed as a problem and left out:
one bad file, or one bad database, never hides the rest. Records do not change once written, so those
already seen are remembered by size and mtime, and the work grows with what is new.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import date, datetime
from pathlib import Path
from typing import Generic, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from pitr_pipelines import durable
from pitr_pipelines.catalog.coverage import Coverage, Gap, Window, follow, windows
from pitr_pipelines.catalog.expired import ExpiredRun, read_expired
from pitr_pipelines.catalog.histories import (
    BundledHistory,
    archived_histories,
    bundled_histories,
    read_bundled_history,
    settle,
)
from pitr_pipelines.catalog.layout import BASE_RECORD, Layout
from pitr_pipelines.catalog.lineage import Life, Sighting, Standing, newest_sighting, server_timeline
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
from pitr_pipelines.wal.timelines import TimelineHistory, history_file_name

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
    histories: tuple[BundledHistory, ...]

    @classmethod
    def of(cls, record: BundleRecord, histories: Iterable[BundledHistory] = ()) -> BundleEntry:
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
            histories=tuple(histories),
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

    `histories` says where timelines came from, as far as history files tell, and `began` when those were
    written; `contested` names the timelines of which they tell different things. `seen` is where the
    server was seen just now; without it, what exists says where it was last. `problems` names, in a line
    each, what could not be read or contradicts itself. `expired` is the WAL that retention removed: where
    that is missing, there is no gap.
    """

    database: str
    bases: tuple[BaseRecord, ...]
    bundles: tuple[BundleEntry, ...]
    raw: tuple[ArchivedFile, ...]
    histories: Mapping[int, TimelineHistory]
    problems: tuple[str, ...]
    began: Mapping[int, datetime] = field(default_factory=dict)
    contested: Mapping[int, str] = field(default_factory=dict)
    seen: Sighting | None = None
    expired: tuple[ExpiredRun, ...] = ()
    _coverage: dict[tuple[bool, bool], Coverage] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )
    """What `coverage` found before: a dozen questions about one inventory ask for it."""

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

    def coverage(self, *, raw: bool = True, expired: bool = False) -> Coverage:
        """Return the WAL that exists, wherever it lies; without the raw archive if `raw` is false.

        With `expired`, what retention removed is there too, which shows what is missing besides.
        """
        asked = raw, expired
        if asked not in self._coverage:
            self._coverage[asked] = self._find_coverage(raw=raw, expired=expired)
        return self._coverage[asked]

    def _find_coverage(self, *, raw: bool, expired: bool) -> Coverage:
        runs = [run for entry in self.bundles for run in entry.runs]
        if expired:
            runs += [run.as_run() for run in self.expired]
        if raw:
            runs += [
                WalRun(first=file.segment, last=file.segment, closed_at=file.closed_at)
                for file in self.raw
                if file.kind is WalFileKind.SEGMENT
            ]
        seals = [entry.seal for entry in self.bundles if entry.seal is not None]
        return Coverage.of(runs, self.segment_size or 1, bases=self.bases, seals=seals)

    def branch(self, timeline: int | None = None, *, raw: bool = True) -> TimelineHistory | None:
        """Return the history of a timeline; by default of the one that the server is on."""
        if timeline is None:
            standing = self.standing(raw=raw)
            if standing is None:
                return None
            timeline = standing.timeline
        return self._history(timeline)

    def standing(self, *, raw: bool = True) -> Standing | None:
        """Return which timeline the server is on, and how sure that is."""
        lives = [
            Life(self._history(timeline), self.began.get(timeline), written)
            for timeline, written in self.coverage(raw=raw).last_written().items()
        ]
        return server_timeline(lives, self._sighting())

    def timelines(self) -> list[TimelineHistory]:
        """Return every timeline of which there is anything, in order of their numbers."""
        known = {run.timeline for entry in self.bundles for run in entry.runs} | {*self.histories}
        known |= {base.timeline for base in self.bases}
        known |= {file.segment.timeline for file in self.raw if file.kind is WalFileKind.SEGMENT}
        return [self._history(timeline) for timeline in sorted(known)]

    def unexplained(self) -> list[str]:
        """Name the timelines of which it is not known from where they came, although that matters."""
        known = [history.timeline for history in self.timelines()]
        return [
            f"{history_file_name(timeline)} of {self.database} is neither in the archive nor, readable, in a "
            f"bundle: it is not known where timeline {timeline} left timeline {known[0]}, so no base backup "
            f"from before leads to it; `pitr bundle {self.database} --now` asks the server for that file, if "
            "it is on this timeline; else copy it into the archive from pg_wal of one that was"
            for timeline in known[1:]
            if timeline not in self.histories
        ]

    def strays(self) -> list[str]:
        """Name the timelines that somebody writes to beside the server, in a line each."""
        standing = self.standing()
        if standing is None or standing.seen is None:
            return []
        written = self.coverage().last_written()
        seen = standing.seen
        return [
            f"timeline {rival} was written to until {written[rival]:%Y-%m-%d %H:%M:%S}+00:00, although the "
            f"server was last seen on timeline {seen.timeline} ({seen.at:%Y-%m-%d %H:%M:%S}+00:00): a stray "
            f"copy, or a failover; `pitr bundle {self.database} --now` finds out which (docs/timelines.md)"
            for rival in standing.rivals
        ]

    def _history(self, timeline: int) -> TimelineHistory:
        return self.histories.get(timeline, TimelineHistory(timeline))

    def _sighting(self) -> Sighting | None:
        seals = [entry.seal for entry in self.bundles if entry.seal is not None]
        return self.seen or newest_sighting(self.bases, seals)

    def without(self, artifacts: Collection[date | Hour | str]) -> Inventory:
        """Return what is left without some bases (by day), bundles (by hour) and raw files (by name).

        What they say of where the server was seen stays known.
        """
        return replace(
            self,
            seen=self._sighting(),
            bases=tuple(base for base in self.bases if base.day not in artifacts),
            bundles=tuple(entry for entry in self.bundles if entry.hour not in artifacts),
            raw=tuple(file for file in self.raw if file.name not in artifacts),
        )

    def windows(self, *, raw: bool = True) -> tuple[list[Window], list[Gap]]:
        """Return the spans that can be restored, oldest first, and the gaps that end them.

        Without the raw archive (`raw` false) spans end where bundles do; but what lies in it is no gap.
        """
        branch = self.branch(raw=raw)
        if branch is None:
            return [], []
        spans, gaps = windows(self.bases, self.coverage(raw=raw), branch)
        if gaps and (self.expired or not raw):
            gaps = windows(self.bases, self.coverage(expired=True), branch)[1]
        return spans, gaps

    def bases_on_branch(self) -> list[BaseRecord]:
        """Return the bases from which recovery leads to the newest WAL, if nothing is missing between."""
        branch = self.branch()
        return [b for b in self.bases if branch is not None and branch.includes(b.timeline, b.end_lsn)]

    def gaps(self) -> list[Gap]:
        """Return every gap between the oldest base and the newest WAL, oldest first."""
        branch, bases = self.branch(), self.bases_on_branch()
        if branch is None or not bases:
            return []
        return follow(bases[0].first_segment, self.coverage(expired=True), branch)

    def segments_expired(self) -> int:
        """Return how many segments between the oldest base and the newest WAL retention has removed."""
        branch, bases, size = self.branch(), self.bases_on_branch(), self.segment_size or 1
        if not self.expired or branch is None or not bases:
            return 0

        def count(gaps: Iterable[Gap]) -> int:
            return sum(gap.last.number(size) - gap.first.number(size) + 1 for gap in gaps)

        return count(follow(bases[0].first_segment, self.coverage(), branch)) - count(self.gaps())

    def expired_within(self, gap: Gap) -> bool:
        """Tell whether retention removed some of what is missing there."""
        size = self.segment_size or 1
        first, last = gap.first.number(size), gap.last.number(size)
        return any(
            gap.first.timeline <= run.first.timeline <= gap.last.timeline
            and run.first.number(size) <= last
            and first <= run.last.number(size)
            for run in self.expired
        )

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
    raw = [file for place in layout.archives(database) for file in archive.scan_archive(place)]
    entries = [held.entry for held in bundles.values()]
    copies = list(archived_histories(raw, problems))
    for entry in entries:
        copies += bundled_histories(entry.hour, entry.histories, entry.seal)
    origins = settle(copies)
    problems += origins.contested.values()
    expired: tuple[ExpiredRun, ...] = ()
    try:
        expired = read_expired(layout, database)
    except ArtifactDamaged as error:
        problems.append(error.what)
    inventory = Inventory(
        database,
        tuple(sorted((held.entry for held in bases.values()), key=lambda base: base.ended_at)),
        tuple(sorted((_without(entry, origins.foreign) for entry in entries), key=lambda entry: entry.hour)),
        tuple(raw),
        origins.histories,
        tuple(problems),
        origins.began,
        origins.contested,
        expired=expired,
    )
    remembered = {name: held for name, held in bundles.items() if _is_complete(held.entry)}
    return inventory, RecordCache(bases=bases, bundles=remembered)


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
    record = read_bundle_record(path)
    bundle = path.with_name(f"{path.stem}.tar.gz")
    members = (member for member in record.members if member.kind is WalFileKind.HISTORY)
    return BundleEntry.of(record, (read_bundled_history(bundle, member) for member in members))


def _is_complete(entry: BundleEntry) -> bool:
    """Tell whether an entry can be remembered: a bundle that cannot be read now may be put back."""
    return all(history.text is not None for history in entry.histories)


def _without(entry: BundleEntry, foreign: Collection[tuple[Hour, int]]) -> BundleEntry:
    """Leave out of a bundle's entry the WAL of timelines that only share their number with ours."""
    runs = tuple(run for run in entry.runs if (entry.hour, run.timeline) not in foreign)
    return entry if runs == entry.runs else entry.model_copy(update={"runs": runs})


def _check_place(path: Path, database: str, its_database: str, key: str, its_key: str) -> None:
    """Refuse a record that is not where it belongs: a copy, or another database's."""
    if (database, key) != (its_database, its_key):
        raise ArtifactDamaged(
            f"the record {path} is about {its_key} of {its_database}",
            remedy="Move it, with the artifact beside it, back to where it belongs.",
        )
