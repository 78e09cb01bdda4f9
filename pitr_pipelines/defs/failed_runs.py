"""Dagster's failed runs as incidents: those of the jobs that run by themselves, and failed restores.

A job's incident is over when later runs have done what the failed one did not: a look back that
brings in one database does not hide that another still fails. What somebody launched himself, he
sees himself; a restore that failed is told all the same, once.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import dagster as dg
from dagster import RunRecord

from pitr_pipelines.defs.asked import WORKER_DIED
from pitr_pipelines.defs.names import (
    BASE_BACKUP,
    CHECK_ARTIFACTS,
    DAILY_BASE_BACKUPS,
    DAILY_OFFSITE_COPY,
    HOURLY_BUNDLES,
    PURGE_HISTORY,
    REFRESH_RESTORE_POINTS,
    RESTORE,
    WAL_BUNDLE,
    asset_key,
)
from pitr_pipelines.defs.restore_drill import DRILL_AGES, RESTORE_DRILL, WEEKLY_DRILLS
from pitr_pipelines.defs.retention import RETENTION
from pitr_pipelines.settings import Settings
from pitr_pipelines.watch.incidents import DAGSTER, Findings, Incident, Kind, Scope, Severity

LOOK_BACK = timedelta(days=8)
"""For how long a failed run counts: the rarest of the jobs runs once a week."""
_RESTORE_IS_NEWS = timedelta(days=1)
_RUNS_READ = 50
_ENDED = [dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE]


@dataclass(frozen=True)
class EndedRun:
    """A run that succeeded or failed. `keys` are the assets it was to make; None for all of its job."""

    run_id: str
    ended_at: datetime
    failed: bool
    keys: frozenset[dg.AssetKey] | None = None


def look_at_runs(instance: dg.DagsterInstance, settings: Settings, now: datetime) -> Findings:
    """Return what is wrong with Dagster's runs."""
    incidents = []
    for job, keys in _jobs(settings).items():
        failure = unhealed_failure(_ended(instance, job, now - LOOK_BACK), keys)
        if failure is not None:
            incidents.append(_job_failed(instance, job, failure))
    for run in _ended(instance, RESTORE, now - _RESTORE_IS_NEWS):
        if run.failed:
            incidents.append(_restore_failed(instance, run))
    return Findings(tuple(incidents), frozenset({(DAGSTER, Scope.RUNS)}))


def unhealed_failure(runs: Iterable[EndedRun], keys: frozenset[dg.AssetKey]) -> EndedRun | None:
    """Return the newest failed run of which later runs have not made everything; None if there is none.

    `keys` is what a run of the whole job makes; if it is empty, any later success will do.
    """
    made: set[dg.AssetKey] = set()
    succeeded = False
    for run in sorted(runs, key=lambda run: run.ended_at, reverse=True):
        wanted = run.keys if keys and run.keys is not None else keys
        if not run.failed:
            succeeded = True
            made |= wanted
        elif not succeeded or not wanted <= made:
            return run
    return None


def _jobs(settings: Settings) -> Mapping[str, frozenset[dg.AssetKey]]:
    def of_each(asset: str) -> frozenset[dg.AssetKey]:
        return frozenset(asset_key(name, asset) for name in settings.databases)

    none: frozenset[dg.AssetKey] = frozenset()
    jobs = {
        DAILY_BASE_BACKUPS: of_each(BASE_BACKUP),
        HOURLY_BUNDLES: of_each(WAL_BUNDLE),
        WEEKLY_DRILLS: of_each(RESTORE_DRILL),
        REFRESH_RESTORE_POINTS: none,
        CHECK_ARTIFACTS: none,
        DRILL_AGES: none,
        PURGE_HISTORY: none,
    }
    if settings.offsite is not None:
        jobs[DAILY_OFFSITE_COPY] = none
    if settings.retention is not None:
        jobs[RETENTION] = none
    return jobs


def _ended(instance: dg.DagsterInstance, job: str, since: datetime) -> list[EndedRun]:
    records = instance.get_run_records(
        dg.RunsFilter(job_name=job, statuses=_ENDED, updated_after=since), limit=_RUNS_READ
    )
    return [_of_record(record) for record in records]


def _of_record(record: RunRecord) -> EndedRun:
    run = record.dagster_run
    # When one was found dead says nothing: what it was to make may have been made since it began.
    moment = record.start_time if WORKER_DIED in run.tags else record.end_time
    ended = datetime.fromtimestamp(moment, UTC) if moment is not None else record.update_timestamp
    return EndedRun(
        run.run_id,
        ended,
        run.status is dg.DagsterRunStatus.FAILURE,
        frozenset(run.asset_selection) if run.asset_selection is not None else None,
    )


def _job_failed(instance: dg.DagsterInstance, job: str, run: EndedRun) -> Incident:
    return Incident(
        Kind.RUN_FAILED,
        DAGSTER,
        Scope.RUNS,
        f"run {run.run_id[:8]} of {job} failed{_why(instance, run)}",
        "Open the run in Dagster: its log says what happened and what to do. The schedules ask again "
        "for what "
        "can still be made; when a later run has made it, this is over.",
        Severity.WARNING,
        detail=job,
    )


def _restore_failed(instance: dg.DagsterInstance, run: EndedRun) -> Incident:
    return Incident(
        Kind.RESTORE_FAILED,
        DAGSTER,
        Scope.RUNS,
        f"the restore of run {run.run_id[:8]} failed{_why(instance, run)}",
        "Open the run in Dagster: its log says what happened and what to do. The original server was not "
        "touched.",
        detail=run.run_id[:8],
        once=True,
    )


def _why(instance: dg.DagsterInstance, run: EndedRun) -> str:
    """Return the steps that failed, with what our own errors say; others may quote anything."""
    said = []
    for entry in instance.all_logs(run.run_id, of_type=dg.DagsterEventType.STEP_FAILURE):
        event = entry.dagster_event
        if event is None or event.step_key is None:
            continue
        failure = event.step_failure_data.user_failure_data
        what = failure.description if failure is not None else None
        said.append(f"{event.step_key}: {what.splitlines()[0]}" if what else event.step_key)
    shown = "; ".join(said[:5]) + (f"; and {len(said) - 5} more" if len(said) > 5 else "")
    return f": {shown}" if shown else ", before or between its steps"
