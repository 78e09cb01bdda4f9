"""Answers the planner's questions about WAL content, with pg_waldump, on scratch copies.

Looks at a handful of segments around the target. Raw files are linked by symbolic link and members
of bundles unpacked into a scratch directory that is removed afterwards.
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
from pitr_pipelines.postgres.wal_inspect import TransactionEnd, transaction_ends
from pitr_pipelines.restore.integrity import Damage, UnreadableSource
from pitr_pipelines.restore.wal_source import InArchive, InBase, InBundle, WalSegment, artifact_of
from pitr_pipelines.wal import bundle_file
from pitr_pipelines.wal.archive import check_segment, read_header
from pitr_pipelines.wal.lsn import SegmentName


@dataclass(slots=True)
class WaldumpProbe:
    """A planner's `Probe` that reads WAL. `binaries` is called only if there is a question."""

    layout: Layout
    database: str
    segment_size: int
    binaries: Callable[[], Binaries]
    scratch: Path
    _seen: dict[tuple[SegmentName, SegmentName], list[TransactionEnd]] = field(default_factory=dict)

    def ends_transaction_after(
        self, previous: WalSegment | None, segment: WalSegment, moment: datetime
    ) -> bool:
        """Tell whether a commit or abort later than `moment` is recorded in `segment`."""
        return any(end.at > moment for end in self._ends(previous, segment))

    def last_transaction(self, previous: WalSegment | None, segment: WalSegment) -> datetime | None:
        """Return the time of the last commit or abort recorded in `segment`, if there is one."""
        return max((end.at for end in self._ends(previous, segment)), default=None)

    def _ends(self, previous: WalSegment | None, segment: WalSegment) -> list[TransactionEnd]:
        first = segment
        if previous is not None and previous.name.timeline == segment.name.timeline:
            first = previous
        key = (first.name, segment.name)
        if key not in self._seen:
            for part in (first, segment):
                with _naming(part):
                    self._put(part)
            with _naming(segment):
                self._seen[key] = list(
                    transaction_ends(
                        self.binaries(), self.scratch, first.name, segment.name, self.segment_size
                    )
                )
        return self._seen[key]

    def _put(self, segment: WalSegment) -> None:
        """Put a segment into the scratch directory."""
        path = self.scratch / str(segment.name)
        if path.exists():
            return
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


@contextmanager
def _naming(segment: WalSegment) -> Iterator[None]:
    """Say which artifact it is that is damaged, so that a plan may do without it."""
    try:
        yield
    except ArtifactDamaged as error:
        raise UnreadableSource(Damage(artifact_of(segment), error.what), remedy=error.remedy) from None


@contextmanager
def waldump_probe(
    layout: Layout, database: str, segment_size: int, binaries: Callable[[], Binaries]
) -> Iterator[WaldumpProbe]:
    """Give a probe for the length of the block."""
    with tempfile.TemporaryDirectory(prefix="pitr-probe-") as scratch:
        yield WaldumpProbe(layout, database, segment_size, binaries, Path(scratch))
