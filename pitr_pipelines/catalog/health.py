"""How well one database is covered, as answers to four questions that are asked every few hours.

Is its newest base what it should be, are its recent bundles, does the WAL go on without a gap, and how
near to now does the recovery window reach? Each answer says what was looked at, and each finding what
to do next. The work is bounded: it does not grow with how much history is kept. Nothing is changed.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, datetime, timedelta

from pitr_pipelines.catalog.coverage import Gap, Window
from pitr_pipelines.catalog.inventory import Inventory, read_base_record, read_inventory
from pitr_pipelines.catalog.layout import BASE_RECORD, Layout
from pitr_pipelines.catalog.records import BaseRecord
from pitr_pipelines.catalog.verify import (
    hours_without_record,
    verify_base_of,
    verify_bundle,
    verify_gap,
    without_record,
)
from pitr_pipelines.errors import ArtifactDamaged
from pitr_pipelines.units import show_duration
from pitr_pipelines.wal.hours import Hour
from pitr_pipelines.wal.lsn import SegmentName

RECENT = timedelta(hours=24)
"""Bundles of this long are read again; at a reading every six hours, each is read four times."""
REACH = timedelta(hours=2)
"""How far behind now a recovery window may end, if nothing else is promised: an hour, its bundling, and
some patience."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is wrong, and what to do next. `lost` is whether a restore may fail over it."""

    problem: str
    remedy: str
    lost: bool = True


@dataclass(frozen=True, slots=True)
class BaseHealth:
    """The newest base; `record` is None if there is none, or its record cannot be read."""

    record: BaseRecord | None
    findings: tuple[Finding, ...]


@dataclass(frozen=True, slots=True)
class BundlesHealth:
    """The bundles of the last hours: which were read, and how much they hold when unpacked."""

    hours: tuple[Hour, ...]
    raw_bytes: int
    findings: tuple[Finding, ...]


@dataclass(frozen=True, slots=True)
class ChainHealth:
    """The WAL from the oldest base to the newest segment; both None where there is no chain."""

    first: SegmentName | None
    last: SegmentName | None
    segments: int
    """How many there should be, those in the gaps included, and without those that retention removed."""
    gaps: tuple[Gap, ...]
    findings: tuple[Finding, ...]


@dataclass(frozen=True, slots=True)
class WindowHealth:
    """The newest recovery window, and the last moment at which the WAL was sealed."""

    database: str
    window: Window | None
    behind: timedelta | None
    """How long before now the window ends."""
    last_seal: datetime | None
    findings: tuple[Finding, ...]


def check_newest_base(layout: Layout, database: str) -> BaseHealth:
    """Read the newest base of a database again, and compare it with its record."""
    day = _newest_day(layout, database)
    if day is None:
        return BaseHealth(None, (_no_base(database),))
    verified = verify_base_of(layout, database, day)
    try:
        record = read_base_record(layout.base_record(database, day))
    except (ArtifactDamaged, OSError):
        record = None  # said by what was verified
    if verified.problem is None:
        return BaseHealth(record, ())
    remedy = verified.remedy or f"Run `pitr backup --replace {database}`."
    return BaseHealth(record, (Finding(verified.problem, remedy),))


def check_recent_bundles(
    layout: Layout, database: str, *, now: datetime, span: timedelta = RECENT
) -> BundlesHealth:
    """Unpack the bundles of the last hours again, and compare each with its record."""
    since = now - span
    hours = [hour for hour in _recorded_hours(layout, database) if hour.end > since]
    found = [verify_bundle(layout, database, hour) for hour in hours]
    found += [
        without_record(layout, database, hour)
        for hour in hours_without_record(layout, database)
        if hour.end > since
    ]
    findings = [Finding(one.problem, one.remedy or "") for one in found if one.problem is not None]
    if not found:
        findings.append(
            Finding(
                f"no hour of {database} was bundled in the last {show_duration(span)}",
                f"Is the schedule `bundle_schedule` on? `pitr bundle {database}` bundles the newest hour.",
                lost=False,
            )
        )
    entries = read_inventory(layout, database).bundles
    raw_bytes = sum(entry.raw_bytes for entry in entries if entry.hour in set(hours))
    return BundlesHealth(tuple(hours), raw_bytes, tuple(findings))


def check_chain(inventory: Inventory) -> ChainHealth:
    """Follow the WAL from the oldest base to the newest segment."""
    database = inventory.database
    if not inventory.bases:
        return ChainHealth(None, None, 0, (), (_no_base(database),))
    bases, coverage, size = inventory.bases_on_branch(), inventory.coverage(), inventory.segment_size or 1
    branch = inventory.branch()
    timeline = branch.timeline if branch else None
    if not bases or timeline is None or timeline not in coverage.stretches:
        return ChainHealth(None, None, 0, (), (_no_way_to(database, timeline),))
    first = bases[0].first_segment
    last = SegmentName.numbered(coverage.stretches[timeline][-1].last, timeline, size)
    gaps = inventory.gaps()
    findings = []
    for gap in gaps:
        verified = verify_gap(inventory, gap)
        lost = inventory.base_after(gap) is None
        findings.append(Finding(verified.problem or "", verified.remedy or "", lost))
    branches = [*inventory.unexplained(), *inventory.strays()]
    findings += [Finding(what, "docs/timelines.md says what to do.", lost=False) for what in branches]
    segments = last.number(size) - first.number(size) + 1 - inventory.segments_expired()
    return ChainHealth(first, last, segments, tuple(gaps), tuple(findings))


def check_window(
    inventory: Inventory, *, now: datetime, reach: timedelta = REACH, length: timedelta | None = None
) -> WindowHealth:
    """Tell how near to `now` the newest recovery window reaches, and how far back.

    One that ends longer ago than `reach`, or begins later than `length` ago, is a finding. If it ends too
    early but reaches the last seal all the same, nothing is lost of what was archived; only nothing was
    sealed since.
    """
    database = inventory.database
    last_seal = max((entry.seal.at for entry in inventory.bundles if entry.seal), default=None)
    window = max(inventory.windows()[0], key=lambda window: window.end, default=None)
    if window is None:
        problem = f"no moment of {database} can be restored"
        finding = Finding(
            problem, f"Run `pitr backup {database}`; `pitr verify {database}` says what is wrong."
        )
        return WindowHealth(database, None, None, last_seal, (finding,))
    behind = max(timedelta(0), now - window.end)
    findings: tuple[Finding, ...] = ()
    if behind > reach:
        what = f"{database} can be restored only up to {window.end:%Y-%m-%d %H:%M:%S}+00:00"
        what += f", {show_duration(behind)} ago"
        if last_seal is not None and window.end + reach < last_seal:
            remedy = (
                f"WAL is missing behind that moment: `pitr verify {database}` says which, and what to do."
            )
            findings = (Finding(f"{what}, although WAL was sealed until {last_seal:%H:%M} UTC", remedy),)
        else:
            remedy = f"`pitr check {database}` says whether the server runs and archives its WAL; "
            remedy += f"`pitr bundle {database} --now` seals it at once. Is `bundle_schedule` on?"
            findings = (Finding(f"{what}; nothing was archived since", remedy, lost=False),)
    if length is not None and now - window.start < length:
        what = f"{database} can be restored only back to {window.start:%Y-%m-%d %H:%M:%S}+00:00"
        what += f", {show_duration(max(timedelta(0), now - window.start))} ago; {show_duration(length)} are "
        remedy = "A new database grows into it. Otherwise a gap in the WAL ended the window before: "
        remedy += f"`pitr status {database}` shows it; is retention shorter than what is promised?"
        findings = (*findings, Finding(f"{what}promised", remedy, lost=False))
    return WindowHealth(database, window, behind, last_seal, findings)


def _no_base(database: str) -> Finding:
    return Finding(
        f"there is no base backup of {database}, so nothing of it can be restored",
        f"Run `pitr backup {database}`, or materialize its base_backup of today.",
    )


def _no_way_to(database: str, timeline: int | None) -> Finding:
    return Finding(
        f"no base backup of {database} leads to timeline {timeline}, on which its newest WAL is",
        f"If {timeline or 0:08X}.history is missing in the archive, copy it there from the server's pg_wal; "
        f"otherwise `pitr backup --replace {database}` makes later moments restorable.",
    )


def _newest_day(layout: Layout, database: str) -> date | None:
    """Return the day of the newest base that has a record, whether that can be read or not."""
    days = []
    for record in layout.bases(database).glob(f"[0-9]*/{BASE_RECORD}"):
        try:
            days.append(date.fromisoformat(record.parent.name))
        except ValueError:
            continue
    return max(days, default=None)


def _recorded_hours(layout: Layout, database: str) -> list[Hour]:
    hours = []
    for record in layout.bundles(database).glob("[0-9]*.json"):
        try:
            hours.append(Hour.parse(record.stem))
        except ValueError:
            continue  # a seal, which has its own record
    return sorted(hours)
