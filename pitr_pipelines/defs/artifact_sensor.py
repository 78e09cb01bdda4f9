"""A sensor that tells Dagster of artifacts that were made without it, at a terminal say.

The invariant: an artifact is reported when Dagster has no materialization of it that is as new as
its record, and no run is making it. Storage is looked at first, then the runs, then the events: so
a step that finishes meanwhile was either seen running, or its event is there.

Whatever appeared or vanished, the manifest follows: the sensor asks for `restore_points`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta

import dagster as dg
from dagster import AssetRecordsFilter, DagsterEventType, RunRecord
from pydantic import BaseModel, ValidationError

from pitr_pipelines.catalog.layout import Layout
from pitr_pipelines.catalog.records import BaseRecord, BundleRecord, BundleState, read_record
from pitr_pipelines.defs.asked import makes
from pitr_pipelines.defs.jobs import Jobs
from pitr_pipelines.defs.metadata import Metadata, base_metadata, bundle_metadata
from pitr_pipelines.defs.names import (
    BASE_BACKUP,
    DAILY_BASE_BACKUPS,
    HOURLY_BUNDLES,
    REFRESH_RESTORE_POINTS,
    WAL_BUNDLE,
    asset_key,
)
from pitr_pipelines.defs.new_records import Found, Look, Seen, look_at_bases, look_at_bundles
from pitr_pipelines.defs.schedules import storage_absent
from pitr_pipelines.errors import ArtifactDamaged
from pitr_pipelines.settings import Settings

INTERVAL_S = 30
REPORTS_PER_TICK = 200
"""How many new records one tick deals with; the next goes on from there."""

_PATIENCE = timedelta(hours=1)
"""How long an artifact is left to the run that seems to be making it: its worker may be dead."""
_SETTLING = timedelta(minutes=10)
"""How long the manifest waits for a run over all bundles, so that it is refreshed once after it."""
_TOLERANCE_S = 1.0

_MAKING = [dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING]
_COMING = [dg.DagsterRunStatus.NOT_STARTED, dg.DagsterRunStatus.QUEUED, *_MAKING]
_JOB_OF = {BASE_BACKUP: DAILY_BASE_BACKUPS, WAL_BUNDLE: HOURLY_BUNDLES}


class Cursor(BaseModel):
    """What earlier ticks saw, by `database/asset`; `refreshed` is the state last asked a refresh for."""

    seen: dict[str, Seen] = {}
    refreshed: str = ""

    @classmethod
    def parse(cls, text: str | None) -> Cursor:
        """Read a cursor; one of another version starts over, which reports nothing twice."""
        try:
            return cls.model_validate_json(text or "{}")
        except ValidationError:
            return cls()

    def state(self) -> str:
        """Return a digest of what exists; empty while nothing does."""
        held = [(key, seen.count, seen.newest_ns) for key, seen in sorted(self.seen.items()) if seen.count]
        return hashlib.sha256(repr(held).encode()).hexdigest()[:16] if held else ""


def build_artifact_sensor(settings: Settings, jobs: Jobs) -> dg.SensorDefinition:
    """Build the sensor; it is on unless somebody turns it off in Dagster."""

    @dg.sensor(
        name="artifacts_made_elsewhere",
        job=jobs.restore_points,
        minimum_interval_seconds=INTERVAL_S,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Reports base backups and bundles that were made without Dagster, and asks for the "
        "manifest to be refreshed when any artifact appeared or vanished.",
    )
    def artifacts_made_elsewhere(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
        absent = storage_absent(settings)
        if absent:
            return absent
        tick = _Tick(settings, context.instance, Cursor.parse(context.cursor), datetime.now(UTC))
        result = tick.evaluate()
        for warning in tick.warnings:
            context.log.warning(warning)
        return result

    return artifacts_made_elsewhere


@dataclass
class _Tick:
    settings: Settings
    instance: dg.DagsterInstance
    cursor: Cursor
    now: datetime
    warnings: list[str] = field(default_factory=list)

    def evaluate(self) -> dg.SensorResult:
        looks = {
            (name, asset): self._look(name, asset) for name in self.settings.databases for asset in _JOB_OF
        }
        runs = self.instance.get_run_records(dg.RunsFilter(statuses=_MAKING))
        seen: dict[str, Seen] = {}
        reports: list[dg.AssetMaterialization] = []
        budget = REPORTS_PER_TICK
        for (name, asset), look in looks.items():
            settled = self._settled(name, asset, look.new[:budget], runs)
            budget -= len(settled)
            seen[f"{name}/{asset}"] = look.after(len(settled))
            reports += self._unreported(name, asset, settled)
        cursor = Cursor(seen=seen, refreshed=self.cursor.refreshed)
        refresh = cursor.state() != cursor.refreshed and not self._manifest_is_coming(runs)
        if refresh:
            cursor.refreshed = cursor.state()
        return dg.SensorResult(
            run_requests=[dg.RunRequest()] if refresh else None,
            skip_reason=None if refresh else f"Reported {len(reports)} artifacts; the manifest can stay.",
            asset_events=list(reports),
            cursor=cursor.model_dump_json(),
        )

    def _look(self, database: str, asset: str) -> Look:
        layout = Layout(self.settings.backup_root)
        seen = self.cursor.seen.get(f"{database}/{asset}", Seen())
        look = look_at_bases if asset == BASE_BACKUP else look_at_bundles
        return look(layout, database, seen, int(self.now.timestamp() * 1e9))

    def _settled(
        self, database: str, asset: str, new: Sequence[Found], runs: Sequence[RunRecord]
    ) -> list[Found]:
        """Return the records before the first one that a run may still be about to report."""
        key = asset_key(database, asset)
        settled = []
        for found in new:
            age_s = self.now.timestamp() - found.changed_ns / 1e9
            if age_s < _PATIENCE.total_seconds() and any(
                makes(run, key, _JOB_OF[asset], found.key) for run in runs
            ):
                break
            settled.append(found)
        return settled

    def _unreported(
        self, database: str, asset: str, settled: Sequence[Found]
    ) -> list[dg.AssetMaterialization]:
        key = asset_key(database, asset)
        known = self._latest_reports(key, {found.key for found in settled})
        reports = []
        for found in settled:
            if known.get(found.key, 0.0) + _TOLERANCE_S >= found.written_ns / 1e9:
                continue
            try:
                metadata = self._describe(asset, found)
            except FileNotFoundError:
                continue
            except ArtifactDamaged as error:
                self.warnings.append(str(error))
                continue
            if metadata is not None:
                metadata["made_by"] = dg.MetadataValue.text("outside Dagster")
                reports.append(dg.AssetMaterialization(key, partition=found.key, metadata=metadata))
        return reports

    def _latest_reports(self, key: dg.AssetKey, partitions: set[str]) -> dict[str, float]:
        """Return when each partition was last materialized, as far as Dagster knows."""
        if not partitions:
            return {}
        newest = self.instance.get_latest_storage_id_by_partition(
            key, DagsterEventType.ASSET_MATERIALIZATION, partitions
        )
        if not newest:
            return {}
        records = self.instance.fetch_materializations(
            AssetRecordsFilter(key, storage_ids=list(newest.values())), limit=len(newest)
        ).records
        return {record.partition_key: record.timestamp for record in records if record.partition_key}

    def _describe(self, asset: str, found: Found) -> Metadata | None:
        """Return what a record says; None if Dagster should not count it."""
        layout = Layout(self.settings.backup_root)
        if date.fromisoformat(found.key[:10]) < self.settings.first_day:
            return None  # Dagster has no such partition
        if asset == BASE_BACKUP:
            return base_metadata(layout, read_record(found.path, BaseRecord))
        record = read_record(found.path, BundleRecord)
        if record.state is BundleState.OPEN and record.hour.end <= self.now:
            return None  # over but not closed: to Dagster it stays what it is, missing or failed
        return bundle_metadata(layout, record)

    def _manifest_is_coming(self, runs: Sequence[RunRecord]) -> bool:
        for run in runs:
            young = self.now - run.create_timestamp < _SETTLING
            if young and run.dagster_run.job_name in (HOURLY_BUNDLES, REFRESH_RESTORE_POINTS):
                return True
        waiting = dg.RunsFilter(job_name=REFRESH_RESTORE_POINTS, statuses=_COMING)
        return bool(self.instance.get_run_records(waiting, limit=1))
