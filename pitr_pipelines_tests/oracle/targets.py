"""Random targets of every kind, out of what happened and what was committed."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import pairwise

from pitr_pipelines_tests.oracle.story import Event
from pitr_pipelines_tests.oracle.world import CLEAR, Truth

_STEP = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True)
class Moment:
    """A moment to restore to, and why it is interesting."""

    why: str
    at: datetime

    def __str__(self) -> str:
        return f"{self.at.isoformat(sep=' ')} ({self.why})"


def draw(
    truth: Truth, events: Sequence[Event], since: datetime, until: datetime, pick: random.Random, count: int
) -> list[Moment]:
    """Return `count` moments from `since` to `until`, as evenly as can be of every kind there is."""
    kinds = [
        _between_commits(truth, since, until),
        _at_commits(truth, since, until),
        _before_commits(truth, since, until),
        _while_idle(events, pick),
        _around(truth, events, "base backup"),
        _around(truth, events, "bundled"),
        _around(truth, events, "restart"),
        _around(truth, events, "promotion"),
        _during(truth, events),
    ]
    usable = [
        [moment for moment in kind if since <= moment.at <= until and truth.is_clear(moment.at)]
        for kind in kinds
    ]
    for kind in usable:
        pick.shuffle(kind)
    drawn: list[Moment] = []
    while len(drawn) < count and any(usable):
        for kind in usable:
            if kind and len(drawn) < count:
                drawn.append(kind.pop())
    return drawn


def _gaps(truth: Truth, since: datetime, until: datetime) -> list[tuple[datetime, datetime]]:
    times = [at for at in truth.times if since <= at <= until]
    return [(a, b) for a, b in pairwise(times) if b - a > 2 * CLEAR + 2 * _STEP]


def _between_commits(truth: Truth, since: datetime, until: datetime) -> list[Moment]:
    return [Moment("between two commits", a + (b - a) / 2) for a, b in _gaps(truth, since, until)]


def _at_commits(truth: Truth, since: datetime, until: datetime) -> list[Moment]:
    return [Moment("the very time of a commit", a) for a, _ in _gaps(truth, since, until)]


def _before_commits(truth: Truth, since: datetime, until: datetime) -> list[Moment]:
    return [Moment("a microsecond before a commit", b - _STEP) for _, b in _gaps(truth, since, until)]


def _while_idle(events: Iterable[Event], pick: random.Random) -> list[Moment]:
    idle = [event for event in events if event.what == "idle"]
    return [
        Moment("idle", event.begun + (event.ended - event.begun) * pick.uniform(0.02, 0.98)) for event in idle
    ]


def _around(truth: Truth, events: Iterable[Event], what: str) -> list[Moment]:
    """Return the clear moments next to where such events began and ended, on both sides."""
    moments = []
    for event in events:
        if what not in event.what:
            continue
        for edge, name in ((event.begun, "the begin"), (event.ended, "the end")):
            for away, side in ((-1, "just before"), (1, "just after")):
                near = (edge + away * step * timedelta(milliseconds=1) for step in range(1, 300, 3))
                found = next((moment for moment in near if truth.is_clear(moment)), None)
                if found is not None:
                    moments.append(Moment(f"{side} {name} of: {event.what}", found))
    return moments


def _during(truth: Truth, events: Iterable[Event]) -> list[Moment]:
    middles = [(event, event.begun + (event.ended - event.begun) / 2) for event in events]
    return [Moment(f"during: {event.what}", at) for event, at in middles if truth.is_clear(at)]
