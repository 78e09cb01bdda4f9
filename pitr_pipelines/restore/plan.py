"""The plan: what a restore will do, computed before it touches anything.

The promise: a plan reaches exactly the target, or there is none and the refusal says what is
missing and which moments can be restored. Planning decides from the inventory alone; the one
question that only the WAL itself can answer, whether it holds a commit after the target, is put to
a `Probe`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from typing import Protocol
from zoneinfo import ZoneInfo

from pitr_pipelines.catalog.coverage import CLOCK_MARGIN, Gap, Window, windows
from pitr_pipelines.catalog.inventory import Inventory
from pitr_pipelines.catalog.records import BaseRecord
from pitr_pipelines.errors import NotRestorable
from pitr_pipelines.restore.target import HourTarget, LatestTarget, Target, TimeTarget, show_moment
from pitr_pipelines.restore.wal_source import InBase, WalIndex, WalSegment
from pitr_pipelines.wal.timelines import TimelineHistory


class Probe(Protocol):
    """Answers questions about WAL content. The planner asks about a handful of segments at most."""

    def ends_transaction_after(
        self, previous: WalSegment | None, segment: WalSegment, moment: datetime
    ) -> bool:
        """Tell whether a commit or abort later than `moment` is recorded in `segment`.

        `previous`, the segment before, is given because a record may begin in it.
        """
        ...

    def last_transaction(self, previous: WalSegment | None, segment: WalSegment) -> datetime | None:
        """Return the time of the last commit or abort recorded in `segment`, if there is one."""
        ...


@dataclass(frozen=True, slots=True)
class StopAtTime:
    """Recovery stops before the first commit later than `moment`; there is one in the chain."""

    moment: datetime


@dataclass(frozen=True, slots=True)
class StopAtEnd:
    """Recovery replays the whole chain. `why` says why that is the state that was asked for."""

    why: str


Stop = StopAtTime | StopAtEnd


@dataclass(frozen=True, slots=True)
class Plan:
    """What a restore will do: from `base`, replay `segments` along `branch`, until `stop`.

    `notes` says, in a line each, what the person who asked should know.
    """

    database: str
    target: Target
    base: BaseRecord
    branch: TimelineHistory
    segments: tuple[WalSegment, ...]
    stop: Stop
    notes: tuple[str, ...] = ()

    @property
    def wal_bytes(self) -> int:
        return len(self.segments) * self.base.wal_segment_size


class NotCovered(NotRestorable):
    """The target is later than the archive provably reaches; sealing the database may cure that."""


def make_plan(
    inventory: Inventory,
    index: WalIndex,
    target: Target,
    probe: Probe,
    *,
    now: datetime,
    zone: ZoneInfo,
    timeline: int | None = None,
) -> Plan:
    """Decide how to reach `target`. Raises NotRestorable (NotCovered where a seal may help).

    `timeline` asks for a branch other than the one the server wrote last; `zone` is only how
    moments are shown.
    """
    branch = inventory.branch(timeline)
    coverage = inventory.coverage()
    usable = [
        base
        for base in inventory.bases
        if branch
        and branch.includes(base.timeline, base.end_lsn)
        and coverage.reach(base.first_segment, branch) is not None
    ]
    if branch is None or not usable:
        raise NotRestorable(
            f"there is no base backup of {inventory.database}"
            + (f" on timeline {timeline}" if timeline else ""),
            remedy=f"Take one with `pitr backup {inventory.database}`; until then nothing can be restored.",
        )
    planner = _Planner(inventory, index, target, probe, now, zone, branch)
    match target:
        case LatestTarget():
            return planner.latest(usable[-1])
        case TimeTarget() | HourTarget():
            return planner.at(target.moment, usable)


@dataclass(frozen=True, slots=True)
class _Planner:
    inventory: Inventory
    index: WalIndex
    target: Target
    probe: Probe
    now: datetime
    zone: ZoneInfo
    branch: TimelineHistory

    def at(self, moment: datetime, bases: Sequence[BaseRecord]) -> Plan:
        if moment > self.now:
            raise NotRestorable(
                f"{self.target} is in the future (it is {self._show(self.now)})",
                remedy=self._offer(moment),
                nearest=self._nearest(moment),
            )
        before = [base for base in bases if base.ended_at <= moment]
        if not before:
            raise NotRestorable(
                f"{self.target} is before the end of the first base backup of {self.inventory.database} "
                f"({self._show(bases[0].ended_at)})",
                remedy=self._offer(moment),
                nearest=self._nearest(moment),
            )
        base = before[-1]
        segments: list[WalSegment] = []
        for segment in self.index.chain(base, self.branch):
            previous = segments[-1] if segments else None
            segments.append(segment)
            if segment.closed_at < moment - CLOCK_MARGIN:
                continue
            if self.probe.ends_transaction_after(previous, segment, moment):
                return self._plan(base, segments, StopAtTime(moment))
        gap = self._gap(base)
        if not segments:
            raise self._missing(base, gap)
        until = self._covered_until(base, segments)
        if moment <= until:
            shown = self._show(until)
            return self._plan(
                base, segments, StopAtEnd(f"nothing was committed between the target and {shown}")
            )
        if gap is not None:
            raise self._missing(base, gap)
        raise NotCovered(
            f"the archive of {self.inventory.database} is known to be complete until {self._show(until)}, "
            f"not until {self.target}",
            remedy=self._offer(moment) + " To get everything there is, ask for the latest moment.",
            nearest=self._nearest(moment),
        )

    def latest(self, base: BaseRecord) -> Plan:
        segments = list(self.index.chain(base, self.branch))
        gap = self._gap(base)
        if not segments or gap is not None:
            raise self._missing(base, gap)
        return self._plan(base, segments, StopAtEnd("everything there is was asked for"))

    def _plan(self, base: BaseRecord, segments: Sequence[WalSegment], stop: Stop) -> Plan:
        return Plan(self.inventory.database, self.target, base, self.branch, tuple(segments), stop)

    def _covered_until(self, base: BaseRecord, segments: Sequence[WalSegment]) -> datetime:
        """Return up to when the chain provably holds every commit; see `Coverage.of` for why."""
        names = {segment.name for segment in segments}
        known = [base.ended_at]
        known += [other.started_at for other in self.inventory.bases if other.last_segment in names]
        archived = (segment for segment in reversed(segments) if not isinstance(segment.place, InBase))
        known += [segment.closed_at - CLOCK_MARGIN for segment in islice(archived, 1)]
        last = segments[-1]
        if last.place != InBase(base.day):
            committed = self.probe.last_transaction(segments[-2] if len(segments) > 1 else None, last)
            if committed is not None:
                known.append(committed)
        return max(known)

    def _gap(self, base: BaseRecord) -> Gap | None:
        reach = self.inventory.coverage().reach(base.first_segment, self.branch)
        return reach.gap if reach else None

    def _missing(self, base: BaseRecord, gap: Gap | None) -> NotRestorable:
        if gap is None:
            what = f"the WAL after the base backup of {base.day} ({base.first_segment} and later)"
        elif gap.first == gap.last:
            what = f"the WAL segment {gap.first}"
        else:
            what = f"the WAL segments {gap.first} to {gap.last}"
        moment = None if isinstance(self.target, LatestTarget) else self.target.moment
        return NotRestorable(
            f"{self.target} cannot be reached: {what} of {self.inventory.database} "
            f"{'is' if gap is None or gap.first == gap.last else 'are'} missing, from the archive and from "
            "every bundle" + "".join(f"\n  {problem}" for problem in self.inventory.problems),
            remedy=self._offer(moment),
            nearest=self._nearest(moment),
        )

    def _windows(self) -> list[Window]:
        return windows(self.inventory.bases, self.inventory.coverage(), self.branch)[0]

    def _nearest(self, moment: datetime | None) -> list[datetime]:
        """Return the closest moments, before and after, for which a plan can be made."""
        ends = sorted(
            {end for window in self._windows() for end in (window.start, min(window.end, self.now))}
        )
        ends = [end for end in ends if end <= self.now]
        if moment is None:
            return ends[-1:]
        before = [end for end in ends if end <= moment]
        return before[-1:] + [end for end in ends if end > moment][:1]

    def _offer(self, moment: datetime | None) -> str:
        """Say what can be restored, and which moments are nearest to the one asked for."""
        spans = ", and ".join(
            f"from {self._show(window.start)} to {self._show(window.end)}" for window in self._windows()
        )
        if not spans:
            return "No moment can be restored; take a base backup now."
        nearest = " and ".join(self._show(end) for end in self._nearest(moment))
        return f"What can be restored: {spans}. Nearest to what you asked for: {nearest}."

    def _show(self, moment: datetime) -> str:
        return show_moment(moment, self.zone)
