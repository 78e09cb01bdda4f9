"""The off-site copy's calls, day by day, as the page and the metrics show them: plain values.

The ledger that they are read from belongs to the off-site room, which is above this one; whoever may see
both hands them down.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date, datetime
from enum import StrEnum


class CallOutcome(StrEnum):
    """How far a day's call has come, or why that is not known."""

    CONFIRMED = "confirmed"
    SENT = "sent"
    CLAIMED = "claimed"
    UNKNOWN = "unknown"
    REFUSED = "refused"
    UNREADABLE = "unreadable"
    """There is a ledger file of the day, and it cannot be used."""
    NONE = "none"
    """No call is on record."""


@dataclass(frozen=True, slots=True)
class CallDay:
    """One day of the ledger.

    `at` is the last moment on record for it. `size_bytes` is of the object, None if nothing was sent.
    `databases` are those of which the envelope carries something; None where that is not known.
    """

    day: date
    outcome: CallOutcome
    at: datetime | None = None
    size_bytes: int | None = None
    said: str | None = None
    databases: frozenset[str] | None = None


@dataclass(frozen=True, slots=True)
class Calls:
    """The calls since some day, oldest first. `today` and `zone` are as the store's provider counts days."""

    today: date
    zone: str
    days: tuple[CallDay, ...]
    last_confirmed: CallDay | None

    def of(self, day: date) -> CallDay:
        """Return a day; one that is not on the ledger has no call."""
        index = bisect_left(self.days, day, key=lambda call: call.day)
        if index < len(self.days) and self.days[index].day == day:
            return self.days[index]
        return CallDay(day, CallOutcome.NONE)

    @classmethod
    def on(cls, today: date, zone: str, days: Iterable[CallDay]) -> Calls:
        """Return the given days in order."""
        found = tuple(sorted(days, key=lambda call: call.day))
        confirmed = [call for call in found if call.outcome is CallOutcome.CONFIRMED]
        return cls(today, zone, found, confirmed[-1] if confirmed else None)
