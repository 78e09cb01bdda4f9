"""What matters, as Prometheus reads it: the text format, version 0.0.4, of what the storage says.

Gauges only, in base units: bytes, seconds, and moments as seconds since 1970, so that whoever asks
computes ages with `time()` at the time of asking. What is not known has no sample, rather than a zero. A
database that cannot be read says so with `pitr_database_readable`, and does not hide the others.

prometheus_client writes the format, and is imported only here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from pitr_pipelines import __version__
from pitr_pipelines.catalog.calls import CallOutcome, Calls
from pitr_pipelines.catalog.drills import DrillOutcome
from pitr_pipelines.catalog.records import BundleState
from pitr_pipelines.catalog.report_facts import DatabaseFacts, HourState, Level, read_facts
from pitr_pipelines.catalog.space import Space, storage_space
from pitr_pipelines.settings import Settings

SPAN = timedelta(days=7)
"""How far back hours are counted: one that is missing for longer will not be noticed by an alert."""
CALL_DAYS = 30
"""How many days of the ledger are counted, today included."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything that the metrics tell, at one moment.

    `calls` is None without an off-site copy, and where `ledger_problem` says why it cannot be read.
    """

    now: datetime
    facts: Sequence[DatabaseFacts]
    space: Space | None
    calls: Calls | None
    ledger_problem: str | None = None


def take_snapshot(
    settings: Settings, *, now: datetime, calls: Calls | None, ledger_problem: str | None = None
) -> Snapshot:
    """Find out what the metrics tell. Reads the storage only, and never raises for what it finds there."""
    facts = [read_facts(settings, name, now=now, since=now - SPAN) for name in settings.databases]
    return Snapshot(now, facts, storage_space(settings), calls, ledger_problem)


def first_call_day(now: datetime) -> date:
    """Return the first day of the ledger that is counted."""
    return now.astimezone(UTC).date() - timedelta(days=CALL_DAYS - 1)


def exposition(snapshot: Snapshot) -> bytes:
    """Return the metrics in Prometheus's text format."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Snapshots(snapshot))
    return generate_latest(registry)


class _Snapshots(Collector):
    """Gives a registry what one snapshot says."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot

    def collect(self) -> Iterable[Metric]:
        yield _plain("pitr_build_info", "Which pitr_pipelines wrote this.", {"version": __version__})
        collected = "When this was collected, in seconds since 1970."
        yield _plain("pitr_collected_timestamp_seconds", collected, value=self._snapshot.now.timestamp())
        yield from _storage(self._snapshot.space)
        yield from _databases(self._snapshot.facts)
        yield from _offsite(self._snapshot)


def _plain(name: str, documentation: str, labels: dict[str, str] | None = None, value: float = 1) -> Metric:
    family = GaugeMetricFamily(name, documentation, labels=list(labels or {}))
    family.add_metric(list((labels or {}).values()), value)
    return family


def _storage(space: Space | None) -> Iterator[Metric]:
    there = "Whether backup_root is there and can be read (1) or not (0)."
    yield _plain("pitr_storage_available", there, value=float(space is not None))
    if space is not None:
        yield _plain(
            "pitr_storage_free_bytes", "Free bytes of the file system of backup_root.", value=space.free
        )
        yield _plain("pitr_storage_size_bytes", "Size of the file system of backup_root.", value=space.size)


_DATABASE_HELP = {
    "pitr_database_readable": "Whether the database's artifacts could be read (1) or not (0).",
    "pitr_windows": "Recovery windows: spans of moments that can be restored, with no gap in them.",
    "pitr_window_start_timestamp_seconds": "Where the newest recovery window begins.",
    "pitr_window_end_timestamp_seconds": "The newest moment that can be restored.",
    "pitr_restore_points": "Restore points on offer.",
    "pitr_base_backups": "Base backups that have a record, so that were verified.",
    "pitr_base_backup_last_timestamp_seconds": "When the newest base backup ended.",
    "pitr_base_backup_last_duration_seconds": "How long the newest base backup took.",
    "pitr_base_backup_last_size_bytes": "Size of the newest base backup's files.",
    "pitr_base_backup_last_uncompressed_bytes": "What restoring the newest base backup writes, without WAL.",
    "pitr_base_backups_size_bytes": "Size of all base backups.",
    "pitr_bundles": "Bundles: hours of WAL that have a record.",
    "pitr_bundle_last_timestamp_seconds": "The end of the newest hour whose bundle is closed.",
    "pitr_bundle_last_size_bytes": "Size of the newest closed bundle; 0 for an hour without WAL.",
    "pitr_bundles_size_bytes": "Size of all bundles.",
    "pitr_bundles_missing": "Hours of the last 7 days that should be bundled and are not.",
    "pitr_bundles_open": "Hours of the last 7 days whose bundle is still open.",
    "pitr_archive_last_segment_timestamp_seconds": "When the server closed the newest WAL segment here.",
    "pitr_archive_files": "Files in the raw WAL archive.",
    "pitr_archive_size_bytes": "Size of the raw WAL archive.",
    "pitr_gaps": "Gaps in the WAL: stretches of segments that are missing although later ones exist.",
    "pitr_gaps_uncured": "Gaps after which no base backup makes moments restorable again.",
    "pitr_drill_last_timestamp_seconds": "When the newest drill ended, whatever came of it.",
    "pitr_drill_last_passed": "Whether the newest drill passed (1) or failed (0).",
    "pitr_drill_last_success_timestamp_seconds": "When the newest drill that passed ended.",
    "pitr_drill_last_success_duration_seconds": "From request to accepting connections, in the newest drill "
    "that passed.",
}
_PROBLEMS = "What is wrong, with hours of the last 7 days only, by severity: act (a restore may fail), look."


def _databases(facts: Sequence[DatabaseFacts]) -> Iterator[Metric]:
    families = {
        name: GaugeMetricFamily(name, documentation, labels=["database"])
        for name, documentation in _DATABASE_HELP.items()
    }
    problems = GaugeMetricFamily("pitr_problems", _PROBLEMS, labels=["database", "severity"])
    for held in facts:
        for name, value in _values(held):
            families[name].add_metric([held.database], value)
        levels = Counter(problem.level for problem in held.problems)
        for level in (Level.ACT, Level.LOOK):
            problems.add_metric([held.database, level.value], levels[level])
    yield from families.values()
    yield problems


def _values(facts: DatabaseFacts) -> Iterator[tuple[str, float]]:
    """Yield what is known of one database; what is not known is left out."""
    yield "pitr_database_readable", float(facts.readable)
    if not facts.readable:
        return
    yield "pitr_windows", len(facts.windows)
    if facts.windows:
        yield "pitr_window_start_timestamp_seconds", facts.windows[-1].start.timestamp()
        yield "pitr_window_end_timestamp_seconds", facts.windows[-1].end.timestamp()
    yield "pitr_restore_points", facts.restore_points
    yield "pitr_base_backups", len(facts.bases)
    yield "pitr_base_backups_size_bytes", facts.totals.bases
    if facts.bases:
        base = facts.bases[-1]
        yield "pitr_base_backup_last_timestamp_seconds", base.ended_at.timestamp()
        yield "pitr_base_backup_last_duration_seconds", (base.ended_at - base.started_at).total_seconds()
        yield "pitr_base_backup_last_size_bytes", base.size_bytes
        yield "pitr_base_backup_last_uncompressed_bytes", base.uncompressed_bytes
    yield "pitr_bundles", len(facts.bundles)
    yield "pitr_bundles_size_bytes", facts.totals.bundles
    closed = [entry for entry in facts.bundles if entry.state is BundleState.CLOSED]
    if closed:
        yield "pitr_bundle_last_timestamp_seconds", closed[-1].hour.end.timestamp()
        yield "pitr_bundle_last_size_bytes", closed[-1].size_bytes
    states = Counter(cell.state for cell in facts.hours)
    yield "pitr_bundles_missing", states[HourState.MISSING]
    yield "pitr_bundles_open", states[HourState.OPEN]
    if facts.archived_at is not None:
        yield "pitr_archive_last_segment_timestamp_seconds", facts.archived_at.timestamp()
    yield "pitr_archive_files", facts.raw_files
    yield "pitr_archive_size_bytes", facts.totals.raw
    yield "pitr_gaps", len(facts.lost)
    yield "pitr_gaps_uncured", sum(lost.until is None for lost in facts.lost)
    yield from _drills(facts)


def _drills(facts: DatabaseFacts) -> Iterator[tuple[str, float]]:
    if facts.drills:
        last = facts.drills[0]
        yield "pitr_drill_last_timestamp_seconds", last.finished_at.timestamp()
        yield "pitr_drill_last_passed", float(last.outcome is DrillOutcome.PASSED)
    good = facts.last_good_drill
    if good is not None:
        yield "pitr_drill_last_success_timestamp_seconds", good.finished_at.timestamp()
        if good.seconds.recovery_time is not None:
            yield "pitr_drill_last_success_duration_seconds", good.seconds.recovery_time


def _offsite(snapshot: Snapshot) -> Iterator[Metric]:
    calls = snapshot.calls
    if calls is None and snapshot.ledger_problem is None:
        return  # no off-site copy is configured
    readable = "Whether the ledger of the off-site copy's calls could be read (1) or not (0)."
    yield _plain("pitr_offsite_ledger_readable", readable, value=float(calls is not None))
    if calls is None:
        return
    last = calls.last_confirmed
    if last is not None and last.at is not None:
        when = "When the store confirmed the newest off-site copy."
        yield _plain("pitr_offsite_last_confirmed_timestamp_seconds", when, value=last.at.timestamp())
    if last is not None and last.size_bytes is not None:
        size = "Size of the newest off-site copy that the store confirmed."
        yield _plain("pitr_offsite_last_confirmed_size_bytes", size, value=last.size_bytes)
    today = GaugeMetricFamily(
        "pitr_offsite_today",
        "How far today's one call has come: 1 for the state it is in, 0 for the others.",
        labels=["state"],
    )
    counted = GaugeMetricFamily(
        "pitr_offsite_calls", "Days of the last 30 by what became of their one call.", labels=["state"]
    )
    days = [calls.of(calls.today - timedelta(days=n)) for n in range(CALL_DAYS)]
    outcomes = Counter(call.outcome for call in days)
    for outcome in CallOutcome:
        today.add_metric([outcome.value], float(days[0].outcome is outcome))
        counted.add_metric([outcome.value], outcomes[outcome])
    yield today
    yield counted
