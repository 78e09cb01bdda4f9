"""The asset `wal_bundle`: one hour's WAL of one database in one file, sealed where that is possible.

The databases of a run are bundled side by side. A backfill is one run over its hours, oldest first. An
hour that fails stops no other; at the end the run fails and names each of them, and the hours that went
well count all the same. The manifest, which costs as much as there are databases, is refreshed once a run:
after the last of its databases, whatever became of any.
"""

# Dagster reads the annotations of assets and ops as objects: no `from __future__ import annotations`.

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import dagster as dg

from pitr_pipelines.catalog.layout import Layout
from pitr_pipelines.catalog.manifest import refresh_manifest
from pitr_pipelines.defs.failures import failure_of_some, from_system, shown_as_failures
from pitr_pipelines.defs.metadata import Metadata, bundle_metadata, work_metadata
from pitr_pipelines.defs.names import WAL_ARCHIVE, WAL_BUNDLE, asset_key
from pitr_pipelines.defs.partitions import Partitions
from pitr_pipelines.defs.progress import LogProgress
from pitr_pipelines.defs.side_by_side import others_follow, result_for
from pitr_pipelines.errors import PitrError
from pitr_pipelines.settings import Settings, asset_name
from pitr_pipelines.units import show_bytes, show_duration
from pitr_pipelines.wal.bundles import BundleOutcome, make_bundle
from pitr_pipelines.wal.hours import Hour


def build_wal_bundle(settings: Settings, database: str, partitions: Partitions) -> dg.AssetsDefinition:
    """Build the asset of one database."""

    @dg.asset(
        name=WAL_BUNDLE,
        key_prefix=asset_name(database),
        group_name=asset_name(database),
        partitions_def=partitions.hours,
        backfill_policy=dg.BackfillPolicy.single_run(),
        deps=[asset_key(database, WAL_ARCHIVE)],
        kinds={"postgres", "gzip"},
        tags={"pitr/database": database},
        description=f"One hour (UTC) of `{database}`'s WAL in one `.tar.gz`; its end is a restore point. Any "
        "hour can be bundled at any time, in any order, with the same result; the running hour gives a "
        "restore point now and is bundled again when it is over.",
    )
    # Without the annotation Dagster's IO manager breaks on a range of partitions.
    def wal_bundle(context: dg.AssetExecutionContext) -> dg.MaterializeResult:  # type: ignore[type-arg]
        hours = sorted(Hour.parse(key) for key in context.partition_keys)
        with shown_as_failures():
            return _materialize(context, settings, database, hours)

    return wal_bundle


def _materialize(
    context: dg.AssetExecutionContext, settings: Settings, database: str, hours: Sequence[Hour]
) -> "dg.MaterializeResult[None]":
    def bundle_hours(name: str, log: logging.Logger) -> _Bundling:
        work = _Bundling(log, settings, name)
        for hour in hours:
            work.bundle(hour)
        # A later hour's seal may be what an idle database's earlier hours were waiting for.
        for hour in [hour for hour in work.not_closed if any(hour < made for made in work.made)]:
            work.bundle(hour)
        return work

    try:
        work = result_for(context, settings, database, WAL_BUNDLE, bundle_hours)
    finally:
        unrefreshed = None if others_follow(context) else _refresh(context, settings)
    failed = [(str(hour), problem) for hour, problem in sorted((work.failed | work.not_closed).items())]
    if unrefreshed is not None:
        failed.append(("the manifest", unrefreshed))
    if failed:
        for _, problem in failed:
            context.log.error(str(problem))
        # A step that fails reports nothing by itself; these hours are done.
        for hour, metadata in work.made.items():
            context.log_event(
                dg.AssetMaterialization(context.asset_key, partition=str(hour), metadata=metadata)
            )
        raise failure_of_some(len(work.made), failed)
    for hour, metadata in work.made.items():
        context.add_asset_metadata(metadata, partition_key=str(hour))
    return dg.MaterializeResult()


def _refresh(context: dg.AssetExecutionContext, settings: Settings) -> PitrError | None:
    """Refresh the manifest; return why that was not possible."""
    try:
        refresh_manifest(settings)
    except (PitrError, OSError) as error:
        problem = error if isinstance(error, PitrError) else from_system(error)
        context.log.error(f"the manifest was not refreshed: {problem}")
        return problem
    return None


@dataclass
class _Bundling:
    """The hours of one run: those that are made, those that failed, and those still open though over."""

    log: logging.Logger
    settings: Settings
    database: str
    made: dict[Hour, Metadata] = field(default_factory=dict)
    failed: dict[Hour, PitrError] = field(default_factory=dict)
    not_closed: dict[Hour, PitrError] = field(default_factory=dict)

    def bundle(self, hour: Hour) -> None:
        """Bundle one hour; whatever becomes of it, the next one can go on."""
        started = time.monotonic()
        self.not_closed.pop(hour, None)
        try:
            outcome = make_bundle(self.settings, self.database, hour, report=LogProgress(self.log))
        except PitrError as error:
            self.failed[hour] = error
            return
        except OSError as error:
            self.failed[hour] = from_system(error)
            return
        duration_s = time.monotonic() - started
        self.log.info(_line(self.database, outcome, duration_s))
        if outcome.problem is None:
            self.made[hour] = _metadata(self.settings, outcome, duration_s)
        else:
            self.not_closed[hour] = outcome.problem


def _metadata(settings: Settings, outcome: BundleOutcome, duration_s: float) -> Metadata:
    metadata = bundle_metadata(Layout(settings.backup_root), outcome.record)
    if outcome.changed:
        metadata |= work_metadata(duration_s, outcome.record.raw_bytes)
    return metadata | {
        "made_by_this_run": dg.MetadataValue.bool(outcome.changed),
        "pruned_raw_files": dg.MetadataValue.int(outcome.pruned),
    }


def _line(database: str, outcome: BundleOutcome, duration_s: float) -> str:
    record = outcome.record
    if not outcome.changed:
        return f"{database}, hour {record.hour}: bundled already ({record.state})"
    what = f"{len(record.segments)} segments, {show_bytes(record.raw_bytes)}"
    if record.file is not None:
        what += f" into {show_bytes(record.file.size_bytes)}"
    line = f"{database}, hour {record.hour}: {what} in {show_duration(duration_s)}, {record.state}"
    return line + (f"; restore point {record.seal.restore_point}" if record.seal else "")
