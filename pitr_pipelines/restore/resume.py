"""Resuming a restore that stands at its target: promote it, or move it on to a later target.

Everything that can be known beforehand is checked before anything is touched. From then until it is
whole again the directory is marked INCOMPLETE, as in a restore; it is recovered by the same server,
judged in the same way, and finished alike. Promoting needs no backup, moving on needs only WAL.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

from pitr_pipelines import durable
from pitr_pipelines.catalog.layout import Layout
from pitr_pipelines.catalog.records import read_record, write_record
from pitr_pipelines.errors import ArtifactDamaged, BadRequest, NotRestorable, PitrError
from pitr_pipelines.postgres.account import server_account
from pitr_pipelines.postgres.binaries import find_binaries
from pitr_pipelines.postgres.server import Cluster
from pitr_pipelines.progress import Report, silent
from pitr_pipelines.restore import holding
from pitr_pipelines.restore.at_target import AtTarget, check_keeps_running
from pitr_pipelines.restore.configure import Configuration
from pitr_pipelines.restore.destination import (
    Destination,
    check_port,
    check_room_for_wal,
    claim_again,
    said_incomplete,
)
from pitr_pipelines.restore.feeder import feed
from pitr_pipelines.restore.fetch import put_script
from pitr_pipelines.restore.handover import Handover, in_sentences, terminable
from pitr_pipelines.restore.plan import Plan, StopAtLsn, StopAtTime, StopAtXid
from pitr_pipelines.restore.plan_text import stop_text
from pitr_pipelines.restore.prepare import plan_restore
from pitr_pipelines.restore.reach import Aim, reach
from pitr_pipelines.restore.report import RestoreReport
from pitr_pipelines.restore.segment_files import SegmentFiles, keep_what_was_left
from pitr_pipelines.restore.standing import HELD_STATES, STANDBY_SIGNAL, end_of_plan, local_wal, promoted
from pitr_pipelines.restore.target import ImmediateTarget, Target, show_moment
from pitr_pipelines.restore.wal_source import InBase
from pitr_pipelines.settings import Settings
from pitr_pipelines.wal.lsn import Lsn

logger = logging.getLogger(__name__)

_STOP_S = 3600.0


class NotResumable(PitrError):
    """The directory is not one that stands at a target. Nothing was touched."""

    exit_code = 7


@dataclass(frozen=True, slots=True)
class Standing:
    """A restore that stands at its target, and the report that it left."""

    cluster: Cluster
    destination: Destination
    report: RestoreReport
    replays_from: Lsn
    """From where the server replays its WAL when it is started."""


def find_standing(
    settings: Settings, database: str, directory: Path, *, port: int | None = None, keep_running: bool = True
) -> Standing:
    """Find what is to be resumed in the directory of a restore. Touches nothing.

    `port` is where the server is to listen from now on; by default where it was to listen before.
    Raises NotResumable, DestinationInUse if the port is taken, BadRequest or BinariesNotFound.
    """
    settings.database(database)
    directory = directory.absolute().resolve()
    report = _read_report(database, directory)
    destination = Destination(directory, port or report.port, keep_running)
    account = server_account(settings.run_as)
    major = re.match(r"\d+", report.server_version)
    assert major is not None, report.server_version
    binaries = find_binaries(int(major[0]), settings.binaries).reachable_by(account)
    cluster = Cluster(destination.data_directory, binaries, account)
    control = cluster.control_data()
    state = control["Database cluster state"]
    if state not in HELD_STATES or not (cluster.data_directory / STANDBY_SIGNAL).exists():
        raise NotResumable(
            f"{directory} is promoted already (the cluster is {state})",
            remedy="It is a cluster of its own; for another moment, restore into another directory.",
        )
    if control["Database system identifier"] != report.system_identifier:
        raise NotResumable(
            f"{cluster.data_directory} is not the cluster that was restored there",
            remedy="Restore again, into another directory.",
        )
    running = cluster.postmaster()
    if running is None or running.port != destination.port:
        check_port(destination.port)
    return Standing(cluster, destination, report, Lsn.parse(control["Latest checkpoint's REDO location"]))


def plan_resume(
    settings: Settings, standing: Standing, target: Target, *, seal: bool = True, report: Report = silent
) -> Plan:
    """Plan to move on to `target`, along the same branch; checks all that it needs, touches nothing.

    Raises NotRestorable as `plan_restore` does, and if the target is not ahead of what is
    replayed; BadRequest for a base backup alone.
    """
    if isinstance(target, ImmediateTarget):
        raise BadRequest(
            "immediate goes to a base backup alone, and what is resumed holds that already",
            remedy="Name a later target: a time, an hour, an LSN, a name, an xid, or latest.",
        )
    done = standing.report
    plan = plan_restore(
        settings,
        done.database,
        target,
        timeline=done.branch_timeline,
        base=date.fromisoformat(done.base_day),
        seal=seal,
        report=report,
    )
    size = plan.base.wal_segment_size
    if plan.base.start_lsn > standing.replays_from:
        raise NotRestorable(
            f"the base backup of {done.base_day} was replaced after {standing.destination.directory} was "
            "restored from it",
            remedy=f"Promote it (--resume without a target), or restore {done.database} anew.",
        )
    _check_lies_ahead(settings, standing, plan)
    first = int(standing.replays_from) // size
    plan = replace(plan, segments=tuple(s for s in plan.segments if s.name.number(size) >= first))
    check_room_for_wal(standing.destination.directory, plan)
    return plan


def promote(
    settings: Settings,
    standing: Standing,
    *,
    report: Report = silent,
    log: Callable[[str], None] = logger.info,
) -> RestoreReport:
    """Promote what stands at its target. Needs no backup.

    Raises DestinationInUse if somebody else resumes it, PitrError or RecoveryFailed after which the
    directory is marked INCOMPLETE.
    """
    from pitr_pipelines.restore.verify import look

    done, cluster, destination = standing.report, standing.cluster, standing.destination
    begun = time.monotonic()
    with _claimed(standing, f"{done.target}, promoted"):
        cluster.stop("fast", timeout_s=_STOP_S)
        log(f"promoting from {done.recovered_to_lsn}")
        with promoted(cluster, done.database, done.recovered_to_lsn, destination) as (timeline, sockets):
            seen = look(settings, done.database, destination, sockets)
        configuration = Configuration.reopen(cluster, destination, done.database)
        replayed = time.monotonic()
        return _finish(
            standing,
            configuration,
            {
                "at_target": AtTarget.PROMOTE,
                "timeline": timeline,
                "segments_fed": 0,
                "wal_wait_s": 0.0,
                "wal_bytes": 0,
                "base_bytes": 0,
                "fetch_s": 0.0,
                "recovery_s": replayed - begun,
                "checks": (*done.checks, f"promoted exactly at {done.recovered_to_lsn}", *seen.checks),
            },
            runs=destination.keep_running,
            superuser=seen.superuser,
            clock=(begun, replayed),
            report=report,
            log=log,
        )


def move_on(
    settings: Settings,
    standing: Standing,
    plan: Plan,
    *,
    at_target: AtTarget = AtTarget.PROMOTE,
    report: Report = silent,
    log: Callable[[str], None] = logger.info,
) -> RestoreReport:
    """Carry out a plan of `plan_resume`. Raises as `promote`, and BadRequest as `restore`.

    That all the WAL is still there is looked at before anything is touched.
    """
    done, cluster, destination = standing.report, standing.cluster, standing.destination
    check_keeps_running(at_target, destination.keep_running)
    stops = plan if at_target is AtTarget.PROMOTE else end_of_plan(settings, plan)
    begun = time.monotonic()
    files = SegmentFiles(Layout(settings.backup_root), plan, cluster.account)
    for segment in plan.segments:
        if not isinstance(segment.place, InBase):
            files.beginning(segment)
    with holding.backups_of(settings, plan), _claimed(standing, str(plan.target)):
        with feed(files, destination.wal, cluster.binaries, base_is_unpacked=False) as feeder:
            cluster.stop("fast", timeout_s=_STOP_S)
            keep_what_was_left(files, destination.data_directory / "pg_wal")
            put_script(destination)
            feeder.open_up()
            fetched = time.monotonic()
            configuration = Configuration.reopen(cluster, destination, done.database)
            configuration.release()
            log(f"replaying the WAL from {done.recovered_to_lsn}")
            aim = Aim(stops, destination, at_target)
            reached = reach(settings, cluster, aim, configuration, feeder, report, log)
        recovered, seen = reached.recovered, reached.seen
        replayed = time.monotonic()
        log(f"replayed to {recovered.end_lsn}; making everything durable")
        return _finish(
            standing,
            configuration,
            {
                "target": str(plan.target),
                "stop": stop_text(plan.stop, ZoneInfo("UTC")),
                "at_target": at_target,
                "timeline": recovered.timeline,
                "recovered_to_lsn": recovered.end_lsn,
                "last_transaction_at": recovered.last_transaction_at or done.last_transaction_at,
                "first_left_out_at": recovered.stopped_before,
                "segments": done.segments + recovered.segments_replayed,
                "segments_fed": feeder.total,
                "wal_wait_s": feeder.waited_s,
                "wal_bytes": plan.wal_bytes,
                "base_bytes": 0,
                "fetch_s": fetched - begun,
                "recovery_s": replayed - fetched,
                "checks": (*reached.checks, *seen.checks),
                "notes": tuple(
                    dict.fromkeys(
                        (*done.notes, *plan.notes, *configuration.notes, *seen.notes, *reached.notes)
                    )
                ),
            },
            runs=reached.is_to_run,
            superuser=seen.superuser,
            clock=(begun, replayed),
            report=report,
            log=log,
        )


def _finish(
    standing: Standing,
    configuration: Configuration,
    update: dict[str, Any],
    *,
    runs: bool,
    superuser: str | None,
    clock: tuple[float, float],
    report: Report,
    log: Callable[[str], None],
) -> RestoreReport:
    """Make it whole, write the report, take the mark away, and start the server if it is to run."""
    destination = standing.destination
    begun, replayed = clock
    if update["at_target"] is AtTarget.PROMOTE:
        configuration.release()
    configuration.add({"port": str(destination.port)})
    handover = Handover(standing.cluster, destination, standing.report.database)
    handover.make_whole(configuration, report)

    def told(running: bool) -> RestoreReport:
        now = time.monotonic()
        changed = {"running": running, "port": destination.port, "finished_at": datetime.now(UTC)}
        changed |= {"finish_s": now - replayed, "total_s": now - begun}
        changed |= {"connect": handover.connect_command(superuser)}
        done = standing.report.model_copy(update={**update, **changed})
        write_record(destination.report_file, done)
        return done

    done = told(False)
    durable.remove_durably(destination.marker)
    if runs:
        log(f"starting the restored server on port {destination.port}")
        handover.start(configuration)
        done = told(True)
    return done


@contextmanager
def _claimed(standing: Standing, wanted: str) -> Iterator[None]:
    """Mark the directory as incomplete while the block, which takes the mark away, is at work."""
    destination = standing.destination
    with in_sentences(destination):
        claim_again(destination, standing.report.database, wanted, standing.cluster.account)
    try:
        with terminable(), in_sentences(destination):
            yield
    except PitrError as error:
        if destination.marker.exists():
            error.remedy += said_incomplete(destination)
        raise


def _read_report(database: str, directory: Path) -> RestoreReport:
    destination = Destination(directory, 1, keep_running=False)
    if destination.marker.exists():
        raise NotResumable(
            f"{directory} is marked {destination.marker.name}: a restore there has not finished, or was "
            "interrupted",
            remedy="If it is still running, wait for it; otherwise delete the directory and restore again.",
        )
    try:
        done = read_record(destination.report_file, RestoreReport)
    except (OSError, ArtifactDamaged):
        raise NotResumable(
            f"{directory} is no restore of ours: it holds no {destination.report_file.name} that can be read",
            remedy="Name the directory that `pitr restore` or the restore job printed.",
        ) from None
    if done.database != database:
        raise NotResumable(
            f"{directory} is a restore of {done.database}, not of {database}",
            remedy=f"Ask for {done.database}, or name another directory.",
        )
    if done.at_target is AtTarget.PROMOTE:
        raise NotResumable(
            f"{directory} is promoted already, at {done.recovered_to_lsn}",
            remedy="It is a cluster of its own; for another moment, restore into another directory.",
        )
    if done.directory != directory:
        raise NotResumable(
            f"{directory} was restored as {done.directory}, and its configuration still says so",
            remedy="Move it back to where it was, or restore again.",
        )
    return done


def _check_lies_ahead(settings: Settings, standing: Standing, plan: Plan) -> None:
    """Raise NotRestorable if the plan stops where the cluster stands, or before."""
    done = standing.report
    at = done.recovered_to_lsn
    match plan.stop:
        case StopAtLsn(lsn):
            ahead = lsn >= at
        case StopAtXid(lsn=lsn):
            ahead = lsn is not None and lsn >= at
        case StopAtTime(moment, inclusive):

            def belongs(ended: datetime) -> bool:
                return ended < moment or (inclusive and ended == moment)

            replayed = [end.at for end in local_wal(standing.cluster).transaction_ends()]
            replayed += [done.last_transaction_at] if done.last_transaction_at else []
            following = done.first_left_out_at
            ahead = all(map(belongs, replayed)) and (following is None or belongs(following))
        case _:
            last = end_of_plan(settings, plan).stop
            ahead = isinstance(last, StopAtLsn) and last.lsn >= at
    if not ahead:
        span = ""
        if done.last_transaction_at:
            span += f"; its last transaction ended at {show_moment(done.last_transaction_at, settings.zone)}"
        if done.first_left_out_at:
            span += f"; the next one ended at {show_moment(done.first_left_out_at, settings.zone)}"
        raise NotRestorable(
            f"{plan.target} is not ahead of what {standing.destination.directory} holds already: it is "
            f"replayed to {at}{span}",
            remedy=f"Name a later target, promote what is there (--resume without a target), or restore "
            f"{done.database} anew to go back. Nothing was touched.",
        )
