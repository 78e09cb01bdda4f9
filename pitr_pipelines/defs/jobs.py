"""The jobs that the schedules and sensors run: all base backups, all bundles, the manifest.

None runs the asset checks of what it makes: those have a job of their own and hold up nothing.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import dagster as dg
from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition

from pitr_pipelines.defs.executors import base_backup_executor
from pitr_pipelines.defs.names import (
    BASE_BACKUP,
    DAILY_BASE_BACKUPS,
    HOURLY_BUNDLES,
    NO_RETRIES,
    REFRESH_RESTORE_POINTS,
    RESTORE_POINTS,
    WAL_BUNDLE,
    asset_key,
)
from pitr_pipelines.settings import Settings

_AT_MOST_A_DAY = {"dagster/max_runtime": str(24 * 3600)}
_AT_MOST_SIX_HOURS = {"dagster/max_runtime": str(6 * 3600)}
"""After these, run monitoring takes a run for dead, where it is on: its worker can have been killed together
with the code server, and then nothing else ends it. A restore is not limited."""


@dataclass(frozen=True)
class Jobs:
    """The asset jobs, by what they make."""

    bases: UnresolvedAssetJobDefinition
    bundles: UnresolvedAssetJobDefinition
    restore_points: UnresolvedAssetJobDefinition

    def all(self) -> list[UnresolvedAssetJobDefinition]:
        return [self.bases, self.bundles, self.restore_points]


def build_jobs(settings: Settings) -> Jobs:
    """Build the jobs over every database in the settings."""
    return Jobs(
        dg.define_asset_job(
            DAILY_BASE_BACKUPS,
            selection=_only(asset_key(name, BASE_BACKUP) for name in settings.databases),
            executor_def=base_backup_executor(settings),
            tags=NO_RETRIES | _AT_MOST_A_DAY,
            description="Today's base backup of every database.",
        ),
        dg.define_asset_job(
            HOURLY_BUNDLES,
            selection=_only(asset_key(name, WAL_BUNDLE) for name in settings.databases),
            executor_def=dg.in_process_executor,
            tags=NO_RETRIES | _AT_MOST_SIX_HOURS,
            description="One hour's bundle of every database; a range of hours is one run.",
        ),
        dg.define_asset_job(
            REFRESH_RESTORE_POINTS,
            selection=_only([RESTORE_POINTS]),
            executor_def=dg.in_process_executor,
            tags=NO_RETRIES | _AT_MOST_SIX_HOURS,
            description="Bring the manifest up to date with the records in storage.",
        ),
    )


def _only(keys: Iterable[dg.AssetKey]) -> dg.AssetSelection:
    return dg.AssetSelection.assets(*keys).without_checks()
