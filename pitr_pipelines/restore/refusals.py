"""How a target that no plan reaches is refused: what is missing, and which moments can be restored.

Every refusal offers moments for which a plan can be made. Nothing is decided here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from zoneinfo import ZoneInfo

from pitr_pipelines.catalog.coverage import Gap, Window, windows
from pitr_pipelines.catalog.inventory import Inventory
from pitr_pipelines.catalog.records import BaseRecord
from pitr_pipelines.errors import NotRestorable
from pitr_pipelines.restore.target import Target, moment_of, show_moment
from pitr_pipelines.wal.lsn import Lsn
from pitr_pipelines.wal.timelines import TimelineHistory


class NotCovered(NotRestorable):
    """The target is later than the archive provably reaches; sealing the database may cure that."""


@dataclass(frozen=True, slots=True)
class Refusals:
    """What can be said about a target on a branch. Moments are shown in `zone`."""

    inventory: Inventory
    target: Target
    now: datetime
    zone: ZoneInfo
    branch: TimelineHistory

    def before_first(self, first: BaseRecord, lsn: Lsn | None) -> NotRestorable:
        return NotRestorable(
            f"{self.target}{f', at {lsn},' if lsn is not None else ''} is before the end of the first base "
            f"backup of {self.inventory.database} from which it could be reached ({first.end_lsn}, "
            f"{self.show(first.ended_at)})",
            remedy=self.offer_lsns([first]),
            nearest=self.nearest(first.ended_at),
        )

    def not_found(self, bases: Sequence[BaseRecord], hint: str) -> NotCovered:
        return NotCovered(
            f"{self.target} is not in the WAL of {self.inventory.database} that can be restored",
            remedy=f"{hint} {self.offer_lsns(bases)}",
            nearest=self.nearest(None),
        )

    def offer_lsns(self, bases: Sequence[BaseRecord]) -> str:
        """Say what can be restored, in LSNs and in time."""
        reach = self.inventory.coverage().reach(bases[-1].first_segment, self.branch)
        end = reach.last.end(bases[-1].wal_segment_size) if reach else bases[-1].end_lsn
        return f"The WAL that is there goes from {bases[0].end_lsn} to {end}. {self.offer(None)}"

    def missing(self, base: BaseRecord, gap: Gap | None) -> NotRestorable:
        if gap is None:
            what = f"the WAL after the base backup of {base.day} ({base.first_segment} and later)"
        elif gap.first == gap.last:
            what = f"the WAL segment {gap.first}"
        else:
            what = f"the WAL segments {gap.first} to {gap.last}"
        moment = moment_of(self.target)
        return NotRestorable(
            f"{self.target} cannot be reached: {what} of {self.inventory.database} "
            f"{'is' if gap is None or gap.first == gap.last else 'are'} missing, from the archive and from "
            "every bundle"
            + (", because retention removed it" if gap and self.inventory.expired_within(gap) else "")
            + "".join(f"\n  {problem}" for problem in self._problems()),
            remedy=self.offer(moment),
            nearest=self.nearest(moment),
        )

    def _problems(self) -> list[str]:
        return [*self.inventory.problems, *self.inventory.unexplained()]

    def windows(self) -> list[Window]:
        return windows(self.inventory.bases, self.inventory.coverage(), self.branch)[0]

    def nearest(self, moment: datetime | None) -> list[datetime]:
        """Return the closest moments, before and after, for which a plan can be made."""
        ends = sorted({end for window in self.windows() for end in (window.start, min(window.end, self.now))})
        ends = [end for end in ends if end <= self.now]
        if moment is None:
            return ends[-1:]
        before = [end for end in ends if end <= moment]
        return before[-1:] + [end for end in ends if end > moment][:1]

    def offer(self, moment: datetime | None) -> str:
        """Say what can be restored, and which moments are nearest to the one asked for."""
        spans = ", and ".join(
            f"from {self.show(window.start)} to {self.show(window.end)}" for window in self.windows()
        )
        if not spans:
            return "No moment can be restored; take a base backup now."
        nearest = " and ".join(self.show(end) for end in self.nearest(moment))
        label = "Nearest to what you asked for" if moment else "The latest of them"
        return f"What can be restored: {spans}. {label}: {nearest}."

    def show(self, moment: datetime) -> str:
        return show_moment(moment, self.zone)
