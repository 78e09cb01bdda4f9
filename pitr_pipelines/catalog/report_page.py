"""The page: an overview, a section for each database, and the budget's calendar. Pure: facts in, HTML out.

It is one file that needs nothing else: no network, no script, no font; its own policy forbids them. It is
readable on a phone and on paper, in the dark, and by ear.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from importlib import resources
from zoneinfo import ZoneInfo

from pitr_pipelines import __version__
from pitr_pipelines.catalog.calls import Calls
from pitr_pipelines.catalog.markup import Content, Markup, joined, prose, scrolled, table, tag, verbatim
from pitr_pipelines.catalog.report_amounts import drills, growth
from pitr_pipelines.catalog.report_calendar import budget, verdict_on
from pitr_pipelines.catalog.report_facts import DatabaseFacts, Level, LostWal
from pitr_pipelines.catalog.report_text import (
    VERDICTS,
    count,
    headline,
    show_ago,
    show_moment,
    show_window,
)
from pitr_pipelines.catalog.report_timeline import Row, legend, rows_of, timeline
from pitr_pipelines.catalog.space import Space
from pitr_pipelines.units import show_bytes, show_duration

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
_LEVEL_WORDS = {Level.ACT: "Act now", Level.LOOK: "Look", Level.NOTE: "Note", Level.GOOD: "Good"}
_SHAPES = {
    Level.GOOD: "M1.5 7.5l4 4l7 -8.5",
    Level.NOTE: "M1.5 7.5l4 4l7 -8.5",
    Level.LOOK: "M7 1v7.5m0 2.5v1.6",
    Level.ACT: "M2 2l10 10m0 -10l-10 10",
}
_NONE = "\N{EN DASH}"


@dataclass(frozen=True, slots=True)
class Page:
    """Everything that a page shows. `days` is how many, today included; `calls` None: no off-site copy."""

    facts: Sequence[DatabaseFacts]
    calls: Calls | None
    space: Space | None
    zone: ZoneInfo
    now: datetime
    days: int

    @property
    def last(self) -> date:
        return self.now.astimezone(self.zone).date()

    @property
    def first(self) -> date:
        return self.last - timedelta(days=self.days - 1)


def render(page: Page) -> str:
    """Return the page as HTML."""
    rows = rows_of(page.first, page.last, page.zone)
    made = show_moment(page.now, page.zone)
    document = tag(
        "html",
        tag(
            "head",
            tag("meta", charset="utf-8"),
            tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
            tag("meta", http_equiv="Content-Security-Policy", content=_POLICY),
            tag("meta", name="color-scheme", content="light dark"),
            tag("link", rel="icon", href="data:,"),
            tag("title", f"{_worst(page)}: what can be restored, {made}"),
            tag("style", verbatim(_style())),
        ),
        tag(
            "body",
            _patterns(),
            _header(page, made),
            tag(
                "main",
                _overview(page),
                tag("section", tag("h2", "How to read the timelines"), _reading(page), class_="reading"),
                *(_database(facts, rows, page) for facts in page.facts),
                budget(page.calls, page.first, page.zone, page.now),
            ),
            tag(
                "footer",
                tag(
                    "p",
                    f"Made by pitr_pipelines {__version__} at {made} from the records in the storage; no "
                    "server was asked. ",
                    tag("code", "pitr report"),
                    " makes it anew.",
                ),
            ),
        ),
        lang="en",
    )
    return f"<!DOCTYPE html>\n{document}\n"


def _style() -> str:
    return resources.files("pitr_pipelines.catalog").joinpath("report.css").read_text(encoding="utf-8")


def _worst(page: Page) -> str:
    levels = {facts.level for facts in page.facts} | {verdict_on(page.calls, page.now)}
    for level in (Level.ACT, Level.LOOK):
        if level in levels:
            return VERDICTS[level]
    return VERDICTS[Level.GOOD]


def _header(page: Page, made: str) -> Markup:
    space = page.space
    room = (
        f" {show_bytes(space.free)} of {show_bytes(space.size)} are free in {space.path}."
        if space is not None
        else " The storage is not there: is its volume mounted?"
    )
    return tag(
        "header",
        tag("h1", "What can be restored"),
        tag("p", "As of ", tag("strong", made), f" ({page.zone.key}).{room}"),
    )


def _overview(page: Page) -> Markup:
    rows = []
    for facts in page.facts:
        last = facts.windows[-1] if facts.windows else None
        wrong = sum(problem.level in (Level.LOOK, Level.ACT) for problem in facts.problems)
        rows.append(
            tag(
                "tr",
                tag("th", tag("a", facts.database, href=f"#db-{facts.database}"), scope="row"),
                tag("td", _badge(facts.level, VERDICTS[facts.level] + (f": {wrong}" if wrong else ""))),
                tag(
                    "td",
                    prose(show_moment(last.end, page.zone) if last else "nothing is"),
                    tag("small", show_ago(last.end, facts.now)) if last else None,
                ),
            )
        )
    last_call = page.calls.last_confirmed if page.calls else None
    level = verdict_on(page.calls, page.now)
    rows.append(
        tag(
            "tr",
            tag("th", tag("a", "off-site copy", href="#offsite"), scope="row"),
            tag("td", _badge(level, VERDICTS[level]) if page.calls else _NONE),
            tag(
                "td",
                "last confirmed: ",
                prose(str(last_call.day)) if last_call else "none",
                tag("small", show_ago(last_call.at, page.now)) if last_call and last_call.at else None,
            )
            if page.calls is not None
            else tag("td", "none is configured"),
        )
    )
    head = ("Database", "Verdict: problems", "Restorable until")
    return tag(
        "section",
        tag("h2", "Overview"),
        scrolled("All databases", table("All databases", head, rows)),
    )


def _reading(page: Page) -> Markup:
    return joined(
        (
            tag(
                "p",
                f"A row is a day in {page.zone.key}, the newest on top; a cell is an hour. Above the cells "
                "are base backups and drills, below them the moments that can be restored.",
            ),
            legend(page.calls),
        )
    )


def _database(facts: DatabaseFacts, rows: list[Row], page: Page) -> Markup:
    parts: list[Content] = [
        tag("h2", facts.database),
        tag(
            "p",
            _badge(facts.level, VERDICTS[facts.level]),
            " ",
            prose(headline(facts, page.zone)),
            class_=f"verdict {facts.level.value}",
        ),
    ]
    beside: list[Content] = []
    if facts.readable:
        beside.append(_windows(facts, page.zone))
    beside.append(_problems(facts))
    if facts.lost:
        beside.append(_gaps(facts, page.zone))
    if facts.readable:
        beside.append(drills(facts, page.zone))
    columns: list[Content] = []
    rows = [row for row in rows if row.end > facts.since]
    if rows and (facts.bases or facts.bundles):
        title = f"The last {len(rows)} days" if len(rows) > 1 else "Today"
        picture = timeline(facts, rows, page.zone, page.calls)
        columns.append(tag("div", tag("h3", title), picture, class_="when"))
    columns.append(tag("div", *beside, class_="beside"))
    if facts.bases or facts.bundles:
        columns.append(tag("div", growth(facts), class_="sizes"))
    parts.append(tag("div", *columns, class_="columns"))
    return tag("section", *parts, id=f"db-{facts.database}", class_="database")


def _windows(facts: DatabaseFacts, zone: ZoneInfo) -> Markup:
    if not facts.windows:
        shown = tag("p", "No moment can be restored.", class_="bad")
    else:
        items = [
            tag(
                "li",
                prose(show_window(window, zone)),
                f" ({show_duration(window.end - window.start)}, timeline {window.timeline})",
            )
            for window in facts.windows
        ]
        shown = tag("ul", *items, class_="windows")
    counts = f"{count(facts.restore_points, 'restore point')}, {count(len(facts.bases), 'base backup')}"
    if facts.bases:
        counts += f", the newest of {facts.bases[-1].day}"
    if facts.archived_at is not None:
        counts += f"; the newest WAL is {show_ago(facts.archived_at, facts.now).removesuffix(' ago')} old"
    title = "Recovery window" if len(facts.windows) < 2 else "Recovery windows"
    return tag("div", tag("h3", title), shown, tag("p", f"{counts}."), class_="part")


def _problems(facts: DatabaseFacts) -> Markup:
    if not facts.problems:
        return tag("div", tag("h3", "Problems"), tag("p", "None."), class_="part")
    rows = [
        tag(
            "tr",
            tag("td", _badge(problem.level, _LEVEL_WORDS[problem.level])),
            tag(
                "td",
                tag("p", prose(problem.what)),
                tag("p", tag("b", "Do: "), prose(problem.remedy), class_="remedy"),
            ),
        )
        for problem in facts.problems
    ]
    head = ("How bad", "What, and what to do")
    return tag(
        "div",
        tag("h3", "Problems"),
        table(f"What is wrong with {facts.database}, and what to do", head, rows, "problems"),
        class_="part",
    )


def _gaps(facts: DatabaseFacts, zone: ZoneInfo) -> Markup:
    rows = [_gap(lost, zone) for lost in facts.lost]
    head = ("Not restorable after", "Restorable again from", "Missing segments")
    held = table(f"Gaps in the WAL of {facts.database}", head, rows, "gaps")
    return tag(
        "div",
        tag("h3", "Gaps"),
        scrolled(f"Gaps of {facts.database}", held),
        class_="part",
    )


def _gap(lost: LostWal, zone: ZoneInfo) -> Markup:
    gap = lost.gap
    span: list[Content] = [tag("code", str(gap.first))]
    if gap.last != gap.first:
        span += [" to ", tag("code", str(gap.last))]
    again = tag("strong", "never, without a new base backup", class_="bad") if lost.until is None else None
    return tag(
        "tr",
        tag("th", prose(show_moment(lost.since, zone) if lost.since else "not known"), scope="row"),
        tag("td", again or prose(show_moment(lost.until, zone) if lost.until else "")),
        tag("td", *span),
    )


def _badge(level: Level, words: str) -> Markup:
    mark = tag("svg", tag("path", d=_SHAPES[level]), class_="mark", viewBox="0 0 14 14", aria_hidden="true")
    return tag("span", mark, words, class_=f"badge {level.value}")


def _patterns() -> Markup:
    """Return the hatchings that the pictures fill their shapes with, defined once for all of them."""
    made = []
    for name, d in (
        ("hatch", "M-1 1l2 -2M0 6l6 -6M5 7l2 -2"),
        ("cross", "M0 0l6 6M6 0l-6 6"),
        ("dots", "M1.5 1.5h1.5v1.5h-1.5z"),
    ):
        made.append(
            tag(
                "pattern",
                tag("rect", width=6, height=6, class_=f"{name}-ground"),
                tag("path", d=d, class_=f"{name}-lines"),
                id=name,
                width=6,
                height=6,
                patternUnits="userSpaceOnUse",
            )
        )
    return tag("svg", tag("defs", *made), width=0, height=0, class_="patterns", aria_hidden="true")
