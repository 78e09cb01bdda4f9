"""A sensor for base backups of today that are missing: their tick was missed, or their run failed.

It asks on the day itself, because no other day can be had from a server; only for the databases that lack
it; again after a failure, with growing patience, and so often a day and no more. The first base backup of a
database waits for the schedule's own time, or for somebody who asks for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, date, datetime, time, timedelta

import dagster as dg
from dagster._utils.schedules import cron_string_iterator, get_latest_completed_cron_tick

from pitr_pipelines import durable
from pitr_pipelines.catalog.layout import Layout
from pitr_pipelines.defs.asked import ASKED_AT, Asked
from pitr_pipelines.defs.jobs import Jobs
from pitr_pipelines.defs.names import BASE_BACKUP, DAILY_BASE_BACKUPS, asset_key
from pitr_pipelines.defs.schedules import storage_absent
from pitr_pipelines.defs.stored import base_days
from pitr_pipelines.settings import Settings

GRACE = timedelta(minutes=15)
"""After this time a tick that led to no run was missed."""
PATIENCE = (timedelta(minutes=15), timedelta(hours=1), timedelta(hours=3), timedelta(hours=6))
"""How long after the first failure, the second … it is asked for again; after the last, the day is lost."""
AT_WORK = timedelta(hours=24)
"""How long a run that is at work is waited for, as long as a lock of base backups is held."""
UNLOCKED = timedelta(minutes=10)
"""How long if none is: its worker was killed, or the machine restarted. A second one does no harm."""

_SHIFTED_DAY = timedelta(hours=26)


def build_missed_base_sensor(settings: Settings, jobs: Jobs) -> dg.SensorDefinition:
    """Build the sensor; it is on unless somebody turns it off in Dagster."""

    @dg.sensor(
        name="missed_base_backups",
        job=jobs.bases,
        minimum_interval_seconds=300,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Asks for today's base backups if Dagster was not running when the schedule was due, "
        "and again, up to four times a day, where one failed.",
    )
    def missed_base_backups(context: dg.SensorEvaluationContext) -> dg.RunRequest | dg.SkipReason:
        return storage_absent(settings) or ask_for_missed(settings, context.instance, datetime.now(UTC))

    return missed_base_backups


def ask_for_missed(
    settings: Settings, instance: dg.DagsterInstance, now: datetime
) -> dg.RunRequest | dg.SkipReason:
    """Decide which databases are to be asked for today's base backup at `now`."""
    day = now.astimezone(UTC).date()
    due = due_on(settings, day)
    if due is None or now - due < GRACE or day < settings.first_day:
        return dg.SkipReason("No base backup is overdue today.")
    layout = Layout(settings.backup_root)
    held = {name: base_days(layout, name) for name in settings.databases}
    missing = {name: days for name, days in held.items() if day not in days}
    if not missing:
        return dg.SkipReason(f"Every database has its base backup of {day}.")
    asked = asked_for_bases(settings, instance, now)
    wanted: list[str] = []
    waiting: list[str] = []
    for name, days in missing.items():
        tries = asked.tries(asset_key(name, BASE_BACKUP), day.isoformat())
        if not (days or tries):
            continue
        under_way = asked.is_under_way(asset_key(name, BASE_BACKUP), day.isoformat())
        (wanted if may_try(tries, now) and not under_way else waiting).append(name)
    if not wanted and not waiting:
        return dg.SkipReason(f"Every database has its base backup of {day}, or never had one.")
    if not wanted:
        return dg.SkipReason(f"The base backup of {day} was asked for already: {', '.join(waiting)}.")
    return dg.RunRequest(
        run_key=f"missed-{now:%Y-%m-%dT%H:%MZ}",
        partition_key=day.isoformat(),
        asset_selection=[asset_key(name, BASE_BACKUP) for name in wanted],
        tags={ASKED_AT: now.isoformat(), "pitr/missed_base": "true"},
    )


def asked_for_bases(settings: Settings, instance: dg.DagsterInstance, now: datetime) -> Asked:
    """Return the runs of base backups; those at work count as dead soon if no lock says that they live."""
    layout = Layout(settings.backup_root)
    # A run takes its databases a few at a time: one lock that is held speaks for all of them.
    lives = any(durable.is_locked(layout.base_lock(name)) for name in settings.databases)
    return Asked(instance, DAILY_BASE_BACKUPS, now, AT_WORK if lives else UNLOCKED)


def may_try(tries: Sequence[datetime], now: datetime) -> bool:
    """Tell whether one more try may be made after those that came to nothing."""
    if not tries:
        return True
    return len(tries) <= len(PATIENCE) and now - tries[-1] >= PATIENCE[len(tries) - 1]


def due_on(settings: Settings, day: date) -> datetime | None:
    """Return when the base backup of a day in UTC is due: at the day's first tick, if it has one.

    Where a change of the clocks in `timezone` moves a daily tick across midnight in UTC, a day is left
    without one; it is due then a day after the tick before.
    """
    cron, zone = settings.schedules.base_backup, settings.timezone
    midnight = datetime.combine(day, time(), UTC)
    following = next(cron_string_iterator(midnight.timestamp(), cron, zone)).astimezone(UTC)
    if following.date() == day:
        return following
    before = get_latest_completed_cron_tick(cron, midnight, zone).astimezone(UTC)
    return before + timedelta(days=1) if following - before <= _SHIFTED_DAY else None
