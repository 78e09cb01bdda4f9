"""The stage: a directory laid out like `backup_root`, for one restore of one database from envelopes.

In it lie the records from the envelopes, symbolic links to every artifact that is still in `backup_root`
(which wins over its copy), and, once asked for, the files of bases and bundles. The raw WAL archive in
`backup_root` counts as well. So what is left here and what the envelopes hold make one history.

An artifact that turns out damaged gives way to its next copy: another envelope's, or an older making.
`backup_root` is only read. What was fetched stays in the stage until the restore succeeds.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path

from pitr_pipelines import durable
from pitr_pipelines.catalog.inventory import read_bundle_record
from pitr_pipelines.catalog.layout import Layout
from pitr_pipelines.catalog.records import BundleRecord, BundleState
from pitr_pipelines.errors import ArtifactDamaged
from pitr_pipelines.offsite.envelope_index import IndexEntry, MemberKind
from pitr_pipelines.offsite.left_here import LeftHere, left_here
from pitr_pipelines.offsite.shelf import Copy, Shelf
from pitr_pipelines.offsite.staged_histories import remember_histories
from pitr_pipelines.progress import Progress, Report, silent
from pitr_pipelines.restore.integrity import Damage
from pitr_pipelines.wal import bundle_file
from pitr_pipelines.wal.hours import Hour

Artifact = date | Hour
"""A base by its day, or a bundle by its hour."""

_COMPARED = ".compared"


class AnotherCopy(Exception):
    """Another copy of an artifact has taken a damaged one's place: what was planned with it is void."""


@dataclass(frozen=True, slots=True)
class StagedLayout(Layout):
    """The paths of a stage. Raw WAL is looked for in `local` too."""

    local: Layout

    def archives(self, database: str) -> tuple[Path, ...]:
        return (self.local.wal(database), self.wal(database))


class Stage:
    """One database's stage; a `Retrieval` for planning.

    `damaged` is what no good copy is left of, `notes` what other copies made up for, and `fetched_bytes`
    counts what came, damaged or not.
    """

    def __init__(self, shelf: Shelf, database: str, root: Path, local: Layout) -> None:
        """Look for what there is. Raises BadRequest if the shelf holds nothing of the database."""
        self.database = database
        self.layout = StagedLayout(root, local)
        self.damaged: list[Damage] = []
        self.notes: list[str] = []
        self.fetched_bytes = 0
        self.shelf = shelf
        self._copies: dict[Artifact, list[Copy]] = {}
        self._histories: list[list[Copy]] = []
        self._staged: dict[Artifact, str] = {}
        """Which record lies in the stage, by its SHA-256; artifacts in `backup_root` have none."""
        self._here: set[Artifact] = set()
        """Artifacts whose files were fetched, or seen to be whole."""
        for copies in shelf.copies(database).values():
            kind, key = copies[0].record.artifact.kind, copies[0].key
            if kind is MemberKind.HISTORY:
                self._histories.append(copies)
            elif kind is MemberKind.RECORD and key is not None:
                self._copies[key] = copies
        self._local = {held.artifact: held for held in left_here(local, database)}

    def set_up(self, report: Report = silent) -> None:
        """Fetch every record and history, and link what is in `backup_root`."""
        self._clear()
        self._staged.clear()
        self._here.clear()
        for artifact, held in list(self._local.items()):
            if self._holds_less(held):
                del self._local[artifact]
            else:
                self._link(held)
        self._bring_records(report)
        self._bring_histories()
        self.remember_histories()

    def remember_histories(self) -> None:
        """Let inventories know the histories in bundles that are not fetched."""
        while True:
            try:
                remember_histories(self.layout, self.database, self.provide)
            except AnotherCopy:
                continue
            return

    def envelope_of(self, hour: Hour) -> date | None:
        """Return the day of the envelope that an hour's bundle comes from; None if it lies here."""
        copy = self.copy_of(hour)
        return copy.envelope.day if copy is not None else None

    def copy_of(self, artifact: Artifact) -> Copy | None:
        """Return the copy that is used of an artifact; None if it lies in `backup_root`."""
        copies = self._copies.get(artifact)
        return copies[0] if copies and artifact not in self._local else None

    def provide(self, artifact: Artifact) -> None:
        """See to it that a base's files, or a bundle's, can be read. Raises as `provide_all` does."""
        self.provide_all([artifact])

    def provide_all(self, artifacts: Iterable[Artifact], report: Report = silent) -> None:
        """Fetch what is not here of these artifacts.

        Raises AnotherCopy if one was damaged and now has another record, or none; and StoreUnavailable.
        """
        wanted = [artifact for artifact in artifacts if artifact not in self._here]
        before = {artifact: self._staged.get(artifact) for artifact in wanted}
        while wanted:
            failed = {artifact: self._local_problem(artifact) for artifact in wanted}
            copies = [copy for artifact in wanted if (copy := self.copy_of(artifact)) is not None]
            for copy, problem in self._fetch([(copy, copy.payload) for copy in copies], "fetch", report):
                if copy.key is not None:
                    failed[copy.key] = problem
            for artifact, said in failed.items():
                if said is None:
                    self._here.add(artifact)
                else:
                    self._discard(artifact, said)
            self._bring_records()
            wanted = [artifact for artifact in wanted if failed[artifact] and self.copy_of(artifact)]
        if any(self._staged.get(artifact) != sha256 for artifact, sha256 in before.items()):
            raise AnotherCopy

    def give_up(self, artifact: Artifact, problem: str) -> None:
        """Take the next copy of an artifact in the place of one that is damaged; if there is none, none."""
        self._discard(artifact, problem)
        self._bring_records()

    def is_whole(self, entry: IndexEntry) -> bool:
        """Tell whether a member seems to lie in the stage already, by its size."""
        with suppress(OSError):
            return self._path(entry).stat().st_size == entry.artifact.size_bytes
        return False

    def holds_files(self) -> bool:
        """Tell whether anything lies in the stage that was long to fetch."""
        rooms = (self.layout.bases(self.database), self.layout.bundles(self.database))
        return any(
            not name.endswith(".json") and not Path(directory, name).is_symlink()
            for room in rooms
            for directory, _, files in os.walk(room)
            for name in files
        )

    def remove(self) -> None:
        """Delete the stage; what its links point to stays."""
        shutil.rmtree(self.layout.root, ignore_errors=True)

    def _discard(self, artifact: Artifact, problem: str) -> None:
        """Drop the copy that is used of an artifact; what lies in the stage of it goes, if it is a link."""
        self._here.discard(artifact)
        if self._local.pop(artifact, None) is not None:
            if isinstance(artifact, Hour):
                self.layout.bundle_record(self.database, artifact).unlink(missing_ok=True)
                self.layout.bundle(self.database, artifact).unlink(missing_ok=True)
            else:
                self.layout.base(self.database, artifact).unlink()
        elif artifact in self._copies:
            self._copies[artifact].pop(0)
        if self._copies.get(artifact):
            other = self._copies[artifact][0].envelope.day
            self.notes.append(f"passed over, for the copy in the envelope of {other}: {problem}")
        else:
            self._copies.pop(artifact, None)
            if self._staged.pop(artifact, None) is not None:
                self._record(artifact).unlink(missing_ok=True)
            self.damaged.append(Damage(artifact, problem))

    def _bring_records(self, report: Report = silent) -> None:
        """Let the record of the copy that is used of each artifact lie in the stage."""
        while wanted := [
            copy
            for artifact in list(self._copies)
            if (copy := self.copy_of(artifact)) and self._staged.get(artifact) != copy.record.artifact.sha256
        ]:
            failed = dict(self._fetch([(copy, (copy.record,)) for copy in wanted], "records", report))
            for copy in wanted:
                assert copy.key is not None
                if copy in failed:
                    self._discard(copy.key, failed[copy])
                else:
                    self._staged[copy.key] = copy.record.artifact.sha256

    def _bring_histories(self) -> None:
        wanted = [copies[0] for copies in self._histories]
        while wanted:
            failed = dict(self._fetch([(copy, copy.entries) for copy in wanted], "histories", silent))
            for copies in self._histories:
                if copies and copies[0] in failed:
                    self.notes.append(f"passed over, because damaged: {failed[copies.pop(0)]}")
            wanted = [copies[0] for copies in self._histories if copies and not self._has(copies[0])]

    def _fetch(
        self, wanted: Sequence[tuple[Copy, tuple[IndexEntry, ...]]], step: str, report: Report
    ) -> list[tuple[Copy, str]]:
        """Fetch members, envelope by envelope; return the copies that are damaged, and how."""
        absent = {id(copy): [e for e in entries if not self.is_whole(e)] for copy, entries in wanted}
        total = sum(entry.length for entries in absent.values() for entry in entries)
        done = 0

        def count(size_bytes: int) -> None:
            nonlocal done
            done += size_bytes
            self.fetched_bytes += size_bytes
            report(Progress(step, min(done, total), total))

        failed = []
        for envelope in self.shelf.envelopes:
            held = [(copy, entries) for copy, entries in wanted if copy.envelope is envelope and entries]
            held.sort(key=lambda pair: min(entry.offset for entry in pair[1]))
            reader, source = envelope.reader((e for copy, _ in held for e in absent[id(copy)]), count)
            try:
                for copy, entries in held:
                    try:
                        reader.fetch(entries, self.layout.root, replace=True, durably=False)
                    except ArtifactDamaged as error:
                        failed.append((copy, error.what))
            finally:
                source.close()
        return failed

    def _holds_less(self, held: LeftHere) -> bool:
        """Tell whether the envelopes hold more of an hour that is still open here."""
        copies = self._copies.get(held.artifact)
        if not copies or not isinstance(held.record, BundleRecord) or held.record.state is BundleState.CLOSED:
            return False
        reader, source = copies[0].envelope.reader([copies[0].record])
        try:
            (path,) = reader.fetch([copies[0].record], self.layout.root / _COMPARED, replace=True)
            theirs = read_bundle_record(path)
        except ArtifactDamaged:
            return False
        finally:
            source.close()
        return theirs.state is BundleState.CLOSED or _until(theirs) > _until(held.record)

    def _link(self, held: LeftHere) -> None:
        target = self._record(held.artifact)
        if not isinstance(held.artifact, Hour):
            if target.parent.exists():
                shutil.rmtree(target.parent)  # fetched when it was not here
            durable.make_directory(target.parent.parent)
            target.parent.symlink_to(held.path.parent.resolve())
            return
        durable.make_directory(target.parent)
        for name in (held.path.name, *(file.name for file in held.files)):
            target.with_name(name).unlink(missing_ok=True)
            target.with_name(name).symlink_to(held.path.with_name(name).resolve())

    def _local_problem(self, artifact: Artifact) -> str | None:
        """Say what is wrong with a bundle in `backup_root`. Bases are read when the plan stands."""
        held = self._local.get(artifact)
        if held is not None and isinstance(artifact, Hour):
            try:
                for file in held.files:
                    bundle_file.verify_file(held.file(file), file)
            except ArtifactDamaged as error:
                return error.what
        return None

    def _clear(self) -> None:
        """Keep only what was fetched of bases and bundles, and is worth keeping."""
        durable.make_directory(self.layout.root)
        shutil.rmtree(self.layout.root / _COMPARED, ignore_errors=True)
        for room in (self.layout.bases(self.database), self.layout.bundles(self.database)):
            for directory, directories, files in os.walk(room, followlinks=False):
                for path in (Path(directory, name) for name in (*directories, *files)):
                    if path.is_symlink() or path.suffix in (".json", ".tmp"):
                        path.unlink()
        shutil.rmtree(self.layout.wal(self.database), ignore_errors=True)

    def _has(self, copy: Copy) -> bool:
        return self._path(copy.record).exists()

    def _record(self, artifact: Artifact) -> Path:
        if isinstance(artifact, Hour):
            return self.layout.bundle_record(self.database, artifact)
        return self.layout.base_record(self.database, artifact)

    def _path(self, entry: IndexEntry) -> Path:
        return self.layout.root / entry.artifact.path


def _until(record: BundleRecord) -> tuple[bool, datetime | None]:
    return bool(record.runs), max((run.closed_at for run in record.runs), default=None)
