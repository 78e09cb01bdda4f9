"""Fetching: everything that recovery will read is unpacked, checked, and put beside the new cluster.

The base backup becomes the data directory. Each WAL segment of the plan is staged under its plain
name, as are the history files of its branch; and the list `expected`, written last, says which files
there are, so that recovery can tell a file that never existed from one that was lost. Nothing is
synced here, nothing in the backups is changed, and what is staged is only ever read.
"""

from __future__ import annotations

import os
import shutil
from collections import defaultdict
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from pitr_pipelines.catalog.inventory import read_inventory
from pitr_pipelines.catalog.layout import Layout
from pitr_pipelines.catalog.records import BaseRecord, read_record
from pitr_pipelines.errors import ArtifactDamaged
from pitr_pipelines.postgres.account import Account, give
from pitr_pipelines.postgres.base_contents import damaged, extract_base
from pitr_pipelines.postgres.tar_stream import TarStream
from pitr_pipelines.progress import Progress, Report, silent
from pitr_pipelines.restore.destination import Destination
from pitr_pipelines.restore.plan import Plan
from pitr_pipelines.restore.wal_source import InArchive, InBase, InBundle, Place, WalIndex, WalSegment
from pitr_pipelines.wal import archive, bundle_file
from pitr_pipelines.wal.lsn import SegmentName
from pitr_pipelines.wal.timelines import TimelineHistory, history_file_name

EXPECTED = "expected"
"""The list of staged files; it is there only when all of them are."""

_SCRIPT = Path(__file__).with_name("restore-wal.sh")
_MEMORY_BYTES = 512 * 1024**2
"""How much unpacked WAL may be in memory at once."""


def fetch(
    layout: Layout, plan: Plan, destination: Destination, account: Account, *, report: Report = silent
) -> int:
    """Unpack the base and stage the WAL of `plan`; return how many files were staged.

    WAL is unpacked in threads while the base is. Raises ArtifactDamaged, naming the file, and
    PitrError or OSError where it cannot be written.
    """
    stage = Stage(layout, plan, destination.staging, account)
    tablespaces = {
        tablespace.oid: destination.tablespaces / str(tablespace.oid) for tablespace in plan.base.tablespaces
    }
    workers = max(1, min(os.cpu_count() or 1, _MEMORY_BYTES // plan.base.wal_segment_size))
    with ThreadPoolExecutor(workers, "pitr-fetch") as pool:
        try:
            staging = stage.begin(pool)
            extract_base(
                layout.base(plan.database, plan.base.day),
                plan.base,
                destination.data_directory,
                tablespaces,
                account,
                progress=report,
            )
            names: list[str] = []
            for done, future in enumerate(staging, 1):
                names += future.result()
                report(Progress("unpack", done, len(staging), "files"))
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    stage.keep_what_was_left(destination.data_directory / "pg_wal")
    shutil.copyfile(_SCRIPT, destination.script)
    destination.script.chmod(0o644)
    stage.finish(names)
    return len(names)


@dataclass(frozen=True, slots=True)
class Stage:
    """The directory in which the WAL of a plan is put ready for recovery."""

    layout: Layout
    plan: Plan
    directory: Path
    account: Account

    def begin(self, pool: ThreadPoolExecutor) -> list[Future[list[str]]]:
        """Put the work into `pool`; each future gives the names of the files that it staged."""
        futures: list[Future[list[str]]] = []
        bases: dict[date, set[str]] = defaultdict(set)
        # Raw files first: they are the ones that may be pruned, once they are in a bundle.
        for segment in sorted(self.plan.segments, key=lambda s: not isinstance(s.place, InArchive)):
            match segment.place:
                case InBase(day):
                    if day != self.plan.base.day:
                        bases[day].add(str(segment.name))
                case InArchive() | InBundle():
                    futures.append(pool.submit(self.put, segment))
        futures += [pool.submit(self.put_from_base, day, names) for day, names in bases.items()]
        futures.append(pool.submit(self.put_histories))
        return futures

    def finish(self, names: Iterable[str]) -> None:
        """Write the list of all that is staged."""
        temporary = self.directory / f".{EXPECTED}"
        self._write(temporary, "".join(f"{name}\n" for name in sorted(names)).encode())
        temporary.rename(self.directory / EXPECTED)

    def keep_what_was_left(self, pg_wal: Path) -> None:
        """Put the segments in which the branch left a timeline into `pg_wal` under that timeline's name.

        Recovery reads such a segment from the successor, which begins with a copy of it. But a server
        that stops before the switch, with a transaction prepared in that segment, looks for it in pg_wal
        under the old name only, and ends if it is not there. What the base itself carries of that segment
        may be no more than its begin: pg_basebackup receives a little beyond where the backup ends.
        Source: XlogReadTwoPhaseData in PostgreSQL's src/backend/access/transam/twophase.c.
        """
        size = self.plan.base.wal_segment_size
        staged = {segment.name.number(size): segment.name for segment in self.plan.segments}
        for ancestor in self.plan.branch.ancestors:
            number, used = divmod(int(ancestor.switched_at), size)
            successor = staged.get(number)
            if not used or successor is None or successor.timeline <= ancestor.timeline:
                continue
            copy = pg_wal / str(SegmentName.numbered(number, ancestor.timeline, size))
            source = self.directory / str(successor)
            if source.exists():
                copy.unlink(missing_ok=True)
                with source.open("rb") as file:
                    self._write(copy, file.read(used).ljust(size, b"\0"))
                # It is the server's from here on, to recycle like any other.
                copy.chmod(0o600)
                give(copy, self.account)

    def put(self, segment: WalSegment) -> list[str]:
        """Stage one segment from where the plan found it, or from where it is by now."""
        try:
            self._put(segment.name, segment.place)
        except (FileNotFoundError, ArtifactDamaged):
            # Bundling may have moved it since the plan was made.
            index = WalIndex(self.layout, read_inventory(self.layout, self.plan.database))
            found = index.find(segment.name, self.plan.base)
            if found is None or found.place == segment.place or isinstance(found.place, InBase):
                raise
            self._put(found.name, found.place)
        return [str(segment.name)]

    def put_from_base(self, day: date, wanted: set[str]) -> list[str]:
        """Stage segments that only another base backup carries."""
        directory = self.layout.base(self.plan.database, day)
        record = read_record(self.layout.base_record(self.plan.database, day), BaseRecord)
        recorded = next((file for file in record.files if file.name.startswith("pg_wal.tar")), None)
        if recorded is None:
            raise damaged(directory, "its record names no pg_wal.tar")
        path = directory / recorded.name
        missing = set(wanted)
        try:
            with TarStream(path) as stream:
                for member in stream:
                    if member.name in missing:
                        missing.remove(member.name)
                        self._write(self.directory / member.name, stream.read())
        except ValueError as error:
            raise damaged(path, str(error)) from None
        if stream.digest != recorded:
            raise damaged(path, f"it should have SHA-256 {recorded.sha256} and has {stream.digest.sha256}")
        if missing:
            raise damaged(path, f"it does not hold {min(missing)}")
        return sorted(wanted)

    def put_histories(self) -> list[str]:
        """Stage the history files of the branch. Timeline 1 has none.

        Recovery cannot do without the target timeline's own; if the archive has lost it, it is
        written from what the plan knows, which is all that recovery takes from it.
        """
        branch = self.plan.branch
        staged = []
        for timeline in (*(ancestor.timeline for ancestor in branch.ancestors), branch.timeline):
            name = history_file_name(timeline)
            try:
                content = (self.layout.wal(self.plan.database) / name).read_bytes()
            except FileNotFoundError:
                if timeline != branch.timeline or timeline == 1:
                    continue
                content = _history(branch).encode()
            self._write(self.directory / name, content)
            staged.append(name)
        return staged

    def _put(self, name: SegmentName, place: Place) -> None:
        target = self.directory / str(name)
        match place:
            case InBundle(hour, member):
                path = self.layout.bundle(self.plan.database, hour)
                content = bundle_file.read_member(path, member)
                self._check_cluster(archive.parse_header(content[: archive.LONG_HEADER_BYTES], path), path)
                self._write(target, content)
            case InArchive(file):
                header = archive.read_header(file.path)
                archive.check_segment(header, file.path, file.path.stat().st_size)
                self._check_cluster(header, file.path)
                if not self._link(file.path, target):
                    self._copy(file.path, target)
            case InBase(day):
                raise AssertionError(f"{name} is in the base {day}, which is read as a whole")

    def _check_cluster(self, header: archive.SegmentHeader, path: Path) -> None:
        if header.system_identifier != self.plan.base.system_identifier:
            raise ArtifactDamaged(
                f"{path} holds WAL of the cluster {header.system_identifier}, but the base backup of "
                f"{self.plan.base.day} is of {self.plan.base.system_identifier}",
                remedy="Each cluster needs a database name, and so an archive, of its own; move the foreign "
                "file away.",
            )

    def _link(self, source: Path, target: Path) -> bool:
        """Link a raw file if recovery, which only reads it, can do so as it is."""
        if self.account.switch:
            status = source.stat()
            if status.st_uid == self.account.uid:
                readable = status.st_mode & 0o400
            elif status.st_gid == self.account.gid:
                readable = status.st_mode & 0o040
            else:
                readable = status.st_mode & 0o004
            if not readable:
                return False
        try:
            target.hardlink_to(source)
        except OSError:  # another file system, or one without links, or not ours to link
            return False
        return True

    def _copy(self, source: Path, target: Path) -> None:
        with source.open("rb") as opened, open(self._create(target), "wb") as file:
            shutil.copyfileobj(opened, file, 1024 * 1024)

    def _write(self, target: Path, content: bytes | memoryview) -> None:
        with open(self._create(target), "wb", buffering=0) as file:
            view = memoryview(content)
            while view:
                view = view[file.write(view) :]

    def _create(self, target: Path) -> int:
        descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        if self.account.switch:
            os.fchown(descriptor, -1, self.account.gid)
            os.fchmod(descriptor, 0o640)
        return descriptor


def _history(branch: TimelineHistory) -> str:
    """Return a history file of a branch, with the reasons left out."""
    return "".join(f"{a.timeline}\t{a.switched_at}\tunknown\n\n" for a in branch.ancestors)
