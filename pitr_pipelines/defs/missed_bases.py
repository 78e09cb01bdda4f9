"""A sensor for base backups whose tick Dagster missed because it was not running at that time.

It asks once a day at most, and only for databases that had a base backup before: the first one is
taken when somebody asks for it, or at the schedule's own time.
"""

from datetime import UTC, date, datetime, timedelta

import dagster as dg
from dagster._utils.schedules import get_latest_completed_cron_tick

from pitr_pipelines.catalog.layout import Layout
from pitr_pipelines.defs.jobs import Jobs
from pitr_pipelines.defs.names import BASE_BACKUP, DAILY_BASE_BACKUPS, asset_key
from pitr_pipelines.defs.schedules import storage_absent
from pitr_pipelines.defs.stored import base_days
from pitr_pipelines.settings import Settings

GRACE = timedelta(minutes=15)
"""After this time a tick that led to no run was missed."""


def build_missed_base_sensor(settings: Settings, jobs: Jobs) -> dg.SensorDefinition:
    """Build the sensor; it is on unless somebody turns it off in Dagster."""

    @dg.sensor(
        name="missed_base_backups",
        job=jobs.bases,
        minimum_interval_seconds=600,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Asks for today's base backups if Dagster was not running when the schedule was due.",
    )
    def missed_base_backups(context: dg.SensorEvaluationContext) -> dg.RunRequest | dg.SkipReason:
        return storage_absent(settings) or ask_for_missed(settings, context.instance, datetime.now(UTC))

    return missed_base_backups


def ask_for_missed(
    settings: Settings, instance: dg.DagsterInstance, now: datetime
) -> dg.RunRequest | dg.SkipReason:
    """Decide whether the last tick was missed, and for which databases that still can be made up for."""
    tick = get_latest_completed_cron_tick(settings.schedules.base_backup, now, settings.timezone)
    day = tick.astimezone(UTC).date()
    if day != now.date() or now - tick < GRACE:
        return dg.SkipReason("No base backup is overdue today.")
    layout = Layout(settings.backup_root)
    missing = [name for name in settings.databases if _lacks(base_days(layout, name), day)]
    if not missing:
        return dg.SkipReason(f"Every database has its base backup of {day}, or never had one.")
    runs = instance.get_runs(
        dg.RunsFilter(job_name=DAILY_BASE_BACKUPS, tags={"dagster/partition": day.isoformat()}), limit=1
    )
    if runs:
        return dg.SkipReason(f"The base backups of {day} were asked for already, by run {runs[0].run_id}.")
    return dg.RunRequest(
        run_key=f"missed-{day}",
        partition_key=day.isoformat(),
        asset_selection=[asset_key(name, BASE_BACKUP) for name in missing],
    )


def _lacks(days: list[date], day: date) -> bool:
    return bool(days) and day not in days
