"""Random targets of every kind, out of what happened and what was committed; and the state at each."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from itertools import pairwise

from pitr_pipelines.catalog.records import BaseRecord
from pitr_pipelines.restore.target import Target, TimeTarget
from pitr_pipelines_tests.oracle import wal_targets
from pitr_pipelines_tests.oracle.story import Event
from pitr_pipelines_tests.oracle.truth import CLEAR, Span, State, Truth

_STEP = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True)
class Aim:
    """A target to restore to, why it is interesting, and what must come back."""

    why: str
    target: Target
    state: Callable[[], State] = field(repr=False)
    timeline: int | None = None

    def __str__(self) -> str:
        branch = "" if self.timeline is None else f" on timeline {self.timeline}"
        return f"{self.target}{branch} ({self.why})"


def draw(
    truth: Truth,
    events: Sequence[Event],
    bases: Sequence[BaseRecord],
    span: Span,
    pick: random.Random,
    count: int,
    *,
    timeline: int | None = None,
) -> list[Aim]:
    """Return `count` aims, as evenly as can be of every family and of every kind in each."""
    places = wal_targets.Places(truth, span.first, span.last, bases, events, pick)
    families = [
        _times(truth, events, span, pick, timeline),
        *(
            [
                [Aim(why, target, partial(truth.having, have), timeline) for why, target, have in kind]
                for kind in family
            ]
            for family in places.families()
        ),
    ]
    usable = [[kind for kind in family if kind] for family in families]
    for family in usable:
        pick.shuffle(family)
        for kind in family:
            pick.shuffle(kind)
    # The first kind of each family, then the second; and when all had their turn, from the beginning.
    turns = [family[n] for n in range(max(map(len, usable))) for family in usable if n < len(family)]
    drawn: list[Aim] = []
    while len(drawn) < count and any(turns):
        for kind in turns:
            if kind and len(drawn) < count:
                drawn.append(kind.pop())
    return drawn


def _times(
    truth: Truth, events: Sequence[Event], span: Span, pick: random.Random, timeline: int | None
) -> list[list[Aim]]:
    kinds = [
        _between_commits(truth, span),
        _at_commits(truth, span),
        _before_commits(truth, span),
        _while_idle(events, pick),
        _around(truth, events, "base backup"),
        _around(truth, events, "bundled"),
        _around(truth, events, "restart"),
        _around(truth, events, "promotion"),
        _during(truth, events),
    ]
    found = [
        [
            Aim(why, TimeTarget(at), partial(truth.at, at), timeline)
            for why, at in kind
            if span.since <= at <= span.until and truth.is_clear(at)
        ]
        for kind in kinds
    ]
    found.append(
        [
            Aim(why, TimeTarget(at, inclusive=False), partial(truth.at, at, inclusive=False), timeline)
            for why, at in _at_commits(truth, span)
            if truth.is_clear(at)
        ]
    )
    return found


_Moments = list[tuple[str, datetime]]


def _gaps(truth: Truth, span: Span) -> list[tuple[datetime, datetime]]:
    times = [at for at in truth.times if span.since <= at <= span.until]
    return [(a, b) for a, b in pairwise(times) if b - a > 2 * CLEAR + 2 * _STEP]


def _between_commits(truth: Truth, span: Span) -> _Moments:
    return [("between two commits", a + (b - a) / 2) for a, b in _gaps(truth, span)]


def _at_commits(truth: Truth, span: Span) -> _Moments:
    return [("the very time of a commit", a) for a, _ in _gaps(truth, span)]


def _before_commits(truth: Truth, span: Span) -> _Moments:
    return [("a microsecond before a commit", b - _STEP) for _, b in _gaps(truth, span)]


def _while_idle(events: Iterable[Event], pick: random.Random) -> _Moments:
    idle = [event for event in events if event.what == "idle"]
    return [("idle", event.begun + (event.ended - event.begun) * pick.uniform(0.02, 0.98)) for event in idle]


def _around(truth: Truth, events: Iterable[Event], what: str) -> _Moments:
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
                    moments.append((f"{side} {name} of: {event.what}", found))
    return moments


def _during(truth: Truth, events: Iterable[Event]) -> _Moments:
    middles = [(event, event.begun + (event.ended - event.begun) / 2) for event in events]
    return [(f"during: {event.what}", at) for event, at in middles if truth.is_clear(at)]
