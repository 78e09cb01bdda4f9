"""Assets that are not made by a step: the WAL archive, and clusters that a restore left."""

import dagster as dg

from pitr_pipelines.catalog.layout import Layout
from pitr_pipelines.defs.names import BASE_BACKUP, RESTORED_CLUSTER, WAL_ARCHIVE, WAL_BUNDLE, asset_key
from pitr_pipelines.defs.partitions import Partitions
from pitr_pipelines.settings import Settings, asset_name


def wal_archive(settings: Settings, database: str) -> dg.AssetSpec:
    """Describe the raw WAL that the server itself archives, segment by segment."""
    return dg.AssetSpec(
        asset_key(database, WAL_ARCHIVE),
        description=f"Raw WAL of `{database}`. The server puts each finished segment there with "
        "wal-archive.sh; nothing in Dagster does. A sensor observes how far behind it is.",
        group_name=asset_name(database),
        kinds={"postgres", "shell"},
        tags={"pitr/database": database},
        metadata={"path": dg.MetadataValue.path(Layout(settings.backup_root).wal(database))},
    )


def restored_cluster(settings: Settings, database: str, partitions: Partitions) -> dg.AssetSpec:
    """Describe what the `restore` job leaves: a new cluster beside the original."""
    return dg.AssetSpec(
        asset_key(database, RESTORED_CLUSTER),
        deps=[asset_key(database, BASE_BACKUP), asset_key(database, WAL_BUNDLE)],
        description=f"`{database}` as it was at a moment of the hour, in a new cluster beside the original. "
        "Made by the `restore` job: choose the hour as its partition.",
        group_name=asset_name(database),
        kinds={"postgres"},
        tags={"pitr/database": database},
        partitions_def=partitions.hours,
        metadata={"path": dg.MetadataValue.path(settings.restore_root)},
    )
