"""The calendar of the API budget: what became of each day's one call, month by month.

A day without a call is shown as such, not left out; a day that has not come is empty. Words and marks say
what colours say. The days are the provider's, in the zone in which the store counts them.
"""

from __future__ import annotations

import calendar
from collections.abc import Iterator
from datetime import date, datetime, timedelta
from zoneinfo import ZoneInfo

from pitr_pipelines.catalog.calls import CallDay, CallOutcome, Calls
from pitr_pipelines.catalog.markup import Content, Markup, joined, prose, table, tag
from pitr_pipelines.catalog.report_facts import Level
from pitr_pipelines.catalog.report_text import show_moment
from pitr_pipelines.catalog.report_timeline import call_mark
from pitr_pipelines.units import show_bytes

_MEANS = {
    CallOutcome.CONFIRMED: "the store has it",
    CallOutcome.SENT: "under way, or whoever sent it died in the middle",
    CallOutcome.CLAIMED: "the day is taken, nothing was sent",
    CallOutcome.UNKNOWN: "whether the store has it is not known; a look at it will tell",
    CallOutcome.REFUSED: "the store does not have it; what it carried goes with the next day's",
    CallOutcome.UNREADABLE: "the day counts as spent; what it carried goes with the next day's",
    CallOutcome.NONE: "no call was made",
}
_WEEK = ("Mo", "Tu", "We", "Th", "Fr", "Sa", "Su")


LATE = timedelta(hours=36)
"""A call is due each day; half a day more is for one that is made at the deadline."""
FAILING = timedelta(days=4)
"""After so long, it is no single bad day."""


def verdict_on(calls: Calls | None, now: datetime) -> Level:
    """Return how bad it is what became of the calls. Without an off-site copy, that is only noted."""
    if calls is None:
        return Level.NOTE
    last = calls.last_confirmed
    if last is None or last.at is None:
        return Level.ACT if calls.days else Level.LOOK
    if now - last.at > FAILING:
        return Level.ACT
    today = calls.of(calls.today).outcome
    bad = today in (CallOutcome.REFUSED, CallOutcome.UNKNOWN, CallOutcome.UNREADABLE)
    return Level.LOOK if bad or now - last.at > LATE else Level.GOOD


def budget(calls: Calls | None, first: date, zone: ZoneInfo, now: datetime) -> Markup:
    """Return the calendar from the month of `first` to that of today, and what was said of each call."""
    parts: list[Content] = [tag("h2", "The off-site copy: one call a day", id="offsite")]
    if calls is None:
        parts.append(
            tag(
                "p",
                "No off-site copy is configured: every backup is on this machine only. Add ",
                tag("code", "offsite:"),
                " to the settings.",
                class_="verdict note",
            )
        )
        return tag("section", *parts)
    level = verdict_on(calls, now).value
    parts.append(tag("p", prose(_summary(calls, zone)), class_=f"verdict {level}"))
    first = min(first, calls.today)
    months = [_month(calls, year, month, first) for year, month in _months(first, calls.today)]
    parts.append(tag("div", *months, class_="months"))
    parts.append(_said(calls, first, zone))
    return tag("section", *parts)


def _summary(calls: Calls, zone: ZoneInfo) -> str:
    today = calls.of(calls.today)
    said = f"Today ({calls.today}, days of {calls.zone}): "
    if today.outcome is CallOutcome.NONE:
        said += "no call yet."
    else:
        said += f"{today.outcome.value}{_size(today, ', ')}."
    last = calls.last_confirmed
    if last is None:
        return f"{said} No call was ever confirmed: nothing is off-site, as far as is known here."
    when = f", at {show_moment(last.at, zone)}" if last.at else ""
    return f"{said} The last one that the store confirmed is of {last.day}{when}{_size(last, ', ')}."


def _months(first: date, last: date) -> Iterator[tuple[int, int]]:
    year, month = first.year, first.month
    while (year, month) <= (last.year, last.month):
        yield year, month
        year, month = (year + 1, 1) if month == 12 else (year, month + 1)


def _month(calls: Calls, year: int, month: int, first: date) -> Markup:
    weeks = calendar.Calendar().monthdatescalendar(year, month)
    rows = [tag("tr", *(_cell(calls, day, month, first) for day in week)) for week in weeks]
    return table(f"{calendar.month_name[month]} {year}", _WEEK, rows, "month-grid")


def _cell(calls: Calls, day: date, month: int, first: date) -> Markup:
    if day.month != month:
        return tag("td", class_="blank")
    number = tag("span", str(day.day), class_="number")
    if day > calls.today or day < first:
        return tag("td", number, class_="ahead")
    call = calls.of(day)
    size = tag("span", show_bytes(call.size_bytes), class_="size") if call.size_bytes is not None else None
    word = "not yet" if call.outcome is CallOutcome.NONE and day == calls.today else call.outcome.value
    return tag(
        "td",
        number,
        call_mark(call.outcome),
        tag("span", word, class_="word"),
        size,
        class_=f"call-day call-day-{call.outcome.value}" + (" today" if day == calls.today else ""),
        title=f"{day}: {word}" + (f": {call.said}" if call.said else ""),
    )


def _said(calls: Calls, first: date, zone: ZoneInfo) -> Markup:
    shown = [call for call in reversed(calls.days) if call.day >= first]
    if not shown:
        return joined(())
    rows = [
        tag(
            "tr",
            tag("th", prose(str(call.day)), scope="row"),
            tag(
                "td",
                call_mark(call.outcome),
                " ",
                tag("strong", call.outcome.value),
                tag("small", show_bytes(call.size_bytes)) if call.size_bytes is not None else None,
            ),
            tag("td", call.said or _sentence(_MEANS[call.outcome]), *_beneath(call, zone)),
        )
        for call in shown
    ]
    head = ("Day", "Outcome", "What was said")
    return table("The calls on the ledger, the newest first", head, rows, "said")


def _beneath(call: CallDay, zone: ZoneInfo) -> Iterator[Markup]:
    """Yield what an outcome means, where the store's own words leave that open, and when it was."""
    if call.said is not None and call.outcome is not CallOutcome.CONFIRMED:
        yield tag("small", _sentence(_MEANS[call.outcome]))
    if call.at is not None:
        yield tag("small", prose(show_moment(call.at, zone)))


def _sentence(words: str) -> str:
    return f"{words[0].upper()}{words[1:]}."


def _size(call: CallDay, before: str = "") -> str:
    return "" if call.size_bytes is None else before + show_bytes(call.size_bytes)
