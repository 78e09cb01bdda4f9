"""Keeping replay out of the original's tablespaces.

The tablespaces of a base backup get places of their own. But one that was created after it is made
again by replay, and PostgreSQL makes it where the record says: in the directory of the original. On
the original's machine replay would then write over its live files, without an error; on any other it
ends because the directory is missing. Nothing in PostgreSQL's settings prevents either.

So whatever WAL recovery can read is searched for such records first, and each is replaced, in the
copy that recovery gets, by one that makes the tablespace inside the data directory. Afterwards it is
given its place beside the others. The archive and the bundles are never changed.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pitr_pipelines.errors import ArtifactDamaged
from pitr_pipelines.postgres.account import give
from pitr_pipelines.postgres.binaries import Binaries
from pitr_pipelines.postgres.server import Cluster
from pitr_pipelines.postgres.wal_inspect import first_record
from pitr_pipelines.restore.destination import Destination
from pitr_pipelines.wal import tablespace_records
from pitr_pipelines.wal.lsn import Lsn, SegmentName

_LINKS = "pg_tblspc"
BEGINNING_BYTES = 128 * 1024
"""Of the next segment: more than what a record that began before can need of it."""


@dataclass(frozen=True, slots=True)
class Diverted:
    """A tablespace that was created after the base backup, and where the original has it."""

    oid: int
    location: str


@dataclass(frozen=True, slots=True)
class Change:
    """Bytes to put at an offset of a segment."""

    offset: int
    content: bytes


@dataclass(frozen=True, slots=True)
class Diversion:
    """What is to be changed inside one segment, and beyond it in the one that follows.

    `diverted` are the tablespaces that it then creates elsewhere.
    """

    diverted: tuple[Diverted, ...] = ()
    inside: tuple[Change, ...] = ()
    beyond: tuple[Change, ...] = ()


def find_creations(path: Path, name: SegmentName, following: bytes, binaries: Binaries) -> Diversion:
    """Find every record of CREATE TABLESPACE that begins in the segment `name`, which lies at `path`.

    `following` is the beginning of the segment after it, empty if there is none. Raises ArtifactDamaged
    where it cannot be told whether there is one: then recovery must not read it.
    """
    diverted: list[Diverted] = []
    inside: list[Change] = []
    beyond: list[Change] = []
    with _mapped(path) as segment:
        try:
            size = tablespace_records.page_bytes(segment)
            offsets = sorted(tablespace_records.candidates(segment, following))
        except ValueError as error:
            raise ArtifactDamaged(
                f"the segment {name} that recovery would read is damaged: {error}",
                remedy="`pitr verify` finds damaged files; restore from another base backup.",
            ) from None
        for offset in offsets:
            header = tablespace_records.read(segment, following, offset, 24)
            length = tablespace_records.record_bytes(header)
            if length is None:
                continue
            record = tablespace_records.read(segment, following, offset, length)
            creation = tablespace_records.parse_creation(record) if len(record) == length else None
            if creation is None or not _begins(offset, path, name, len(segment), following, binaries):
                continue
            diverted.append(Diverted(creation.oid, creation.location))
            put = 0
            for at, taken in tablespace_records.pieces(offset, length, size, len(segment)):
                content = creation.replacement[put : put + taken]
                if at < len(segment):
                    inside.append(Change(at, content))
                else:
                    beyond.append(Change(at - len(segment), content))
                put += taken
    return Diversion(tuple(diverted), tuple(inside), tuple(beyond))


def change(path: Path, changes: Sequence[Change]) -> None:
    """Put changes into a segment that was made for this recovery alone."""
    if not changes:
        return
    with path.open("r+b") as file:
        for part in changes:
            file.seek(part.offset)
            file.write(part.content)


def settle(cluster: Cluster, destination: Destination, diverted: Iterable[Diverted]) -> Iterator[str]:
    """Give each tablespace that recovery made a place like that of the others; yield what to tell.

    The server must be stopped. Those that were dropped again before the target are not there.
    """
    for tablespace in diverted:
        made = cluster.data_directory / _LINKS / str(tablespace.oid)
        if made.is_symlink() or not made.is_dir():
            continue
        place = destination.tablespace(tablespace.oid)
        made.rename(place)
        made.symlink_to(place)
        give(made, cluster.account)
        yield (
            f"the tablespace {tablespace.oid} was created after the base backup, in {tablespace.location}; "
            f"here it is in {place}"
        )


def _begins(
    offset: int, path: Path, name: SegmentName, segment_size: int, following: bytes, binaries: Binaries
) -> bool:
    """Ask PostgreSQL whether a record begins there: what looks like one may be somebody's data."""
    lsn = Lsn(name.start(segment_size) + offset)
    last = name
    with tempfile.TemporaryDirectory(prefix="pitr-divert-") as scratch:
        (Path(scratch) / str(name)).symlink_to(path)
        if following:
            last = name.following(segment_size)
            after = Path(scratch) / str(last)
            after.write_bytes(following)
            os.truncate(after, segment_size)
        return first_record(binaries, Path(scratch), name, last, segment_size, lsn) == lsn


@contextmanager
def _mapped(path: Path) -> Iterator[memoryview]:
    with path.open("rb") as file:
        if not os.fstat(file.fileno()).st_size:
            yield memoryview(b"")
            return
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            view = memoryview(mapped)
            try:
                yield view
            finally:
                view.release()
