"""Which bundles a tick asks for: the hour that just ended, and what storage says is missing.

Dagster does not catch up on ticks that it missed, and a run that fails is not retried: the next tick asks
again. The promises: the hour that just ended comes first; what is missing comes oldest first, in runs of
consecutive hours, so many a tick and no more; nothing that is closed, or under way, is asked for; and what
failed is asked for with growing patience, so that a long outage leaves a handful of failed runs, not one
for every hour. Reads storage and Dagster's runs, changes nothing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from pitr_pipelines import durable
from pitr_pipelines.catalog.layout import Layout
from pitr_pipelines.defs.asked import Asked
from pitr_pipelines.defs.names import WAL_BUNDLE, asset_key
from pitr_pipelines.defs.stored import LOOK_BACK, BundledHours, is_closed, look_at_hours
from pitr_pipelines.settings import Settings
from pitr_pipelines.wal.hours import Hour

STRETCHES_PER_TICK = 5
HOURS_PER_RUN = 12
"""With five stretches of twelve hours a tick makes up for two and a half days, and never floods the queue."""

AT_WORK = timedelta(hours=1)
"""How long a run that is at work is waited for, as long as somebody holds the lock of the bundles. If nobody
does, `dagster.dead_run_after_s`: its worker was killed, or is just beginning. Asking twice does no harm."""

_HOUR = timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class Stretch:
    """Consecutive hours, both ends included, of the same databases: one run."""

    first: Hour
    last: Hour
    databases: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Wanted:
    """What one tick asks for. `ended` is None if nobody's hour is to be asked for."""

    ended: Stretch | None
    missing: tuple[Stretch, ...]
    resting: tuple[str, ...]
    """Databases whose last hours could not be closed, and which are not asked each time."""


def look_back(settings: Settings, asked: Asked, tick: datetime) -> Wanted:
    """Decide what to ask for at a tick."""
    layout = Layout(settings.backup_root)
    span = look_back_span(settings)
    ended = Hour.containing(tick).preceding()
    due, resting = [], []
    missing: dict[Hour, list[str]] = defaultdict(list)
    for name in settings.databases:
        key = asset_key(name, WAL_BUNDLE)
        hours = look_at_hours(layout, name, tick, look_back=span)
        if ended.start.date() >= settings.first_day and not is_closed(layout, name, ended):
            if not is_worth_asking(hours, ended):
                resting.append(name)
            elif not _is_under_way(asked, settings, name, ended):
                due.append(name)
        for hour in hours.missing:
            if hour.start.date() < settings.first_day or _is_under_way(asked, settings, name, hour):
                continue
            if has_rested(asked.tries(key, str(hour), by_themselves=True), tick):
                missing[hour].append(name)
    stretches = list(stretches_of(missing))[:STRETCHES_PER_TICK]
    return Wanted(Stretch(ended, ended, tuple(due)) if due else None, tuple(stretches), tuple(resting))


def look_back_span(settings: Settings) -> timedelta:
    """Return for how long an hour without WAL is missing; one that retention has removed is not."""
    if settings.retention is None:
        return LOOK_BACK
    return min(LOOK_BACK, timedelta(days=settings.retention.keep.hourly_days))


def _is_under_way(asked: Asked, settings: Settings, database: str, hour: Hour) -> bool:
    key = asset_key(database, WAL_BUNDLE)
    if asked.is_under_way(key, str(hour), patience=timedelta(seconds=settings.dagster.dead_run_after_s)):
        return True
    lock = Layout(settings.backup_root).bundle_lock(database)
    return asked.is_under_way(key, str(hour)) and durable.is_locked(lock)


def is_worth_asking(hours: BundledHours, ended: Hour) -> bool:
    """Tell whether a database is to be asked for the hour that just ended.

    Nothing was archived in the hours that were bundled in vain. After three of them it is asked every third
    hour, after eight every sixth; as soon as anything is archived, each hour again.
    """
    before = [hour for hour in hours.in_vain if hour < ended]
    if len(before) < 3:
        return True
    return ended.end - before[-1].end >= (3 * _HOUR if len(before) < 8 else 6 * _HOUR)


def has_rested(tries: Sequence[datetime], now: datetime) -> bool:
    """Tell whether an hour that was tried before may be tried again: after 1, 2, 4, 8, 16 … 24 hours."""
    return not tries or now - tries[-1] >= min(24, 2 ** (len(tries) - 1)) * _HOUR


def stretches_of(missing: Mapping[Hour, Sequence[str]]) -> Iterator[Stretch]:
    """Yield consecutive hours that the same databases lack, oldest first, as runs of a bounded length."""
    held: list[Hour] = []
    for hour in sorted(missing):
        follows = held and held[-1].following() == hour and list(missing[held[0]]) == list(missing[hour])
        if held and (not follows or len(held) == HOURS_PER_RUN):
            yield Stretch(held[0], held[-1], tuple(missing[held[0]]))
            held = []
        held.append(hour)
    if held:
        yield Stretch(held[0], held[-1], tuple(missing[held[0]]))
