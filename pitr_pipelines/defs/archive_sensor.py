"""A sensor that observes the WAL archives: how far behind each is, and how much raw WAL it holds.

It reads directories and asks no server, so it also works when one is down, which is when it counts.
"""

from datetime import UTC, datetime
from typing import Any

import dagster as dg

from pitr_pipelines.catalog.layout import Layout
from pitr_pipelines.defs.names import WAL_ARCHIVE, asset_key
from pitr_pipelines.defs.schedules import storage_absent
from pitr_pipelines.settings import Settings
from pitr_pipelines.wal.archive import scan_archive
from pitr_pipelines.wal.lsn import WalFileKind

INTERVAL_S = 300


def build_archive_sensor(settings: Settings) -> dg.SensorDefinition:
    """Build the sensor; it is on unless somebody turns it off in Dagster."""

    @dg.sensor(
        name="wal_archive_lag",
        minimum_interval_seconds=INTERVAL_S,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Observes every WAL archive: seconds since its newest segment was closed, and the raw "
        "WAL that it holds.",
    )
    def wal_archive_lag() -> dg.SensorResult | dg.SkipReason:
        absent = storage_absent(settings)
        if absent:
            return absent
        now = datetime.now(UTC)
        observed = [observe(settings, name, now) for name in settings.databases]
        return dg.SensorResult(
            asset_events=observed,
            skip_reason=f"Observed {len(observed)} archives; no run is needed for that.",
        )

    return wal_archive_lag


def observe(settings: Settings, database: str, now: datetime) -> dg.AssetObservation:
    """Describe one archive as it is. A database that archived nothing yet has no lag."""
    files = scan_archive(Layout(settings.backup_root).wal(database))
    metadata: dict[str, dg.MetadataValue[Any]] = {
        "raw_files": dg.MetadataValue.int(len(files)),
        "raw_bytes": dg.MetadataValue.int(sum(file.size_bytes for file in files)),
    }
    segments = [file for file in files if file.kind is WalFileKind.SEGMENT]
    if segments:
        newest = max(segments, key=lambda file: (file.closed_at, file.name))
        lag_s = (now - newest.closed_at).total_seconds()
        metadata["lag_s"] = dg.MetadataValue.float(round(max(0.0, lag_s), 1))
        metadata["last_segment"] = dg.MetadataValue.text(newest.name)
        metadata["last_archived_at"] = dg.MetadataValue.timestamp(newest.closed_at)
    return dg.AssetObservation(asset_key(database, WAL_ARCHIVE), metadata=metadata)
