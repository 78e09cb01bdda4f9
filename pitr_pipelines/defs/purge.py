"""Dagster's own history, kept bounded: a job that forgets old runs, every day.

Deleting a run deletes the events of what it materialized too, and to Dagster that partition is then missing.
So the promise: a run is kept as long as an artifact exists that it was to make; the newest run of each job is
kept, and so is every restore. What else is over and older than `dagster.keep_runs_days` goes, with its events
and logs. Artifacts are never touched: retention of those is another matter.
"""

# Dagster reads the annotations of assets and ops as objects: no `from __future__ import annotations`.

from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import dagster as dg
from dagster import RunRecord
from dagster._core.storage.event_log.sqlite.sqlite_event_log import SqliteEventLogStorage

from pitr_pipelines.catalog.layout import Layout
from pitr_pipelines.defs.asked import makes
from pitr_pipelines.defs.names import (
    BASE_BACKUP,
    DAILY_BASE_BACKUPS,
    DAILY_OFFSITE_COPY,
    HOURLY_BUNDLES,
    NO_RETRIES,
    PURGE_HISTORY,
    RESTORE,
    WAL_BUNDLE,
    asset_key,
)
from pitr_pipelines.settings import Settings
from pitr_pipelines.wal.hours import Hour

CRON = "10 4 * * *"
RUNS_AT_ONCE = 500
"""How many runs are read at a time."""

_OVER = [dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED]
_KEPT = (RESTORE, DAILY_OFFSITE_COPY)


def build_purge_job(settings: Settings) -> dg.JobDefinition:
    """Build the job."""

    @dg.op(name="forget_old_runs", description="Deletes runs from Dagster's history; artifacts stay.")
    def forget_old_runs(context: dg.OpExecutionContext) -> None:
        forgotten = purge(settings, context.instance, now=datetime.now(UTC))
        context.log.info(f"{forgotten} runs older than {settings.dagster.keep_runs_days} days were forgotten")

    @dg.job(
        name=PURGE_HISTORY,
        executor_def=dg.in_process_executor,
        tags=NO_RETRIES,
        description="Forgets runs older than `dagster.keep_runs_days` whose artifacts are gone too.",
    )
    def purge_dagster_history() -> None:
        forget_old_runs()

    return purge_dagster_history


def build_purge_schedule(settings: Settings, job: dg.JobDefinition) -> dg.ScheduleDefinition:
    """Build its schedule; it is on unless somebody turns it off in Dagster."""
    return dg.ScheduleDefinition(
        name="purge_schedule",
        job=job,
        cron_schedule=CRON,
        execution_timezone=settings.timezone,
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description="Keeps Dagster's own history bounded.",
    )


def purge(settings: Settings, instance: dg.DagsterInstance, *, now: datetime) -> int:
    """Delete what may be forgotten at `now`; return how many runs that were."""
    before = now - timedelta(days=settings.dagster.keep_runs_days)
    layout = Layout(settings.backup_root)
    forgotten = 0
    newest_seen: set[str] = set()
    for record in _over(instance):
        job = record.dagster_run.job_name
        is_newest = job not in newest_seen
        newest_seen.add(job)
        if is_newest or job in _KEPT or record.create_timestamp >= before:
            continue
        if not _has_artifacts(settings, layout, record):
            forget(instance, record.dagster_run.run_id)
            forgotten += 1
    return forgotten


def forget(instance: dg.DagsterInstance, run_id: str) -> None:
    """Delete a run, its events, and the files that Dagster's own deletion leaves behind."""
    instance.delete_run(run_id)
    instance.compute_log_manager.delete_logs(prefix=[run_id])
    storage = instance.event_log_storage
    if isinstance(storage, SqliteEventLogStorage):
        # One database file for each run: the deletion empties it, and leaves it where it is.
        path = Path(storage.path_for_shard(run_id))
        for file in path.parent.glob(f"{path.name}*"):
            file.unlink(missing_ok=True)


def _over(instance: dg.DagsterInstance) -> list[RunRecord]:
    """Return the runs that are over, newest first."""
    found: list[RunRecord] = []
    cursor: str | None = None
    while page := instance.get_run_records(dg.RunsFilter(statuses=_OVER), limit=RUNS_AT_ONCE, cursor=cursor):
        found += page
        cursor = page[-1].dagster_run.run_id
    return found


def _has_artifacts(settings: Settings, layout: Layout, record: RunRecord) -> bool:
    """Tell whether anything exists that a run was to make."""
    tags = record.dagster_run.tags
    first = tags.get("dagster/asset_partition_range_start") or tags.get("dagster/partition")
    last = tags.get("dagster/asset_partition_range_end") or first
    if first is None or last is None:
        return False
    return any(
        path.exists()
        for name in settings.databases
        for asset, job in ((BASE_BACKUP, DAILY_BASE_BACKUPS), (WAL_BUNDLE, HOURLY_BUNDLES))
        if makes(record, asset_key(name, asset), job, first)
        for path in _records(layout, name, asset, first, last)
    )


def _records(layout: Layout, database: str, asset: str, first: str, last: str) -> Iterator[Path]:
    try:
        if asset == BASE_BACKUP:
            for number in range((date.fromisoformat(last) - date.fromisoformat(first)).days + 1):
                yield layout.base_record(database, date.fromisoformat(first) + timedelta(days=number))
        else:
            for hour in Hour.parse(first).until(Hour.parse(last)):
                yield layout.bundle_record(database, hour)
    except ValueError:
        return  # a key of something else
