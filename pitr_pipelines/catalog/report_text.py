"""The sentences of the page: moments as people may type them again, and one that answers it all.

A moment is shown in the configured zone, with its offset, to the second; and rounded so that the moment
as shown lies within the window whose edge it is.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

from pitr_pipelines.catalog.coverage import Window
from pitr_pipelines.catalog.report_facts import DatabaseFacts, Level
from pitr_pipelines.units import show_duration

VERDICTS = {
    Level.GOOD: "All is well",
    Level.NOTE: "All is well",
    Level.LOOK: "Look at this",
    Level.ACT: "Act now",
}


def show_moment(moment: datetime, zone: ZoneInfo) -> str:
    """Return a moment in a zone with its offset, to the second, rounded down."""
    whole = moment.astimezone(UTC).replace(microsecond=0)
    return whole.astimezone(zone).isoformat(sep=" ")


def show_start(moment: datetime, zone: ZoneInfo) -> str:
    """Return where something begins, to the second, rounded up: it has begun at what is shown."""
    return show_moment(moment + timedelta(seconds=1, microseconds=-1), zone)


def show_window(window: Window, zone: ZoneInfo) -> str:
    """Return both ends of a recovery window."""
    return f"{show_start(window.start, zone)} to {show_moment(window.end, zone)}"


def headline(facts: DatabaseFacts, zone: ZoneInfo) -> str:
    """Return, in one sentence, what can be restored, how fresh that is, and what is wrong."""
    if not facts.readable:
        return f"{facts.database} cannot be read, so it is not known what can be restored."
    if not facts.windows:
        return f"Nothing of {facts.database} can be restored: {_worst(facts)}."
    first, last = facts.windows[0], facts.windows[-1]
    sentence = f"{facts.database} can be restored to any moment from {show_window_of(first, last, zone)}"
    sentence += f", which is {show_ago(last.end, facts.now)}"
    inner = [hole for hole in facts.holes if hole.end <= last.start]
    if inner:
        lost = sum((hole.end - hole.start for hole in inner), timedelta())
        sentence += f", except {show_duration(lost)} in {count(len(inner), 'gap')}"
    return f"{sentence}; {_worst(facts)}."


def show_window_of(first: Window, last: Window, zone: ZoneInfo) -> str:
    """Return the start of one window to the end of another."""
    return f"{show_start(first.start, zone)} to {show_moment(last.end, zone)}"


def show_ago(moment: datetime, now: datetime) -> str:
    """Return how long ago a moment was; one that the clocks put into the future is now."""
    return f"{show_duration(max(timedelta(0), now - moment))} ago"


def _worst(facts: DatabaseFacts) -> str:
    wrong = [problem for problem in facts.problems if problem.level in (Level.LOOK, Level.ACT)]
    if not wrong:
        return "nothing is wrong"
    more = f" (and {count(len(wrong) - 1, 'other problem')})" if len(wrong) > 1 else ""
    return f"{wrong[0].what}{more}"


def count(number: int, what: str) -> str:
    """Return a number of things: `1 gap`, `2 gaps`."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
