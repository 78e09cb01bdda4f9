"""What a materialization tells, taken from the artifact's record.

Amounts are numbers, so that Dagster plots them over the partitions; moments are timestamps. The same
record gives the same metadata, whether a step here made the artifact or somebody at a terminal did.
"""

from collections.abc import Iterable
from typing import Any

import dagster as dg

from pitr_pipelines.catalog.layout import Layout
from pitr_pipelines.catalog.manifest import Manifest
from pitr_pipelines.catalog.records import BaseRecord, BundleRecord, BundleState
from pitr_pipelines.defs.names import BASE_BACKUP, WAL_BUNDLE, asset_key
from pitr_pipelines.restore.report import RestoreReport
from pitr_pipelines.wal.lsn import SegmentName

Metadata = dict[str, dg.MetadataValue[Any]]

NEWEST_POINTS = 50
_MIB = 1024 * 1024
_HOUR_S = 3600


def base_metadata(layout: Layout, record: BaseRecord) -> Metadata:
    """Describe a base backup. Its duration and rate are of the copying, by the server's clock."""
    duration_s = (record.ended_at - record.started_at).total_seconds()
    metadata: Metadata = {
        **links(record.database, WAL_BUNDLE),
        "path": dg.MetadataValue.path(layout.base(record.database, record.day)),
        "size_bytes": dg.MetadataValue.int(record.size_bytes),
        "uncompressed_bytes": dg.MetadataValue.int(record.uncompressed_bytes),
        "compression": dg.MetadataValue.text(record.compression),
        "copy_s": dg.MetadataValue.float(round(duration_s, 3)),
        "started_at": dg.MetadataValue.timestamp(record.started_at),
        "restorable_from": dg.MetadataValue.timestamp(record.ended_at),
        "start_lsn": dg.MetadataValue.text(str(record.start_lsn)),
        "end_lsn": dg.MetadataValue.text(str(record.end_lsn)),
        "timeline": dg.MetadataValue.int(record.timeline),
        "server_version": dg.MetadataValue.text(f"{record.major}.{record.server_version % 10000}"),
        "system_identifier": dg.MetadataValue.text(record.system_identifier),
        "data_checksums": dg.MetadataValue.bool(record.data_checksums),
        "tablespaces": dg.MetadataValue.int(len(record.tablespaces)),
    }
    _add_ratio(metadata, record.uncompressed_bytes, record.packed_bytes)
    _add_rate(metadata, record.uncompressed_bytes, duration_s)
    return metadata


def bundle_metadata(layout: Layout, record: BundleRecord) -> Metadata:
    """Describe a bundle. An hour without WAL has no path, no LSNs and no timeline."""
    size_bytes = record.file.size_bytes if record.file else 0
    metadata: Metadata = {
        "state": dg.MetadataValue.text(record.state.value),
        "size_bytes": dg.MetadataValue.int(size_bytes),
        "raw_bytes": dg.MetadataValue.int(record.raw_bytes),
        "segments": dg.MetadataValue.int(len(record.segments)),
    }
    if record.state is BundleState.CLOSED:
        # Of the running hour it is not known how much of it there is.
        rate = record.raw_bytes / _MIB / _HOUR_S
        metadata["wal_mib_per_s"] = dg.MetadataValue.float(round(rate, 4))
    metadata |= links(record.database, BASE_BACKUP)
    if record.file is not None:
        metadata["path"] = dg.MetadataValue.path(layout.bundle(record.database, record.hour))
        _add_ratio(metadata, record.raw_bytes, size_bytes)
    if record.runs and record.wal_segment_size:
        first, last = record.runs[0], record.runs[-1]
        metadata["first_segment"] = dg.MetadataValue.text(str(first.first))
        metadata["last_segment"] = dg.MetadataValue.text(str(last.last))
        metadata["start_lsn"] = _start(first.first, record.wal_segment_size)
        metadata["end_lsn"] = dg.MetadataValue.text(str(last.last.end(record.wal_segment_size)))
        metadata["timeline"] = dg.MetadataValue.int(last.timeline)
        metadata["wal_until"] = dg.MetadataValue.timestamp(last.closed_at)
    if record.seal is not None:
        metadata["restore_point"] = dg.MetadataValue.text(record.seal.restore_point)
        metadata["sealed_lsn"] = dg.MetadataValue.text(str(record.seal.lsn))
        metadata["sealed_at"] = dg.MetadataValue.timestamp(record.seal.at)
    return metadata


def work_metadata(duration_s: float, raw_bytes: int = 0) -> Metadata:
    """Describe what a step took: its duration and, of `raw_bytes` read, its rate."""
    metadata: Metadata = {"duration_s": dg.MetadataValue.float(round(duration_s, 3))}
    _add_rate(metadata, raw_bytes, duration_s)
    return metadata


def manifest_metadata(layout: Layout, manifest: Manifest) -> Metadata:
    """Describe what can be restored: the counts, every window and gap, and the newest points."""
    databases = manifest.databases.items()
    points = [(name, point) for name, held in databases for point in held.restore_points]
    points.sort(key=lambda named: (named[1].at, named[0]), reverse=True)
    gaps = [(name, gap) for name, held in databases for gap in held.gaps]
    problems = [(name, problem) for name, held in databases for problem in held.problems]
    metadata: Metadata = {
        "path": dg.MetadataValue.path(layout.manifest),
        "restore_points": dg.MetadataValue.int(len(points)),
        "base_backups": dg.MetadataValue.int(sum(len(held.bases) for _, held in databases)),
        "databases": dg.MetadataValue.int(len(manifest.databases)),
        "databases_without_window": dg.MetadataValue.int(
            sum(not held.windows for _, held in databases),
        ),
        "gaps": dg.MetadataValue.int(len(gaps)),
        "problems": dg.MetadataValue.int(len(problems)),
        "windows": show_table(
            ("database", "from", "to", "hours", "timeline"),
            (
                (
                    name,
                    str(window.start),
                    str(window.end),
                    round((window.end - window.start).total_seconds() / 3600, 2),
                    window.timeline,
                )
                for name, held in databases
                for window in held.windows
            ),
        ),
        "newest_restore_points": show_table(
            ("at", "database", "hour", "kind", "name", "lsn"),
            (
                (str(p.at), name, str(p.hour), p.kind, p.name or "", "" if p.lsn is None else str(p.lsn))
                for name, p in points[:NEWEST_POINTS]
            ),
        ),
    }
    if points:
        metadata["newest_restore_point"] = dg.MetadataValue.timestamp(points[0][1].at)
    if gaps:
        metadata["missing_segments"] = show_table(
            ("database", "first", "last"), ((name, str(gap.first), str(gap.last)) for name, gap in gaps)
        )
    if problems:
        metadata["unreadable_records"] = show_table(("database", "problem"), problems)
    return metadata


def restore_metadata(report: RestoreReport) -> Metadata:
    """Describe a finished restore: how to reach it, what is in it, and where the time went."""
    metadata: Metadata = {
        "connect": dg.MetadataValue.text(report.connect),
        "directory": dg.MetadataValue.path(report.directory),
        "port": dg.MetadataValue.int(report.port),
        "running": dg.MetadataValue.bool(report.running),
        "stop_command": dg.MetadataValue.text(report.stop_command),
        "start_command": dg.MetadataValue.text(report.start),
        "target": dg.MetadataValue.text(report.target),
        "stopped": dg.MetadataValue.text(report.stop),
        "at_target": dg.MetadataValue.text(str(report.at_target)),
        "recovered_to_lsn": dg.MetadataValue.text(str(report.recovered_to_lsn)),
        "timeline": dg.MetadataValue.int(report.timeline),
        "server_version": dg.MetadataValue.text(report.server_version),
        "base_backup": dg.MetadataValue.text(report.base_day),
        "segments": dg.MetadataValue.int(report.segments),
        "base_bytes": dg.MetadataValue.int(report.base_bytes),
        "wal_bytes": dg.MetadataValue.int(report.wal_bytes),
        "wal_wait_share": dg.MetadataValue.float(round(report.wal_wait_share, 4)),
        "fetch_s": dg.MetadataValue.float(round(report.fetch_s, 3)),
        "recovery_s": dg.MetadataValue.float(round(report.recovery_s, 3)),
        "finish_s": dg.MetadataValue.float(round(report.finish_s, 3)),
        "checks": dg.MetadataValue.md("\n".join(f"- {check}" for check in report.checks)),
    }
    for check in (report.pages, report.amcheck):
        if check is not None:
            metadata[check.check] = dg.MetadataValue.text(check.problem or check.found or "")
            metadata[f"{check.check}_s"] = dg.MetadataValue.float(round(check.took_s, 3))
    metadata |= links(report.database, BASE_BACKUP, WAL_BUNDLE)
    if report.plan:
        metadata["plan"] = dg.MetadataValue.json(report.plan)
    metadata |= work_metadata(report.total_s, report.base_bytes + report.wal_bytes)
    if report.last_transaction_at is not None:
        metadata["last_transaction_at"] = dg.MetadataValue.timestamp(report.last_transaction_at)
    if report.first_left_out_at is not None:
        metadata["first_left_out_at"] = dg.MetadataValue.timestamp(report.first_left_out_at)
    if report.stands:
        metadata["promote_command"] = dg.MetadataValue.text(report.promote)
        metadata["move_on_command"] = dg.MetadataValue.text(report.move_on)
    if report.notes:
        metadata["notes"] = dg.MetadataValue.md("\n".join(f"- {note}" for note in report.notes))
    return metadata


def links(database: str, *assets: str) -> Metadata:
    """Return links to the assets of a database that something is made from, or is restored with."""
    return {f"see_{asset}": dg.MetadataValue.asset(asset_key(database, asset)) for asset in assets}


def show_table(columns: tuple[str, ...], rows: Iterable[tuple[str | float, ...]]) -> dg.MetadataValue[Any]:
    """Return rows as a table; a column whose first value is no text is one of numbers."""
    rows = list(rows)
    kinds = {
        column: "string" if not rows or isinstance(rows[0][index], str) else "float"
        for index, column in enumerate(columns)
    }
    return dg.MetadataValue.table(
        [dg.TableRecord(dict(zip(columns, row, strict=True))) for row in rows],
        dg.TableSchema([dg.TableColumn(name, kind) for name, kind in kinds.items()]),
    )


def _start(segment: SegmentName, segment_size: int) -> dg.MetadataValue[Any]:
    return dg.MetadataValue.text(str(segment.start(segment_size)))


def _add_ratio(metadata: Metadata, raw_bytes: int, size_bytes: int) -> None:
    if size_bytes:
        metadata["compression_ratio"] = dg.MetadataValue.float(round(raw_bytes / size_bytes, 2))


def _add_rate(metadata: Metadata, raw_bytes: int, duration_s: float) -> None:
    if raw_bytes and duration_s > 0:
        metadata["rate_mib_per_s"] = dg.MetadataValue.float(round(raw_bytes / _MIB / duration_s, 1))
