"""How much, and how long: the growth of one database's artifacts, and what its drills took.

Small bars for the eye, and a table beside them with the same numbers. Days here are UTC, as in the names
of the artifacts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from zoneinfo import ZoneInfo

from pitr_pipelines.catalog.drills import DrillOutcome, DrillReport
from pitr_pipelines.catalog.markup import Content, Markup, prose, scrolled, table, tag
from pitr_pipelines.catalog.report_facts import DRILLS_SHOWN, DatabaseFacts, DayGrowth
from pitr_pipelines.catalog.report_text import show_moment
from pitr_pipelines.units import show_bytes, show_duration

_WIDTH, _HEIGHT = 360, 92
_TOP, _BOTTOM = 18, 74
_NONE = "\N{EN DASH}"
_BEFORE = "before"
"""The kind of a bar that is not drawn: there was nothing yet."""


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar: what it stands for, how much it is (None: there is none), and how it is drawn."""

    label: str
    amount: float | None
    words: str
    kind: str


def bars(title: str, drawn: Sequence[Bar], show: Callable[[float], str]) -> Markup:
    """Draw bars side by side; the largest is labelled with its amount, the ends with what they are of."""
    largest = max((bar.amount or 0 for bar in drawn), default=0)
    step = _WIDTH / max(len(drawn), 1)
    summary = "; ".join(f"{bar.label}: {bar.words}" for bar in drawn)
    parts: list[Content] = [
        tag("title", title),
        tag("desc", summary),
        tag("line", x1=0, x2=_WIDTH, y1=_BOTTOM, y2=_BOTTOM, class_="ground"),
    ]
    labelled = False
    for index, bar in enumerate(drawn):
        x, width = index * step + step * 0.14, min(step * 0.72, 40)
        words = tag("title", f"{bar.label}: {bar.words}")
        if bar.kind == _BEFORE:
            continue
        if bar.amount is None:
            parts.append(
                tag("path", words, d=f"M{x + width / 2 - 3:.1f} {_BOTTOM - 9}l6 6m0 -6l-6 6", class_="absent")
            )
            continue
        height = (_BOTTOM - _TOP) * bar.amount / largest if largest else 0
        y = _BOTTOM - max(height, 1)
        parts.append(tag("rect", words, x=x, y=y, width=width, height=_BOTTOM - y, class_=bar.kind))
        if not labelled and largest and bar.amount == largest:
            labelled = True
            middle = x + width / 2
            anchor = "start" if middle < 40 else "end" if middle > _WIDTH - 40 else "middle"
            at = 0 if anchor == "start" else _WIDTH if anchor == "end" else middle
            parts.append(tag("text", show(largest), x=at, y=y - 4, class_="amount", text_anchor=anchor))
    if drawn:
        parts.append(tag("text", drawn[0].label, x=0, y=_HEIGHT - 5, class_="axis"))
    if len(drawn) > 1:
        parts.append(tag("text", drawn[-1].label, x=_WIDTH, y=_HEIGHT - 5, class_="axis", text_anchor="end"))
    return tag("svg", *parts, class_="bars", viewBox=f"0 0 {_WIDTH} {_HEIGHT}", role="img", aria_label=title)


def growth(facts: DatabaseFacts) -> Markup:
    """Return what each day added, and what all of it takes now."""
    days, totals = facts.growth, facts.totals
    first_base = next((i for i, day in enumerate(days) if day.base_bytes is not None), len(days))
    first_bundle = next((i for i, day in enumerate(days) if day.hours), len(days))
    bases = [
        Bar(
            f"{day.day:%d %b}",
            day.base_bytes,
            "no base backup" if day.base_bytes is None else show_bytes(day.base_bytes),
            _BEFORE if index < first_base else "amount-bar",
        )
        for index, day in enumerate(days)
    ]
    bundles = [
        Bar(
            f"{day.day:%d %b}",
            day.bundle_bytes if day.hours else None,
            f"{show_bytes(day.bundle_bytes)} in {day.hours} hours" if day.hours else "no bundle",
            _BEFORE if index < first_bundle else "amount-bar",
        )
        for index, day in enumerate(days)
    ]
    return tag(
        "div",
        tag("h3", "Sizes"),
        tag(
            "p",
            f"All bases take {show_bytes(totals.bases)}, all bundles {show_bytes(totals.bundles)}, and the "
            f"raw WAL archive {show_bytes(totals.raw)}.",
        ),
        tag("h4", "Base backup of the day"),
        bars(f"Size of each day's base backup of {facts.database}", bases, show_bytes),
        tag("h4", "Bundles of the day"),
        bars(f"Size of each day's bundles of {facts.database}", bundles, show_bytes),
        tag(
            "details",
            tag("summary", "The same as a table"),
            _growth_table(facts.database, days),
        ),
        class_="part",
    )


def _growth_table(database: str, days: Sequence[DayGrowth]) -> Markup:
    rows = [
        tag(
            "tr",
            tag("th", str(day.day), scope="row"),
            tag("td", _NONE if day.base_bytes is None else show_bytes(day.base_bytes)),
            tag("td", show_bytes(day.bundle_bytes) if day.hours else _NONE),
            tag("td", show_bytes(day.wal_bytes) if day.hours else _NONE),
            tag("td", str(day.hours)),
        )
        for day in days
    ]
    head = ("Day (UTC)", "Base", "Bundles", "WAL in them", "Hours")
    return table(f"What each day added to the backups of {database}", head, rows, "numbers")


def drills(facts: DatabaseFacts, zone: ZoneInfo) -> Markup:
    """Return what the newest drills took, oldest first in the picture, newest first in the table."""
    held = facts.drills
    if not held:
        return tag(
            "div",
            tag("h3", "Drills"),
            tag(
                "p",
                f"No restore of {facts.database} has been tried yet: ",
                tag("code", f"pitr drill {facts.database}"),
                " does.",
            ),
            class_="part",
        )
    return tag(
        "div",
        tag("h3", "Drills: how long a restore takes"),
        bars(
            f"Recovery time of each drill of {facts.database}",
            [_drill_bar(drill, zone) for drill in reversed(held)],
            show_duration,
        ),
        scrolled(f"Drills of {facts.database}", _drill_table(facts, zone)),
        class_="part",
    )


def _drill_bar(drill: DrillReport, zone: ZoneInfo) -> Bar:
    took = drill.seconds.recovery_time
    passed = drill.outcome is DrillOutcome.PASSED
    words = drill.outcome.value + ("" if took is None else f", recovered in {show_duration(took)}")
    label = drill.finished_at.astimezone(zone).strftime("%d %b")
    return Bar(label, took if passed else None, words, "amount-bar")


def _drill_table(facts: DatabaseFacts, zone: ZoneInfo) -> Markup:
    rows = []
    for drill in facts.drills:
        took, plan = drill.seconds.recovery_time, drill.plan
        passed = drill.outcome is DrillOutcome.PASSED
        why = (tag("br"), prose("; ".join(drill.problems))) if drill.problems else ()
        rows.append(
            tag(
                "tr",
                tag("th", prose(show_moment(drill.finished_at, zone)), scope="row"),
                tag(
                    "td",
                    tag("strong", drill.outcome.value, class_="good" if passed else "bad"),
                    None if took is None else tag("small", f"recovered in {show_duration(took)}"),
                    *why,
                ),
                tag("td", prose(show_moment(drill.target, zone) if drill.target else _NONE)),
                tag("td", show_bytes(plan.base_bytes + plan.wal_bytes) if plan else _NONE),
            )
        )
    head = ("Done", "Outcome", "Moment restored", "Data")
    return table(f"The newest drills of {facts.database}, at most {DRILLS_SHOWN}", head, rows)
