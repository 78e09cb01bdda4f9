"""Carrying out a plan: fetch, recover, verify; always into a new directory beside the original.

Until everything is on disk the directory is marked INCOMPLETE, and whatever goes wrong before that
leaves the mark. The restored server archives nothing, connects to nothing, and listens only on this
machine. Needs neither Dagster nor the source server.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Protocol
from zoneinfo import ZoneInfo

from pitr_pipelines import durable
from pitr_pipelines.catalog.layout import Layout
from pitr_pipelines.catalog.records import write_record
from pitr_pipelines.errors import PitrError
from pitr_pipelines.postgres.account import server_account
from pitr_pipelines.postgres.binaries import find_binaries
from pitr_pipelines.postgres.server import Cluster
from pitr_pipelines.progress import Report, silent
from pitr_pipelines.restore import holding
from pitr_pipelines.restore.at_target import AtTarget, check_can_be_asked, check_keeps_running
from pitr_pipelines.restore.configure import Configuration
from pitr_pipelines.restore.destination import Destination, choose_destination, claim, said_incomplete
from pitr_pipelines.restore.feeder import feed
from pitr_pipelines.restore.fetch import fetch
from pitr_pipelines.restore.handover import Handover, in_sentences, terminable
from pitr_pipelines.restore.plan import Plan
from pitr_pipelines.restore.plan_text import plan_json, stop_text
from pitr_pipelines.restore.reach import Aim, reach
from pitr_pipelines.restore.report import RestoreReport
from pitr_pipelines.restore.segment_files import SegmentFiles
from pitr_pipelines.restore.standing import end_of_plan
from pitr_pipelines.restore.verification import Verification, check_lines, check_pages, note_lines, require
from pitr_pipelines.settings import Settings

__all__ = ["Destination", "RestoreReport", "Verification", "choose_destination", "restore", "terminable"]

logger = logging.getLogger(__name__)

DEFAULT_VERIFICATION = Verification()


class Successor(Protocol):
    """What a restore that is to take its original's place does besides, at two moments."""

    def fetched(self, cluster: Cluster) -> None:
        """Called when the base is unpacked, before its configuration is adapted."""

    def recovered(self, cluster: Cluster, configuration: Configuration) -> None:
        """Called when the recovered server is stopped, before everything is brought to disk."""


def restore(
    settings: Settings,
    plan: Plan,
    destination: Destination,
    *,
    at_target: AtTarget = AtTarget.PROMOTE,
    verification: Verification = DEFAULT_VERIFICATION,
    report: Report = silent,
    log: Callable[[str], None] = logger.info,
    successor: Successor | None = None,
    layout: Layout | None = None,
) -> RestoreReport:
    """Carry out a plan, in the directory that `choose_destination` gave, and do `at_target` at its target.

    With `successor`, the cluster is to take its original's place. `layout` is where the artifacts lie, if not
    in `backup_root`. `verification` says what is looked at
    beyond the target; what pg_amcheck finds is in the report, and
    for the caller to make something of. `report` gets the steps `extract`, `replay`, `amcheck`,
    `check pages` and `sync`; `log` gets a line at each turn.

    Raises BadRequest if the server is to pause and not to run, DestinationInUse if the directory is no
    longer free, BinariesNotFound; ArtifactDamaged,
    PitrError or RecoveryFailed after which the directory is marked INCOMPLETE; and RecoveryFailed
    that says so if the data is whole but the server does not start.
    """
    check_keeps_running(at_target, destination.keep_running)
    check_can_be_asked(at_target, verification)
    account = server_account(settings.run_as)
    binaries = find_binaries(plan.base.major, settings.binaries).reachable_by(account)
    require(binaries, replace(verification, pages=verification.pages and plan.base.data_checksums))
    stops = plan if at_target is AtTarget.PROMOTE else end_of_plan(settings, plan)
    with holding.backups_of(settings, plan, layout), in_sentences(destination):
        claim(destination, plan, account)
    try:
        with terminable(), in_sentences(destination), holding.backups_of(settings, plan, layout):
            work = _Restore(
                settings,
                layout or Layout(settings.backup_root),
                plan,
                stops,
                destination,
                at_target,
                verification,
                successor,
                report,
                log,
            )
            return work.carry_out(Cluster(destination.data_directory, binaries, account))
    except PitrError as error:
        if destination.marker.exists():
            error.remedy += said_incomplete(destination)
        raise


@dataclass(frozen=True, slots=True)
class _Restore:
    """One restore under way. `stops` is the plan with the stop that recovery is given."""

    settings: Settings
    layout: Layout
    plan: Plan
    stops: Plan
    destination: Destination
    at_target: AtTarget
    verification: Verification
    successor: Successor | None
    report: Report
    log: Callable[[str], None]

    def carry_out(self, cluster: Cluster) -> RestoreReport:
        plan, destination = self.plan, self.destination
        begun = time.monotonic()
        self.log(f"unpacking the base backup of {plan.base.day}, and the first of its WAL")
        layout = self.layout
        files = SegmentFiles(layout, plan, cluster.account)
        with feed(files, destination.wal, cluster.binaries) as feeder:
            fetch(files, destination, report=self.report)
            feeder.open_up(cluster.data_directory / "pg_wal")
            control = cluster.control_data()
            if self.successor is not None:
                self.successor.fetched(cluster)
            configuration = Configuration(cluster, destination, plan.database)
            configuration.adapt(control)
            fetched = time.monotonic()

            self.log(f"replaying {len(plan.segments)} WAL segments")
            aim = Aim(self.stops, destination, self.at_target, amcheck=self.verification.amcheck)
            reached = reach(self.settings, cluster, aim, configuration, feeder, self.report, self.log)
        recovered, seen = reached.recovered, reached.seen
        replayed = time.monotonic()

        pages = None
        if self.verification.pages:
            base = layout.base(plan.database, plan.base.day)
            pages = check_pages(cluster, cluster.control_data(), plan.database, base, report=self.report)
        self.log(f"replayed to {recovered.end_lsn}; making everything durable")
        handover = Handover(cluster, destination, plan.database)
        handover.make_whole(configuration, self.report, self._succeed)
        unchecked = tuple(note_lines(pages, wanted=self.verification.pages))
        done = RestoreReport(
            database=plan.database,
            target=str(plan.target),
            stop=stop_text(plan.stop, ZoneInfo("UTC")),
            at_target=self.at_target,
            directory=destination.directory,
            data_directory=destination.data_directory,
            port=destination.port,
            running=False,
            server_version=cluster.binaries.version,
            system_identifier=control["Database system identifier"],
            timeline=recovered.timeline,
            branch_timeline=plan.branch.timeline,
            recovered_to_lsn=recovered.end_lsn,
            last_transaction_at=recovered.last_transaction_at,
            first_left_out_at=recovered.stopped_before,
            base_day=plan.base.day.isoformat(),
            segments=recovered.segments_replayed,
            segments_fed=feeder.total,
            base_bytes=plan.base.uncompressed_bytes,
            wal_bytes=plan.wal_bytes,
            fetch_s=fetched - begun,
            recovery_s=replayed - fetched,
            wal_wait_s=feeder.waited_s,
            finish_s=time.monotonic() - replayed,
            total_s=time.monotonic() - begun,
            finished_at=datetime.now(UTC),
            connect=handover.connect_command(seen.superuser),
            start=handover.start_command,
            stop_command=handover.stop_command,
            checks=(*reached.checks, *seen.checks, *check_lines(pages, reached.amcheck)),
            notes=(*plan.notes, *configuration.notes, *seen.notes, *reached.notes, *unchecked),
            pages=pages,
            amcheck=reached.amcheck,
            plan=plan_json(plan, destination.placed),
        )
        write_record(destination.report_file, done)
        holding.hold_if_it_stands(self.settings, done)
        for marker in destination.markers:
            durable.remove_durably(marker)
        if not reached.is_to_run:
            return done

        self.log(f"starting the restored server on port {destination.port}")
        handover.start(configuration)
        finished = time.monotonic()
        done = done.model_copy(
            update={
                "running": True,
                "finish_s": finished - replayed,
                "total_s": finished - begun,
                "finished_at": datetime.now(UTC),
                "notes": (*plan.notes, *configuration.notes, *seen.notes, *reached.notes, *unchecked),
            }
        )
        write_record(destination.report_file, done)
        return done

    def _succeed(self, cluster: Cluster, configuration: Configuration) -> None:
        if self.successor is not None:
            self.successor.recovered(cluster, configuration)
