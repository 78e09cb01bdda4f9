"""The asset `base_backup`: one day's base backup of one database."""

# Dagster reads the annotations of assets and ops as objects: no `from __future__ import annotations`.

import time
from datetime import date

import dagster as dg
from pydantic import Field

from pitr_pipelines.catalog.gap_cure import Cure, cure_of
from pitr_pipelines.catalog.inventory import read_inventory
from pitr_pipelines.catalog.layout import Layout
from pitr_pipelines.catalog.manifest import refresh_manifest
from pitr_pipelines.defs.failures import shown_as_failures
from pitr_pipelines.defs.metadata import base_metadata, work_metadata
from pitr_pipelines.defs.names import BASE_BACKUP
from pitr_pipelines.defs.partitions import Partitions
from pitr_pipelines.defs.progress import LogProgress
from pitr_pipelines.defs.stored import written_at_ns
from pitr_pipelines.settings import Settings, asset_name
from pitr_pipelines.units import show_bytes, show_duration


class BaseBackupConfig(dg.Config):
    """What a run may be told about the base backup of one database."""

    replace: bool = Field(
        default=False,
        description="Take a new one in the place of today's, even if that is intact. Moments before it may "
        "have no other base backup that leads to them.",
    )
    after_gap: bool = Field(
        default=False,
        description="Take one because of a gap in the WAL; today's is replaced only if that loses nothing.",
    )


def build_base_backup(settings: Settings, database: str, partitions: Partitions) -> dg.AssetsDefinition:
    """Build the asset of one database."""

    @dg.asset(
        name=BASE_BACKUP,
        key_prefix=asset_name(database),
        group_name=asset_name(database),
        partitions_def=partitions.days,
        kinds={"postgres"},
        tags={"pitr/database": database},
        description=f"A whole, verified `pg_basebackup` of `{database}`, one a day (UTC). Restores start "
        "from it. Only today's can be taken: the server has no yesterday to copy. The job `restore` leads "
        "back to a moment of a past day.",
    )
    def base_backup(context: dg.AssetExecutionContext, config: BaseBackupConfig) -> dg.MaterializeResult:  # type: ignore[type-arg]
        with shown_as_failures():
            return _materialize(context, settings, database, config)

    return base_backup


def _materialize(
    context: dg.AssetExecutionContext, settings: Settings, database: str, config: BaseBackupConfig
) -> "dg.MaterializeResult[None]":
    # psycopg comes with it: only the step that needs a server pays for that.
    from pitr_pipelines.postgres.base_backup import take_base_backup

    layout = Layout(settings.backup_root)
    day = date.fromisoformat(context.partition_key)
    before = written_at_ns(layout.base_record(database, day))
    replace = config.replace
    if config.after_gap and not replace:
        # Decided now: since it was asked for, somebody may have taken one.
        cure = cure_of(read_inventory(layout, database), day)
        context.log.info(cure.reason)
        replace = cure.cure is Cure.REPLACE
    started = time.monotonic()
    record = take_base_backup(settings, database, day=day, replace=replace, progress=LogProgress(context.log))
    duration_s = time.monotonic() - started
    made = written_at_ns(layout.base_record(database, day)) != before
    if made:
        context.log.info(
            f"base backup of {database}: {show_bytes(record.uncompressed_bytes)} into "
            f"{show_bytes(record.size_bytes)}, copied and verified in {show_duration(duration_s)}; "
            f"targets after {record.ended_at.isoformat(sep=' ')} can start from it"
        )
    else:
        context.log.info(f"{database} has an intact base backup of {day} already; nothing was done")
    refresh_manifest(settings)
    metadata = base_metadata(layout, record) | (work_metadata(duration_s) if made else {})
    return dg.MaterializeResult(metadata={**metadata, "made_by_this_run": made})
