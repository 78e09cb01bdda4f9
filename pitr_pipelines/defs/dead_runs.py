"""A sensor that ends runs whose worker died together with the code server that would have seen it.

To Dagster such a run stays at work, and keeps one of the slots of `max_concurrent_runs`: a machine that
restarts amid a look back would have none left until `dagster/max_runtime` is over. A run of bundles or base
backups that works holds a lock in storage, which the kernel frees on any death. So a run that two looks, far
enough apart, find without any lock of its databases is dead, and is ended as failed. Were it alive after all,
nothing would be lost: what keeps two steps from one artifact are the locks, and its events count.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
from dagster import RunRecord
from pydantic import BaseModel, ValidationError

from pitr_pipelines import durable
from pitr_pipelines.catalog.layout import Layout
from pitr_pipelines.defs.asked import WORKER_DIED
from pitr_pipelines.defs.names import (
    BASE_BACKUP,
    DAILY_BASE_BACKUPS,
    HOURLY_BUNDLES,
    WAL_BUNDLE,
    asset_key,
)
from pitr_pipelines.defs.schedules import storage_absent
from pitr_pipelines.settings import Settings

INTERVAL_S = 30


class Cursor(BaseModel):
    """Since when each run was seen without a lock."""

    unlocked_since: dict[str, datetime] = {}

    @classmethod
    def parse(cls, text: str | None) -> Cursor:
        """Read a cursor; one of another version starts over, which costs one more look."""
        try:
            return cls.model_validate_json(text or "{}")
        except ValidationError:
            return cls()


def build_dead_run_sensor(settings: Settings) -> dg.SensorDefinition:
    """Build the sensor; it is on unless somebody turns it off in Dagster."""

    @dg.sensor(
        name="runs_whose_worker_died",
        minimum_interval_seconds=INTERVAL_S,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Ends runs of bundles and base backups that are at work to Dagster and hold no lock in "
        "storage: their worker was killed together with the code server. They would keep others waiting.",
    )
    def runs_whose_worker_died(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
        absent = storage_absent(settings)
        if absent:
            return absent
        if context.instance.run_launcher.supports_check_run_worker_health:
            return dg.SkipReason("Dagster's run monitoring sees for itself whether a worker lives.")
        return end_dead_runs(settings, context.instance, datetime.now(UTC), context.cursor)

    return runs_whose_worker_died


def end_dead_runs(
    settings: Settings, instance: dg.DagsterInstance, now: datetime, cursor_text: str | None
) -> dg.SensorResult:
    """End the runs that are without a lock since so long, and remember those that are since now."""
    patience = timedelta(seconds=settings.dagster.dead_run_after_s)
    before, after = Cursor.parse(cursor_text), Cursor()
    ended = []
    for record in _at_work(instance):
        run = record.dagster_run
        began = datetime.fromtimestamp(record.start_time or now.timestamp(), UTC)
        if now - began < patience or any(map(durable.is_locked, _locks(settings, record))):
            continue
        since = min(before.unlocked_since.get(run.run_id, now), now)
        if now - since < patience:
            after.unlocked_since[run.run_id] = since
            continue
        instance.add_run_tags(run.run_id, {WORKER_DIED: "true"})
        instance.report_run_failed(
            run,
            f"The worker of this run is gone: for {(now - since).total_seconds():.0f} s it held no lock in "
            "backup_root. What it was to make is asked for again.",
        )
        ended.append(run.run_id[:8])
    return dg.SensorResult(
        skip_reason=f"Ended: {', '.join(ended)}." if ended else "Every run that is at work has a worker.",
        cursor=after.model_dump_json(),
    )


def _at_work(instance: dg.DagsterInstance) -> list[RunRecord]:
    # A run that is starting is ended by run monitoring after its own time-out.
    statuses = [dg.DagsterRunStatus.STARTED]
    return [
        record
        for job in (HOURLY_BUNDLES, DAILY_BASE_BACKUPS)
        for record in instance.get_run_records(dg.RunsFilter(job_name=job, statuses=statuses))
    ]


def _locks(settings: Settings, record: RunRecord) -> Iterable[Path]:
    layout = Layout(settings.backup_root)
    run = record.dagster_run
    for name in settings.databases:
        for asset, lock in ((WAL_BUNDLE, layout.bundle_lock), (BASE_BACKUP, layout.base_lock)):
            if not run.asset_selection or asset_key(name, asset) in run.asset_selection:
                yield lock(name)
