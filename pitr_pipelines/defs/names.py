"""Asset keys, groups and job names, in one place."""

import dagster as dg

from pitr_pipelines.settings import asset_name

BASE_BACKUP = "base_backup"
WAL_ARCHIVE = "wal_archive"
WAL_BUNDLE = "wal_bundle"
RESTORED_CLUSTER = "restored_cluster"

OFFSITE_COPY = dg.AssetKey("offsite_copy")
RESTORE_POINTS = dg.AssetKey("restore_points")

DAILY_OFFSITE_COPY = "daily_offsite_copy"
DAILY_BASE_BACKUPS = "daily_base_backups"
HOURLY_BUNDLES = "hourly_bundles"
REFRESH_RESTORE_POINTS = "refresh_restore_points"
CHECK_ARTIFACTS = "check_artifacts"
RESTORE = "restore"
PURGE_HISTORY = "purge_dagster_history"

NO_RETRIES = {"dagster/max_retries": "0"}
"""A run whose worker died may still have a step at work, which a retry would overlap. The schedules
and the look back ask again for what is missing, when storage says that it is."""


def asset_key(database: str, asset: str) -> dg.AssetKey:
    """Return the key of a database's asset: `order_db/base_backup`."""
    return dg.AssetKey([asset_name(database), asset])
