"""The plan: what a restore will do, computed before it touches anything.

The promise: a plan reaches exactly the target, or there is none and the refusal says what is
missing and which moments can be restored. Planning decides from the inventory alone; questions that
only the WAL itself can answer, such as whether it holds a commit after the target, are put to a
`Probe`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta
from itertools import islice
from typing import Protocol, TypeVar
from zoneinfo import ZoneInfo

from pitr_pipelines.catalog.coverage import CLOCK_MARGIN, Gap
from pitr_pipelines.catalog.inventory import Inventory
from pitr_pipelines.catalog.records import BaseRecord
from pitr_pipelines.errors import NotRestorable
from pitr_pipelines.postgres.wal_inspect import TransactionEnd
from pitr_pipelines.restore import branches
from pitr_pipelines.restore.refusals import NotCovered, Refusals
from pitr_pipelines.restore.stop import (
    Stop,
    StopAtConsistency,
    StopAtEnd,
    StopAtLsn,
    StopAtTime,
    StopAtXid,
)
from pitr_pipelines.restore.target import (
    HourTarget,
    ImmediateTarget,
    LatestTarget,
    LsnTarget,
    NameTarget,
    Target,
    TimeTarget,
    XidTarget,
)
from pitr_pipelines.restore.wal_source import InBase, WalIndex, WalSegment
from pitr_pipelines.wal.lsn import Lsn, SegmentName
from pitr_pipelines.wal.timelines import TimelineHistory

__all__ = [
    "NotCovered",
    "Plan",
    "Probe",
    "Stop",
    "StopAtConsistency",
    "StopAtEnd",
    "StopAtLsn",
    "StopAtTime",
    "StopAtXid",
    "make_plan",
]

_RESOLUTION = timedelta(microseconds=1)
"""Of PostgreSQL's times."""


class Probe(Protocol):
    """Answers questions about WAL content.

    The planner asks about a handful of segments; only for a restore point or a transaction that can
    lie anywhere, about one after the other, from the newest backwards. `previous`, the segment before,
    is given because a record may begin in it.
    """

    def ends_transaction_after(
        self, previous: WalSegment | None, segment: WalSegment, moment: datetime
    ) -> bool:
        """Tell whether a commit or abort later than `moment` is recorded in `segment`."""
        ...

    def last_transaction(self, previous: WalSegment | None, segment: WalSegment) -> datetime | None:
        """Return the time of the last commit or abort recorded in `segment`, if there is one."""
        ...

    def transaction_end(
        self, previous: WalSegment | None, segment: WalSegment, xid: int
    ) -> TransactionEnd | None:
        """Return the last record in `segment` that ends the transaction `xid`, if there is one."""
        ...

    def restore_point(self, previous: WalSegment | None, segment: WalSegment, name: str) -> Lsn | None:
        """Return where the last restore point of that name in `segment` begins, if there is one."""
        ...

    def record_from(self, previous: WalSegment | None, segment: WalSegment, lsn: Lsn) -> Lsn | None:
        """Return where a record begins, at `lsn` or later, that ends in `segment`, if there is one."""
        ...


@dataclass(frozen=True, slots=True)
class Plan:
    """What a restore will do: from `base`, replay `segments` along `branch`, until `stop`.

    `notes` says, in a line each, what the person who asked should know. `histories` are of every timeline
    there is: the restored server must not take the number of one of them.
    """

    database: str
    target: Target
    base: BaseRecord
    branch: TimelineHistory
    segments: tuple[WalSegment, ...]
    stop: Stop
    notes: tuple[str, ...] = ()
    histories: tuple[TimelineHistory, ...] = ()

    @property
    def wal_bytes(self) -> int:
        return len(self.segments) * self.base.wal_segment_size

    def all_histories(self) -> Iterator[TimelineHistory]:
        """Yield the history of every timeline but 1, which has none; those of the branch as it has them."""
        known = {history.timeline: history for history in self.histories}
        for index, ancestor in enumerate(self.branch.ancestors):
            known[ancestor.timeline] = TimelineHistory(ancestor.timeline, self.branch.ancestors[:index])
        known[self.branch.timeline] = self.branch
        yield from (known[timeline] for timeline in sorted(known) if timeline != 1)

    @property
    def stops_between(self) -> tuple[datetime, datetime]:
        """The span in which what recovery stops at was written, as far as the plan knows."""
        if isinstance(self.stop, StopAtXid):
            return self.stop.at, self.stop.at
        if isinstance(self.stop, StopAtTime):
            return self.stop.moment, self.stop.moment
        began = self.segments[-2].closed_at if len(self.segments) > 1 else self.base.started_at
        return min(began, self.segments[-1].closed_at), self.segments[-1].closed_at


def make_plan(
    inventory: Inventory,
    index: WalIndex,
    target: Target,
    probe: Probe,
    *,
    now: datetime,
    zone: ZoneInfo,
    timeline: int | None = None,
    base: date | None = None,
) -> Plan:
    """Decide how to reach `target`. Raises NotRestorable (NotCovered where a seal may help).

    `timeline` asks for a branch other than the one the server is on, `base` for the base backup of
    that day and no other; `zone` is only how moments are shown.
    """
    if timeline is not None and not branches.exists(inventory, timeline):
        raise branches.unknown(inventory, timeline, zone)
    asked_for = timeline
    if isinstance(target, ImmediateTarget) and target.base is not None and timeline is None:
        # Nothing after it is replayed, so it does not matter whether the server went another way.
        timeline = next((base.timeline for base in inventory.bases if base.day == target.base), None)
    branch = inventory.branch(timeline)
    coverage = inventory.coverage()
    usable = [
        held
        for held in inventory.bases
        if branch
        and branch.includes(held.timeline, held.end_lsn)
        and coverage.reach(held.first_segment, branch) is not None
        and base in (None, held.day)
    ]
    if base is not None and not usable:
        raise NotRestorable(
            f"the base backup of {inventory.database} of {base} is gone, or the WAL that follows it",
            remedy="What was restored from it cannot be moved on without it. It can be promoted where it is.",
        )
    if branch is None or not usable:
        raise NotRestorable(
            f"there is no base backup of {inventory.database}"
            + (f" on timeline {timeline}" if timeline else ""),
            remedy=f"Take one with `pitr backup {inventory.database}`; until then nothing can be restored."
            + branches.elsewhere(inventory, branch, target)
            + branches.trouble(inventory),
        )
    say = Refusals(inventory, target, now, zone, branch)
    planner = _Planner(inventory, index, target, probe, now, branch, say)
    try:
        plan = planner.plan(usable)
    except NotRestorable as refusal:
        refusal.remedy += branches.elsewhere(inventory, branch, target)
        raise
    notes = branches.notes(inventory, plan, zone, asked_for=asked_for)
    return replace(plan, notes=(*plan.notes, *notes), histories=tuple(inventory.timelines()))


Found = TypeVar("Found")
_Look = Callable[[WalSegment | None, WalSegment], tuple[Lsn, Found] | None]


@dataclass(frozen=True, slots=True)
class _Planner:
    inventory: Inventory
    index: WalIndex
    target: Target
    probe: Probe
    now: datetime
    branch: TimelineHistory
    say: Refusals

    def plan(self, bases: Sequence[BaseRecord]) -> Plan:
        """Return the plan for the target, from one of `bases`, oldest first."""
        target = self.target
        match target:
            case LatestTarget():
                return self.latest(bases[-1])
            case TimeTarget():
                return self.at(target.moment, bases, inclusive=target.inclusive)
            case HourTarget():
                return self.at(target.moment, bases)
            case LsnTarget():
                return self.at_lsn(target.lsn, bases, inclusive=target.inclusive)
            case NameTarget():
                return self.at_name(target.name, bases)
            case XidTarget():
                return self.at_xid(target.xid, bases, inclusive=target.inclusive)
            case ImmediateTarget():
                return self.immediate(target, bases)

    def at(self, moment: datetime, bases: Sequence[BaseRecord], *, inclusive: bool = True) -> Plan:
        if moment > self.now:
            raise NotRestorable(
                f"{self.target} is in the future (it is {self.say.show(self.now)})",
                remedy=self.say.offer(moment),
                nearest=self.say.nearest(moment),
            )
        before = [base for base in bases if base.ended_at <= moment]
        if not before:
            raise NotRestorable(
                f"{self.target} is before the end of the first base backup of {self.inventory.database} "
                f"({self.say.show(bases[0].ended_at)})",
                remedy=self.say.offer(moment),
                nearest=self.say.nearest(moment),
            )
        base = before[-1]
        stays = moment if inclusive else moment - _RESOLUTION
        segments: list[WalSegment] = []
        for segment in self.index.chain(base, self.branch):
            previous = segments[-1] if segments else None
            segments.append(segment)
            if segment.closed_at < moment - CLOCK_MARGIN:
                continue
            if self.probe.ends_transaction_after(previous, segment, stays):
                return self._plan(base, segments, StopAtTime(moment, inclusive))
        gap = self._gap(base)
        if not segments:
            raise self.say.missing(base, gap)
        until = self._covered_until(base, segments)
        if moment <= until:
            shown = self.say.show(until)
            return self._plan(
                base, segments, StopAtEnd(f"nothing was committed between the target and {shown}")
            )
        if gap is not None:
            raise self.say.missing(base, gap)
        raise NotCovered(
            f"the archive of {self.inventory.database} is known to be complete until {self.say.show(until)}, "
            f"not until {self.target}",
            remedy=self.say.offer(moment) + " To get everything there is, ask for the latest moment.",
            nearest=self.say.nearest(moment),
        )

    def latest(self, base: BaseRecord) -> Plan:
        segments = list(self.index.chain(base, self.branch))
        gap = self._gap(base)
        if not segments or gap is not None:
            raise self.say.missing(base, gap)
        return self._plan(base, segments, StopAtEnd("everything there is was asked for"))

    def at_lsn(self, lsn: Lsn, bases: Sequence[BaseRecord], *, inclusive: bool) -> Plan:
        before = [base for base in bases if base.end_lsn <= lsn]
        if not before:
            raise self.say.before_first(bases[0], None)
        base = before[-1]
        segments: list[WalSegment] = []
        for segment in self.index.chain(base, self.branch):
            previous = segments[-1] if segments else None
            segments.append(segment)
            if segment.name.end(base.wal_segment_size) <= lsn:
                continue
            if self.probe.record_from(previous, segment, lsn) is not None:
                return self._plan(base, segments, StopAtLsn(lsn, inclusive))
        gap = self._gap(base)
        if gap is not None or not segments:
            raise self.say.missing(base, gap)
        raise NotCovered(
            f"the archive of {self.inventory.database} holds no record at {lsn} or later: it ends with "
            f"{segments[-1].name}, so recovery could not tell that it has reached {self.target}",
            remedy=f"{self.say.offer_lsns(bases)} To get everything there is, ask for the latest moment.",
            nearest=self.say.nearest(None),
        )

    def at_name(self, name: str, bases: Sequence[BaseRecord]) -> Plan:
        def look(previous: WalSegment | None, segment: WalSegment) -> tuple[Lsn, None] | None:
            lsn = self.probe.restore_point(previous, segment, name)
            return None if lsn is None else (lsn, None)

        seals = [entry.seal for entry in self.inventory.bundles if entry.seal is not None]
        sealed = {seal.segment for seal in seals if seal.restore_point == name}
        found = (self._search(bases, look, only=sealed) if sealed else None) or self._search(bases, look)
        if found is None:
            raise self.say.not_found(
                bases, "A name must be given exactly as pg_create_restore_point() got it."
            )
        base, segments, lsn, _ = found
        return self._plan(base, segments, StopAtLsn(lsn, restore_point=name))

    def at_xid(self, xid: int, bases: Sequence[BaseRecord], *, inclusive: bool) -> Plan:
        def look(previous: WalSegment | None, segment: WalSegment) -> tuple[Lsn, TransactionEnd] | None:
            end = self.probe.transaction_end(previous, segment, xid)
            return None if end is None else (end.lsn, end)

        found = self._search(bases, look)
        if found is None:
            raise self.say.not_found(
                bases,
                "It may not have ended, have changed nothing, or be a subtransaction: recovery stops only "
                "where a whole transaction ends.",
            )
        base, segments, _, end = found
        return self._plan(base, segments, StopAtXid(xid, inclusive, end.committed, end.at, end.lsn))

    def immediate(self, target: ImmediateTarget, bases: Sequence[BaseRecord]) -> Plan:
        chosen = [base for base in bases if target.base in (None, base.day)]
        if not chosen:
            days = ", ".join(str(base.day) for base in bases)
            raise NotRestorable(
                f"there is no base backup of {self.inventory.database} of {target.base} on timeline "
                f"{self.branch.timeline}",
                remedy=f"There are those of {days}.",
                nearest=self.say.nearest(None),
            )
        base = chosen[-1]
        size = base.wal_segment_size
        numbers = range(base.first_segment.number(size), base.last_segment.number(size) + 1)
        segments = [
            WalSegment(SegmentName.numbered(number, base.timeline, size), base.ended_at, InBase(base.day))
            for number in numbers
        ]
        return self._plan(base, segments, StopAtConsistency())

    def _search(
        self, bases: Sequence[BaseRecord], look: _Look[Found], only: Collection[SegmentName] | None = None
    ) -> tuple[BaseRecord, Sequence[WalSegment], Lsn, Found] | None:
        """Find the newest record that `look` is after, and the newest base from which it is reached.

        Returns that base, the segments from it up to the record, where that begins, and what it is;
        None if there is none. Raises NotRestorable if there is one that no base reaches.
        """
        hit: tuple[Lsn, Found] | None = None
        held: SegmentName | None = None
        seen: set[SegmentName] = set()
        for base in reversed(bases):
            segments = list(self.index.chain(base, self.branch))
            for index in range(len(segments) - 1, -1, -1):
                name = segments[index].name
                if hit is not None:
                    break
                if name in seen or (only is not None and name not in only):
                    continue
                hit = look(segments[index - 1] if index else None, segments[index])
                held = name if hit is not None else None
                if index:  # else a record that began in the segment before was not seen
                    seen.add(name)
            for index, segment in enumerate(segments):
                if hit is not None and segment.name == held and hit[0] >= base.end_lsn:
                    return base, segments[: index + 1], *hit
        if hit is None:
            return None
        before = [base for base in bases if base.end_lsn <= hit[0]]
        raise (
            self.say.missing(before[-1], self._gap(before[-1]))
            if before
            else self.say.before_first(bases[0], hit[0])
        )

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
