"""The manifest: every restore point and every recovery window, in `manifests/restore-points.json`.

What it offers is a pure function of the records, so it can always be rebuilt from them, and it never
offers anything they do not. It is replaced atomically, under a lock that covers the reading of the records
too: two writers cannot lose each other's entries. A database whose records cannot all be read is
listed with its problems; the others are not affected.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import date, datetime
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from pitr_pipelines import durable
from pitr_pipelines.catalog.inventory import (
    BundleEntry,
    Inventory,
    RecordCache,
    read_cache,
    take_inventory,
    write_cache,
)
from pitr_pipelines.catalog.layout import Layout
from pitr_pipelines.catalog.records import BundleState, Moment, read_record, to_json
from pitr_pipelines.settings import Settings
from pitr_pipelines.wal.hours import Hour
from pitr_pipelines.wal.lsn import Lsn, SegmentName


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class RestorePoint(_Part):
    """A moment on offer: the end of an hour, or the moment at which a running hour was bundled.

    `name` and `lsn` are of the restore point that PostgreSQL wrote there, if the hour was sealed.
    """

    at: Moment
    hour: Hour
    kind: Literal["hour", "early"]
    name: str | None
    lsn: Lsn | None


class BaseSummary(_Part):
    """A verified base backup; targets after `ended_at` can start from it."""

    day: date
    ended_at: Moment
    timeline: int
    start_lsn: Lsn
    end_lsn: Lsn
    size_bytes: int


class WindowSummary(_Part):
    """A recovery window: every moment from `start` to `end` can be restored."""

    start: Moment
    end: Moment
    timeline: int


class GapSummary(_Part):
    """Segments that are missing from the archive and every bundle, first and last included."""

    first: SegmentName
    last: SegmentName


class DatabaseManifest(_Part):
    """What can be restored of one database."""

    system_identifier: str | None
    windows: tuple[WindowSummary, ...]
    gaps: tuple[GapSummary, ...]
    bases: tuple[BaseSummary, ...]
    restore_points: tuple[RestorePoint, ...]
    problems: tuple[str, ...]


class Manifest(_Part):
    """The content of restore-points.json."""

    format: Literal[1] = 1
    databases: dict[str, DatabaseManifest]


def read_manifest(layout: Layout) -> Manifest:
    """Read the manifest as it is. Raises FileNotFoundError or ArtifactDamaged."""
    return read_record(layout.manifest, Manifest)


def refresh_manifest(settings: Settings) -> Manifest:
    """Bring the manifest up to date with the records, and return it."""
    return _make(settings, from_scratch=False)


def rebuild_manifest(settings: Settings) -> Manifest:
    """Make the manifest again from the records alone, trusting nothing that was remembered."""
    return _make(settings, from_scratch=True)


def describe(inventory: Inventory) -> DatabaseManifest:
    """Return what the records of one database offer. Raw WAL does not count: it has no record.

    But it is no gap either: between the newest bundle and today's base backup WAL lies there for a while.
    """
    windows, gaps = inventory.windows(raw=False)
    spans = [(window.start, window.end) for window in windows]
    identifiers = [base.system_identifier for base in inventory.bases]
    identifiers += [e.system_identifier for e in inventory.bundles if e.system_identifier is not None]
    return DatabaseManifest(
        system_identifier=identifiers[-1] if identifiers else None,
        windows=tuple(WindowSummary(start=w.start, end=w.end, timeline=w.timeline) for w in windows),
        gaps=tuple(GapSummary(first=gap.first, last=gap.last) for gap in gaps),
        bases=tuple(
            BaseSummary(
                day=base.day,
                ended_at=base.ended_at,
                timeline=base.timeline,
                start_lsn=base.start_lsn,
                end_lsn=base.end_lsn,
                size_bytes=base.size_bytes,
            )
            for base in inventory.bases
        ),
        restore_points=tuple(_restore_points(inventory.bundles, spans)),
        problems=inventory.problems,
    )


def _restore_points(
    bundles: Iterable[BundleEntry], spans: list[tuple[datetime, datetime]]
) -> Iterable[RestorePoint]:
    for entry in bundles:
        kind: Literal["hour", "early"]
        if entry.state is BundleState.CLOSED:
            at, kind = entry.hour.end, "hour"
        elif entry.seal is not None:
            at, kind = entry.seal.at, "early"
        else:
            continue
        if any(start <= at <= end for start, end in spans):
            yield RestorePoint(
                at=at,
                hour=entry.hour,
                kind=kind,
                name=entry.seal.restore_point if entry.seal else None,
                lsn=entry.seal.lsn if entry.seal else None,
            )


def _make(settings: Settings, *, from_scratch: bool) -> Manifest:
    layout = Layout(settings.backup_root)
    with durable.exclusive_lock(layout.manifest_lock, subject="the manifest", wait=True):
        databases = {}
        for name in settings.databases:
            known = RecordCache() if from_scratch else read_cache(layout, name)
            inventory, cache = take_inventory(layout, name, known)
            if cache != known:
                write_cache(layout, name, cache)
            databases[name] = describe(inventory)
        manifest = Manifest(databases=databases)
        text = to_json(manifest.model_dump(mode="json"))
        if _text(layout.manifest) != text:
            durable.write_whole(layout.manifest, text)
    return manifest


def _text(path: Path) -> str | None:
    try:
        return path.read_text()
    except FileNotFoundError:
        return None
