"""The job `retention`: what need not be kept any more is removed, every day; and a check that this is so.

Only defined if the settings say what is to be kept. A database that is being backed up or restored from is
left for the next run; one that fails does not stop the others.
"""

# Dagster reads the annotations of assets and ops as objects: no `from __future__ import annotations`.

from dataclasses import dataclass
from datetime import UTC, datetime

import dagster as dg

from pitr_pipelines.catalog.expiry import Expiry, last_run
from pitr_pipelines.catalog.health import Finding
from pitr_pipelines.catalog.layout import Layout
from pitr_pipelines.catalog.retention import Verdict
from pitr_pipelines.catalog.retention_health import check_retention
from pitr_pipelines.catalog.retention_text import expiry_lines, summary
from pitr_pipelines.defs.check_results import Answer
from pitr_pipelines.defs.failures import failure_of_some, from_system, shown_as_failures
from pitr_pipelines.defs.metadata import Metadata
from pitr_pipelines.defs.names import NO_RETRIES, RESTORE_POINTS
from pitr_pipelines.defs.schedules import storage_absent
from pitr_pipelines.errors import PitrError
from pitr_pipelines.offsite.retention import carry_out_retention, propose_retention
from pitr_pipelines.settings import Settings
from pitr_pipelines.units import show_bytes

RETENTION = "retention"
KEEPS_TO_SETTINGS = "retention_keeps_to_settings"


@dataclass(frozen=True)
class RetentionDefinitions:
    """What there is in Dagster of retention; empty without settings for it."""

    jobs: tuple[dg.JobDefinition, ...] = ()
    schedules: tuple[dg.ScheduleDefinition, ...] = ()
    checks: tuple[dg.AssetChecksDefinition, ...] = ()


def build_retention(settings: Settings) -> RetentionDefinitions:
    """Build the job, its schedule, which is on, and the check."""
    if settings.retention is None:
        return RetentionDefinitions()

    @dg.op(
        name="remove_what_expired", description="Decides anew, database by database, and removes what may go."
    )
    def remove_what_expired(context: dg.OpExecutionContext) -> None:
        with shown_as_failures():
            _remove(context, settings)

    @dg.job(
        name=RETENTION,
        executor_def=dg.in_process_executor,
        tags=NO_RETRIES,
        description="Removes the base backups and bundles that need not be kept any more. "
        "`pitr retention --dry-run` explains what it would do.",
    )
    def retention() -> None:
        remove_what_expired()

    @dg.schedule(
        name="retention_schedule",
        job=retention,
        cron_schedule=settings.schedules.retention,
        execution_timezone=settings.timezone,
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description="Removes what need not be kept any more.",
    )
    def retention_schedule(context: dg.ScheduleEvaluationContext) -> dg.RunRequest | dg.SkipReason:
        tick = context.scheduled_execution_time.astimezone(UTC)
        return storage_absent(settings) or dg.RunRequest(run_key=f"{tick:%Y-%m-%dT%H:%MZ}")

    @dg.asset_check(
        asset=RESTORE_POINTS,
        name=KEEPS_TO_SETTINGS,
        description="Nothing that may go is still here days later, nothing waits for the off-site copy for "
        "days, and nothing is kept because it is in doubt.",
    )
    def retention_keeps_to_settings() -> dg.AssetCheckResult:
        with shown_as_failures():
            answer = judge(settings, datetime.now(UTC))
        return dg.AssetCheckResult(
            passed=not answer.problems,
            severity=dg.AssetCheckSeverity.WARN,
            description=answer.text,
            metadata=answer.metadata,
        )

    return RetentionDefinitions((retention,), (retention_schedule,), (retention_keeps_to_settings,))


def judge(settings: Settings, now: datetime) -> Answer:
    """Tell whether every database's storage is as retention should have left it."""
    findings: list[Finding] = []
    layout = Layout(settings.backup_root)
    kept_bytes = waiting_bytes = 0
    for name in settings.databases:
        found = propose_retention(settings, name, now=now)
        findings += check_retention(found, last_run(layout, name), now=now)
        kept_bytes += found.size_bytes(Verdict.KEEP)
        waiting_bytes += found.size_bytes(Verdict.WAIT)
    good = f"What may go is gone: {show_bytes(kept_bytes)} are kept, {show_bytes(waiting_bytes)} wait."
    metadata: Metadata = {
        "kept_bytes": dg.MetadataValue.int(kept_bytes),
        "waiting_bytes": dg.MetadataValue.int(waiting_bytes),
    }
    return Answer.of(good, metadata, findings)


def _remove(context: dg.OpExecutionContext, settings: Settings) -> None:
    done: dict[str, Expiry] = {}
    failed: list[tuple[str, PitrError]] = []
    for name in settings.databases:
        try:
            done[name] = carry_out_retention(settings, name, now=datetime.now(UTC))
        except PitrError as error:
            failed.append((name, error))
        except OSError as error:
            failed.append((name, from_system(error)))
        else:
            log = context.log.warning if done[name].skipped else context.log.info
            log("\n".join([*expiry_lines(done[name]), f"  now     {summary(done[name].retention)}"]))
    context.add_output_metadata(
        {
            "freed_bytes": dg.MetadataValue.int(sum(one.freed_bytes for one in done.values())),
            "databases": dg.MetadataValue.table([dg.TableRecord(_row(one)) for one in done.values()])
            if done
            else dg.MetadataValue.text("none"),
        }
    )
    if failed:
        raise failure_of_some(len(done), failed)


def _row(done: Expiry) -> dict[str, str | float | int | bool | None]:
    found = done.retention
    removed = Verdict.REMOVE if done.removed else None
    return {
        "database": found.database,
        "freed": show_bytes(done.freed_bytes),
        "bases_removed": len(found.bases(removed)) if removed else 0,
        "hours_removed": len(found.hours(removed)) if removed else 0,
        "bases_kept": len(found.bases(Verdict.KEEP)),
        "hours_kept": len(found.hours(Verdict.KEEP)),
        "waits": show_bytes(found.size_bytes(Verdict.WAIT)),
        "skipped": done.skipped or "",
    }
