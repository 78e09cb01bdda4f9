"""Answers the planner's questions about WAL content, with pg_waldump, on scratch copies.

Looks at a handful of segments around the target; for a name or an xid, at one after the other. Raw
files are linked by symbolic link and members of bundles unpacked into a scratch directory that
holds no more than a few at once and is removed afterwards.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date, datetime
from pathlib import Path

from pitr_pipelines.catalog.layout import Layout
from pitr_pipelines.errors import ArtifactDamaged
from pitr_pipelines.postgres.binaries import Binaries
from pitr_pipelines.postgres.wal_inspect import (
    TransactionEnd,
    first_record,
    last_record,
    restore_points,
    transaction_ends,
)
from pitr_pipelines.restore.integrity import Damage, UnreadableSource
from pitr_pipelines.restore.retrieval import Retrieval, provide_for
from pitr_pipelines.restore.wal_source import InArchive, InBase, InBundle, WalSegment, artifact_of
from pitr_pipelines.wal import bundle_file
from pitr_pipelines.wal.archive import check_segment, read_header
from pitr_pipelines.wal.lsn import Lsn, SegmentName

_KEPT = 4
"""How many segments are in the scratch directory at once; a question is about two."""


@dataclass(slots=True)
class WaldumpProbe:
    """A planner's `Probe` that reads WAL. `binaries` is called only if there is a question."""

    layout: Layout
    database: str
    segment_size: int
    binaries: Callable[[], Binaries]
    scratch: Path
    retrieval: Retrieval | None = None
    _seen: dict[tuple[SegmentName, SegmentName], list[TransactionEnd]] = field(default_factory=dict)
    _kept: dict[SegmentName, None] = field(default_factory=dict)
    """What is in the scratch directory, the latest used last."""

    def ends_transaction_after(
        self, previous: WalSegment | None, segment: WalSegment, moment: datetime
    ) -> bool:
        """Tell whether a commit or abort later than `moment` is recorded in `segment`."""
        return any(end.at > moment for end in self._ends(previous, segment))

    def last_transaction(self, previous: WalSegment | None, segment: WalSegment) -> datetime | None:
        """Return the time of the last commit or abort recorded in `segment`, if there is one."""
        return max((end.at for end in self._ends(previous, segment)), default=None)

    def transaction_end(
        self, previous: WalSegment | None, segment: WalSegment, xid: int
    ) -> TransactionEnd | None:
        """Return the last record in `segment` that ends the transaction `xid`, if there is one."""
        return next((end for end in reversed(self._ends(previous, segment)) if end.xid == xid), None)

    def restore_point(self, previous: WalSegment | None, segment: WalSegment, name: str) -> Lsn | None:
        """Return where the last restore point of that name in `segment` begins, if there is one."""
        first = self._ready(previous, segment)
        with _naming(segment):
            found = restore_points(self.binaries(), self.scratch, first.name, segment.name, self.segment_size)
            return max((lsn for given, lsn in found if given == name), default=None)

    def record_from(self, previous: WalSegment | None, segment: WalSegment, lsn: Lsn) -> Lsn | None:
        """Return where a record begins, at `lsn` or later, that ends in `segment`, if there is one."""
        first = self._ready(previous, segment)
        for part in dict.fromkeys((first, segment)):
            start = max(lsn, part.name.start(self.segment_size))
            with _naming(segment):
                found = first_record(
                    self.binaries(), self.scratch, part.name, segment.name, self.segment_size, start
                )
            if found is not None:
                return found
        return None

    def last_record(
        self, previous: WalSegment | None, segment: WalSegment, *, may_end_torn: bool = False
    ) -> Lsn | None:
        """Return where the last record that ends in `segment` begins, if there is one.

        `may_end_torn` says that the segment need not be readable to its end.
        """
        first = self._ready(previous, segment)
        with _naming(segment):
            return last_record(
                self.binaries(),
                self.scratch,
                first.name,
                segment.name,
                self.segment_size,
                may_end_torn=may_end_torn,
            )

    def _ends(self, previous: WalSegment | None, segment: WalSegment) -> list[TransactionEnd]:
        first = _together(previous, segment)
        key = (first.name, segment.name)
        if key not in self._seen:
            self._ready(previous, segment)
            with _naming(segment):
                self._seen[key] = list(
                    transaction_ends(
                        self.binaries(), self.scratch, first.name, segment.name, self.segment_size
                    )
                )
        return self._seen[key]

    def _ready(self, previous: WalSegment | None, segment: WalSegment) -> WalSegment:
        """Put what is to be looked at into the scratch directory; return the first of it."""
        first = _together(previous, segment)
        for part in (first, segment):
            with _naming(part):
                self._put(part)
            self._kept[part.name] = self._kept.pop(part.name, None)
        while len(self._kept) > _KEPT:
            (self.scratch / str(next(iter(self._kept)))).unlink()
            del self._kept[next(iter(self._kept))]
        return first

    def _put(self, segment: WalSegment) -> None:
        """Put a segment into the scratch directory."""
        path = self.scratch / str(segment.name)
        if path.exists():
            return
        provide_for(self.retrieval, segment)
        match segment.place:
            case InArchive(file):
                check_segment(read_header(file.path), file.path, file.size_bytes)
                path.symlink_to(file.path)
            case InBundle(hour, member):
                bundle = self.layout.bundle(self.database, hour)
                path.write_bytes(bundle_file.read_member(bundle, member))
            case InBase(day):
                self._unpack_from_base(day, path)

    def _unpack_from_base(self, day: date, path: Path) -> None:
        # Hardly ever needed, and slow to import.
        from pitr_pipelines.postgres.base_contents import damaged
        from pitr_pipelines.postgres.tar_stream import TarStream

        directory = self.layout.base(self.database, day)
        packed = next(directory.glob("pg_wal.tar*"), directory / "pg_wal.tar")
        try:
            with TarStream(packed) as stream:
                for member in stream:
                    if member.name == path.name:
                        path.write_bytes(stream.read())
                        return
        except (OSError, ValueError) as error:
            raise damaged(packed, str(error)) from None
        raise damaged(packed, f"it does not hold {path.name}")


def _together(previous: WalSegment | None, segment: WalSegment) -> WalSegment:
    """Return the segment to begin with, so that a record that began in the one before is seen."""
    same = previous is not None and previous.name.timeline == segment.name.timeline
    return previous if previous is not None and same else segment


@contextmanager
def _naming(segment: WalSegment) -> Iterator[None]:
    """Say which artifact it is that is damaged, so that a plan may do without it."""
    try:
        yield
    except ArtifactDamaged as error:
        raise UnreadableSource(Damage(artifact_of(segment), error.what), remedy=error.remedy) from None


@contextmanager
def waldump_probe(
    layout: Layout,
    database: str,
    segment_size: int,
    binaries: Callable[[], Binaries],
    retrieval: Retrieval | None = None,
) -> Iterator[WaldumpProbe]:
    """Give a probe for the length of the block."""
    with tempfile.TemporaryDirectory(prefix="pitr-probe-") as scratch:
        yield WaldumpProbe(layout, database, segment_size, binaries, Path(scratch), retrieval)
