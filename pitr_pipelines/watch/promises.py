"""What is promised for a database: by its `objectives`, or, where they say nothing, by the schedules."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from pitr_pipelines.cron_gap import longest_gap
from pitr_pipelines.settings import Settings

BUNDLE_SLACK = timedelta(hours=1)
"""For a bundle to be made after its hour, and some patience."""
BASE_SLACK = timedelta(hours=6)
"""For a large base backup to be copied, and some patience."""
_HOURLY = timedelta(hours=1)
_DAILY = timedelta(days=1)
"""What a schedule is taken for that is written in a way which `longest_gap` does not know."""


@dataclass(frozen=True, slots=True)
class Promises:
    """How old what may be. `window` is None if nothing is promised about how far back one can restore."""

    recovery_point: timedelta
    base_age: timedelta
    window: timedelta | None


def promises_of(settings: Settings, database: str) -> Promises:
    """Return what is promised for a database. Raises BadRequest if there is no such database."""
    asked = settings.database(database).objectives
    return Promises(
        timedelta(seconds=asked.recovery_point_s)
        if asked.recovery_point_s is not None
        else (longest_gap(settings.schedules.bundle) or _HOURLY) + BUNDLE_SLACK,
        timedelta(hours=asked.base_age_h)
        if asked.base_age_h is not None
        else (longest_gap(settings.schedules.base_backup) or _DAILY) + BASE_SLACK,
        timedelta(days=asked.window_days) if asked.window_days is not None else None,
    )
