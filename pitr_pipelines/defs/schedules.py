"""The schedules: a base backup a day, and every hour the bundles of the hour that just ended.

Dagster does not catch up on ticks that it missed. So each tick for bundles also looks into storage
for hours that should have been closed by now, and asks for those. Base backups have a sensor for it,
because they have no later tick on their day.
"""

from collections import defaultdict
from datetime import UTC, datetime

import dagster as dg

from pitr_pipelines.catalog.layout import Layout
from pitr_pipelines.defs.jobs import Jobs
from pitr_pipelines.defs.names import WAL_BUNDLE, asset_key
from pitr_pipelines.defs.stored import hours_to_bundle
from pitr_pipelines.settings import Settings
from pitr_pipelines.wal.hours import Hour

RUNS_PER_TICK = 6
"""The hour that just ended, and at most five that are missing: the oldest, so that a long outage is
made up for within a few ticks and never floods the queue."""


def build_schedules(settings: Settings, jobs: Jobs) -> list[dg.ScheduleDefinition]:
    """Build both schedules; they are on unless somebody turns them off in Dagster."""

    @dg.schedule(
        name="base_backup_schedule",
        job=jobs.bases,
        cron_schedule=settings.schedules.base_backup,
        execution_timezone=settings.timezone,
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description="Takes the day's base backup of every database. The partition is the day in UTC.",
    )
    def base_backup_schedule(context: dg.ScheduleEvaluationContext) -> dg.RunRequest | dg.SkipReason:
        tick = context.scheduled_execution_time.astimezone(UTC)
        absent = storage_absent(settings)
        if absent:
            return absent
        day = tick.date().isoformat()
        return dg.RunRequest(run_key=_run_key(day, tick), partition_key=day)

    @dg.schedule(
        name="bundle_schedule",
        job=jobs.bundles,
        cron_schedule=settings.schedules.bundle,
        execution_timezone=settings.timezone,
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description="Bundles the hour that just ended, of every database, and up to five hours of the last "
        "24 that are missing in storage.",
    )
    def bundle_schedule(context: dg.ScheduleEvaluationContext) -> list[dg.RunRequest] | dg.SkipReason:
        tick = context.scheduled_execution_time.astimezone(UTC)
        absent = storage_absent(settings)
        if absent:
            return absent
        ended = str(Hour.containing(tick).preceding())
        requests = [dg.RunRequest(run_key=_run_key(ended, tick), partition_key=ended)]
        missing = sorted(_missing(settings, tick).items())
        for hour, databases in missing[: RUNS_PER_TICK - 1]:
            requests.append(
                dg.RunRequest(
                    run_key=_run_key(str(hour), tick),
                    partition_key=str(hour),
                    asset_selection=[asset_key(name, WAL_BUNDLE) for name in databases],
                    tags={"pitr/look_back": "true"},
                )
            )
        return requests

    return [base_backup_schedule, bundle_schedule]


def storage_absent(settings: Settings) -> dg.SkipReason | None:
    """Return why nothing can be done if `backup_root` is not there.

    A volume that is not mounted must not be replaced by a directory on the machine's own disk.
    """
    if settings.backup_root.is_dir():
        return None
    return dg.SkipReason(
        f"backup_root {settings.backup_root} is not there: is the volume mounted? "
        "On a new installation, `pitr init-db` creates it."
    )


def _missing(settings: Settings, now: datetime) -> dict[Hour, list[str]]:
    layout = Layout(settings.backup_root)
    found: dict[Hour, list[str]] = defaultdict(list)
    for name in settings.databases:
        for hour in hours_to_bundle(layout, name, now):
            if hour.start.date() >= settings.first_day:
                found[hour].append(name)
    return found


def _run_key(partition_key: str, tick: datetime) -> str:
    # Unique per tick: Dagster then asks once even if it evaluates a tick twice. It is no lock.
    return f"{partition_key}@{tick:%Y-%m-%dT%H:%MZ}"
