"""Cutting a cluster's own WAL just behind the last record that recovery replayed.

A cluster that is to stay at its target must come back there from every restart. PostgreSQL's own
pause does not promise that: where nobody can connect when the target is reached, because the
snapshot for standbys is not complete, it promotes at once (recoveryPausesHere() in
src/backend/access/transam/xlogrecovery.c). WAL that is not there, however, is never replayed. Only
files in the cluster's pg_wal are changed, which are copies; a file is replaced whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pitr_pipelines.errors import ArtifactDamaged
from pitr_pipelines.postgres.account import Account, give
from pitr_pipelines.postgres.binaries import Binaries
from pitr_pipelines.postgres.wal_inspect import TransactionEnd, first_record, last_record, transaction_ends
from pitr_pipelines.restore.recovery_log import Stopped
from pitr_pipelines.wal.lsn import Lsn, SegmentName, WalFileKind, classify

_TEMPORARY = "pitr-cut"


@dataclass(frozen=True, slots=True)
class LocalWal:
    """The WAL segments in a stopped cluster's pg_wal: what it replays when it is started again."""

    directory: Path
    binaries: Binaries
    account: Account
    segment_size: int

    def first_left_out(self, stopped: Stopped, consistent_at: Lsn) -> Lsn | None:
        """Return where the first record begins that recovery did not replay, None if there is none.

        `stopped` is where it said that it stopped, `consistent_at` the end of what it had replayed if
        it did so because it was consistent. Raises LookupError if that place is not in the WAL.
        """
        if stopped.consistent:
            return consistent_at
        at = stopped.lsn if stopped.lsn is not None else self._transaction_end(stopped).lsn
        return at if stopped.before else self.first_from(Lsn(at + 1))

    def first_from(self, lsn: Lsn) -> Lsn | None:
        """Return where the first whole record begins that begins at `lsn` or later."""
        newest = self._newest()
        number = int(lsn) // self.segment_size
        while number in newest:
            name, following = newest[number], newest.get(number + 1)
            last = following if following and following.timeline == name.timeline else name
            start = max(lsn, name.start(self.segment_size))
            try:
                found = first_record(self.binaries, self.directory, name, last, self.segment_size, start)
            except ArtifactDamaged:  # the WAL just ends: a record that is not whole is not replayed
                found = None
            if found is not None:
                return found
            number += 1
        return None

    def last(self) -> Lsn | None:
        """Return where the last whole record begins."""
        for previous, name in self._backwards():
            found = last_record(
                self.binaries, self.directory, previous, name, self.segment_size, may_end_torn=True
            )
            if found is not None:
                return found
        return None

    def transaction_ends(self) -> Iterator[TransactionEnd]:
        """Yield the commits and aborts, the last first."""
        seen: set[Lsn] = set()
        for previous, name in self._backwards():
            for end in reversed(self._ends(previous, name)):
                if end.lsn not in seen:
                    seen.add(end.lsn)
                    yield end

    def cut(self, boundary: Lsn) -> None:
        """Take away everything from `boundary` on."""
        for path, name in self._files():
            start = name.start(self.segment_size)
            if start >= boundary:
                path.unlink()
            elif name.end(self.segment_size) > boundary:
                temporary = self.directory / _TEMPORARY
                temporary.unlink(missing_ok=True)
                with path.open("rb") as whole, temporary.open("xb") as file:
                    file.write(whole.read(boundary - start).ljust(self.segment_size, b"\0"))
                temporary.chmod(0o600)
                give(temporary, self.account)
                temporary.rename(path)

    def _transaction_end(self, stopped: Stopped) -> TransactionEnd:
        for end in self.transaction_ends():
            if end.xid == stopped.xid and end.at == stopped.at:
                return end
        raise LookupError(stopped.words)

    def _ends(self, first: SegmentName, last: SegmentName) -> list[TransactionEnd]:
        ends: list[TransactionEnd] = []
        try:
            for end in transaction_ends(self.binaries, self.directory, first, last, self.segment_size):
                ends.append(end)
        except ArtifactDamaged:
            pass  # the WAL just ends
        return ends

    def _backwards(self) -> Iterator[tuple[SegmentName, SegmentName]]:
        """Yield each segment, the last first, with the one before it, or with itself if that is not there."""
        newest = self._newest()
        for number in sorted(newest, reverse=True):
            name, before = newest[number], newest.get(number - 1)
            yield (before if before and before.timeline == name.timeline else name), name

    def _newest(self) -> dict[int, SegmentName]:
        """Return the segments by number; of several, the newest timeline's, which is what recovery reads."""
        return {name.number(self.segment_size): name for name in sorted(name for _, name in self._files())}

    def _files(self) -> list[tuple[Path, SegmentName]]:
        return [
            (path, SegmentName.parse(path.name))
            for path in self.directory.iterdir()
            if classify(path.name) is WalFileKind.SEGMENT
        ]
