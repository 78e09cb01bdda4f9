"""Removing raw WAL files that a verified bundle holds, and nothing else.

A raw file goes only when a closed bundle of its database holds the very same bytes, by SHA-256, and
that bundle's own bytes match its record. History files always stay: planning needs them, and they
are tiny.
"""

from __future__ import annotations

import hashlib
from datetime import datetime

from pitr_pipelines import durable
from pitr_pipelines.catalog.layout import Layout
from pitr_pipelines.catalog.records import BundleMember, BundleRecord, BundleState, read_record
from pitr_pipelines.errors import ArtifactDamaged
from pitr_pipelines.wal import archive, bundle_file
from pitr_pipelines.wal.archive import ArchivedFile
from pitr_pipelines.wal.hours import Hour
from pitr_pipelines.wal.lsn import WalFileKind


def prune_raw(layout: Layout, database: str, *, bundled: Hour, before: datetime) -> int:
    """Remove the bundled raw files that were closed before the given moment; return how many.

    `bundled` is the hour that was just bundled: bundles from `before` up to it are looked at, and
    those of the hours around each raw file, so that the work does not grow with history. The caller
    holds the database's bundle lock.
    """
    candidates = [
        file
        for file in archive.scan_archive(layout.wal(database))
        if file.kind is not WalFileKind.HISTORY and file.closed_at < before
    ]
    if not candidates:
        return 0
    holders = _holders(layout, database, _hours_to_look_at(candidates, bundled, before))
    intact: dict[Hour, bool] = {}
    removed = 0
    for file in candidates:
        record, member = holders.get(file.name, (None, None))
        if record is None or member is None or member.size_bytes != file.size_bytes:
            continue
        if record.hour not in intact:
            intact[record.hour] = _is_intact(layout, database, record)
        if intact[record.hour] and _has_digest(file, member.sha256):
            file.path.unlink(missing_ok=True)
            removed += 1
    if removed:
        durable.fsync_directory(layout.wal(database))
    return removed


def _hours_to_look_at(candidates: list[ArchivedFile], bundled: Hour, before: datetime) -> set[Hour]:
    hours = {bundled, *Hour.containing(before).preceding().until(bundled)}
    for file in candidates:
        own = Hour.containing(file.closed_at)
        hours |= {own.preceding(), own, own.following()}
    return hours


def _holders(layout: Layout, database: str, hours: set[Hour]) -> dict[str, tuple[BundleRecord, BundleMember]]:
    """Return which closed bundle holds which file."""
    holders: dict[str, tuple[BundleRecord, BundleMember]] = {}
    for hour in sorted(hours):
        try:
            record = read_record(layout.bundle_record(database, hour), BundleRecord)
        except (FileNotFoundError, ArtifactDamaged):
            continue  # what no readable record vouches for stays
        if record.state is BundleState.CLOSED:
            holders.update((member.name, (record, member)) for member in record.members)
    return holders


def _is_intact(layout: Layout, database: str, record: BundleRecord) -> bool:
    """Tell whether a bundle matches its record; if not, raw files are the only good copy left."""
    if record.file is None:
        return False
    try:
        bundle_file.verify_file(layout.bundle(database, record.hour), record.file)
    except ArtifactDamaged:
        return False
    return True


def _has_digest(file: ArchivedFile, sha256: str) -> bool:
    with archive.open_file(file.path) as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest() == sha256
