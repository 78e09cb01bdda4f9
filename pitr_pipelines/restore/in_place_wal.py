"""WAL where a restored server takes its original's place, and goes on filling the same archive.

Three promises. Its new timeline has a number that no WAL of this database has had, whatever branches
there were, because the archive refuses a second file of one name. What it wrote before archiving was
on again, its timeline's history above all, is archived once it starts; what came out of the backups
is not offered to them again. And WAL that only the old data directory has is counted, never used.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pitr_pipelines.catalog.inventory import Inventory
from pitr_pipelines.catalog.records import BaseRecord
from pitr_pipelines.errors import ArtifactDamaged
from pitr_pipelines.restore.wal_source import WalIndex
from pitr_pipelines.wal.archive import read_header
from pitr_pipelines.wal.lsn import Lsn, SegmentName, WalFileKind, classify
from pitr_pipelines.wal.timelines import history_file_name

_LONG_HEADER = 40
_TAKEN = "# taken: pitr restore keeps a restored server from this number\n"


@dataclass(frozen=True, slots=True)
class ArchiveStatus:
    """Which files of a pg_wal are to be marked for archiving, and which as archived."""

    ready: frozenset[str]
    done: frozenset[str]


def highest_timeline(inventory: Inventory, names: Iterable[str], control: Mapping[str, str]) -> int:
    """Return the highest timeline that is known: to the backups, to a pg_wal's `names`, to `control`."""
    known = {1, *inventory.histories, *(base.timeline for base in inventory.bases)}
    known |= {run.last.timeline for entry in inventory.bundles for run in entry.runs}
    names = [*names, *(file.name for file in inventory.raw)]
    known |= {int(name[:8], 16) for name in names if classify(name) is not None}
    for label in ("Latest checkpoint's TimeLineID", "Min recovery ending loc's timeline"):
        with suppress(KeyError, ValueError):
            known.add(int(control[label]))
    return max(known)


def reserve_timelines(pg_wal: Path, followed: int, highest: int) -> list[Path]:
    """Make recovery along the timeline `followed` choose a new one above `highest`; return what was made.

    It takes the first number above the one it follows of which it finds no history file, in the
    archive or in pg_wal, and it reads none of them. What is made must be removed after recovery.
    Source: findNewestTimeLine() and RestoreArchivedFile() in PostgreSQL's src/backend/access/transam.
    """
    made = []
    for timeline in range(followed + 1, highest + 1):
        path = pg_wal / history_file_name(timeline)
        if not path.exists():
            path.write_text(_TAKEN)
            path.chmod(0o644)
            made.append(path)
    return made


def decide_status(names: Iterable[str], timeline: int, written_to: Lsn, segment_size: int) -> ArchiveStatus:
    """Decide what a server that is on the new `timeline`, and stopped at `written_to`, has to archive.

    All WAL of other timelines came out of the backups. Of the new one, the history and the segments
    that are full are to be archived; the one that is written to is not yet, nor are those kept ready
    for later.
    """
    ready, done = set(), set()
    for name in names:
        kind = classify(name)
        if kind is None:
            continue
        if int(name[:8], 16) != timeline:
            done.add(name)
        elif kind is WalFileKind.HISTORY or (
            kind is WalFileKind.SEGMENT
            and SegmentName.parse(name).number(segment_size) < int(written_to) // segment_size
        ):
            ready.add(name)
    return ArchiveStatus(frozenset(ready), frozenset(done))


def mark_for_archiver(pg_wal: Path, status: ArchiveStatus) -> list[Path]:
    """Write the status files, as PostgreSQL's archiver reads them; return those that are there now."""
    directory = pg_wal / "archive_status"
    directory.mkdir(mode=0o700, exist_ok=True)
    for old in directory.iterdir():
        old.unlink()
    marks = [directory / f"{name}.ready" for name in sorted(status.ready)]
    marks += [directory / f"{name}.done" for name in sorted(status.done)]
    for mark in marks:
        mark.touch(mode=0o600)
    return marks


def only_here(
    pg_wal: Path, index: WalIndex, base: BaseRecord, control: Mapping[str, str] | None
) -> list[SegmentName]:
    """Return the segments of a stopped server's pg_wal that the backups do not have, oldest first.

    Segments kept ready for later are told by their first page, which is not theirs yet. One in which
    there is nothing but the record of a clean shutdown does not count.
    """
    return sorted(_only_here(pg_wal, index, base, control or {}))


def _only_here(
    pg_wal: Path, index: WalIndex, base: BaseRecord, control: Mapping[str, str]
) -> Iterator[SegmentName]:
    size = base.wal_segment_size
    last = None
    if control.get("Database cluster state") == "shut down":
        last = Lsn.parse(control["Latest checkpoint location"])
    for path in pg_wal.iterdir():
        if classify(path.name) is not WalFileKind.SEGMENT:
            continue
        name = SegmentName.parse(path.name)
        try:
            header = read_header(path)
        except (ArtifactDamaged, OSError):
            continue
        if header.start != name.start(size) or header.system_identifier != base.system_identifier:
            continue
        if last is not None and last - name.start(size) == _LONG_HEADER:
            continue
        if index.find(name, base) is None:
            yield name
