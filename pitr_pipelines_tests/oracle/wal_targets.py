"""Targets that are places in the WAL: LSNs, transactions, restore points and the ends of base backups.

Of each it is known which transactions recovery to it has, out of the order of the WAL's records alone.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from pitr_pipelines.catalog.records import BaseRecord
from pitr_pipelines.restore.target import ImmediateTarget, LsnTarget, NameTarget, Target, XidTarget
from pitr_pipelines.wal.lsn import Lsn
from pitr_pipelines_tests.oracle.story import Event
from pitr_pipelines_tests.oracle.truth import Truth
from pitr_pipelines_tests.oracle.wal_truth import End

Place = tuple[str, Target, set[int]]
"""Why, the target, and the transactions that recovery to it has, out of those that are known."""

_Found = TypeVar("_Found")

_BOTH = (True, False)
_SOME = 40
"""Of how many records a kind is drawn; there are thousands."""


@dataclass(frozen=True, slots=True)
class Places:
    """Draws from what lies between `first` and `last`."""

    truth: Truth
    first: Lsn
    last: Lsn
    bases: Sequence[BaseRecord]
    events: Sequence[Event]
    pick: random.Random

    def families(self) -> list[list[list[Place]]]:
        """Return kinds by family; an empty kind is one that did not occur."""
        return [self._lsns(), self._xids(), self._names(), [self._immediates()]]

    def _lsns(self) -> list[list[Place]]:
        commits = self._some([end for end in self._ends() if end.committed])
        size = self.bases[0].wal_segment_size
        boundaries = [Lsn(n * size) for n in range(self.first // size + 1, self.last // size + 1)]
        anywhere = [Lsn(self.pick.randint(self.first, self.last)) for _ in range(_SOME)]
        records = self._some([lsn for lsn in self.truth.wal.records if self.first <= lsn <= self.last])
        idle = [event.lsn for event in self.events if event.lsn is not None]
        kinds = {
            "a commit's own place": [end.begins for end in commits],
            "where a commit ends": [end.ends for end in commits],
            "amid a commit": [Lsn(end.begins + 8) for end in commits],
            "where any record begins": records,
            "where a segment begins": boundaries,
            "shortly before a segment's end": [Lsn(lsn - 8 * self.pick.randint(1, 64)) for lsn in boundaries],
            "where an idle stretch began": idle,
            "where a base backup ended": [base.end_lsn for base in self.bases],
            "anywhere": anywhere,
        }
        return [
            [self._at(why, lsn, inclusive) for lsn in lsns if self.first <= lsn <= self.last]
            for why, lsns in kinds.items()
            for inclusive in _BOTH
        ]

    def _at(self, why: str, lsn: Lsn, inclusive: bool) -> Place:
        wal = self.truth.wal
        return (
            why,
            LsnTarget(lsn, inclusive),
            wal.committed_by(lsn) if inclusive else wal.committed_before(lsn),
        )

    def _xids(self) -> list[list[Place]]:
        kinds: dict[tuple[str, bool], list[Place]] = {}
        for end in self._ends():
            how = "committed" if end.committed else "rolled back"
            why = f"{how}, and was prepared before" if end.prepared else how
            for inclusive in _BOTH:
                kinds.setdefault((why, inclusive), []).append(self._ended(why, end, inclusive))
        return list(kinds.values())

    def _ended(self, why: str, end: End, inclusive: bool) -> Place:
        have = self.truth.wal.committed_before(end.begins)
        if inclusive and end.committed:
            have.add(end.xid)
        return why, XidTarget(end.xid, inclusive), have

    def _names(self) -> list[list[Place]]:
        newest = {point.name: point.begins for point in self.truth.wal.points}
        times = Counter(point.name for point in self.truth.wal.points)
        kinds: dict[str, list[Place]] = {"given once": [], "given more than once": [], "a seal's own": []}
        for name, begins in newest.items():
            why = (
                "given more than once"
                if times[name] > 1
                else "a seal's own"
                if name[:5] == "pitr-"
                else "given once"
            )
            if self.first <= begins <= self.last:
                kinds[why].append((why, NameTarget(name), self.truth.wal.committed_before(begins)))
        return list(kinds.values())

    def _immediates(self) -> list[Place]:
        """A backup's last record is its end, at which it is consistent: what ended by then is in it."""
        return [
            ("a base backup alone", ImmediateTarget(base.day), self.truth.wal.ended_by(base.end_lsn))
            for base in self.bases
            if self.first <= base.end_lsn
        ]

    def _ends(self) -> list[End]:
        return [end for end in self.truth.wal.ends if self.first <= end.begins <= self.last]

    def _some(self, found: list[_Found]) -> list[_Found]:
        return self.pick.sample(found, min(len(found), _SOME))
