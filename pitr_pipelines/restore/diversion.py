"""Keeping replay out of the original's tablespaces.

The tablespaces of a base backup get places of their own. But one that was created after it is made
again by replay, and PostgreSQL makes it where the record says: in the directory of the original. On
the original's machine replay would then write over its live files, without an error; on any other it
ends because the directory is missing. Nothing in PostgreSQL's settings prevents either.

So before recovery begins, every file of WAL that it can read is searched for such records, and each is
replaced, in a copy, by one that makes the tablespace inside the data directory. Afterwards it is
given its place beside the others. The archive and the bundles are never changed: a staged file
that is a link to one is replaced by a copy first.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pitr_pipelines.errors import ArtifactDamaged
from pitr_pipelines.postgres.account import Account, give
from pitr_pipelines.postgres.binaries import Binaries
from pitr_pipelines.postgres.server import Cluster
from pitr_pipelines.postgres.wal_inspect import first_record
from pitr_pipelines.progress import Progress, Report, silent
from pitr_pipelines.restore.destination import Destination
from pitr_pipelines.wal import tablespace_records
from pitr_pipelines.wal.lsn import Lsn, SegmentName, WalFileKind, classify
from pitr_pipelines.wal.tablespace_records import Creation

_LINKS = "pg_tblspc"
_BEGINNING_BYTES = 128 * 1024
"""Of the next segment: more than what a record that began before can need of it."""


@dataclass(frozen=True, slots=True)
class Diverted:
    """A tablespace that was created after the base backup, and where the original has it."""

    oid: int
    location: str


Segments = Mapping[int, Sequence[Path]]
"""The files that hold a segment, by its number: one that was staged, and one that the base carries."""


def divert(
    destination: Destination,
    segment_size: int,
    binaries: Binaries,
    account: Account,
    *,
    report: Report = silent,
) -> tuple[Diverted, ...]:
    """Replace every record of CREATE TABLESPACE that recovery could read; return what they created.

    `segment_size` is in bytes. Raises ArtifactDamaged, PitrError or OSError where it cannot be told
    whether there is one: then recovery must not begin.
    """
    segments = _segments(destination, segment_size)
    found: dict[int, Diverted] = {}
    changes: dict[Path, list[tuple[int, bytes]]] = defaultdict(list)
    for done, number in enumerate(sorted(segments), 1):
        for path in segments[number]:
            for creation, places in _creations(path, number, segments, segment_size, binaries):
                found[creation.oid] = Diverted(creation.oid, creation.location)
                for place, offset, content in places:
                    changes[place].append((offset, content))
        report(Progress("inspect", done, len(segments), "segments"))
    for path, parts in changes.items():
        _replace(path, parts, account, ours=path.parent == destination.staging)
    return tuple(found.values())


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


def _segments(destination: Destination, segment_size: int) -> dict[int, list[Path]]:
    found: dict[int, list[Path]] = defaultdict(list)
    for directory in (destination.staging, destination.data_directory / "pg_wal"):
        for path in directory.iterdir():
            if classify(path.name) is WalFileKind.SEGMENT:
                found[SegmentName.parse(path.name).number(segment_size)].append(path)
    return found


def _creations(
    path: Path, number: int, segments: Segments, segment_size: int, binaries: Binaries
) -> Iterator[tuple[Creation, list[tuple[Path, int, bytes]]]]:
    """Yield each record that begins in one file, and what is to be put where instead of it."""
    following: Sequence[Path | None] = segments.get(number + 1) or [None]
    with _mapped(path) as segment:
        for after in following:
            beginning = b"" if after is None else _beginning(after)
            try:
                size = tablespace_records.page_bytes(segment)
                offsets = sorted(tablespace_records.candidates(segment, beginning))
            except ValueError as error:
                raise ArtifactDamaged(
                    f"the segment {path.name} that recovery would read is damaged: {error}",
                    remedy="`pitr verify` finds damaged files; restore from another base backup.",
                ) from None
            for offset in offsets:
                header = tablespace_records.read(segment, beginning, offset, 24)
                length = tablespace_records.record_bytes(header)
                if length is None:
                    continue
                record = tablespace_records.read(segment, beginning, offset, length)
                creation = tablespace_records.parse_creation(record) if len(record) == length else None
                lsn = Lsn(number * segment_size + offset)
                if creation is None or not _begins(lsn, path, after, segment_size, binaries):
                    continue
                places = []
                put = 0
                for at, taken in tablespace_records.pieces(offset, length, size, segment_size):
                    inside = at < segment_size
                    where = path if inside else after
                    assert where is not None
                    content = creation.replacement[put : put + taken]
                    places.append((where, at if inside else at - segment_size, content))
                    put += taken
                yield creation, places


def _begins(lsn: Lsn, path: Path, after: Path | None, segment_size: int, binaries: Binaries) -> bool:
    """Ask PostgreSQL whether a record begins there: what looks like one may be somebody's data."""
    name = SegmentName.parse(path.name)
    last = name
    with tempfile.TemporaryDirectory(prefix="pitr-divert-") as scratch:
        (Path(scratch) / str(name)).symlink_to(path)
        if after is not None:
            last = name.following(segment_size)
            (Path(scratch) / str(last)).symlink_to(after)
        return first_record(binaries, Path(scratch), name, last, segment_size, lsn) == lsn


def _replace(path: Path, parts: Iterable[tuple[int, bytes]], account: Account, *, ours: bool) -> None:
    """Put a changed copy in the place of a file, which may be a link into the archive."""
    content = bytearray(path.read_bytes())
    for offset, part in parts:
        content[offset : offset + len(part)] = part
    copy = path.with_name(f".{path.name}.diverted")
    with open(os.open(copy, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as file:
        file.write(content)
        if account.switch and ours:
            os.fchown(file.fileno(), -1, account.gid)
            os.fchmod(file.fileno(), 0o640)
    if not ours:
        give(copy, account)
    copy.rename(path)


def _beginning(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(_BEGINNING_BYTES)


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
