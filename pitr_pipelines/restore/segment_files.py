"""Making the WAL files that recovery asks for, each whole and checked, from wherever they lie.

A file appears under its name only when all of it is there, so whoever sees it may take it. Nothing in
the backups is changed, linked or moved: what is made belongs to the server's account, which will
rename it, write to it and remove it as its own. Nothing is synced here.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import BinaryIO

from pitr_pipelines.catalog.inventory import read_inventory
from pitr_pipelines.catalog.layout import Layout
from pitr_pipelines.catalog.records import BaseRecord, read_record
from pitr_pipelines.errors import ArtifactDamaged
from pitr_pipelines.postgres.account import Account
from pitr_pipelines.postgres.base_contents import damaged
from pitr_pipelines.postgres.tar_stream import TarStream
from pitr_pipelines.restore.diversion import BEGINNING_BYTES
from pitr_pipelines.restore.plan import Plan
from pitr_pipelines.restore.wal_source import InArchive, InBase, InBundle, WalIndex, WalSegment
from pitr_pipelines.wal import archive, bundle_file
from pitr_pipelines.wal.lsn import SegmentName
from pitr_pipelines.wal.timelines import TimelineHistory, history_file_name

_ZEROS_BYTES = 1024 * 1024
_ZEROS = bytes(_ZEROS_BYTES)
_COPY_BYTES = 1024 * 1024


@dataclass(frozen=True)
class SegmentFiles:
    """Makes the WAL files of one plan, for the server that runs as `account`."""

    layout: Layout
    plan: Plan
    account: Account

    def make(self, segment: WalSegment, path: Path) -> None:
        """Make a segment at `path`, from where the plan found it, or from where it is by now.

        Raises ArtifactDamaged, naming the file, or OSError where it cannot be written.
        """
        try:
            self._make(segment, path)
        except (FileNotFoundError, ArtifactDamaged):
            elsewhere = self._elsewhere(segment)
            if elsewhere is None:
                raise
            self._make(elsewhere, path)

    def make_from_base(self, day: date, names: Collection[str], directory: Path) -> None:
        """Make segments that only another base backup carries, all of them in one pass.

        Raises ArtifactDamaged, naming the file.
        """
        source = self.layout.base(self.plan.database, day)
        record = read_record(self.layout.base_record(self.plan.database, day), BaseRecord)
        recorded = next((file for file in record.files if file.name.startswith("pg_wal.tar")), None)
        if recorded is None:
            raise damaged(source, "its record names no pg_wal.tar")
        path = source / recorded.name
        missing = set(names)
        try:
            with TarStream(path) as stream:
                for member in stream:
                    if member.name in missing:
                        missing.remove(member.name)
                        self.write(directory / member.name, stream.read())
        except ValueError as error:
            raise damaged(path, str(error)) from None
        if stream.digest != recorded:
            raise damaged(path, f"it should have SHA-256 {recorded.sha256} and has {stream.digest.sha256}")
        if missing:
            raise damaged(path, f"it does not hold {min(missing)}")

    def content(self, segment: WalSegment) -> bytes | memoryview:
        """Return what a segment holds. Raises as `make` does."""
        try:
            return self._content(segment)
        except (FileNotFoundError, ArtifactDamaged):
            elsewhere = self._elsewhere(segment)
            if elsewhere is None:
                raise
            return self._content(elsewhere)

    def beginning(self, segment: WalSegment) -> bytes:
        """Return the first BEGINNING_BYTES of a segment, unchecked. Raises as `make` does."""
        try:
            return self._beginning(segment)
        except (FileNotFoundError, ArtifactDamaged):
            elsewhere = self._elsewhere(segment)
            if elsewhere is None:
                raise
            return self._beginning(elsewhere)

    def histories(self) -> Iterator[tuple[str, bytes]]:
        """Yield a history file, by name, for every timeline there is. Timeline 1 has none.

        Recovery cannot do without the target timeline's own. The others it asks for when it is over, to
        find a number that nobody has used: a restored server that took a used one could never archive
        beside it. A file that the archive has lost, or that is damaged there, is written from what the
        plan knows, which is all that recovery takes from it.
        Source: findNewestTimeLine in PostgreSQL's src/backend/access/transam/timeline.c.
        """
        for history in self.plan.all_histories():
            name = history_file_name(history.timeline)
            path = self.layout.wal(self.plan.database) / name
            try:
                content = archive.read_file(path)
                if archive.parse_history(name, content, str(path)) != history:
                    content = _history(history).encode()
            except (OSError, ArtifactDamaged):
                content = _history(history).encode()
            yield name, content

    def write(self, path: Path, content: bytes | memoryview) -> None:
        """Write a file that appears under its name when it is whole.

        The zeros that fill a segment behind its last record become a hole: they need not be written.
        """
        temporary = _unfinished(path)
        with open(self._create(temporary), "wb", buffering=0) as file:
            view = memoryview(content)[: _used(content)]
            while view:
                view = view[file.write(view) :]
            file.truncate(len(content))
        temporary.rename(path)

    def _make(self, segment: WalSegment, path: Path) -> None:
        if not isinstance(segment.place, InArchive):
            self.write(path, self._content(segment))
            return
        raw = segment.place.file
        self._check_raw(raw.path)
        temporary = _unfinished(path)
        with archive.open_file(raw.path) as source, open(self._create(temporary), "wb", buffering=0) as file:
            _copy(source, file)
        temporary.rename(path)

    def _content(self, segment: WalSegment) -> bytes | memoryview:
        match segment.place:
            case InBundle(hour, member):
                path = self.layout.bundle(self.plan.database, hour)
                content = bundle_file.read_member(path, member)
                self._check_cluster(archive.parse_header(content[: archive.LONG_HEADER_BYTES], path), path)
                return content
            case InArchive(file):
                self._check_raw(file.path)
                return archive.read_file(file.path)
            case InBase(day):
                return self._from_base(day, str(segment.name))

    def _beginning(self, segment: WalSegment) -> bytes:
        match segment.place:
            case InBundle(hour, member):
                return bundle_file.read_beginning(
                    self.layout.bundle(self.plan.database, hour), member, BEGINNING_BYTES
                )
            case InArchive(file):
                self._check_raw(file.path)
                with archive.open_file(file.path) as opened:
                    return opened.read(BEGINNING_BYTES)
            case InBase(day):
                return self._from_base(day, str(segment.name))[:BEGINNING_BYTES]

    def _from_base(self, day: date, name: str) -> bytes:
        packed = next(self.layout.base(self.plan.database, day).glob("pg_wal.tar*"))
        try:
            with TarStream(packed) as stream:
                for held in stream:
                    if held.name == name:
                        return bytes(stream.read())
        except ValueError as error:
            raise damaged(packed, str(error)) from None
        raise damaged(packed, f"it does not hold {name}")

    def _elsewhere(self, segment: WalSegment) -> WalSegment | None:
        """Return where a segment is by now, if bundling has moved it since the plan was made."""
        index = WalIndex(self.layout, read_inventory(self.layout, self.plan.database))
        found = index.find(segment.name, self.plan.base)
        moved = found is not None and found.place != segment.place and not isinstance(found.place, InBase)
        return found if moved else None

    def _check_raw(self, path: Path) -> None:
        try:
            header = archive.read_header(path)
            archive.check_segment(header, path, path.stat().st_size)
        except FileNotFoundError:
            raise ArtifactDamaged(
                f"the archived segment {path} has gone away since the restore was planned",
                remedy="Put it back, or plan the restore again: it says which moments can be reached.",
            ) from None
        self._check_cluster(header, path)

    def _check_cluster(self, header: archive.SegmentHeader, path: Path) -> None:
        if header.system_identifier != self.plan.base.system_identifier:
            raise ArtifactDamaged(
                f"{path} holds WAL of the cluster {header.system_identifier}, but the base backup of "
                f"{self.plan.base.day} is of {self.plan.base.system_identifier}",
                remedy="Each cluster needs a database name, and so an archive, of its own; move the foreign "
                "file away.",
            )

    def _create(self, path: Path) -> int:
        """Create a file of the server's, anew: another user owns the directory, so no link is followed."""
        path.unlink(missing_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        if self.account.switch:
            os.fchown(descriptor, self.account.uid, self.account.gid)
        return descriptor


def keep_what_was_left(files: SegmentFiles, pg_wal: Path) -> None:
    """Put the segments in which the branch left a timeline into `pg_wal` under that timeline's name.

    Recovery reads such a segment from the successor, which begins with a copy of it. But a server
    that stops before the switch, with a transaction prepared in that segment, looks for it in pg_wal
    under the old name only, and ends if it is not there.
    Source: XlogReadTwoPhaseData in PostgreSQL's src/backend/access/transam/twophase.c.
    """
    plan = files.plan
    size = plan.base.wal_segment_size
    segments = {segment.name.number(size): segment for segment in plan.segments}
    for ancestor in plan.branch.ancestors:
        number, used = divmod(int(ancestor.switched_at), size)
        successor = segments.get(number)
        if not used or successor is None or successor.name.timeline <= ancestor.timeline:
            continue
        copy = pg_wal / str(SegmentName.numbered(number, ancestor.timeline, size))
        if successor.place != InBase(plan.base.day):
            # The base may have brought the begin of it: pg_basebackup streams a little further than it must.
            copy.unlink(missing_ok=True)
            files.write(copy, bytes(files.content(successor)[:used]).ljust(size, b"\0"))


def _unfinished(path: Path) -> Path:
    return path.with_name(f".{path.name}")


def _used(content: bytes | memoryview) -> int:
    """Return how many bytes there are before the zeros at the end, to the next megabyte."""
    end = len(content)
    while end > 0:
        before = max(0, end - _ZEROS_BYTES)
        if bytes(content[before:end]) != _ZEROS[: end - before]:
            break
        end = before
    return end


def _copy(source: BinaryIO, target: BinaryIO) -> None:
    """Copy a file, within the kernel where it can, and without writing where the file system shares."""
    try:
        while os.copy_file_range(source.fileno(), target.fileno(), 1 << 30):
            pass
    except OSError:
        # Another file system, or one that cannot. The position in the source tells what is missing.
        shutil.copyfileobj(source, target, _COPY_BYTES)


def _history(branch: TimelineHistory) -> str:
    """Return a history file of a branch, with the reasons left out."""
    return "".join(f"{a.timeline}\t{a.switched_at}\tunknown\n\n" for a in branch.ancestors)
