"""What a message says: one for everything that one look found, short enough for every channel.

The title carries the worst on its own, for a telephone's lock screen. A hundred incidents make one
message that names the first few and counts the rest.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
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
_LISTED = 20


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
    blocks = []
    for heading, lives in (("NEW", news.opened), ("STILL OPEN", news.reminded)):
        if lives:
            blocks.append("\n".join([heading, *_described(lives, now)]))
    if news.over:
        blocks.append("\n".join(["OVER", *_ended(news.over)]))
    return Message(f"pitr on {place}: {title}", _bounded("\n\n".join(blocks)), _tone(news))


def _headline(prefix: str, lives: Sequence[Life]) -> str:
    if not lives:
        return ""
    names = ", ".join(life.incident.key for life in lives[:_IN_TITLE])
    more = f" and {len(lives) - _IN_TITLE} more" if len(lives) > _IN_TITLE else ""
    return f"{prefix}{names}{more}"


def _described(lives: Sequence[Life], now: datetime) -> Iterable[str]:
    for life in lives[:_IN_FULL]:
        yield f"{life.incident.key}: {life.what}"
        yield f"  since {life.opened_at:%Y-%m-%d %H:%M:%S}+00:00, {show_duration(now - life.opened_at)} ago"
        if len(life.openings) > 1:
            yield f"  It comes and goes: {len(life.openings)} times within a day."
        yield f"  {life.remedy}"
        yield f"  {life.incident.runbook}"
    yield from _counted(lives[_IN_FULL:])


def _ended(lives: Sequence[Life]) -> Iterable[str]:
    for life in lives[:_IN_FULL]:
        lasted = (life.gone_since or life.seen_at) - life.opened_at
        yield f"{life.incident.key}, after {show_duration(lasted)}"
    yield from _counted(lives[_IN_FULL:])


def _counted(rest: Sequence[Life]) -> Iterable[str]:
    if rest:
        names = ", ".join(life.incident.key for life in rest[:_LISTED])
        yield f"and {len(rest)} more: {names}" + (" …" if len(rest) > _LISTED else "")
        yield "  `pitr watch --once` lists all of them."


def _bounded(body: str) -> str:
    return body if len(body) <= BODY_LIMIT else body[: BODY_LIMIT - 2].rstrip() + " …"


def _tone(news: News) -> Tone:
    told = (*news.opened, *news.reminded)
    if any(life.severity is Severity.CRITICAL for life in told):
        return Tone.FAILURE
    return Tone.WARNING if told else Tone.SUCCESS
