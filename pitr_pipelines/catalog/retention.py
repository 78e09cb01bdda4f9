"""Retention: which bases and bundles of a database are kept, which may go, and why. Nothing is touched.

The promise: whatever is restorable of the window (`Keep.window`, back from the newest restorable moment)
stays so; every generation that is kept can be restored from what is kept; and nothing that may go now is
wanted by a later decision. Time alone removes nothing: the window is counted from the newest moment that
can be restored, so where backups stop, or a clock runs ahead, nothing more goes. In doubt, all is kept:
what is damaged, timelines of which it is not known where they belong, what a restore still holds.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from enum import StrEnum
from itertools import groupby
from operator import attrgetter

from pitr_pipelines.catalog.holds import Hold
from pitr_pipelines.catalog.inventory import BundleEntry, Inventory
from pitr_pipelines.catalog.records import BaseRecord, BundleState
from pitr_pipelines.catalog.retention_branches import Branches, read_branches
from pitr_pipelines.catalog.wal_map import Stretch, WalMap, map_wal
from pitr_pipelines.settings import KeepSettings
from pitr_pipelines.units import show_duration
from pitr_pipelines.wal.hours import Hour

_HOUR = timedelta(hours=1)
_BEHIND = timedelta(hours=26)
"""How far behind now the newest restorable moment may be before that is worth a note."""


@dataclass(frozen=True, slots=True)
class Keep:
    """What is to be kept: everything of the last `window`, and generations of base backups."""

    window: timedelta
    daily: int
    weekly: int
    monthly: int

    @classmethod
    def of(cls, settings: KeepSettings) -> Keep:
        return cls(timedelta(days=settings.hourly_days), settings.daily, settings.weekly, settings.monthly)

    @property
    def window_text(self) -> str:
        days = self.window / timedelta(days=1)
        return f"the last {days:g} days" if days >= 2 else f"the last {show_duration(self.window)}"


class Verdict(StrEnum):
    KEEP = "keep"
    REMOVE = "remove"
    WAIT = "wait"
    """It may go as soon as it is confirmed off-site."""


@dataclass(frozen=True, slots=True)
class Reason:
    """Why. `needed_by` is the day of the base backup that is kept and needs this WAL."""

    text: str
    needed_by: date | None = None


@dataclass(frozen=True, slots=True)
class Decision:
    """What becomes of one base backup, or of the bundles of consecutive entries; exactly one is not empty."""

    verdict: Verdict
    reason: Reason
    size_bytes: int
    base: date | None = None
    hours: tuple[Hour, ...] = ()


@dataclass(frozen=True, slots=True)
class Retention:
    """The decisions about one database: bases, then hours, oldest first.

    `since` is where the window begins; None if there is none, and then everything is kept. `notes` are
    what a person should know, in a line each.
    """

    database: str
    since: datetime | None
    decisions: tuple[Decision, ...]
    notes: tuple[str, ...] = ()

    def bases(self, verdict: Verdict) -> list[date]:
        return [one.base for one in self.decisions if one.verdict is verdict and one.base is not None]

    def hours(self, verdict: Verdict) -> list[Hour]:
        return [hour for one in self.decisions if one.verdict is verdict for hour in one.hours]

    def size_bytes(self, verdict: Verdict) -> int:
        return sum(one.size_bytes for one in self.decisions if one.verdict is verdict)


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known beyond the records: what is damaged, and how; and what restores hold."""

    damaged_bases: Mapping[date, str] = field(default_factory=dict)
    damaged_bundles: Mapping[Hour, str] = field(default_factory=dict)
    holds: tuple[Hold, ...] = ()


NOTHING_KNOWN = Facts()
_WAITING = Reason("no longer wanted here; waits: not confirmed off-site yet")


def decide(
    inventory: Inventory,
    keep: Keep,
    *,
    now: datetime,
    facts: Facts = NOTHING_KNOWN,
    confirmed: Collection[date | Hour] | None = None,
    wal: WalMap | None = None,
) -> Retention:
    """Decide what is kept of a database.

    `confirmed` are the bases (by day) and bundles (by hour) that are known to be off-site; without it
    nothing waits for that. `wal` is what `map_inventory` gave for the same inventory and facts, for those
    who decide more than once.
    """
    bundles, bases = _in_order(inventory)
    wal = wal or map_inventory(inventory, facts)
    branches = read_branches(inventory, wal, bundles)
    work = _Deciding(inventory, keep, now, facts, bundles, bases, wal, branches)
    return work.decide(confirmed)


def map_inventory(inventory: Inventory, facts: Facts = NOTHING_KNOWN) -> WalMap:
    """Map the WAL of an inventory as `decide` wants it."""
    bundles, bases = _in_order(inventory)
    sound = [base for base in bases if base.day not in facts.damaged_bases]
    return map_wal(bundles, sound, inventory.segment_size or 1, facts.damaged_bundles)


def _in_order(inventory: Inventory) -> tuple[list[BundleEntry], list[BaseRecord]]:
    bundles = sorted(inventory.bundles, key=_start)
    return bundles, sorted(inventory.bases, key=lambda base: (base.ended_at, base.day))


_start = attrgetter("hour.start")


class _Deciding:
    """One decision: everything gets the first reason that is found to keep it; what gets none may go."""

    def __init__(
        self,
        inventory: Inventory,
        keep: Keep,
        now: datetime,
        facts: Facts,
        bundles: Sequence[BundleEntry],
        bases: Sequence[BaseRecord],
        wal: WalMap,
        branches: Branches,
    ) -> None:
        self.inventory, self.keep, self.now, self.facts = inventory, keep, now, facts
        self.bundles, self.bases, self.wal, self.branches = bundles, bases, wal, branches
        self.usable = [
            base
            for base in bases
            if base.day not in facts.damaged_bases and base.timeline not in branches.doubtful
        ]
        self.kept_bases: dict[date, Reason] = {}
        self.kept: list[Reason | None] = [None] * len(bundles)
        self.notes: list[str] = []

    def decide(self, confirmed: Collection[date | Hour] | None) -> Retention:
        newest = self._newest_restorable()
        if newest is None:
            what = f"no base backup that counts leads to where {self.inventory.database} is now"
            reason = Reason(f"{what}, so nothing is removed")
            self.kept = [reason] * len(self.bundles)
            self.kept_bases = {base.day: reason for base in self.bases}
            return self._result(None, reason, None)
        reference = min(self.now, newest)
        since = reference - self.keep.window
        if self.now - reference > _BEHIND:
            self.notes.append(
                f"nothing after {_show(reference)} can be restored from bundles, so the window is counted "
                "from there: until that is mended (`pitr status`), nothing more expires"
            )
        self._keep_window(since)
        self._keep_ways_into_window(since)
        for hold in self.facts.holds:
            self._keep_held(hold)
        self._keep_generations()
        self._keep_doubtful()
        self._keep_damaged()
        self._keep_last_histories()

        limit = f"older than {self.keep.window_text} (before {_show(since)}), and "
        return self._result(since, Reason(f"{limit}no kept base backup needs it"), confirmed)

    def _newest_restorable(self) -> datetime | None:
        """Return up to when the newest base that counts leads on the server's branch."""
        branch = self.branches.server
        leading = [b for b in self.usable if branch and branch.includes(b.timeline, b.end_lsn)]
        if branch is None or not leading:
            return None
        reach = self.wal.coverage.reach(leading[-1].first_segment, branch)
        until = reach.until if reach is not None else None
        return max(until or leading[-1].ended_at, leading[-1].ended_at)

    def _keep_window(self, since: datetime) -> None:
        reason = Reason(f"of {self.keep.window_text}")
        first = bisect_right(self.bundles, since - _HOUR, key=_start)
        self.kept[first:] = [reason] * (len(self.bundles) - first)
        for base in self.bases:
            if base.ended_at > since:
                self.kept_bases[base.day] = reason
                if base.started_at <= since:  # its own copy of its last segment may end amid it
                    own = Stretch(
                        base.timeline,
                        base.first_segment.number(self.wal.segment_size),
                        base.last_segment.number(self.wal.segment_size),
                    )
                    self._keep_base(base, reason.text, [own])

    def _keep_ways_into_window(self, since: datetime) -> None:
        """Keep, for each branch that has moments in the window, the base from which these are reached."""
        for branch in self.branches.followed:
            live = branch.timeline in self.branches.live
            if not live and self.branches.written[branch.timeline] <= since:
                continue
            before = [
                base
                for base in self.usable
                if base.ended_at <= since and branch.includes(base.timeline, base.end_lsn)
            ]
            if before:
                what = f"moments from {_show(since)} on start from it"
                if not live:
                    what += f" on timeline {branch.timeline}, which was written to until "
                    what += _show(self.branches.written[branch.timeline])
                self._keep_base(before[-1], what, self.wal.path(before[-1], branch))

    def _keep_generations(self) -> None:
        labels: dict[date, list[str]] = {}
        self._choose(labels, self.keep.daily, lambda day: str(day), "daily")
        self._choose(labels, self.keep.weekly, lambda day: f"{day:%G-W%V}", "weekly")
        self._choose(labels, self.keep.monthly, lambda day: f"{day:%Y-%m}", "monthly")
        for place, base in enumerate(self.usable):
            if base.day in labels:
                stretches = self._to_first_point(base, self.usable[place + 1 :])
                self._keep_base(base, ", ".join(labels[base.day]), stretches)

    def _choose(
        self, labels: dict[date, list[str]], count: int, period_of: Callable[[date], str], name: str
    ) -> None:
        """Name the newest base of each of the newest `count` periods that have one."""
        seen: set[str] = set()
        for base in reversed(self.usable):
            if len(seen) == count:
                return
            period = period_of(base.day)
            if period not in seen:
                seen.add(period)
                label = name if name == "daily" else f"{name} {period}"
                labels.setdefault(base.day, []).append(label)

    def _to_first_point(self, base: BaseRecord, later: Sequence[BaseRecord]) -> Iterable[Stretch]:
        """Return the WAL from a base to the first sealed hour's end after it; else to the next base."""
        at = bisect_left(self.bundles, base.ended_at - _HOUR, key=_start)
        for entry in self.bundles[at:]:
            if later and entry.hour.start > later[0].ended_at:
                break
            seal = entry.seal
            if seal is None or seal.at < base.ended_at or entry.state is not BundleState.CLOSED:
                continue
            branch = self.branches.history(seal.segment.timeline)
            if branch.includes(base.timeline, base.end_lsn) and self.wal.reaches(base, branch, seal.segment):
                return list(self.wal.path(base, branch, seal.segment))
        found: list[Stretch] = []
        for branch in self.branches.followed:
            if branch.includes(base.timeline, base.end_lsn):
                until = next((b.last_segment for b in later if branch.includes(b.timeline, b.end_lsn)), None)
                found += self.wal.path(base, branch, until)
        return found

    def _keep_held(self, hold: Hold) -> None:
        base = next((base for base in self.bases if base.day == hold.base_day), None)
        branch = self.branches.history(hold.timeline)
        if base is None or not branch.includes(base.timeline, base.end_lsn):
            self.notes.append(f"{hold.reason}, but its base backup of {hold.base_day} is not there any more")
            return
        self._keep_base(base, f"held: {hold.reason}", self.wal.path(base, branch))

    def _keep_doubtful(self) -> None:
        for doubt in self.branches.doubts:
            self.notes.append(doubt.note)
            reason = Reason(f"in doubt, kept: {doubt.what}")
            for base in self.bases:
                if base.timeline in doubt.timelines:
                    self.kept_bases.setdefault(base.day, reason)
            self._keep_bundles(doubt.bundles, reason)
            if doubt.began is None:
                continue
            before = [base for base in self.usable if base.ended_at <= doubt.began]
            if before:
                self.kept_bases.setdefault(before[-1].day, reason)
                first = bisect_left(self.bundles, before[-1].started_at - 2 * _HOUR, key=_start)
                last = bisect_right(self.bundles, doubt.began, key=_start)
                self._keep_bundles(range(first, last), reason)

    def _keep_damaged(self) -> None:
        for base in self.bases:
            problem = self.facts.damaged_bases.get(base.day)
            if problem is not None:
                self.kept_bases[base.day] = Reason(f"damaged, so it counts for nothing: {problem}")
        if self.facts.damaged_bundles:
            for index, entry in enumerate(self.bundles):
                problem = self.facts.damaged_bundles.get(entry.hour)
                if problem is not None and self.kept[index] is None:
                    self.kept[index] = Reason(f"damaged: {problem}")

    def _keep_last_histories(self) -> None:
        """Keep the only copies of timeline histories: planning needs them as long as anything is kept."""
        wanted = {copy.name for index in self.wal.with_histories for copy in self.bundles[index].histories}
        wanted -= {file.name for file in self.inventory.raw}
        for name in sorted(wanted):
            holders = [
                index
                for index in self.wal.with_histories
                if any(copy.name == name and copy.text is not None for copy in self.bundles[index].histories)
            ]
            if holders and all(self.kept[index] is None for index in holders):
                self._keep_bundles(holders[-1:], Reason(f"holds the only copy of {name}"))

    def _keep_base(self, base: BaseRecord, what: str, stretches: Iterable[Stretch]) -> None:
        self.kept_bases.setdefault(base.day, Reason(what))
        reason = Reason(f"the base backup of {base.day} needs it", base.day)
        for stretch in stretches:
            self._keep_bundles(self.wal.holders(stretch), reason)

    def _keep_bundles(self, indexes: Iterable[int], reason: Reason) -> None:
        for index in indexes:
            if self.kept[index] is None:
                self.kept[index] = reason

    def _result(
        self, since: datetime | None, unneeded: Reason, confirmed: Collection[date | Hour] | None
    ) -> Retention:
        """Collect what was found; `unneeded` is why bundles go that nothing keeps."""
        superseded = Reason(f"older than {self.keep.window_text}, and not the newest of a kept period")
        found = []
        for base in self.bases:
            reason = self.kept_bases.get(base.day)
            verdict = Verdict.KEEP
            if reason is None:
                waits = confirmed is not None and base.day not in confirmed
                verdict, reason = (Verdict.WAIT, _WAITING) if waits else (Verdict.REMOVE, superseded)
            found.append(Decision(verdict, reason, base.size_bytes, base=base.day))
        reasons = self.kept
        if None in reasons:
            reasons = [unneeded if reason is None else reason for reason in reasons]
            if confirmed is not None:
                for index, entry in enumerate(self.bundles):
                    if reasons[index] is unneeded and entry.hour not in confirmed:
                        reasons[index] = _WAITING
        begin = 0
        for _, same in groupby(reasons, key=id):
            end = begin + len(list(same))
            found.append(self._run(reasons[begin] or unneeded, unneeded, begin, end))
            begin = end
        return Retention(self.inventory.database, since, tuple(found), tuple(self.notes))

    def _run(self, reason: Reason, unneeded: Reason, begin: int, end: int) -> Decision:
        verdict = Verdict.WAIT if reason is _WAITING else Verdict.KEEP
        if reason is unneeded and self.kept[begin] is None:
            verdict = Verdict.REMOVE
        entries = self.bundles[begin:end]
        hours = tuple(map(attrgetter("hour"), entries))
        return Decision(verdict, reason, sum(map(attrgetter("size_bytes"), entries)), hours=hours)


def _show(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M} UTC"
