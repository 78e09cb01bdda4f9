"""What is to be done about a gap in the WAL: a new base backup, because nothing else makes later moments
restorable, and recovery cannot pass the gap.

A day has one base backup, so on a day that has one already the new one would take its place. The promise:
that is only ever done by itself where it loses nothing, which is where an older base backup leads to every
moment that the day's one leads to, on every timeline. Where moments would be lost, the next day in UTC is
waited for: no moment that can be restored now is given up without somebody saying so. Decides, changes
nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from enum import StrEnum

from pitr_pipelines.catalog.coverage import Gap, Window
from pitr_pipelines.catalog.inventory import Inventory


class Cure(StrEnum):
    """What a gap asks for now."""

    NOTHING = "nothing"
    """There is none, or a base backup from after it."""
    TAKE = "take"
    """Today has no base backup: the day's own is the cure."""
    REPLACE = "replace"
    """Today's is from before the gap, and an older one leads to all that it leads to."""
    WAIT = "wait"
    """Today's is from before the gap, and the only way to some moments."""


@dataclass(frozen=True, slots=True)
class Prescription:
    """The cure of the newest gap that has none yet, with the reason in words."""

    cure: Cure
    gap: Gap | None
    reason: str


def cure_of(inventory: Inventory, today: date) -> Prescription:
    """Decide what the newest gap in a database's WAL asks for on the day `today` (UTC)."""
    gaps = inventory.gaps()
    if not gaps or inventory.base_after(gaps[-1]) is not None:
        return Prescription(Cure.NOTHING, None, "no gap in the WAL is without a base backup after it")
    gap = gaps[-1]
    missing = f"the segments {gap.first} to {gap.last} of {inventory.database} are missing"
    if all(base.day != today for base in inventory.bases):
        return Prescription(Cure.TAKE, gap, f"{missing}: no moment after them can be restored")
    lost = next(_lost(inventory, today), None)
    if lost is None:
        return Prescription(
            Cure.REPLACE,
            gap,
            f"{missing}: no moment after them can be restored; what the base backup of {today} leads to can "
            "be reached from an older one",
        )
    return Prescription(
        Cure.WAIT,
        gap,
        f"{missing}: no moment after them can be restored until the next base backup, which is taken when "
        f"{today} is over (UTC). Today's is not replaced, because no other leads to "
        f"{lost.start:%Y-%m-%d %H:%M:%S} … {lost.end:%H:%M:%S} UTC: `pitr backup --replace "
        f"{inventory.database}` gives these moments up, and protects what comes from now on",
    )


def _lost(inventory: Inventory, day: date) -> Iterator[Window]:
    """Yield the spans, of every timeline, to which only the base backup of `day` leads.

    Compared by segments: whoever can replay up to the same one reaches the same moments.
    """
    rest = inventory.without([day])
    coverage, rest_coverage = inventory.coverage(), rest.coverage()
    for history in inventory.timelines():
        others = [base for base in rest.bases if history.includes(base.timeline, base.end_lsn)]
        for base in inventory.bases:
            if base.day != day or not history.includes(base.timeline, base.end_lsn):
                continue
            reach = coverage.reach(base.first_segment, history)
            if reach is None:
                continue
            kept = (
                rest_coverage.reach(other.first_segment, history)
                for other in others
                if other.end_lsn <= base.end_lsn
            )
            if not any(other is not None and other.last >= reach.last for other in kept):
                end = max(reach.until or base.ended_at, base.ended_at)
                yield Window(base.ended_at, end, history.timeline)
