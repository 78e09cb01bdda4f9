"""Bundles: one hour's WAL of one database, in one file, with a record.

The promise: whatever is bundled, in whatever order and however often it is interrupted, every hour
ends with one bundle that holds exactly the hour's segments, and no raw segment is removed before
the bundle that holds it was read back from disk. A closed, intact bundle is never changed, except
to take in segments of its hour that arrived late.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from pitr_pipelines import durable
from pitr_pipelines.catalog.layout import Layout
from pitr_pipelines.catalog.records import (
    BundleMember,
    BundleRecord,
    BundleState,
    FileDigest,
    SealRecord,
    WalRun,
    read_record,
    write_record,
)
from pitr_pipelines.errors import ArtifactDamaged, BadRequest, ForeignWal, PitrError
from pitr_pipelines.progress import Report, silent
from pitr_pipelines.settings import Settings
from pitr_pipelines.wal import archive, bundle_file
from pitr_pipelines.wal.archive import ArchivedFile
from pitr_pipelines.wal.assignment import Fixed, assign_hours
from pitr_pipelines.wal.hours import Hour
from pitr_pipelines.wal.lsn import SegmentName, WalFileKind
from pitr_pipelines.wal.pruning import prune_raw
from pitr_pipelines.wal.salvage import return_to_archive
from pitr_pipelines.wal.sealing import seal_hour
from pitr_pipelines.wal.timelines import history_file_name


@dataclass(frozen=True, slots=True)
class BundleOutcome:
    """What bundling an hour came to.

    `changed` is false when a closed bundle was found intact. `problem` says why the hour could not
    be closed although it is over (its server was out of reach, say): what there is was bundled all
    the same, and the same call closes it later. `pruned` counts the raw files that were removed.
    """

    record: BundleRecord
    changed: bool
    pruned: int
    problem: PitrError | None


@dataclass(frozen=True, slots=True)
class _RawFile:
    """A file of the archive on its way into a bundle; checked while it is read."""

    file: ArchivedFile
    system_identifier: str | None

    @property
    def name(self) -> str:
        return self.file.name

    @property
    def size_bytes(self) -> int:
        return self.file.size_bytes

    def pack(self) -> bundle_file.PackedMember:
        file = self.file
        with archive.open_file(file.path) as opened:
            if file.kind in (WalFileKind.SEGMENT, WalFileKind.PARTIAL):
                self._check(opened.read(archive.LONG_HEADER_BYTES), os.fstat(opened.fileno()).st_size)
                opened.seek(0)
            try:
                return bundle_file.pack_member(file.name, file.kind, file.closed_at, file.size_bytes, opened)
            except bundle_file.UNPACKING_ERRORS as error:
                raise ArtifactDamaged(
                    f"{file.path} could not be packed: {error}",
                    remedy="Bundle the hour again; if this comes back, suspect the disk or the memory.",
                ) from None

    def _check(self, first_bytes: bytes, size_bytes: int) -> None:
        path = self.file.path
        header = archive.parse_header(first_bytes, path)
        archive.check_segment(header, path, size_bytes)
        if self.system_identifier not in (None, header.system_identifier):
            raise ArtifactDamaged(
                f"the archived segment {path} is of the cluster {header.system_identifier}, "
                f"but this archive is of {self.system_identifier}",
                remedy="Find out which server wrote it and give that server an archive of its own; "
                "then move the file out of this one.",
            )


def make_bundle(
    settings: Settings,
    database: str,
    hour: Hour,
    *,
    now: datetime | None = None,
    seal: bool = True,
    report: Report = silent,
) -> BundleOutcome:
    """Bundle one hour of one database, sealing it first where that is still possible.

    The newest hour that is over gets its seal; the running hour is bundled early and stays open.
    `now` is injected by tests. With `seal` false the server is not asked for anything. Raises
    BadRequest for an hour that has not begun and ArtifactDamaged for files that cannot be bundled.
    """
    settings.database(database)
    now = now or datetime.now(UTC)
    if hour.start > now:
        raise BadRequest(
            f"the hour {hour} has not begun (it is {now:%Y-%m-%d %H:%M:%S} UTC)",
            remedy=f"The newest hour that can be bundled is {Hour.containing(now)}; hours are in UTC.",
        )
    layout = Layout(settings.backup_root)
    durable.make_directory(layout.bundles(database))
    with durable.exclusive_lock(layout.bundle_lock(database), subject=f"{database}'s bundles", wait=True):
        _remove_leftovers(layout.bundles(database))
        _set_aside_unreadable(layout.bundle_record(database, hour))
        return_to_archive(layout, database, hour)
        work = _Hour(settings, layout, database, hour, now, report)
        return work.bundle(seal=seal)


@dataclass(slots=True)
class _Hour:
    """One hour being bundled, under the database's lock."""

    settings: Settings
    layout: Layout
    database: str
    hour: Hour
    now: datetime
    report: Report

    def bundle(self, *, seal: bool) -> BundleOutcome:
        existing = self._existing()
        files = archive.scan_archive(self.layout.wal(self.database))
        hours = self._assign(files, existing)
        if existing and existing.state is BundleState.CLOSED:
            return BundleOutcome(*self._make(existing, files, hours, closed=True, seal=existing.seal), None)

        sealed: SealRecord | None = None
        problem: PitrError | None = None
        running = self.hour.end > self.now
        if seal and (running or self.hour == Hour.containing(self.now).preceding()):
            try:
                sealed = seal_hour(self.settings, self.layout, self.database, self.hour, self.now)
            except PitrError as error:
                problem = error
            files = archive.scan_archive(self.layout.wal(self.database))
            hours = self._assign(files, existing)
        elif self.layout.seal_record(self.database, self.hour).exists():
            sealed = read_record(self.layout.seal_record(self.database, self.hour), SealRecord)

        # Where another server's WAL is in the way, later WAL does not prove that this hour is complete.
        closed = not running and not isinstance(problem, ForeignWal) and self._is_closed(hours, sealed)
        record, changed, pruned = self._make(existing, files, hours, closed=closed, seal=sealed)
        if closed or (running and sealed):
            problem = None
        elif not running and problem is None:
            problem = BadRequest(
                f"the archive of {self.database} does not reach the end of the hour {self.hour} yet",
                remedy="Bundle it again once the server has archived later WAL; bundling the newest hour "
                "that is over seals it, which makes the server do so.",
            )
        return BundleOutcome(record, changed, pruned, problem)

    def _existing(self) -> BundleRecord | None:
        """Return the hour's record if its file is intact; a damaged one can only be made again."""
        try:
            record = read_record(self.layout.bundle_record(self.database, self.hour), BundleRecord)
        except FileNotFoundError:
            return None
        if record.file is not None:
            try:
                bundle_file.verify_file(self.layout.bundle(self.database, self.hour), record.file)
            except ArtifactDamaged:
                raw = {file.name for file in archive.scan_archive(self.layout.wal(self.database))}
                if not raw.issuperset(member.name for member in record.members):
                    raise
                return None
        return record

    def _assign(
        self, files: Sequence[ArchivedFile], existing: BundleRecord | None
    ) -> dict[SegmentName, Hour]:
        """Assign the archive's segments, and those that an early bundle took and may have to give up."""
        closed_at = {f.segment: f.closed_at for f in files if f.kind is WalFileKind.SEGMENT}
        for member in existing.segments if existing else ():
            closed_at.setdefault(SegmentName.parse(member.name), member.closed_at)
        return assign_hours(closed_at, self._fixed(min(closed_at.values(), default=self.now)))

    def _fixed(self, since: datetime) -> list[Fixed]:
        """Read what is settled from the oldest raw segment's hour on; older facts bound nothing."""
        oldest = str(min(Hour.containing(since), self.hour).preceding())
        facts = []
        for path in self.layout.bundles(self.database).glob("[0-9]*.json"):
            if path.name >= oldest:
                # What another hour's unreadable record settled is not known; `pitr verify` names it, and
                # it must not keep this hour from being bundled.
                with suppress(ArtifactDamaged):
                    facts += _settled_by(path)
        return facts

    def _is_closed(self, hours: dict[SegmentName, Hour], sealed: SealRecord | None) -> bool:
        if sealed is not None:
            return True
        if any(hour > self.hour for hour in hours.values()):
            return True
        last = str(self.hour)
        return any(
            path.name[: len(last)] > last and not path.name.endswith(".seal.json") and _holds_wal(path)
            for path in self.layout.bundles(self.database).glob("[0-9]*.json")
        )

    def _make(
        self,
        existing: BundleRecord | None,
        files: Sequence[ArchivedFile],
        hours: dict[SegmentName, Hour],
        *,
        closed: bool,
        seal: SealRecord | None,
    ) -> tuple[BundleRecord, bool, int]:
        """Write bundle and record, unless they would hold what the existing ones hold."""
        # The server was asked for its history file when it was sealed: so the archive has the right one.
        vouched = seal is not None and (existing is None or existing.state is BundleState.OPEN)
        chosen = self._choose(existing, files, hours, trust_histories=vouched)
        state = BundleState.CLOSED if closed else BundleState.OPEN
        if existing is not None and not closed:
            # A restore point made early stays one until the hour is closed; then its own seal counts.
            seal = seal or existing.seal
        if (
            existing is not None
            and existing.state is state
            and existing.seal == seal
            and [source.name for source in chosen] == [member.name for member in existing.members]
        ):
            return existing, False, self._prune() if closed else 0
        record = self._write(chosen, state, seal)
        return record, True, self._prune() if closed else 0

    def _choose(
        self,
        existing: BundleRecord | None,
        files: Sequence[ArchivedFile],
        hours: dict[SegmentName, Hour],
        *,
        trust_histories: bool,
    ) -> list[bundle_file.Source]:
        """Return the hour's files in order of name: raw ones, and what only the old bundle has.

        History files never change, so those of the old bundle stay, unless those of the archive are known
        to be the server's.
        """
        identifier = archive.owner(self.layout.wal(self.database), files)
        raw = {file.name: file for file in files}
        chosen: dict[str, bundle_file.Source] = {}
        held: dict[str, bundle_file.Source] = {}
        for file in files:
            if file.kind is WalFileKind.SEGMENT:
                wanted = hours[file.segment] == self.hour
            else:
                wanted = file.kind is not WalFileKind.HISTORY and Hour.containing(file.closed_at) == self.hour
            if wanted:
                chosen[file.name] = _RawFile(file, identifier)
        if existing is not None and existing.file is not None:
            bundle = self.layout.bundle(self.database, self.hour)
            for member in existing.members:
                if member.name in chosen:
                    continue
                if member.kind is WalFileKind.HISTORY and not trust_histories:
                    held[member.name] = bundle_file.MemberOf(bundle, member)
                if existing.state is BundleState.OPEN and member.kind is WalFileKind.SEGMENT:
                    # A later seal may have given a segment that was bundled early to the hour before.
                    if hours[SegmentName.parse(member.name)] != self.hour:
                        continue
                elif existing.state is BundleState.OPEN and member.name in raw:
                    continue
                chosen[member.name] = bundle_file.MemberOf(bundle, member)
        for timeline in {int(name[:8], 16) for name in chosen}:
            history = raw.get(history_file_name(timeline))
            if history is not None and history.name not in chosen:
                chosen[history.name] = held.get(history.name, _RawFile(history, None))
        return [chosen[name] for name in sorted(chosen)]

    def _write(
        self, sources: Sequence[bundle_file.Source], state: BundleState, seal: SealRecord | None
    ) -> BundleRecord:
        path = self.layout.bundle(self.database, self.hour)
        temporary = durable.temporary_name(path)
        file: FileDigest | None = None
        members: tuple[BundleMember, ...] = ()
        try:
            if sources:
                file, members = bundle_file.write_bundle(
                    temporary,
                    sources,
                    name=path.name,
                    workers=self.settings.bundle.workers,
                    report=self.report,
                )
            record = self._describe(file, members, state, seal)
            if file is not None:
                bundle_file.verify_file(temporary, file)
            # Between here and the new record the hour has a file without a record: it counts as not
            # bundled, and `return_to_archive` takes up from there.
            durable.remove_durably(self.layout.bundle_record(self.database, self.hour))
            if file is not None:
                durable.replace_durably(temporary, path)
            else:
                durable.remove_durably(path)
            write_record(self.layout.bundle_record(self.database, self.hour), record)
        finally:
            temporary.unlink(missing_ok=True)
        return record

    def _describe(
        self,
        file: FileDigest | None,
        members: tuple[BundleMember, ...],
        state: BundleState,
        seal: SealRecord | None,
    ) -> BundleRecord:
        segments = [member for member in members if member.kind is WalFileKind.SEGMENT]
        identifier = size = None
        if segments:
            newest = segments[-1]
            path = self.layout.wal(self.database) / newest.name
            temporary = durable.temporary_name(self.layout.bundle(self.database, self.hour))
            header = archive.parse_header(bundle_file.read_member(temporary, newest)[:64], path)
            identifier, size = header.system_identifier, header.segment_size
        return BundleRecord(
            database=self.database,
            hour=self.hour,
            state=state,
            system_identifier=identifier,
            wal_segment_size=size,
            seal=seal,
            runs=_runs(segments, size or 0),
            file=file,
            members=members,
        )

    def _prune(self) -> int:
        oldest_kept = self.now - timedelta(hours=self.settings.bundle.keep_raw_hours)
        return prune_raw(self.layout, self.database, bundled=self.hour, before=oldest_kept)


def _runs(segments: Sequence[BundleMember], segment_size: int) -> tuple[WalRun, ...]:
    """Return the consecutive runs in segments that are sorted by name."""
    runs: list[WalRun] = []
    for member in segments:
        segment = SegmentName.parse(member.name)
        first = segment
        if runs and runs[-1].last.following(segment_size) == segment:
            first = runs.pop().first
        runs.append(WalRun(first=first, last=segment, closed_at=member.closed_at))
    return tuple(runs)


def _settled_by(path: Path) -> list[Fixed]:
    """Return what a record says for ever about which segment belongs to which hour."""
    if path.name.endswith(".seal.json"):
        seal = read_record(path, SealRecord)
        return [Fixed(seal.segment, seal.hour)]
    record = read_record(path, BundleRecord)
    if record.state is not BundleState.CLOSED:
        return []
    return [Fixed(segment, record.hour) for run in record.runs for segment in (run.first, run.last)]


def _holds_wal(path: Path) -> bool:
    with suppress(ArtifactDamaged):
        record = read_record(path, BundleRecord)
        return record.state is BundleState.CLOSED and bool(record.runs)
    return False


def _set_aside_unreadable(path: Path) -> None:
    """Put a record that cannot be read out of the way: its bundle says itself what it holds."""
    try:
        read_record(path, BundleRecord)
    except FileNotFoundError:
        return
    except ArtifactDamaged:
        durable.replace_durably(path, path.with_name(f".{path.name}.unreadable"))


def _remove_leftovers(directory: Path) -> None:
    """Remove what an interrupted bundling left under temporary names. The lock is held."""
    for path in directory.glob(".*.tmp"):
        path.unlink(missing_ok=True)
