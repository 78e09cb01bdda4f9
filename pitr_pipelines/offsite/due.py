"""When the day's call is to be made: when every database's base of the day is there, or at the deadline.

Reads the ledger and the records of base backups, never the store, and changes nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from enum import StrEnum
from zoneinfo import ZoneInfo

from pitr_pipelines.catalog.inventory import read_base_record
from pitr_pipelines.catalog.layout import Layout
from pitr_pipelines.catalog.records import BaseRecord
from pitr_pipelines.errors import ArtifactDamaged, PitrError
from pitr_pipelines.offsite.budget import day_of
from pitr_pipelines.offsite_settings import OffsiteSettings
from pitr_pipelines.settings import Settings


class NotDue(PitrError):
    """It is too early for the day's call. Nothing was sent, and the day is not claimed."""

    exit_code = 4


class Turn(StrEnum):
    """What is to be done about the day's call now."""

    GO = "go"
    WAIT = "wait"
    TAKEN = "taken"
    """The day is on the ledger already."""


@dataclass(frozen=True, slots=True)
class Due:
    """How it stands with a day's call. `missing` are the databases that have no base backup of that day."""

    day: date
    turn: Turn
    missing: tuple[str, ...]
    deadline: datetime

    def raise_unless_go(self) -> None:
        """Raise NotDue, naming what is waited for, if the call is to wait."""
        if self.turn is Turn.WAIT:
            raise NotDue(
                f"the off-site copy of {self.day} waits for the base backup of {', '.join(self.missing)}",
                remedy=f"It goes without at {self.deadline:%Y-%m-%d %H:%M %Z} (`offsite.deadline`), or now "
                f"with `pitr offsite copy --now`. To take what is missing: `pitr backup "
                f"{' '.join(self.missing)}`.",
            )


def look_when_due(settings: Settings, offsite: OffsiteSettings, *, now: datetime) -> Due:
    """Tell what is to be done about today's call, at `now`."""
    layout = Layout(settings.backup_root)
    zone = offsite.api_calls.zone
    day = day_of(now, zone)
    missing = without_base(layout, settings.databases, day, zone)
    deadline = datetime.combine(day, offsite.deadline_at, zone)
    if (layout.ledger / f"{day.isoformat()}.json").exists():
        turn = Turn.TAKEN
    else:
        turn = Turn.GO if not missing or now >= deadline else Turn.WAIT
    return Due(day, turn, missing, deadline)


def without_base(
    layout: Layout,
    databases: Iterable[str],
    day: date,
    zone: ZoneInfo,
    *,
    but_for: Collection[tuple[str | None, date | None]] = (),
) -> tuple[str, ...]:
    """Return the databases of which no base backup ended on a day of `zone`.

    Bases in `but_for`, named by database and by the day they are filed under, do not count.
    """
    found = {name: base_of_day(layout, name, day, zone) for name in databases}
    return tuple(name for name, base in found.items() if base is None or (name, base.day) in but_for)


def base_of_day(layout: Layout, database: str, day: date, zone: ZoneInfo) -> BaseRecord | None:
    """Return the base backup of a database that ended on a day of `zone`, if there is one."""
    # Bases are filed under their day in UTC, which differs from the zone's by one at most.
    for days in (1, 0, -1):
        try:
            record = read_base_record(layout.base_record(database, day + timedelta(days=days)))
        except (FileNotFoundError, NotADirectoryError, ArtifactDamaged):
            continue
        if day_of(record.ended_at, zone) == day:
            return record
    return None
