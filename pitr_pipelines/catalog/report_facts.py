"""What the page and the metrics say of one database: found out once, from the storage, as plain values.

Never a server, and nothing is changed. A database whose artifacts cannot be read at all has facts too:
that it cannot be read. The work grows with the records that are there, which are remembered by the
inventory, and with the days that are shown.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from enum import StrEnum
from itertools import pairwise

from pitr_pipelines.catalog.coverage import Coverage, Gap, Window
from pitr_pipelines.catalog.drills import DrillOutcome, DrillReport, drill_history
from pitr_pipelines.catalog.health import REACH, check_chain, check_window
from pitr_pipelines.catalog.inventory import BundleEntry, Inventory, read_inventory
from pitr_pipelines.catalog.layout import Layout
from pitr_pipelines.catalog.records import BaseRecord, BundleState
from pitr_pipelines.errors import PitrError, storage_failed
from pitr_pipelines.settings import Settings
from pitr_pipelines.units import show_duration
from pitr_pipelines.wal.hours import Hour
from pitr_pipelines.wal.lsn import WalFileKind

DRILLS_SHOWN = 12
BASE_LATE = timedelta(hours=36)
"""A base backup is due each day; half a day more is for a long one, or for another attempt."""
_NAMED_HOURS = 4


class Level(StrEnum):
    """How bad something is; the worst of its problems is a database's own level."""

    GOOD = "good"
    NOTE = "note"
    """Worth knowing; nothing is to be done."""
    LOOK = "look"
    """Something is not as it should be, and nothing is lost yet."""
    ACT = "act"
    """A restore may fail, or new moments are not protected."""


SEVERITY = tuple(Level)
"""The levels, the worst last."""


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that is wrong with a database, and what to do next."""

    level: Level
    what: str
    remedy: str


class HourState(StrEnum):
    """What there is of an hour's bundle."""

    CLOSED = "closed"
    OPEN = "open"
    MISSING = "missing"
    DUE = "due"
    """Not there, but its hour has hardly ended, or runs."""


@dataclass(frozen=True, slots=True)
class HourCell:
    """One hour of the time that is shown; sizes in bytes, of the bundle."""

    hour: Hour
    state: HourState
    size_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Hole:
    """Moments, both ends excluded, that cannot be restored although earlier ones can."""

    start: datetime
    end: datetime


@dataclass(frozen=True, slots=True)
class LostWal:
    """A gap in the WAL: the moments that it takes away, as far as that is known.

    `until` is None while no later base backup makes moments restorable again.
    """

    gap: Gap
    since: datetime | None
    until: datetime | None


@dataclass(frozen=True, slots=True)
class DayGrowth:
    """What one day (UTC) added, in bytes: its base backup, and its hours as bundled and as raw WAL.

    `base_bytes` is None if there is no base backup of that day.
    """

    day: date
    base_bytes: int | None
    bundle_bytes: int
    wal_bytes: int
    hours: int


@dataclass(frozen=True, slots=True)
class Totals:
    """What a database's artifacts take now, in bytes."""

    bases: int
    bundles: int
    raw: int


@dataclass(frozen=True, slots=True)
class DatabaseFacts:
    """One database at `now`. Everything is oldest first, except `drills`, which are newest first."""

    database: str
    readable: bool
    now: datetime
    problems: tuple[Problem, ...]
    windows: tuple[Window, ...] = ()
    holes: tuple[Hole, ...] = ()
    lost: tuple[LostWal, ...] = ()
    hours: tuple[HourCell, ...] = ()
    bases: tuple[BaseRecord, ...] = ()
    bundles: tuple[BundleEntry, ...] = ()
    restore_points: int = 0
    drills: tuple[DrillReport, ...] = ()
    last_good_drill: DrillReport | None = None
    growth: tuple[DayGrowth, ...] = ()
    totals: Totals = Totals(0, 0, 0)
    archived_at: datetime | None = None
    """When the server closed the newest segment that is here."""
    raw_files: int = 0

    @property
    def since(self) -> datetime:
        """From when on there is anything of it, of the time that is shown."""
        known = [self.hours[0].hour.start] if self.hours else []
        return min([*known, *(base.ended_at for base in self.bases[:1])], default=self.now)

    @property
    def level(self) -> Level:
        return max((problem.level for problem in self.problems), key=SEVERITY.index, default=Level.GOOD)


def read_facts(settings: Settings, database: str, *, now: datetime, since: datetime) -> DatabaseFacts:
    """Return what is known of a database at `now`, with hours and days from `since` on.

    Never raises for artifacts that cannot be read: that is a problem of this database, and is listed.
    """
    layout = Layout(settings.backup_root)
    try:
        inventory = read_inventory(layout, database)
        drills = _drills(layout, database)
        return describe(settings, inventory, drills, now=now, since=since)
    except (PitrError, OSError) as error:
        failed = storage_failed(error) if isinstance(error, OSError) else error
        problem = Problem(Level.ACT, f"{database} cannot be read: {failed.what}", failed.remedy)
        return DatabaseFacts(database, False, now, (problem,))


def describe(
    settings: Settings,
    inventory: Inventory,
    drills: Sequence[DrillReport],
    *,
    now: datetime,
    since: datetime,
) -> DatabaseFacts:
    """Return what the artifacts and the drills (newest first) of a database say at `now`."""
    found, _ = inventory.windows()
    coverage = inventory.coverage()
    chain = check_chain(inventory)
    window = check_window(inventory, now=now)
    holes = tuple(_holes(found, now))
    hours = tuple(_hours(inventory, since, now))
    good = next((drill for drill in drills if drill.outcome is DrillOutcome.PASSED), None)
    problems = [
        Problem(Level.ACT, what, f"`pitr verify {inventory.database}` names every artifact that is affected.")
        for what in inventory.problems
    ]
    findings = [*chain.findings, *([] if window.window is None and chain.findings else window.findings)]
    problems += [Problem(Level.ACT if f.lost else Level.LOOK, f.problem, f.remedy) for f in findings]
    problems += _late_base(inventory, now)
    problems += _unbundled(inventory.database, hours, now)
    problems += _drill_problems(settings, inventory.database, drills, good, now)
    raw = [file for file in inventory.raw if file.kind is WalFileKind.SEGMENT]
    closed = [file.closed_at for file in raw]
    closed += [entry.closed_at for entry in inventory.bundles if entry.closed_at is not None]
    ends = [entry.hour.end for entry in inventory.bundles if entry.state is BundleState.CLOSED]
    ends += [e.seal.at for e in inventory.bundles if e.state is BundleState.OPEN and e.seal is not None]
    return DatabaseFacts(
        database=inventory.database,
        readable=True,
        now=now,
        problems=tuple(sorted(problems, key=lambda problem: -SEVERITY.index(problem.level))),
        windows=tuple(found),
        holes=holes,
        lost=tuple(_lost(inventory, coverage, gap) for gap in chain.gaps),
        hours=hours,
        bases=inventory.bases,
        bundles=inventory.bundles,
        restore_points=sum(any(w.start <= end <= w.end for w in found) for end in ends),
        drills=tuple(drills[:DRILLS_SHOWN]),
        last_good_drill=good,
        growth=tuple(_growth(inventory, since, now)),
        totals=Totals(
            sum(base.size_bytes for base in inventory.bases),
            sum(entry.size_bytes for entry in inventory.bundles),
            sum(file.size_bytes for file in inventory.raw),
        ),
        archived_at=max(closed, default=None),
        raw_files=len(inventory.raw),
    )


def _drills(layout: Layout, database: str) -> list[DrillReport]:
    """Read the newest drills, and on until one that passed."""
    found: list[DrillReport] = []
    passed = False
    for drill in drill_history(layout, database):
        if len(found) >= DRILLS_SHOWN and passed:
            break
        passed = passed or drill.outcome is DrillOutcome.PASSED
        found.append(drill)
    return found


def _holes(found: Sequence[Window], now: datetime) -> Iterator[Hole]:
    """Yield what lies between the windows, and between the last one and now unless that is usual."""
    for before, after in pairwise(found):
        yield Hole(before.end, after.start)
    if found and now - found[-1].end > REACH:
        yield Hole(found[-1].end, now)


def _lost(inventory: Inventory, coverage: Coverage, gap: Gap) -> LostWal:
    before = coverage.stretch_with(gap.first.timeline, gap.first.number(coverage.segment_size) - 1)
    after = inventory.base_after(gap)
    return LostWal(gap, before.until if before else None, after.ended_at if after else None)


def _hours(inventory: Inventory, since: datetime, now: datetime) -> Iterator[HourCell]:
    """Yield every hour from `since`, or from the first artifact if that is later, to the running one."""
    held = {entry.hour: entry for entry in inventory.bundles}
    known = [*held, *(Hour.containing(base.ended_at) for base in inventory.bases)]
    if not known:
        return
    running = Hour.containing(now)
    for hour in max(min(known), Hour.containing(since)).until(max(running, max(known))):
        entry = held.get(hour)
        if entry is not None:
            closed = entry.state is BundleState.CLOSED
            yield HourCell(hour, HourState.CLOSED if closed else HourState.OPEN, entry.size_bytes)
        elif hour.end + REACH > now:
            yield HourCell(hour, HourState.DUE)
        else:
            yield HourCell(hour, HourState.MISSING)


def _late_base(inventory: Inventory, now: datetime) -> Iterator[Problem]:
    if not inventory.bases:
        return  # said by the chain
    name, last = inventory.database, inventory.bases[-1]
    if now - last.ended_at > BASE_LATE:
        yield Problem(
            Level.LOOK,
            f"the newest base backup of {name} is of {last.day}, {show_duration(now - last.ended_at)} ago: a "
            "restore replays all WAL since",
            f"`pitr backup {name}` takes one; look why `base_backup_schedule` did not.",
        )
    taken = {base.day for base in inventory.bases}
    span = (last.day - inventory.bases[0].day).days
    without = [day for n in range(span) if (day := inventory.bases[0].day + timedelta(days=n)) not in taken]
    if without:
        yield Problem(
            Level.NOTE,
            f"there is no base backup of {_some([str(day) for day in without])}",
            "None can be made for a past day: moments of those days are restored from the one before.",
        )


def _unbundled(database: str, hours: Iterable[HourCell], now: datetime) -> Iterator[Problem]:
    cells = list(hours)
    missing = [str(cell.hour) for cell in cells if cell.state is HourState.MISSING]
    if missing:
        yield Problem(
            Level.LOOK,
            f"{_hours_of(len(missing))} of {database} {'is' if len(missing) == 1 else 'are'} not bundled: "
            + _some(missing),
            f"`pitr bundle {database} --hour {missing[0]}`, or a backfill of its wal_bundle in Dagster, "
            "makes them from the WAL archive.",
        )
    late = [str(c.hour) for c in cells if c.state is HourState.OPEN and c.hour.end + REACH <= now]
    if late:
        yield Problem(
            Level.LOOK,
            f"{_hours_of(len(late))} of {database} ended long ago and {'is' if len(late) == 1 else 'are'} "
            f"still open: {_some(late)}",
            f"`pitr bundle {database} --hour {late[0]}` closes it once the archive goes past its end; "
            f"`pitr check {database}` says whether the server archives.",
        )


def _drill_problems(
    settings: Settings,
    database: str,
    drills: Sequence[DrillReport],
    good: DrillReport | None,
    now: datetime,
) -> Iterator[Problem]:
    again = f"`pitr drill {database}` tries it again."
    if drills and drills[0].outcome is DrillOutcome.FAILED:
        what = "; ".join(drills[0].problems) or "it does not say why"
        remedy = drills[0].remedy or again
        yield Problem(Level.ACT, f"the last drill of {database} failed: {what}", remedy)
    elif good is None:
        yield Problem(
            Level.NOTE, f"no restore of {database} has been tried yet", f"`pitr drill {database}` tries one."
        )
    elif now - good.finished_at > timedelta(days=settings.drills.max_age_days):
        ago = show_duration(now - good.finished_at)
        yield Problem(Level.LOOK, f"the last drill of {database} that passed was {ago} ago", again)


def _growth(inventory: Inventory, since: datetime, now: datetime) -> Iterator[DayGrowth]:
    bases = {base.day: base.size_bytes for base in inventory.bases}
    by_day: dict[date, list[BundleEntry]] = {}
    for entry in inventory.bundles:
        by_day.setdefault(entry.hour.start.date(), []).append(entry)
    # Whole days only: the zone's first day may have begun in the middle of one.
    day = (since.astimezone(UTC) + timedelta(days=1, microseconds=-1)).date()
    while datetime.combine(day, time(), UTC) <= now:
        entries = by_day.get(day, [])
        yield DayGrowth(
            day,
            bases.get(day),
            sum(entry.size_bytes for entry in entries),
            sum(entry.raw_bytes for entry in entries),
            len(entries),
        )
        day += timedelta(days=1)


def _hours_of(count: int) -> str:
    return "1 hour" if count == 1 else f"{count} hours"


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_NAMED_HOURS])
    more = len(names) - _NAMED_HOURS
    return shown if more <= 0 else f"{shown} and {more} more"
