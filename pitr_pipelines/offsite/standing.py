"""How it stands with the off-site copy: was the last one that was due made, and is every database in it?

Reads the ledger, the kept indexes and the records of base backups; asks neither the store nor a server.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from pathlib import Path

from pitr_pipelines.catalog.health import Finding
from pitr_pipelines.catalog.layout import Layout
from pitr_pipelines.errors import ArtifactDamaged
from pitr_pipelines.offsite.budget import CallState, LedgerEntry, days, read_entry, spent
from pitr_pipelines.offsite.delivered import delivered
from pitr_pipelines.offsite.due import Turn, base_of_day, look_when_due
from pitr_pipelines.settings import Settings


@dataclass(frozen=True, slots=True)
class Standing:
    """The last copy that was due.

    `day` is None before the first is due. `confirmed` is the newest day whose copy is known to be stored.
    `missing` are the databases whose base backup of that day is not known to be off-site.
    """

    day: date | None
    entry: LedgerEntry | None
    confirmed: date | None
    missing: tuple[str, ...]
    delivery: tuple[Finding, ...]
    completeness: tuple[Finding, ...]


def look_at_standing(settings: Settings, *, now: datetime) -> Standing:
    """Judge the copy of today if its call was made or its deadline has passed, else that of yesterday."""
    offsite = settings.offsite_copy()
    layout = Layout(settings.backup_root)
    due = look_when_due(settings, offsite, now=now)
    known = days(layout.ledger)
    is_due = due.turn is Turn.TAKEN or now >= due.deadline
    day = due.day if is_due else due.day - timedelta(days=1)
    confirmed = _newest_confirmed(layout, known)
    if not is_due and not known:
        return Standing(None, None, None, (), (), ())
    try:
        entry = read_entry(layout.ledger, day)
    except ArtifactDamaged as error:
        finding = Finding(error.what, error.remedy, lost=False)
        return Standing(day, None, confirmed, (), (finding,), ())
    missing = _without_delivered_base(settings, layout, day)
    return Standing(
        day, entry, confirmed, missing, _delivery(layout, day, entry), _completeness(day, entry, missing)
    )


def _delivery(layout: Layout, day: date, entry: LedgerEntry | None) -> tuple[Finding, ...]:
    if entry is None:
        return (
            Finding(
                f"no off-site copy was made on {day}",
                "Does the sensor `offsite_copy_due` run? `pitr offsite copy --now` makes today's. What a day "
                "did not deliver goes with the next.",
            ),
        )
    if entry.state is CallState.CONFIRMED:
        return ()
    if entry.state in (CallState.SENT, CallState.UNKNOWN):
        what = f"it is not known what became of the backup call of {day}: {entry.said or entry.state}"
        return (Finding(what, "`pitr offsite budget --settle` looks at the store; the next copy does too."),)
    error = spent(layout.ledger, day)
    return (Finding(error.what, error.remedy),)


def _completeness(day: date, entry: LedgerEntry | None, missing: tuple[str, ...]) -> tuple[Finding, ...]:
    if entry is None or entry.state is not CallState.CONFIRMED:
        return ()  # said by the other check
    return tuple(
        Finding(
            f"the off-site copy of {day} has no base backup of {name} of that day",
            f"`pitr backup {name}` takes today's; it goes with the next copy. Until then {name} can be "
            "restored from what was sent before, and the WAL since.",
            lost=False,
        )
        for name in missing
    )


def _without_delivered_base(settings: Settings, layout: Layout, day: date) -> tuple[str, ...]:
    offsite = settings.offsite_copy()
    there = delivered(layout, offsite.store)
    missing = []
    for name in settings.databases:
        record = base_of_day(layout, name, day, offsite.api_calls.zone)
        if record is None or _identity(layout, layout.base_record(name, record.day)) not in there:
            missing.append(name)
    return tuple(missing)


def _identity(layout: Layout, file: Path) -> tuple[str, str]:
    return file.relative_to(layout.root).as_posix(), hashlib.sha256(file.read_bytes()).hexdigest()


def _newest_confirmed(layout: Layout, known: list[date]) -> date | None:
    for day in reversed(known):
        try:
            entry = read_entry(layout.ledger, day)
        except ArtifactDamaged:
            continue
        if entry is not None and entry.state is CallState.CONFIRMED:
            return day
    return None
