"""What a message says: one for everything that one look found, short enough for every channel.

The title carries the worst on its own, for a telephone's lock screen. A hundred incidents make one
message that names the first few and counts the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from pitr_pipelines.units import show_duration
from pitr_pipelines.watch.incidents import Severity
from pitr_pipelines.watch.lives import Life, News

BODY_LIMIT = 1800
"""Characters. Discord takes 2000; what takes less, such as SMS, cuts off the end."""
_IN_TITLE = 3
_IN_FULL = 5
_COUNTED = 320
"""Characters for what is only counted and named."""
_LONGEST_LINE = 320


class Tone(StrEnum):
    """How a message looks where messages have colours. The values are apprise's."""

    FAILURE = "failure"
    WARNING = "warning"
    SUCCESS = "success"


@dataclass(frozen=True, slots=True)
class Message:
    title: str
    body: str
    tone: Tone


@dataclass(frozen=True, slots=True)
class _Entry:
    key: str
    text: str


def write_message(news: News, *, now: datetime, place: str) -> Message:
    """Write the message for some news. `place` says which installation speaks, such as its host."""
    title = "; ".join(
        part
        for part in (
            _headline("", news.opened),
            _headline("still: ", news.reminded),
            _headline("over: ", news.over),
        )
        if part
    )
    body = ""
    for heading, entries in (
        ("NEW", [_described(life, now) for life in news.opened]),
        ("STILL OPEN", [_described(life, now) for life in news.reminded]),
        ("OVER", [_ended(life) for life in news.over]),
    ):
        if entries:
            body += ("\n\n" if body else "") + _section(heading, entries, BODY_LIMIT - len(body) - 2)
    return Message(f"pitr on {place}: {title}", _shortened(body, BODY_LIMIT), _tone(news))


def _headline(prefix: str, lives: Sequence[Life]) -> str:
    if not lives:
        return ""
    names = ", ".join(life.incident.key for life in lives[:_IN_TITLE])
    more = f" and {len(lives) - _IN_TITLE} more" if len(lives) > _IN_TITLE else ""
    return f"{prefix}{names}{more}"


def _described(life: Life, now: datetime) -> _Entry:
    lines = [
        f"{life.incident.key}: {_one_line(life.what)}",
        f"  since {life.opened_at:%Y-%m-%d %H:%M:%S}+00:00, {show_duration(now - life.opened_at)} ago",
    ]
    if len(life.openings) > 1:
        lines.append(f"  It comes and goes: {len(life.openings)} times within a day.")
    lines += [f"  {_one_line(life.remedy)}", f"  {life.incident.runbook}"]
    return _Entry(life.incident.key, "\n".join(lines))


def _ended(life: Life) -> _Entry:
    lasted = (life.gone_since or life.seen_at) - life.opened_at
    return _Entry(life.incident.key, f"{life.incident.key}, after {show_duration(lasted)}")


def _section(heading: str, entries: Sequence[_Entry], room: int) -> str:
    """Return as many entries as there is room for, and the number and names of the others."""
    text = heading
    for number, entry in enumerate(entries):
        last = number == len(entries) - 1
        wanted = len(entry.text) + 1 + (0 if last else _COUNTED)
        if number == _IN_FULL or len(text) + wanted > room:
            rest = entries[number:]
            names = _shortened(", ".join(one.key for one in rest), _COUNTED - 80)
            return f"{text}\nand {len(rest)} more: {names}\n  `pitr watch --once` lists all of them."
        text += f"\n{entry.text}"
    return text


def _one_line(text: str) -> str:
    """libpq takes several lines to say that a server is down, of which the first says it."""
    return _shortened(text.strip().partition("\n")[0], _LONGEST_LINE)


def _shortened(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 2].rstrip() + " …"


def _tone(news: News) -> Tone:
    told = (*news.opened, *news.reminded)
    if any(life.severity is Severity.CRITICAL for life in told):
        return Tone.FAILURE
    return Tone.WARNING if told else Tone.SUCCESS
