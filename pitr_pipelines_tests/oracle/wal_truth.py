"""Where in the WAL everything ended: the side of the oracle that knows places instead of times.

Asked of the server itself, with its extension pg_walinspect, out of its own pg_wal: neither the
archive nor the product's reading of pg_waldump has any part in it.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from typing import LiteralString

from pitr_pipelines.wal.lsn import Lsn
from pitr_pipelines_tests.servers import TestServer

EXTENSION: LiteralString = "CREATE EXTENSION pg_walinspect"

_ENDS = ("COMMIT", "COMMIT_PREPARED", "ABORT", "ABORT_PREPARED")
# What a prepared transaction's end says of itself is its number; the record's own header has none.
_RECORDS: LiteralString = """
SELECT start_lsn::text, end_lsn::text, xid::text::bigint, record_type,
       CASE WHEN record_type ~ 'COMMIT|ABORT|RESTORE_POINT' THEN description END
FROM pg_get_wal_records_info(%s, pg_current_wal_flush_lsn())
"""


@dataclass(frozen=True, slots=True, order=True)
class End:
    """A commit or abort record: where it begins and ends, and whose it is."""

    begins: Lsn
    ends: Lsn
    xid: int
    committed: bool
    prepared: bool


@dataclass(frozen=True, slots=True, order=True)
class Point:
    """A named restore point: recovery to it leaves out what begins behind it."""

    begins: Lsn
    name: str


@dataclass(frozen=True, slots=True)
class WalTruth:
    """The WAL of one server since some place, in its order."""

    records: list[Lsn]
    """Where each record begins."""
    ends: list[End]
    points: list[Point]

    @classmethod
    def of(cls, server: TestServer, since: Lsn) -> WalTruth:
        """Read the server's WAL from `since` to what is flushed."""
        records, ends, points = [], [], []
        for begins, after, xid, kind, said in server.execute(_RECORDS, str(since)):
            place = Lsn.parse(begins)
            records.append(place)
            if kind in _ENDS:
                prepared = kind.endswith("PREPARED")
                whose = int(said.partition(":")[0]) if prepared else xid
                ends.append(End(place, Lsn.parse(after), whose, kind.startswith("COMMIT"), prepared))
            elif kind == "RESTORE_POINT":
                points.append(Point(place, said))
        assert records == sorted(records)
        assert len({end.xid for end in ends}) == len(ends), "a transaction ends once"
        return cls(records, ends, points)

    def committed_before(self, lsn: Lsn) -> set[int]:
        """Return the transactions whose commit begins before `lsn`."""
        return {end.xid for end in self.ends[: bisect_left(self.ends, lsn, key=_begins)] if end.committed}

    def committed_by(self, lsn: Lsn) -> set[int]:
        """Return those that recovery to `lsn` has: also the one whose commit is the first record from there.

        Source: recovery_target_inclusive, and recoveryStopsAfter() in xlogrecovery.c.
        """
        index = bisect_left(self.records, lsn)
        return self.committed_before(Lsn(self.records[index] + 1))

    def ended_by(self, lsn: Lsn) -> set[int]:
        """Return the transactions whose commit ends at `lsn` or before."""
        found = self.ends[: bisect_right([end.ends for end in self.ends], lsn)]
        return {end.xid for end in found if end.committed}


def _begins(end: End) -> Lsn:
    return end.begins
