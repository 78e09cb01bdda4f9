"""A sensor that asks for a base backup as soon as a gap in the WAL leaves later moments without one.

It is bounded: a gap is asked about until there is a base backup after it, again after a failure with growing
patience, and five times a day at the most. A gap must be seen twice before anything is asked for, because a
segment can be on its way from the archive into a bundle while we look. Whether today's base backup may be
replaced is decided by `catalog.gap_cure`, here and once more when the run is about to take it.
"""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import pairwise

import dagster as dg
from pydantic import BaseModel, ValidationError

from pitr_pipelines.catalog.gap_cure import Cure, Prescription, cure_of
from pitr_pipelines.catalog.inventory import read_inventory
from pitr_pipelines.catalog.layout import Layout
from pitr_pipelines.defs.asked import ASKED_AT
from pitr_pipelines.defs.jobs import Jobs
from pitr_pipelines.defs.missed_bases import asked_for_bases, may_try
from pitr_pipelines.defs.names import BASE_BACKUP, asset_key
from pitr_pipelines.defs.schedules import storage_absent
from pitr_pipelines.defs.stored import written_at_ns
from pitr_pipelines.settings import Settings, asset_name
from pitr_pipelines.wal.archive import scan_archive
from pitr_pipelines.wal.lsn import WalFileKind

INTERVAL_S = 60
GAP = "pitr_gap"
"""The tags that name the databases of a run, each with the first segment of the gap that it is about."""


class Cursor(BaseModel):
    """By database: the mtime of its bundles that was looked at last, and the gap that was seen then."""

    looked_at: dict[str, int] = {}
    gaps: dict[str, str] = {}

    @classmethod
    def parse(cls, text: str | None) -> Cursor:
        """Read a cursor; one of another version starts over."""
        try:
            return cls.model_validate_json(text or "{}")
        except ValidationError:
            return cls()


def build_gap_sensor(settings: Settings, jobs: Jobs) -> dg.SensorDefinition:
    """Build the sensor; it is on unless somebody turns it off in Dagster."""

    @dg.sensor(
        name="base_backup_after_gap",
        job=jobs.bases,
        minimum_interval_seconds=INTERVAL_S,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Asks for a new base backup at once when segments are missing in the WAL, because no "
        "later moment can be restored without. Today's is only replaced where an older one leads to all that "
        "it leads to.",
    )
    def base_backup_after_gap(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
        absent = storage_absent(settings)
        if absent:
            return absent
        result = ask_after_gaps(settings, context.instance, datetime.now(UTC), context.cursor)
        if result.skip_reason and result.skip_reason.skip_message != NO_GAP:
            context.log.warning(result.skip_reason.skip_message)
        return result

    return base_backup_after_gap


NO_GAP = "No gap in the WAL is without a base backup after it."


def ask_after_gaps(
    settings: Settings, instance: dg.DagsterInstance, now: datetime, cursor_text: str | None
) -> dg.SensorResult:
    """Decide for which databases a base backup is to be asked for because of a gap."""
    layout = Layout(settings.backup_root)
    before, after = Cursor.parse(cursor_text), Cursor()
    today = now.astimezone(UTC).date()
    found: dict[str, Prescription] = {}
    for name in settings.databases:
        changed_ns = written_at_ns(layout.bundles(name)) or 0
        after.looked_at[name] = changed_ns
        known = before.gaps.get(name)
        if known is None and changed_ns == before.looked_at.get(name) and not _has_holes(layout, name):
            continue
        prescription = cure_of(read_inventory(layout, name), today)
        if prescription.gap is None:
            continue
        after.gaps[name] = str(prescription.gap.first)
        if after.gaps[name] == known:
            found[name] = prescription
    wanted = _to_ask(settings, found, instance, now) if today >= settings.first_day else {}
    if not wanted:
        reasons = [f"{name}: {what.reason}" for name, what in found.items()]
        return dg.SensorResult(
            skip_reason="\n".join(reasons) or NO_GAP,
            cursor=after.model_dump_json(),
        )
    request = dg.RunRequest(
        run_key=f"gap-{now:%Y-%m-%dT%H:%M:%SZ}",
        partition_key=today.isoformat(),
        asset_selection=[asset_key(name, BASE_BACKUP) for name in wanted],
        run_config={
            "ops": {f"{asset_name(name)}__{BASE_BACKUP}": {"config": {"after_gap": True}} for name in wanted}
        },
        tags={ASKED_AT: now.isoformat()} | {f"{GAP}/{asset_name(name)}": after.gaps[name] for name in wanted},
    )
    return dg.SensorResult(run_requests=[request], cursor=after.model_dump_json())


def _to_ask(
    settings: Settings, found: dict[str, Prescription], instance: dg.DagsterInstance, now: datetime
) -> dict[str, Prescription]:
    curable = {name: what for name, what in found.items() if what.cure in (Cure.TAKE, Cure.REPLACE)}
    if not curable:
        return {}
    asked = asked_for_bases(settings, instance, now)
    day = now.astimezone(UTC).date().isoformat()
    wanted = {}
    for name, what in curable.items():
        key = asset_key(name, BASE_BACKUP)
        assert what.gap is not None
        tries = asked.tries(key, day, tagged=(f"{GAP}/{asset_name(name)}", str(what.gap.first)))
        if may_try(tries, now) and not asked.is_under_way(key, day):
            wanted[name] = what
    return wanted


def _has_holes(layout: Layout, database: str) -> bool:
    """Tell whether the raw archive alone, which is a few hours long, lacks a segment between two others."""
    files = [file for file in scan_archive(layout.wal(database)) if file.kind is WalFileKind.SEGMENT]
    return any(
        one.segment.timeline == next_one.segment.timeline
        and one.segment.following(one.size_bytes) != next_one.segment
        for one, next_one in pairwise(files)
        if one.size_bytes == next_one.size_bytes > 0
    )
