"""The asset `offsite_copy`: the day's one backup call, for all databases together.

A sensor asks for it when it is due. Whatever Dagster does, a day is called once: a run for a day that was
called makes no second call, and neither does one for a day that is over. What became of a day is read from
the ledger, so a copy that somebody made at a terminal, or that was settled later, shows up as well.
"""

# Dagster reads the annotations of assets and ops as objects: no `from __future__ import annotations`.

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime

import dagster as dg
from dagster import DagsterEventType
from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition

from pitr_pipelines.catalog.layout import Layout
from pitr_pipelines.defs.check_results import Answer, answer_of
from pitr_pipelines.defs.failures import failure, shown_as_failures
from pitr_pipelines.defs.metadata import Metadata, show_table
from pitr_pipelines.defs.names import (
    BASE_BACKUP,
    DAILY_OFFSITE_COPY,
    NO_RETRIES,
    OFFSITE_COPY,
    RESTORE_POINTS,
    WAL_BUNDLE,
    asset_key,
)
from pitr_pipelines.defs.progress import LogProgress
from pitr_pipelines.defs.schedules import storage_absent
from pitr_pipelines.errors import ArtifactDamaged
from pitr_pipelines.offsite.budget import CallState, days, read_entry
from pitr_pipelines.offsite.copy_report import CallFailed, CopyReport, report_of
from pitr_pipelines.offsite.delivered import read_index
from pitr_pipelines.offsite.due import Turn, look_when_due
from pitr_pipelines.offsite.encryption import parse_recipients
from pitr_pipelines.offsite.standing import Standing, look_at_standing
from pitr_pipelines.settings import Settings

DELIVERED = "delivered"
COMPLETE = "every_database_is_in_it"
INTERVAL_S = 60
REPORTED_DAYS = 30
"""How many days back a tick looks for copies that Dagster does not know of."""

_UNDER_WAY = [
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]


@dataclass(frozen=True)
class OffsiteDefinitions:
    """What there is in Dagster of the off-site copy; empty without settings for it."""

    assets: tuple[dg.AssetsDefinition, ...] = ()
    checks: tuple[dg.AssetChecksDefinition, ...] = ()
    jobs: tuple[UnresolvedAssetJobDefinition, ...] = ()
    sensors: tuple[dg.SensorDefinition, ...] = ()


def build_offsite(settings: Settings) -> OffsiteDefinitions:
    """Build the asset, its checks, its job, and the sensor that asks for it, which is on."""
    if settings.offsite is None:
        return OffsiteDefinitions()
    checks = _checks(settings)
    job = _job(checks)
    return OffsiteDefinitions((_asset(settings),), (checks,), (job,), (_sensor(settings, job),))


def _asset(settings: Settings) -> dg.AssetsDefinition:
    """Build the asset. Its partitions are the days of the provider: `api_calls.day_in`."""
    offsite = settings.offsite_copy()
    if offsite.recipients:
        parse_recipients(offsite.recipients)  # a key that cannot be used is found now, not at night

    @dg.asset(
        key=OFFSITE_COPY,
        group_name="all_databases",
        partitions_def=dg.DailyPartitionsDefinition(
            start_date=settings.first_day.isoformat(), timezone=offsite.api_calls.day_in, end_offset=1
        ),
        # What goes is everything that has not gone yet: the days and hours of it are the moment's affair.
        deps=[
            RESTORE_POINTS,
            *(
                dg.AssetDep(asset_key(name, asset), partition_mapping=dg.LastPartitionMapping())
                for name in settings.databases
                for asset in (BASE_BACKUP, WAL_BUNDLE)
            ),
        ],
        kinds={"s3"},
        description="Everything that is not off-site yet, of all databases, in one object and with **one "
        f"backup call a day** (days of {offsite.api_calls.day_in}). A day that was called is never called "
        "again; what it did not deliver goes with the next. `pitr offsite restore` brings it back.",
    )
    def offsite_copy(context: dg.AssetExecutionContext) -> dg.MaterializeResult:  # type: ignore[type-arg]
        with shown_as_failures():
            return _materialize(context, settings)

    return offsite_copy


def _checks(settings: Settings) -> dg.AssetChecksDefinition:
    """Build the checks: was the last copy that was due delivered, and is every database in it?"""
    specs = [
        dg.AssetCheckSpec(
            DELIVERED,
            asset=OFFSITE_COPY,
            description="The store is known to have the last copy that was due.",
        ),
        dg.AssetCheckSpec(
            COMPLETE,
            asset=OFFSITE_COPY,
            description="The day's base backup of every database is in it, or in an earlier one.",
        ),
    ]

    @dg.multi_asset_check(name="offsite_copy__checks", specs=specs, can_subset=True)
    def checks(context: dg.AssetCheckExecutionContext) -> Iterator[dg.AssetCheckResult]:
        def standing() -> Standing:
            return look_at_standing(settings, now=datetime.now(UTC))

        answers = {
            DELIVERED: lambda: _delivered(standing()),
            COMPLETE: lambda: _complete(standing()),
        }
        for key in sorted(context.selected_asset_check_keys, key=lambda key: key.name):
            yield answer_of(context, settings, key, answers[key.name])

    return checks


def _job(checks: dg.AssetChecksDefinition) -> UnresolvedAssetJobDefinition:
    """Build the job that makes the day's copy, and then runs its checks."""
    return dg.define_asset_job(
        DAILY_OFFSITE_COPY,
        selection=dg.AssetSelection.assets(OFFSITE_COPY) | dg.AssetSelection.checks(*checks.check_keys),
        executor_def=dg.in_process_executor,
        tags=NO_RETRIES,
        description="The day's one backup call, for all databases together.",
    )


def _sensor(settings: Settings, job: UnresolvedAssetJobDefinition) -> dg.SensorDefinition:
    """Build the sensor; it is on unless somebody turns it off in Dagster."""

    @dg.sensor(
        name="offsite_copy_due",
        job=job,
        minimum_interval_seconds=INTERVAL_S,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Asks for the day's off-site copy as soon as every database has its base backup of the "
        "day, or at the deadline; and reports copies that were made or settled without Dagster.",
    )
    def offsite_copy_due(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
        return storage_absent(settings) or evaluate(settings, context.instance, datetime.now(UTC))

    return offsite_copy_due


def evaluate(settings: Settings, instance: dg.DagsterInstance, now: datetime) -> dg.SensorResult:
    """Decide at `now` whether to ask for the day's copy, and what Dagster has to be told of others.

    What fails before the call leaves the day uncalled: it is asked for again, once an hour.
    """
    if instance.get_runs(dg.RunsFilter(job_name=DAILY_OFFSITE_COPY, statuses=_UNDER_WAY), limit=1):
        return dg.SensorResult(skip_reason="A copy is under way.")
    reports = _unreported(settings, instance)
    due = look_when_due(settings, settings.offsite_copy(), now=now)
    if due.turn is Turn.GO and due.day >= settings.first_day:
        request = dg.RunRequest(run_key=f"{due.day}@{now:%Y-%m-%dT%H}", partition_key=due.day.isoformat())
        return dg.SensorResult(run_requests=[request], asset_events=reports)
    reason = f"The call of {due.day} was made, or is lost; the next is tomorrow's."
    if due.turn is Turn.WAIT:
        reason = f"Waiting for the base backup of {', '.join(due.missing)} until {due.deadline:%H:%M %Z}."
    return dg.SensorResult(skip_reason=reason, asset_events=reports)


def copy_metadata(report: CopyReport) -> Metadata:
    """Describe one day's call, and what it carried."""
    metadata: Metadata = {
        "state": dg.MetadataValue.text(report.state.value),
        "said": dg.MetadataValue.text(report.said),
        "databases": show_table(
            ("database", "base_backups", "hours_of_wal", "size_bytes"),
            (
                (name, ", ".join(map(str, part.bases)), float(part.hours), float(part.size_bytes))
                for name, part in report.databases.items()
            ),
        ),
        "see_restore_points": dg.MetadataValue.asset(RESTORE_POINTS),
        "missing": dg.MetadataValue.text(", ".join(report.missing) or "none"),
        "reads": dg.MetadataValue.int(report.reads),
    }
    if report.object is not None:
        metadata["object"] = dg.MetadataValue.text(f"s3://{report.object.bucket}/{report.object.key}")
        metadata["size_bytes"] = dg.MetadataValue.int(report.object.size_bytes)
        if report.seconds:
            metadata["call_s"] = dg.MetadataValue.float(round(report.seconds, 3))
            rate = report.object.size_bytes / report.seconds / 1024**2
            metadata["rate_mib_per_s"] = dg.MetadataValue.float(round(rate, 1))
    if report.ended_at is not None:
        metadata["ended_at"] = dg.MetadataValue.timestamp(report.ended_at)
    if report.encrypted is not None:
        metadata["encrypted"] = dg.MetadataValue.bool(report.encrypted)
    if report.left_bytes:
        metadata["left_bytes"] = dg.MetadataValue.int(report.left_bytes)
    if report.problems:
        metadata["problems"] = dg.MetadataValue.md("\n".join(f"- {problem}" for problem in report.problems))
    return metadata


def _materialize(context: dg.AssetExecutionContext, settings: Settings) -> "dg.MaterializeResult[None]":
    # boto3 takes nearly half a second to import: only the step that calls pays for it.
    from pitr_pipelines.offsite.copy import make_copy

    try:
        report = make_copy(
            settings,
            day=date.fromisoformat(context.partition_key),
            report=LogProgress(context.log),
            log=lambda line: context.log.info(line),
        )
    except CallFailed as error:
        failed = failure(error)
        raise dg.Failure(
            failed.description,
            {**copy_metadata(error.report), **failed.metadata},
            allow_retries=False,
        ) from None
    for line in report.lines(settings.zone):
        context.log.info(line)
    if not report.made:
        context.log.info(f"the call of {report.day} was made before: none was made now")
    return dg.MaterializeResult(metadata={**copy_metadata(report), "made_by_this_run": report.made})


def _unreported(settings: Settings, instance: dg.DagsterInstance) -> list[dg.AssetMaterialization]:
    layout = Layout(settings.backup_root)
    recent = [day for day in days(layout.ledger) if day >= settings.first_day][-REPORTED_DAYS:]
    keys = {day.isoformat() for day in recent}
    known = instance.get_latest_storage_id_by_partition(
        OFFSITE_COPY, DagsterEventType.ASSET_MATERIALIZATION, keys
    )
    reports = []
    for day in recent:
        if day.isoformat() in known:
            continue
        try:
            entry = read_entry(layout.ledger, day)
        except ArtifactDamaged:
            continue  # the check says so
        if entry is not None and entry.state is CallState.CONFIRMED:
            metadata = copy_metadata(report_of(entry, read_index(layout, day)))
            metadata["made_by"] = dg.MetadataValue.text("outside Dagster, or settled later")
            reports.append(
                dg.AssetMaterialization(OFFSITE_COPY, partition=day.isoformat(), metadata=metadata)
            )
    return reports


def _delivered(standing: Standing) -> Answer:
    metadata: Metadata = {}
    if standing.confirmed is not None:
        metadata["newest_confirmed"] = dg.MetadataValue.text(str(standing.confirmed))
    if standing.day is None:
        return Answer.of("The first copy is not due yet.", metadata, ())
    metadata["day"] = dg.MetadataValue.text(str(standing.day))
    return Answer.of(f"The store has the copy of {standing.day}.", metadata, standing.delivery)


def _complete(standing: Standing) -> Answer:
    metadata: Metadata = {"missing": dg.MetadataValue.text(", ".join(standing.missing) or "none")}
    if standing.day is None:
        return Answer.of("The first copy is not due yet.", metadata, ())
    good = f"Every database's base backup of {standing.day} is off-site."
    if not standing.completeness and standing.missing:
        good = f"Nothing can be said of {standing.day}, whose copy is not confirmed."
    return Answer.of(good, metadata, standing.completeness)
