"""The schedules: a base backup a day, and every hour the bundles of the hour that just ended.

Dagster does not catch up on ticks that it missed. So each tick for bundles also looks into storage
for hours that should have been closed by now, and asks for those. Base backups have sensors for it,
because they have no later tick on their day.
"""

from datetime import UTC, datetime

import dagster as dg

from pitr_pipelines.defs.asked import ASKED_AT, Asked
from pitr_pipelines.defs.jobs import Jobs
from pitr_pipelines.defs.look_back import AT_WORK, Stretch, look_back
from pitr_pipelines.defs.names import HOURLY_BUNDLES, WAL_BUNDLE, asset_key
from pitr_pipelines.settings import Settings


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
        if tick.date() < settings.first_day:
            return dg.SkipReason(f"{day} is before first_day, {settings.first_day}.")
        tags = {ASKED_AT: tick.isoformat()}
        return dg.RunRequest(run_key=_run_key(day, tick), partition_key=day, tags=tags)

    @dg.schedule(
        name="bundle_schedule",
        job=jobs.bundles,
        cron_schedule=settings.schedules.bundle,
        execution_timezone=settings.timezone,
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description="Bundles the hour that just ended, of every database, and what storage lacks of earlier "
        "hours, oldest first. A database of which nothing arrives is asked more and more rarely.",
    )
    def bundle_schedule(context: dg.ScheduleEvaluationContext) -> list[dg.RunRequest] | dg.SkipReason:
        tick = context.scheduled_execution_time.astimezone(UTC)
        absent = storage_absent(settings)
        if absent:
            return absent
        asked = Asked(context.instance, HOURLY_BUNDLES, tick, AT_WORK)
        wanted = look_back(settings, asked, tick)
        if wanted.resting:
            context.log.warning(f"not asked this time, because nothing arrives: {', '.join(wanted.resting)}")
        requests = [_request(settings, wanted.ended, tick)] if wanted.ended else []
        requests += [_request(settings, stretch, tick, look_back=True) for stretch in wanted.missing]
        return requests or dg.SkipReason("Every hour that can be bundled is closed, under way, or at rest.")

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


def _request(
    settings: Settings, stretch: Stretch, tick: datetime, *, look_back: bool = False
) -> dg.RunRequest:
    tags = {ASKED_AT: tick.isoformat()} | ({"pitr/look_back": "true"} if look_back else {})
    if stretch.first != stretch.last:
        # What a backfill with the single-run policy launches.
        tags["dagster/asset_partition_range_start"] = str(stretch.first)
        tags["dagster/asset_partition_range_end"] = str(stretch.last)
    everybody = set(stretch.databases) == set(settings.databases)
    return dg.RunRequest(
        run_key=_run_key(str(stretch.first), tick),
        partition_key=str(stretch.first) if stretch.first == stretch.last else None,
        asset_selection=None if everybody else [asset_key(name, WAL_BUNDLE) for name in stretch.databases],
        tags=tags,
    )


def _run_key(partition_key: str, tick: datetime) -> str:
    # Unique per tick: Dagster then asks once even if it evaluates a tick twice. It is no lock.
    return f"{partition_key}@{tick:%Y-%m-%dT%H:%MZ}"
