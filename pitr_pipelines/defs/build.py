"""All of Dagster's definitions, from the settings: two databases or two hundred."""

import warnings

import dagster as dg

from pitr_pipelines.defs.archive_health import build_archive_sensor
from pitr_pipelines.defs.artifact_sensor import build_artifact_sensor
from pitr_pipelines.defs.base_backup import build_base_backup
from pitr_pipelines.defs.checks import build_check_job, build_check_schedule, build_checks
from pitr_pipelines.defs.dead_runs import build_dead_run_sensor
from pitr_pipelines.defs.external import restored_cluster, wal_archive
from pitr_pipelines.defs.freshness import with_freshness
from pitr_pipelines.defs.gap_bases import build_gap_sensor
from pitr_pipelines.defs.jobs import build_jobs
from pitr_pipelines.defs.missed_bases import build_missed_base_sensor
from pitr_pipelines.defs.offsite_copy import build_offsite
from pitr_pipelines.defs.partitions import Partitions
from pitr_pipelines.defs.purge import build_purge_job, build_purge_schedule
from pitr_pipelines.defs.restore_drill import (
    build_drill_check,
    build_drill_jobs,
    build_drill_schedules,
    build_restore_drill,
)
from pitr_pipelines.defs.restore_job import build_restore_job
from pitr_pipelines.defs.restore_points import build_restore_points
from pitr_pipelines.defs.retention import build_retention
from pitr_pipelines.defs.schedules import build_schedules
from pitr_pipelines.defs.signposts import with_signposts
from pitr_pipelines.defs.wal_bundle import build_wal_bundle
from pitr_pipelines.settings import Settings


def build_definitions(settings: Settings) -> dg.Definitions:
    """Build the assets, jobs, schedules and sensors for every database in the settings."""
    with warnings.catch_warnings():
        # Backfill policies are beta in the one version of Dagster that pyproject.toml allows.
        warnings.simplefilter("ignore", category=dg.BetaWarning)
        return _build(settings, Partitions.since(settings.first_day))


def _build(settings: Settings, partitions: Partitions) -> dg.Definitions:
    assets: list[dg.AssetsDefinition | dg.AssetSpec] = []
    for database in settings.databases:
        assets += [
            wal_archive(settings, database),
            build_base_backup(settings, database, partitions),
            build_wal_bundle(settings, database, partitions),
            restored_cluster(settings, database, partitions),
            build_restore_drill(settings, database, partitions),
        ]
    assets.append(build_restore_points(settings))
    jobs = build_jobs(settings)
    offsite = build_offsite(settings)
    retention = build_retention(settings)
    checks = [*build_checks(settings), *offsite.checks, *retention.checks]
    check_job = build_check_job(checks)
    drill_checks = [build_drill_check(settings, name) for name in settings.databases]
    drill_jobs = build_drill_jobs(settings)
    purge_job = build_purge_job(settings)
    return dg.Definitions(
        assets=with_signposts(settings, with_freshness(settings, [*assets, *offsite.assets])),
        asset_checks=[*checks, *drill_checks],
        jobs=[
            *jobs.all(),
            check_job,
            *drill_jobs,
            *offsite.jobs,
            *retention.jobs,
            build_restore_job(settings, partitions),
            purge_job,
        ],
        schedules=[
            *build_schedules(settings, jobs),
            build_check_schedule(settings, check_job),
            *build_drill_schedules(settings, partitions, drill_jobs),
            *retention.schedules,
            build_purge_schedule(settings, purge_job),
        ],
        sensors=[
            build_artifact_sensor(settings, jobs),
            build_archive_sensor(settings),
            build_missed_base_sensor(settings, jobs),
            build_dead_run_sensor(settings),
            *offsite.sensors,
            build_gap_sensor(settings, jobs),
        ],
        # A run has a process of its own; a second one for each step costs seconds and isolates nothing.
        executor=dg.in_process_executor,
    )
