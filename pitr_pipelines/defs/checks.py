"""The asset checks: what storage holds is read again, and compared with what it should hold.

Nothing waits for them, and they change nothing. The job `check_artifacts` runs them all every few
hours; in the UI each can be run alone. A check that cannot do its work fails and says why; whatever
happens to one database, the others are checked.
"""

# Dagster reads the annotations of assets and ops as objects: no `from __future__ import annotations`.

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime

import dagster as dg
from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition

from pitr_pipelines.catalog import health
from pitr_pipelines.catalog.inventory import read_inventory
from pitr_pipelines.catalog.layout import Layout
from pitr_pipelines.defs import check_results
from pitr_pipelines.defs.check_results import Check, answer_of
from pitr_pipelines.defs.names import (
    BASE_BACKUP,
    CHECK_ARTIFACTS,
    NO_RETRIES,
    RESTORE_POINTS,
    WAL_BUNDLE,
    asset_key,
)
from pitr_pipelines.settings import Settings, asset_name

VERIFIED = "verified"
INTACT = "intact"
WAL_CONTINUOUS = "wal_continuous"
MATCHES_RECORDS = "matches_records"
WINDOW_COVERS = "window_covers"


def build_checks(settings: Settings) -> list[dg.AssetChecksDefinition]:
    """Build the checks: one step for each database, of which any part can be run, and one for all."""
    return [*(_of_database(settings, name) for name in settings.databases), _of_manifest(settings)]


def build_check_job(checks: Sequence[dg.AssetChecksDefinition]) -> UnresolvedAssetJobDefinition:
    """Build the job that runs every one of `checks`, and nothing else."""
    return dg.define_asset_job(
        CHECK_ARTIFACTS,
        selection=dg.AssetSelection.checks(*(key for check in checks for key in check.check_keys)),
        executor_def=dg.in_process_executor,
        tags=NO_RETRIES,
        description="Reads the newest base backups and the recent bundles of every database again, follows "
        "the WAL, and compares the manifest with the records. Changes nothing.",
    )


def build_check_schedule(settings: Settings, job: UnresolvedAssetJobDefinition) -> dg.ScheduleDefinition:
    """Build the schedule of the checks; it is on unless somebody turns it off in Dagster.

    It does not look for the storage first: that storage is not there is what a check must tell.
    """
    return dg.ScheduleDefinition(
        name="check_schedule",
        job=job,
        cron_schedule=settings.schedules.checks,
        execution_timezone=settings.timezone,
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description="Checks the artifacts of every database.",
    )


def _of_database(settings: Settings, database: str) -> dg.AssetChecksDefinition:
    base, bundle = asset_key(database, BASE_BACKUP), asset_key(database, WAL_BUNDLE)
    specs = [
        dg.AssetCheckSpec(
            VERIFIED,
            asset=base,
            description="The files of the newest base backup have the sizes and SHA-256 of its record.",
        ),
        dg.AssetCheckSpec(
            INTACT,
            asset=bundle,
            description="Every segment in the bundles of the last 24 hours unpacks to what its record says.",
        ),
        dg.AssetCheckSpec(
            WAL_CONTINUOUS,
            asset=bundle,
            description="No segment is missing from the oldest kept base backup to the newest archived WAL.",
        ),
    ]

    @dg.multi_asset_check(name=f"{asset_name(database)}__checks", specs=specs, can_subset=True)
    def checks(context: dg.AssetCheckExecutionContext) -> Iterator[dg.AssetCheckResult]:
        layout = Layout(settings.backup_root)
        now = datetime.now(UTC)
        yield from _results(
            context,
            settings,
            {
                dg.AssetCheckKey(base, VERIFIED): lambda: check_results.of_base(
                    health.check_newest_base(layout, database), now
                ),
                dg.AssetCheckKey(bundle, INTACT): lambda: check_results.of_bundles(
                    health.check_recent_bundles(layout, database, now=now)
                ),
                dg.AssetCheckKey(bundle, WAL_CONTINUOUS): lambda: check_results.of_chain(
                    health.check_chain(read_inventory(layout, database))
                ),
            },
        )

    return checks


def _of_manifest(settings: Settings) -> dg.AssetChecksDefinition:
    specs = [
        dg.AssetCheckSpec(
            MATCHES_RECORDS,
            asset=RESTORE_POINTS,
            description="The manifest says what the records beside the artifacts say, and all can be read.",
        ),
        dg.AssetCheckSpec(
            WINDOW_COVERS,
            asset=RESTORE_POINTS,
            description="Every database can be restored as near to now, and as far back, as is promised.",
        ),
    ]

    @dg.multi_asset_check(name="restore_points__checks", specs=specs, can_subset=True)
    def checks(context: dg.AssetCheckExecutionContext) -> Iterator[dg.AssetCheckResult]:
        yield from _results(
            context,
            settings,
            {
                dg.AssetCheckKey(RESTORE_POINTS, MATCHES_RECORDS): lambda: check_results.of_manifest(
                    settings
                ),
                dg.AssetCheckKey(RESTORE_POINTS, WINDOW_COVERS): lambda: check_results.of_windows(
                    settings, datetime.now(UTC)
                ),
            },
        )

    return checks


def _results(
    context: dg.AssetCheckExecutionContext, settings: Settings, checks: dict[dg.AssetCheckKey, Check]
) -> Iterator[dg.AssetCheckResult]:
    """Run those of `checks` that were asked for; what one meets does not keep the next from running."""
    for key, check in checks.items():
        if key not in context.selected_asset_check_keys:
            continue
        yield answer_of(context, settings, key, check)
