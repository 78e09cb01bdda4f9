"""The asset `restore_drill`: one week's proof that a database can be restored.

A drill that fails fails its step, with every problem in the event log; what came of it is on record
in storage either way. The check on the asset looks at those records alone, so drills at a terminal
count too, and it fails when the last good one is too old, also if no drill ran at all.
"""

# Dagster reads the annotations of assets and ops as objects: no `from __future__ import annotations`.

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

import dagster as dg
from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition

from pitr_pipelines.catalog.drills import DrillReport, last_good_drill
from pitr_pipelines.catalog.layout import Layout
from pitr_pipelines.defs.failures import shown_as_failures
from pitr_pipelines.defs.metadata import Metadata, links
from pitr_pipelines.defs.names import BASE_BACKUP, NO_RETRIES, WAL_BUNDLE, asset_key
from pitr_pipelines.defs.partitions import Partitions
from pitr_pipelines.defs.progress import LogProgress
from pitr_pipelines.defs.schedules import storage_absent
from pitr_pipelines.errors import BadRequest
from pitr_pipelines.settings import Settings, asset_name
from pitr_pipelines.units import show_duration

RESTORE_DRILL = "restore_drill"
WEEKLY_DRILLS = "weekly_drills"
DRILL_AGES = "drill_ages"
RECENT = "last_good_drill_is_recent"

_WEEK = timedelta(days=7)
_GRACE = timedelta(days=1)
"""How long after its week a drill may still begin: its run may have waited in the queue."""
_EVERY_DAY = "30 6 * * *"


def build_restore_drill(settings: Settings, database: str, partitions: Partitions) -> dg.AssetsDefinition:
    """Build the asset of one database."""

    @dg.asset(
        name=RESTORE_DRILL,
        key_prefix=asset_name(database),
        group_name=asset_name(database),
        partitions_def=partitions.weeks,
        # Which base and which bundles a drill takes is the moment's affair, not the partition's.
        deps=[
            dg.AssetDep(asset_key(database, asset), partition_mapping=dg.LastPartitionMapping())
            for asset in (BASE_BACKUP, WAL_BUNDLE)
        ],
        kinds={"postgres"},
        tags={"pitr/database": database},
        description=f"A random moment of `{database}`, restored into scratch space, checked with pg_amcheck "
        "and the `drill_checks` in the settings, measured, and thrown away. The partition is the week (UTC) "
        "in which it was done.",
    )
    def restore_drill(context: dg.AssetExecutionContext) -> dg.MaterializeResult:  # type: ignore[type-arg]
        with shown_as_failures():
            return _materialize(context, settings, database)

    return restore_drill


def build_drill_check(settings: Settings, database: str) -> dg.AssetChecksDefinition:
    """Build the check that one database's last good drill is not too old."""

    @dg.asset_check(
        asset=asset_key(database, RESTORE_DRILL),
        name=RECENT,
        description=f"The last drill that passed is at most {settings.drills.max_age_days:g} days old.",
    )
    def last_good_drill_is_recent() -> dg.AssetCheckResult:
        with shown_as_failures():
            return judge_age(settings, database, datetime.now(UTC))

    return last_good_drill_is_recent


def build_drill_jobs(settings: Settings) -> list[UnresolvedAssetJobDefinition]:
    """Build the job of the drills, and the one that only looks at how old they are."""
    keys = [asset_key(name, RESTORE_DRILL) for name in settings.databases]
    return [
        dg.define_asset_job(
            WEEKLY_DRILLS,
            selection=dg.AssetSelection.assets(*keys).without_checks(),
            executor_def=dg.in_process_executor,
            tags=NO_RETRIES,
            description="A drill of every database, one after the other.",
        ),
        dg.define_asset_job(
            DRILL_AGES,
            selection=dg.AssetSelection.checks_for_assets(*keys),
            executor_def=dg.in_process_executor,
            tags=NO_RETRIES,
            description="How old the last good drill of every database is.",
        ),
    ]


def build_drill_schedules(
    settings: Settings, partitions: Partitions, jobs: list[UnresolvedAssetJobDefinition]
) -> list[dg.ScheduleDefinition]:
    """Build both schedules; they are on unless somebody turns them off in Dagster."""
    drills, ages = jobs

    @dg.schedule(
        name="drill_schedule",
        job=drills,
        cron_schedule=settings.drills.schedule,
        execution_timezone=settings.timezone,
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description="Tries out a restore of every database. The partition is the week in UTC.",
    )
    def drill_schedule(context: dg.ScheduleEvaluationContext) -> dg.RunRequest | dg.SkipReason:
        tick = context.scheduled_execution_time.astimezone(UTC)
        absent = storage_absent(settings)
        if absent:
            return absent
        return dg.RunRequest(run_key=f"{tick:%Y-%m-%dT%H:%MZ}", partition_key=partitions.week_of(tick))

    @dg.schedule(
        name="drill_age_schedule",
        job=ages,
        cron_schedule=_EVERY_DAY,
        execution_timezone=settings.timezone,
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description="Looks at how old the last good drill of every database is, every day.",
    )
    def drill_age_schedule(context: dg.ScheduleEvaluationContext) -> dg.RunRequest | dg.SkipReason:
        tick = context.scheduled_execution_time.astimezone(UTC)
        return storage_absent(settings) or dg.RunRequest(run_key=f"{tick:%Y-%m-%dT%H:%MZ}")

    return [drill_schedule, drill_age_schedule]


def judge_age(settings: Settings, database: str, now: datetime) -> dg.AssetCheckResult:
    """Hold the age of the last good drill against the settings. Reads the storage only."""
    allowed = settings.drills.max_age_days
    good = last_good_drill(Layout(settings.backup_root), database)
    if good is None:
        return dg.AssetCheckResult(
            passed=False,
            description=f"No drill of {database} has passed yet; `pitr drill {database}` does one.",
        )
    age = max(timedelta(), now - good.finished_at)
    metadata: Metadata = {
        "last_good_drill": dg.MetadataValue.timestamp(good.finished_at),
        "age_days": dg.MetadataValue.float(round(age / timedelta(days=1), 2)),
        "max_age_days": dg.MetadataValue.float(float(allowed)),
    }
    if good.seconds.recovery_time is not None:
        metadata["recovery_time_s"] = dg.MetadataValue.float(good.seconds.recovery_time)
    return dg.AssetCheckResult(
        passed=age <= timedelta(days=allowed),
        description=f"The last good drill of {database} was {show_duration(age.total_seconds())} ago; "
        f"{allowed:g} days are allowed.",
        metadata=metadata,
    )


def drill_metadata(report: DrillReport) -> Metadata:
    """Describe a drill: how long recovery took, from what, and what was checked."""
    metadata: Metadata = {
        "outcome": dg.MetadataValue.text(report.outcome.value),
        "checks": _checks_table(report),
    }
    for phase, seconds in report.seconds.model_dump().items():
        if seconds is not None:
            metadata[f"{phase}_s"] = dg.MetadataValue.float(seconds)
    if report.target is not None:
        metadata["target"] = dg.MetadataValue.timestamp(report.target)
    if report.seed is not None:
        metadata["seed"] = dg.MetadataValue.int(report.seed)
    if report.recovered_to_lsn is not None:
        metadata["recovered_to_lsn"] = dg.MetadataValue.text(str(report.recovered_to_lsn))
    if report.last_transaction_at is not None:
        metadata["last_transaction_at"] = dg.MetadataValue.timestamp(report.last_transaction_at)
    if report.server_version is not None:
        metadata["server_version"] = dg.MetadataValue.text(report.server_version)
    if report.plan is not None:
        metadata |= {
            **links(report.database, BASE_BACKUP, WAL_BUNDLE),
            "base_backup": dg.MetadataValue.text(report.plan.base_day),
            "segments": dg.MetadataValue.int(report.plan.segments),
            "base_bytes": dg.MetadataValue.int(report.plan.base_bytes),
            "wal_bytes": dg.MetadataValue.int(report.plan.wal_bytes),
        }
        if report.plan.notes:
            metadata["notes"] = dg.MetadataValue.md(_list(report.plan.notes))
    if report.problems:
        metadata["problems"] = dg.MetadataValue.md(_list(report.problems))
    return metadata


def _materialize(
    context: dg.AssetExecutionContext, settings: Settings, database: str
) -> "dg.MaterializeResult[None]":
    # The restore and its server connections are only imported where there is one.
    from pitr_pipelines.restore.drill import run_drill

    check_week(context.partition_key, datetime.now(UTC))
    report = run_drill(
        settings, database, report=LogProgress(context.log), log=lambda line: context.log.info(line)
    )
    for line in report.lines(settings.zone):
        context.log.info(line)
    metadata = drill_metadata(report)
    if report.problems:
        raise dg.Failure(
            f"the drill of {database} failed: " + "\n".join(report.problems) + f"\n{report.remedy or ''}",
            metadata,
            allow_retries=False,
        )
    return dg.MaterializeResult(metadata=metadata)


def check_week(partition_key: str, now: datetime) -> None:
    """Refuse a week that is not the present one: a drill then proves nothing. Raises BadRequest."""
    start = datetime.fromisoformat(partition_key).replace(tzinfo=UTC)
    if not start <= now < start + _WEEK + _GRACE:
        raise BadRequest(
            f"a drill of the week from {start.date()} can only be done in that week",
            remedy="Choose the newest partition. To try out a certain moment: `pitr drill --at TIME`.",
        )


def _checks_table(report: DrillReport) -> dg.TableMetadataValue:
    columns = {
        "check": "string",
        "database": "string",
        "result": "string",
        "found": "string",
        "seconds": "float",
    }
    return dg.MetadataValue.table(
        [
            dg.TableRecord(
                {
                    "check": result.check,
                    "database": result.dbname or "all",
                    "result": "ok" if result.problem is None else "FAILED",
                    "found": result.found or result.problem or "",
                    "seconds": round(result.took_s, 3),
                }
            )
            for result in report.checks
        ],
        dg.TableSchema([dg.TableColumn(name, kind) for name, kind in columns.items()]),
    )


def _list(lines: Iterable[str]) -> str:
    return "\n".join("- " + line.replace("\n", "\n  ") for line in lines)
