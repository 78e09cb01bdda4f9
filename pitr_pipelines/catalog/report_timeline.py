"""The timeline of one database as a picture: a row a day, a cell an hour, so that it fits a phone.

Each row has three lanes: marks of what happened (base backups, drills), the hours as bundled, and the
moments that can be restored. What is told by colour is told by pattern, shape or label too; every mark
says what it is when pointed at, and the description says in words what the picture shows.

Rows are days of the configured zone. Cells lie where their hour begins, counted from midnight: on the day
on which the clocks change, there are 23 or 25.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from itertools import groupby
from zoneinfo import ZoneInfo

from pitr_pipelines.catalog.calls import CallOutcome, Calls
from pitr_pipelines.catalog.drills import DrillOutcome, DrillReport
from pitr_pipelines.catalog.markup import Content, Markup, joined, tag
from pitr_pipelines.catalog.records import BaseRecord
from pitr_pipelines.catalog.report_facts import DatabaseFacts, HourCell, HourState
from pitr_pipelines.catalog.report_text import show_moment
from pitr_pipelines.units import show_bytes, show_duration

_WIDTH = 360
_LEFT = 56
"""Where midnight is."""
_HOUR = 11.0
_RIGHT = _LEFT + 25 * _HOUR + 13
"""Where the off-site copy's mark is."""
_TOP = 20
_ROW = 33
_MARK = 11.0
"""The room that a mark takes."""


@dataclass(frozen=True, slots=True)
class Row:
    """One day of the zone, from midnight to midnight, at a height of the picture."""

    day: date
    start: datetime
    end: datetime
    top: float
    note: str
    """The month, where it begins; and how many hours the day has, if that is unusual."""

    def x(self, moment: datetime) -> float:
        """Return where a moment of this day is."""
        return _LEFT + (moment - self.start) / timedelta(hours=1) * _HOUR

    def part(self, start: datetime, end: datetime) -> tuple[datetime, datetime] | None:
        """Return the part of a span that lies on this day, or None."""
        begins, ends = max(start, self.start), min(end, self.end)
        return (begins, ends) if begins < ends else None


def rows_of(first: date, last: date, zone: ZoneInfo) -> list[Row]:
    """Return a row for each day, the newest on top, as that is what is asked about first."""
    rows = []
    for n in range((last - first).days + 1):
        day = last - timedelta(days=n)
        start, end = _midnight(day, zone), _midnight(day + timedelta(days=1), zone)
        notes = [day.strftime("%b %Y")] if n == 0 or day.day == 1 else []
        if end - start != timedelta(hours=24):
            notes.append(f"{(end - start) / timedelta(hours=1):g} hours")
        rows.append(Row(day, start, end, _TOP + _ROW * n, " ".join(notes)))
    return rows


def timeline(facts: DatabaseFacts, rows: list[Row], zone: ZoneInfo, calls: Calls | None) -> Markup:
    """Draw what there is of a database on the days of `rows`."""
    height = _TOP + _ROW * len(rows) + 2
    name = f"timeline-{facts.database}"
    parts: list[Content] = [
        tag("title", f"Timeline of {facts.database}, {rows[-1].day} to {rows[0].day}", id=f"{name}-title"),
        tag("desc", _in_words(facts, rows, zone), id=f"{name}-desc"),
        *_axis(height, calls),
    ]
    for row in rows:
        parts.append(_row(facts, row, zone, calls))
    return tag(
        "svg",
        *parts,
        class_="timeline",
        viewBox=f"0 0 {_WIDTH} {height:.0f}",
        role="img",
        aria_labelledby=f"{name}-title {name}-desc",
    )


def _axis(height: float, calls: Calls | None) -> Iterator[Markup]:
    for hour in (0, 6, 12, 18, 24):
        x = _LEFT + hour * _HOUR
        yield tag("text", f"{hour}", x=x, y=_TOP - 7, class_="axis", text_anchor="middle")
        yield tag("line", x1=x, x2=x, y1=_TOP - 4, y2=height - 4, class_="tick")
    if calls is not None:
        yield tag("text", "off-site", x=_WIDTH, y=_TOP - 7, class_="axis", text_anchor="end")


def _row(facts: DatabaseFacts, row: Row, zone: ZoneInfo, calls: Calls | None) -> Markup:
    parts: list[Content] = [tag("text", row.day.strftime("%a %d"), x=0, y=row.top + 18.5, class_="day")]
    if row.note:
        parts.append(tag("text", row.note, x=0, y=row.top + 28, class_="note"))
    parts += _cells(row, facts.hours, zone)
    for window in facts.windows:
        if part := row.part(window.start, window.end):
            words = f"restorable: {show_moment(part[0], zone)} to {show_moment(part[1], zone)}"
            parts.append(_bar(row, *part, 22, 5, "restorable", words))
    for hole in facts.holes:
        if part := row.part(hole.start, hole.end):
            words = f"CANNOT BE RESTORED: {show_moment(hole.start, zone)} to {show_moment(hole.end, zone)}"
            parts.append(_bar(row, *part, 21, 9, "hole", words))
            parts += _cross(row, *part)
    parts += _marks(facts, row, zone)
    if calls is not None:
        parts += _call(facts, row, calls)
    if row.start <= facts.now < row.end:
        x = row.x(facts.now)
        parts.append(tag("line", x1=x, x2=x, y1=row.top + 1, y2=row.top + 31, class_="now"))
    return tag("g", *parts)


def _cells(row: Row, hours: Iterable[HourCell], zone: ZoneInfo) -> Iterator[Markup]:
    """Draw the hours; those of one state in a row are one cell, with lines between."""
    today = [cell for cell in hours if row.start <= cell.hour.start < row.end]
    for state, group in groupby(today, key=lambda cell: cell.state):
        cells = list(group)
        start, end = cells[0].hour.start, cells[-1].hour.end
        words = f"{state.value}: {show_moment(start, zone)} to {show_moment(end, zone)}, "
        words += f"{len(cells)} hour{'s' if len(cells) > 1 else ''}"
        if state in (HourState.CLOSED, HourState.OPEN):
            words += f", {show_bytes(sum(cell.size_bytes for cell in cells))}"
        yield _bar(row, start, end, 10, 10, state.value, words)
        lines = "".join(f"M{row.x(cell.hour.start):.1f} {row.top + 10:.1f}v10" for cell in cells[1:])
        if lines:
            yield tag("path", d=lines, class_="between")


def _bar(row: Row, start: datetime, end: datetime, y: float, height: float, kind: str, words: str) -> Markup:
    # Thinner than a pixel of a phone, it could not be seen.
    width = max(row.x(end) - row.x(start), 1.5)
    return tag(
        "rect",
        tag("title", words),
        x=row.x(start),
        y=row.top + y,
        width=width,
        height=height,
        class_=kind,
    )


def _cross(row: Row, start: datetime, end: datetime) -> Iterator[Markup]:
    """Name a hole where there is room for it."""
    width = row.x(end) - row.x(start)
    if width >= 68:
        x, y = (row.x(start) + row.x(end)) / 2, row.top + 28
        yield tag("rect", x=x - 32, y=row.top + 21.7, width=64, height=7.6, class_="hole-name")
        yield tag("text", "not restorable", x=x, y=y, class_="lost", text_anchor="middle")


def _marks(facts: DatabaseFacts, row: Row, zone: ZoneInfo) -> Iterator[Markup]:
    """Mark what happened on a day; what happened at nearly the same time stands side by side."""
    happened: list[tuple[float, BaseRecord | DrillReport]] = []
    happened += [(row.x(b.ended_at), b) for b in facts.bases if row.start <= b.ended_at < row.end]
    happened += [(row.x(d.finished_at), d) for d in facts.drills if row.start <= d.finished_at < row.end]
    taken = -_MARK
    for wanted, what in sorted(happened, key=lambda marked: marked[0]):
        taken = x = max(wanted, taken + _MARK)
        yield _base(what, x, row, zone) if isinstance(what, BaseRecord) else _drill(what, x, row, zone)


def _base(base: BaseRecord, x: float, row: Row, zone: ZoneInfo) -> Markup:
    words = f"base backup of {base.day}, ended {show_moment(base.ended_at, zone)}, "
    words += f"{show_bytes(base.size_bytes)} in {show_duration(base.ended_at - base.started_at)}"
    return tag("path", tag("title", words), d=f"M{x - 5:.1f} {row.top + 1:.1f}h10l-5 8z", class_="base")


def _drill(drill: DrillReport, x: float, row: Row, zone: ZoneInfo) -> Markup:
    words = tag("title", f"drill {drill.outcome.value}, {show_moment(drill.finished_at, zone)}")
    if drill.outcome is DrillOutcome.PASSED:
        return tag("circle", words, cx=x, cy=row.top + 4.8, r=3.6, class_="passed")
    return tag(
        "path", words, d=f"M{x - 3.2:.1f} {row.top + 1.5:.1f}l6.4 6.4m0 -6.4l-6.4 6.4", class_="failed"
    )


_CALL_SHAPES = {
    CallOutcome.CONFIRMED: "M-4.5 .5l3 3l6 -7",
    CallOutcome.REFUSED: "M-3.5 -3.5l7 7m0 -7l-7 7",
    CallOutcome.UNREADABLE: "M-3.5 -3.5l7 7m0 -7l-7 7",
    CallOutcome.UNKNOWN: "M-3 -1.5a3 3 0 1 1 4.2 2.6q-1.2 .6 -1.2 2m0 2.2v.6",
    CallOutcome.SENT: "M0 4v-8m-3 3l3 -3l3 3",
    CallOutcome.CLAIMED: "M-4 0h8",
    CallOutcome.NONE: None,
}


def _call(facts: DatabaseFacts, row: Row, calls: Calls) -> Iterator[Markup]:
    call = calls.of(row.day)
    shape = _CALL_SHAPES[call.outcome]
    if shape is None:
        return
    words = f"off-site copy of {call.day}: {call.outcome.value}"
    without = call.databases is not None and facts.database not in call.databases
    if call.outcome is CallOutcome.CONFIRMED and without:
        words += f", with nothing of {facts.database}"
        shape = _CALL_SHAPES[CallOutcome.CLAIMED]
    yield tag(
        "path",
        tag("title", words),
        d=shape,
        transform=f"translate({_RIGHT:.1f} {row.top + 15:.1f})",
        class_=f"call call-{call.outcome.value}",
    )


def _in_words(facts: DatabaseFacts, rows: list[Row], zone: ZoneInfo) -> str:
    start, end = rows[-1].start, rows[0].end
    counts = {state: sum(cell.state is state for cell in facts.hours) for state in HourState}
    bases = sum(start <= base.ended_at < end for base in facts.bases)
    drills = sum(start <= drill.finished_at < end for drill in facts.drills)
    words = ", ".join(f"{count} hours {state.value}" for state, count in counts.items() if count)
    said = f"{bases} base backups; {words or 'no hours'}; {drills} drills."
    for hole in facts.holes:
        if hole.end > start:
            said += f" Not restorable: {show_moment(hole.start, zone)} to {show_moment(hole.end, zone)}."
    return said


def legend(calls: Calls | None) -> Markup:
    """Return what the marks of the timelines mean, each with its mark."""
    entries: list[tuple[Markup, str]] = [
        (_sample("rect", "closed", width=14, height=10, y=2), "hour bundled"),
        (_sample("rect", "open", width=14, height=10, y=2), "bundle still open"),
        (_sample("rect", "missing", width=14, height=10, y=2), "hour not bundled"),
        (_sample("rect", "due", width=14, height=10, y=2), "not due yet"),
        (_sample("rect", "restorable", width=14, height=5, y=5), "every moment restorable"),
        (_sample("rect", "hole", width=14, height=8, y=3), "not restorable"),
        (_sample("path", "base", d="M2 3h10l-5 8z"), "base backup"),
        (_sample("circle", "passed", cx=7, cy=7, r=3.8), "drill passed"),
        (_sample("path", "failed", d="M3.5 3.5l7 7m0 -7l-7 7"), "drill failed"),
        (_sample("path", "now", d="M7 0v14"), "now"),
    ]
    if calls is not None:
        for outcome, words in (
            (CallOutcome.CONFIRMED, "sent off-site, confirmed"),
            (CallOutcome.REFUSED, "refused"),
            (CallOutcome.UNKNOWN, "sent, outcome unknown"),
            (CallOutcome.SENT, "being sent"),
            (CallOutcome.CLAIMED, "claimed, or without this database"),
        ):
            shape = _CALL_SHAPES[outcome]
            mark = _sample("path", f"call call-{outcome.value}", d=shape, transform="translate(7 7)")
            entries.append((mark, words))
    return tag(
        "ul", *(tag("li", mark, " ", words) for mark, words in entries), class_="legend", aria_label="Legend"
    )


def call_mark(outcome: CallOutcome) -> Markup:
    """Return the mark of how a day's call ended, for use in text; empty for none."""
    shape = _CALL_SHAPES[outcome]
    if shape is None:
        return joined(())
    return _sample("path", f"call call-{outcome.value}", d=shape, transform="translate(7 7)")


def _sample(shape: str, kind: str, **attributes: str | float | None) -> Markup:
    return tag(
        "svg",
        tag(shape, class_=kind, **attributes),
        class_="sample",
        viewBox="0 0 14 14",
        aria_hidden="true",
    )


def _midnight(day: date, zone: ZoneInfo) -> datetime:
    return datetime.combine(day, time(), zone).astimezone(UTC)
