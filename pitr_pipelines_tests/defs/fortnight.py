"""A fortnight of two databases and Dagster, with the time injected.

Real: the definitions; the schedules, evaluated by Dagster at the ticks that its own cron iterator gives;
what the sensors decide; the jobs, executed by Dagster in this process; bundling, pruning, records,
inventory, manifest, the API budget's ledger. Played: the servers (a base backup is its record, and a seal
or a write is a segment in the archive), the store (a list of calls), and the clock. After the first hours, an
hourly run over all databases in which nothing goes wrong is bundled without Dagster's executor, which would
take most of the time: its run is entered as successful.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from typing import Any

import dagster as dg
import pytest
from dagster._core.test_utils import create_run_for_test
from dagster._utils.schedules import cron_string_iterator

from pitr_pipelines.catalog.layout import Layout
from pitr_pipelines.catalog.records import BaseRecord, SealRecord, write_record
from pitr_pipelines.defs import wal_bundle
from pitr_pipelines.defs.build import build_definitions
from pitr_pipelines.defs.gap_bases import ask_after_gaps
from pitr_pipelines.defs.missed_bases import ask_for_missed
from pitr_pipelines.defs.offsite_copy import evaluate
from pitr_pipelines.defs.stored import is_closed
from pitr_pipelines.errors import ServerUnavailable
from pitr_pipelines.offsite import budget, copy
from pitr_pipelines.offsite.answers import StoreUnavailable
from pitr_pipelines.offsite.budget import CallObject, CallState
from pitr_pipelines.offsite.copy_report import CopyReport, report_of
from pitr_pipelines.offsite.due import look_when_due
from pitr_pipelines.postgres import base_backup
from pitr_pipelines.progress import Report
from pitr_pipelines.settings import Settings
from pitr_pipelines.wal import sealing
from pitr_pipelines.wal.bundles import BundleOutcome, make_bundle
from pitr_pipelines.wal.hours import Hour
from pitr_pipelines.wal.lsn import Lsn, SegmentName
from pitr_pipelines_tests.wal_files import SEGMENT_SIZE, base_record, put_segment, segment

STEP = timedelta(minutes=5)
_QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}

Span = tuple[datetime, datetime]


@dataclass
class Fortnight:
    """The world. What goes wrong is set before `run`; what came of it is in the storage and in the lists."""

    settings: Settings
    instance: dg.DagsterInstance
    now: datetime
    daemon_down: list[Span] = field(default_factory=list)
    server_down: dict[str, list[Span]] = field(default_factory=dict)
    store_down: list[Span] = field(default_factory=list)
    failing_bases: dict[str, int] = field(default_factory=dict)
    """How many base backups of a database are still to fail."""

    segments: dict[str, list[SegmentName]] = field(default_factory=lambda: defaultdict(list))
    bases_taken: list[tuple[str, date]] = field(default_factory=list)
    calls: list[date] = field(default_factory=list)
    bundle_requests: list[tuple[datetime, str]] = field(default_factory=list)
    failed_runs: list[tuple[datetime, str]] = field(default_factory=list)
    _gap_cursor: str | None = None
    _run_keys: set[tuple[str, str | None]] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.began = self.now
        self.definitions = build_definitions(self.settings)
        self.layout = Layout(self.settings.backup_root)
        self._jobs: dict[str, dg.JobDefinition] = {}
        self._repository = self.definitions.get_repository_def()

    def play(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Put the played servers, store and clock in their places."""
        monkeypatch.setattr(sealing, "_seal", self._seal)
        monkeypatch.setattr(base_backup, "take_base_backup", self._take_base)
        monkeypatch.setattr(copy, "make_copy", self._make_copy)
        monkeypatch.setattr(wal_bundle, "make_bundle", self._make_bundle)
        # The context of a test leads to instances on disk alone, which would take minutes.
        monkeypatch.setattr(dg.ScheduleEvaluationContext, "instance", property(lambda _: self.instance))

    def run(self, until: datetime, *, events: Iterable[tuple[datetime, Callable[[], None]]] = ()) -> None:
        """Let time pass, five minutes at a time; each event happens once, at its time."""
        waiting = sorted(events, key=lambda event: event[0])
        while self.now < until:
            before, self.now = self.now, self.now + STEP
            self._write()
            while waiting and waiting[0][0] <= self.now:
                waiting.pop(0)[1]()
            if not _within(self.now, self.daemon_down):
                for name, tick in self._ticks(before, self.now):
                    self._evaluate(name, tick)
                if self.now.minute % 30 == 0:
                    self._sense()

    def archive(self, database: str) -> SegmentName:
        """Let a server switch to its next segment, and archive the one before."""
        name = segment(len(self.segments[database]) + 1)
        self.segments[database].append(name)
        put_segment(self.layout.wal(database), name, self.now)
        return name

    def is_up(self, database: str) -> bool:
        return not _within(self.now, self.server_down.get(database, []))

    def _write(self) -> None:
        # One database is busy, the other idle but for a row now and then.
        for database, minutes in (("order-db", 20), ("inventory-db", 60 * 7)):
            if self.is_up(database) and int(self.now.timestamp() / 60) % minutes == 10:
                self.archive(database)

    def _ticks(self, after: datetime, until: datetime) -> Iterator[tuple[str, datetime]]:
        for name in ("base_backup_schedule", "bundle_schedule"):
            schedule = self.definitions.resolve_schedule_def(name)
            assert isinstance(schedule.cron_schedule, str)
            zone = schedule.execution_timezone
            for tick in cron_string_iterator(after.timestamp() + 1, schedule.cron_schedule, zone):
                if tick > until:
                    break
                yield name, tick

    def _evaluate(self, name: str, tick: datetime) -> None:
        context = dg.build_schedule_context(
            instance=self.instance, scheduled_execution_time=tick, repository_def=self._repository
        )
        schedule = self.definitions.resolve_schedule_def(name)
        for request in schedule.evaluate_tick(context).run_requests or ():
            self._launch(schedule.job_name, request)

    def _sense(self) -> None:
        missed = ask_for_missed(self.settings, self.instance, self.now)
        if isinstance(missed, dg.RunRequest):
            self._launch("daily_base_backups", missed)
        gaps = ask_after_gaps(self.settings, self.instance, self.now, self._gap_cursor)
        self._gap_cursor = gaps.cursor
        for request in gaps.run_requests or ():
            self._launch("daily_base_backups", request)
        for request in evaluate(self.settings, self.instance, self.now).run_requests or ():
            self._launch("daily_offsite_copy", request)

    def _launch(self, job: str, request: dg.RunRequest) -> None:
        if (job, request.run_key) in self._run_keys:
            return  # as Dagster does
        self._run_keys.add((job, request.run_key))
        if job not in self._jobs:
            self._jobs[job] = self.definitions.resolve_job_def(job)
        if job == "hourly_bundles":
            self._note(request)
            if self._is_routine(request):
                self._bundle_routinely(request)
                return
        done = self._jobs[job].execute_in_process(
            instance=self.instance,
            partition_key=request.partition_key,
            asset_selection=list(request.asset_selection) if request.asset_selection else None,
            tags=dict(request.tags),
            run_config={**request.run_config, **_QUIET},
            raise_on_error=False,
        )
        if not done.success:
            self.failed_runs.append((self.now, job))

    def _is_routine(self, request: dg.RunRequest) -> bool:
        everybody = request.partition_key is not None and not request.asset_selection
        return (
            everybody
            and self.now > self.began + timedelta(hours=6)
            and all(self.is_up(name) for name in self.settings.databases)
        )

    def _bundle_routinely(self, request: dg.RunRequest) -> None:
        for name in self.settings.databases:
            hour = Hour.parse(request.partition_key or "")
            assert make_bundle(self.settings, name, hour, now=self.now).problem is None
        create_run_for_test(
            self.instance,
            "hourly_bundles",
            status=dg.DagsterRunStatus.SUCCESS,
            tags={**request.tags, "dagster/partition": request.partition_key or ""},
        )

    def _note(self, request: dg.RunRequest) -> None:
        first = request.partition_key or request.tags["dagster/asset_partition_range_start"]
        last = request.partition_key or request.tags["dagster/asset_partition_range_end"]
        keys = request.asset_selection
        for name in self.settings.databases:
            if keys is not None and dg.AssetKey([name.replace("-", "_"), "wal_bundle"]) not in keys:
                continue
            for hour in Hour.parse(first).until(Hour.parse(last)):
                assert hour.end <= self.now, f"{hour} of {name} is not over at {self.now}"
                assert not is_closed(self.layout, name, hour), f"{hour} of {name} is closed"
                self.bundle_requests.append((self.now, f"{name} {hour}"))

    def _make_bundle(self, settings: Settings, database: str, hour: Hour, *, report: Report) -> BundleOutcome:
        return make_bundle(settings, database, hour, now=self.now, report=report)

    def _seal(
        self, settings: Settings, layout: Layout, database: str, hour: Hour, name: str, **_: Any
    ) -> SealRecord:
        self._ask_server(database)
        sealed = self.archive(database)
        lsn = Lsn(sealed.start(SEGMENT_SIZE) + 0x100)
        return SealRecord(
            database=database, hour=hour, segment=sealed, lsn=lsn, restore_point=name, at=self.now
        )

    def _take_base(
        self, settings: Settings, database: str, *, day: date, replace: bool = False, **_: Any
    ) -> BaseRecord:
        assert day == self.now.date(), "only today's can be taken"
        self._ask_server(database)
        if self.failing_bases.get(database):
            self.failing_bases[database] -= 1
            raise ServerUnavailable(f"{database} broke off", remedy="Take it again.")
        carried = self.archive(database).number(SEGMENT_SIZE)
        record = base_record(carried, carried, self.now, day=day, database=database)
        path = self.layout.base_record(database, day)
        if not path.exists() or replace:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_record(path, record)
            self.bases_taken.append((database, day))
        return record

    def _ask_server(self, database: str) -> None:
        if not self.is_up(database):
            raise ServerUnavailable(f"{database} does not answer", remedy="Start it.")

    def _make_copy(self, settings: Settings, *, day: date, **_: Any) -> CopyReport:
        """Make the day's call as `make_copy` does: everything that may fail first, then the ledger."""
        look_when_due(settings, settings.offsite_copy(), now=self.now).raise_unless_go()
        if _within(self.now, self.store_down):
            raise StoreUnavailable("the store is out of reach", remedy="Is the network up?")
        claim = budget.claim(self.layout.ledger, day, at=self.now)
        carried = CallObject(endpoint_url=None, bucket="b", key=f"{day}.pitr", size_bytes=1)
        budget.send(claim, carried, at=self.now)
        self.calls.append(day)
        entry = budget.end(self.layout.ledger, day, CallState.CONFIRMED, at=self.now, said="stored")
        return report_of(entry, None, made=True)


def hours_between(first: datetime, last: datetime) -> Iterator[Hour]:
    """Yield the hours from the one that holds `first` up to the one that ended before `last`."""
    return Hour.containing(first).until(Hour.containing(last.astimezone(UTC)).preceding())


def _within(moment: datetime, spans: Iterable[Span]) -> bool:
    return any(start <= moment < end for start, end in spans)
