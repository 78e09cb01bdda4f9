"""Retention with the off-site copy in mind: what must be confirmed there before it goes here.

This is where what the catalog decides meets what the ledger of calls says was delivered. Nothing here
calls the store: what is off-site goes by the store's own lifecycle rules (`offsite.lifecycle`), because a
delete is a call too.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path

from pitr_pipelines.catalog.expiry import Confirm, Expiry, expire, propose
from pitr_pipelines.catalog.inventory import read_base_record, read_bundle_record
from pitr_pipelines.catalog.layout import Layout
from pitr_pipelines.catalog.manifest import refresh_manifest
from pitr_pipelines.catalog.records import FileDigest
from pitr_pipelines.catalog.retention import Keep, Retention, Verdict
from pitr_pipelines.errors import ArtifactDamaged, BadRequest
from pitr_pipelines.offsite.delivered import delivered
from pitr_pipelines.settings import RetentionSettings, Settings
from pitr_pipelines.wal.hours import Hour


def retention_settings(settings: Settings) -> RetentionSettings:
    """Return the settings of retention. Raises BadRequest if there are none."""
    if settings.retention is None:
        raise BadRequest(
            "the settings have no `retention`, so nothing is ever removed",
            remedy="Say what is to be kept: `retention: {keep: {hourly_days: 7, daily: 14, weekly: 5, "
            "monthly: 12}, require_offsite: true}`, or false; docs/retention.md explains each.",
        )
    return settings.retention


def propose_retention(settings: Settings, database: str, *, now: datetime) -> Retention:
    """Decide what would be removed of a database. Changes nothing. Raises BadRequest."""
    settings.database(database)
    chosen = retention_settings(settings)
    layout = Layout(settings.backup_root)
    return propose(layout, database, Keep.of(chosen.keep), now=now, confirm=_confirm(settings, layout))


def carry_out_retention(
    settings: Settings, database: str, *, now: datetime, keep: Keep | None = None
) -> Expiry:
    """Remove what may go of a database, and bring the manifest up to date.

    `keep` is injected by tests. Raises BadRequest without settings, and what `expire` does.
    """
    settings.database(database)
    chosen = retention_settings(settings)
    layout = Layout(settings.backup_root)
    keep = keep or Keep.of(chosen.keep)
    done = expire(layout, database, keep, now=now, confirm=_confirm(settings, layout))
    if done.removed:
        refresh_manifest(settings)
    return done


def _confirm(settings: Settings, layout: Layout) -> Confirm | None:
    if not retention_settings(settings).require_offsite:
        return None
    known = delivered(layout, settings.offsite_copy().store)

    def confirm(found: Retention) -> Collection[date | Hour]:
        units = _Delivered(layout, known)
        days = {day for day in found.bases(Verdict.REMOVE) if units.has_base(found.database, day)}
        hours = {hour for hour in found.hours(Verdict.REMOVE) if units.has_bundle(found.database, hour)}
        return days | hours

    return confirm


@dataclass(frozen=True, slots=True)
class _Delivered:
    """Looks up whether all files of an artifact, its record as it is now included, are off-site."""

    layout: Layout
    known: frozenset[tuple[str, str]]

    def has_base(self, database: str, day: date) -> bool:
        path = self.layout.base_record(database, day)
        try:
            return self._has(path, read_base_record(path).files)
        except (FileNotFoundError, ArtifactDamaged):
            return False

    def has_bundle(self, database: str, hour: Hour) -> bool:
        path = self.layout.bundle_record(database, hour)
        try:
            record = read_bundle_record(path)
            return self._has(path, (record.file,) if record.file is not None else ())
        except (FileNotFoundError, ArtifactDamaged):
            return False

    def _has(self, record: Path, files: Collection[FileDigest]) -> bool:
        identities = [(record, hashlib.sha256(record.read_bytes()).hexdigest())]
        identities += [(record.with_name(file.name), file.sha256) for file in files]
        root = self.layout.root
        return all((path.relative_to(root).as_posix(), sha) in self.known for path, sha in identities)
