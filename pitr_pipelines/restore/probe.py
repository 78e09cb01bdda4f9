"""Answers the planner's questions about WAL content, with pg_waldump, on scratch copies.

Looks at a handful of segments around the target. Raw files are linked by symbolic link and members
of bundles unpacked into a scratch directory that is removed afterwards.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from pitr_pipelines.catalog.layout import Layout
from pitr_pipelines.postgres.binaries import Binaries
from pitr_pipelines.postgres.wal_inspect import TransactionEnd, read_tail, transaction_ends
from pitr_pipelines.restore.plan import CLOCK_MARGIN
from pitr_pipelines.restore.wal_source import InArchive, InBase, InBundle, WalSegment
from pitr_pipelines.wal import bundle_file
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

    def covered_until(self, previous: WalSegment | None, segment: WalSegment) -> datetime:
        """Return up to when the chain that ends with `segment` provably holds every commit.

        Everything the server wrote before a segment switch is in the chain, so the switch, which
        the file's mtime follows at once, proves as much as a commit does.
        """
        known = [end.at for end in self._ends(previous, segment)]
        path = self._path_of(segment)
        if path is not None and read_tail(self.binaries(), path, segment.name, self.segment_size).switched:
            known.append(segment.closed_at - CLOCK_MARGIN)
        return max(known, default=datetime.min.replace(tzinfo=segment.closed_at.tzinfo))

    def _ends(self, previous: WalSegment | None, segment: WalSegment) -> list[TransactionEnd]:
        first = segment.name
        if previous is not None and previous.name.timeline == first.timeline and self._path_of(previous):
            first = previous.name
        key = (first, segment.name)
        if key not in self._seen:
            path = self._path_of(segment)
            self._seen[key] = (
                []
                if path is None
                else list(transaction_ends(self.binaries(), path, first, segment.name, self.segment_size))
            )
        return self._seen[key]

    def _path_of(self, segment: WalSegment) -> Path | None:
        """Put a segment into the scratch directory and return that; None for one inside a base."""
        path = self.scratch / str(segment.name)
        if path.exists():
            return self.scratch
        match segment.place:
            case InArchive(file):
                path.symlink_to(file.path)
            case InBundle(hour, member):
                bundle = self.layout.bundle(self.database, hour)
                path.write_bytes(bundle_file.read_member(bundle, member))
            case InBase():
                return None
        return self.scratch


@contextmanager
def waldump_probe(
    layout: Layout, database: str, segment_size: int, binaries: Callable[[], Binaries]
) -> Iterator[WaldumpProbe]:
    """Give a probe for the length of the block."""
    with tempfile.TemporaryDirectory(prefix="pitr-probe-") as scratch:
        yield WaldumpProbe(layout, database, segment_size, binaries, Path(scratch))
