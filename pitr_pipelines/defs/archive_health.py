"""The sensor `archive_health`: one round of the watch, shown in Dagster.

Each tick observes every WAL archive, with numbers that plot, looks at Dagster's own failed runs and checks,
and lets the watch tell whom it concerns. All servers are asked at once and with time-outs, so that dead
ones hold up nothing; the storage's half works without them. `pitr watch` does the same without
Dagster, on the same state; when both are at it, one leaves the tick to the other.
"""

from datetime import UTC, datetime, timedelta
from typing import Any

import dagster as dg

from pitr_pipelines.defs.failed_checks import look_at_checks
from pitr_pipelines.defs.failed_runs import look_at_runs
from pitr_pipelines.defs.names import WAL_ARCHIVE, asset_key
from pitr_pipelines.errors import ArtifactBusy
from pitr_pipelines.settings import Settings
from pitr_pipelines.watch.lives import Life
from pitr_pipelines.watch.observation import Observation

ARCHIVE_HEALTH = "archive_health"
OBSERVE_EVERY = timedelta(minutes=5)
"""Each observation stays in Dagster's event log; what is new is observed at once."""
_NEVER = datetime.min.replace(tzinfo=UTC)


def build_archive_sensor(settings: Settings) -> dg.SensorDefinition:
    """Build the sensor; it is on unless somebody turns it off in Dagster."""

    @dg.sensor(
        name=ARCHIVE_HEALTH,
        minimum_interval_seconds=settings.alerts.interval_s,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Observes every WAL archive: how far behind it is, what waits for it, what failed, how "
        "much space is left. Finds what is wrong with servers, storage, drills, the off-site copy and runs, "
        "and sends alerts as the settings say. docs/operate.md has a section for each.",
    )
    def archive_health(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
        return _tick(context, settings, datetime.now(UTC))

    return archive_health


def describe(seen: Observation) -> dg.AssetObservation:
    """Return what one look saw as an observation of the archive."""
    metadata: dict[str, dg.MetadataValue[Any]] = {
        name: dg.MetadataValue.int(value) if isinstance(value, int) else dg.MetadataValue.float(value)
        for name, value in seen.numbers().items()
    }
    metadata |= {name: dg.MetadataValue.text(text) for name, text in seen.texts().items()}
    if seen.stored is not None and seen.stored.newest_at is not None:
        metadata["last_archived_at"] = dg.MetadataValue.timestamp(seen.stored.newest_at)
    return dg.AssetObservation(asset_key(seen.database, WAL_ARCHIVE), metadata=metadata)


def _tick(
    context: dg.SensorEvaluationContext, settings: Settings, now: datetime
) -> dg.SensorResult | dg.SkipReason:
    # With it comes what only a look needs.
    from pitr_pipelines.watch.round import watch_once

    seen_by_dagster = [
        look_at_runs(context.instance, settings, now),
        look_at_checks(context.instance, settings),
    ]
    try:
        done = watch_once(settings, now=now, more=seen_by_dagster)
    except ArtifactBusy as error:
        return dg.SkipReason(f"{error.what}; it tells of what there is.")
    for life in done.opened:
        context.log.warning(_line("new", life))
    for life in done.over:
        context.log.info(f"over: {life.incident.key}")
    for problem in done.problems:
        context.log.warning(problem)
    open_now = ", ".join(sorted(life.incident.key for life in done.open))
    last = _last_observed(context.cursor)
    due = not timedelta(0) <= now - last < OBSERVE_EVERY or bool(done.opened or done.over)
    return dg.SensorResult(
        asset_events=[describe(seen) for seen in done.observations] if due else [],
        cursor=(now if due else last).isoformat(),
        skip_reason=f"Looked at {len(done.observations)} databases; "
        + (f"wrong: {open_now}." if open_now else "nothing is wrong.")
        + (f" Told {', '.join(done.sent_to)}." if done.sent_to else ""),
    )


def _last_observed(cursor: str | None) -> datetime:
    """Return when a tick last reported observations; a cursor of another version says: never."""
    try:
        moment = datetime.fromisoformat(cursor or "")
    except ValueError:
        return _NEVER
    return moment if moment.tzinfo is not None else _NEVER


def _line(state: str, life: Life) -> str:
    return f"{state}: {life.incident.key}: {life.what}\n{life.remedy}\n{life.incident.runbook}"
