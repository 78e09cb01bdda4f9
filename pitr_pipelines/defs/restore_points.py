"""The asset `restore_points`: the manifest of everything that can be restored, and the page that shows it."""

# Dagster reads the annotations of assets and ops as objects: no `from __future__ import annotations`.

from datetime import UTC, datetime
from pathlib import Path

import dagster as dg

from pitr_pipelines.catalog.layout import Layout
from pitr_pipelines.catalog.manifest import refresh_manifest
from pitr_pipelines.catalog.report import first_day, write_report
from pitr_pipelines.defs.failures import shown_as_failures
from pitr_pipelines.defs.metadata import manifest_metadata
from pitr_pipelines.defs.names import BASE_BACKUP, RESTORE_POINTS, WAL_BUNDLE, asset_key
from pitr_pipelines.errors import PitrError
from pitr_pipelines.offsite.call_days import read_calls
from pitr_pipelines.settings import Settings


def build_restore_points(settings: Settings) -> dg.AssetsDefinition:
    """Build the one asset that depends on the artifacts of every database."""

    @dg.asset(
        key=RESTORE_POINTS,
        group_name="all_databases",
        # Unpartitioned, it depends on all of their partitions, which costs nothing to work out.
        deps=[asset_key(name, asset) for name in settings.databases for asset in (BASE_BACKUP, WAL_BUNDLE)],
        kinds={"json"},
        description="What can be restored: every recovery window and every restore point of all databases, "
        "in `manifests/restore-points.json`, and to look at in `manifests/report.html`. Derived from the "
        "records beside the artifacts.",
    )
    def restore_points(context: dg.AssetExecutionContext) -> dg.MaterializeResult:  # type: ignore[type-arg]
        with shown_as_failures():
            manifest = refresh_manifest(settings)
        for name, held in manifest.databases.items():
            for problem in held.problems:
                context.log.warning(f"{name}: {problem}")
            for gap in held.gaps:
                context.log.warning(f"{name}: the segments {gap.first} to {gap.last} are missing")
        metadata = manifest_metadata(Layout(settings.backup_root), manifest)
        try:
            # Here and not wherever the manifest is refreshed: bundles and backups do not wait for a page.
            page = _write_page(settings).resolve()
            metadata["report"] = dg.MetadataValue.path(page)
            metadata["report_url"] = dg.MetadataValue.url(page.as_uri())
        except (PitrError, OSError) as error:
            context.log.warning(f"the manifest is made, and the page that shows it is not: {error}")
        return dg.MaterializeResult(metadata=metadata)

    return restore_points


def _write_page(settings: Settings) -> Path:
    now = datetime.now(UTC)
    calls = read_calls(settings, now=now, since=first_day(settings, now=now))
    return write_report(settings, now=now, calls=calls)
