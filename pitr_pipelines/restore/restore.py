"""Carrying out a plan: fetch, recover, verify; always into a new directory beside the original.

Until everything is on disk the directory is marked INCOMPLETE, and whatever goes wrong before that
leaves the mark. The restored server archives nothing, connects to nothing, and listens only on this
machine. Needs neither Dagster nor the source server.
"""

from __future__ import annotations

import logging
import shlex
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from types import FrameType
from typing import Protocol
from zoneinfo import ZoneInfo

from pitr_pipelines import durable
from pitr_pipelines.catalog.layout import Layout
from pitr_pipelines.catalog.records import write_record
from pitr_pipelines.errors import PitrError, RecoveryFailed, ServerNotReady
from pitr_pipelines.postgres.account import server_account
from pitr_pipelines.postgres.binaries import Binaries, find_binaries
from pitr_pipelines.postgres.server import Cluster
from pitr_pipelines.progress import Progress, Report, silent
from pitr_pipelines.restore.configure import Configuration
from pitr_pipelines.restore.destination import Destination, choose_destination, claim, port_is_free
from pitr_pipelines.restore.fetch import fetch
from pitr_pipelines.restore.plan import Plan, StopAtTime
from pitr_pipelines.restore.plan_text import stop_text
from pitr_pipelines.restore.recover import Recovered, recover
from pitr_pipelines.restore.report import RestoreReport
from pitr_pipelines.settings import Settings

__all__ = ["Destination", "RestoreReport", "choose_destination", "restore"]

logger = logging.getLogger(__name__)

_START_S = 300.0


class Handover(Protocol):
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
    report: Report = silent,
    log: Callable[[str], None] = logger.info,
    handover: Handover | None = None,
) -> RestoreReport:
    """Carry out a plan, in the directory that `choose_destination` gave.

    `report` gets the steps `extract`, `unpack` and `replay`; `log` gets a line at each turn.

    Raises DestinationInUse if the directory is no longer free, BinariesNotFound; ArtifactDamaged,
    PitrError or RecoveryFailed after which the directory is marked INCOMPLETE; and RecoveryFailed
    that says so if the data is whole but the server does not start.
    """
    account = server_account(settings.run_as)
    binaries = find_binaries(plan.base.major, settings.binaries).reachable_by(account)
    with _in_sentences(destination):
        claim(destination, plan, account)
    try:
        with terminable(), _in_sentences(destination):
            work = _Restore(settings, plan, destination, binaries, report, log, handover)
            return work.carry_out(Cluster(destination.data_directory, binaries, account))
    except PitrError as error:
        if destination.marker.exists():
            error.remedy += (
                f" {destination.directory} is marked INCOMPLETE: delete it before you restore there again "
                f"(its log is {destination.log_file.name})."
            )
        raise


class _Restore:
    """One restore under way."""

    def __init__(
        self,
        settings: Settings,
        plan: Plan,
        destination: Destination,
        binaries: Binaries,
        report: Report,
        log: Callable[[str], None],
        handover: Handover | None,
    ) -> None:
        self.settings = settings
        self.plan = plan
        self.destination = destination
        self.binaries = binaries
        self.report = report
        self.log = log
        self.handover = handover

    def carry_out(self, cluster: Cluster) -> RestoreReport:
        plan, destination = self.plan, self.destination
        # Slow to import, and only needed here.
        from pitr_pipelines.restore.verify import look

        begun = time.monotonic()
        self.log(f"unpacking the base backup of {plan.base.day} and {len(plan.segments)} WAL segments")
        staged = fetch(
            Layout(self.settings.backup_root), plan, destination, cluster.account, report=self.report
        )
        control = cluster.control_data()
        if self.handover is not None:
            self.handover.fetched(cluster)
        configuration = Configuration(cluster, destination, plan.database)
        configuration.adapt(control)
        fetched = time.monotonic()

        self.log("replaying the WAL")
        with recover(cluster, plan, destination, report=self.report) as (recovered, sockets):
            seen = look(self.settings, plan.database, destination, sockets)
        replayed = time.monotonic()

        self.log(f"replayed to {recovered.end_lsn}; making everything durable")
        self._make_whole(cluster, configuration)
        done = RestoreReport(
            database=plan.database,
            target=str(plan.target),
            stop=stop_text(plan.stop, ZoneInfo("UTC")),
            directory=destination.directory,
            data_directory=destination.data_directory,
            port=destination.port,
            running=False,
            server_version=self.binaries.version,
            system_identifier=control["Database system identifier"],
            timeline=recovered.timeline,
            recovered_to_lsn=recovered.end_lsn,
            last_transaction_at=recovered.last_transaction_at,
            first_left_out_at=recovered.stopped_before,
            base_day=plan.base.day.isoformat(),
            segments=recovered.segments_replayed,
            staged_files=staged,
            base_bytes=plan.base.uncompressed_bytes,
            wal_bytes=plan.wal_bytes,
            fetch_s=fetched - begun,
            recovery_s=replayed - fetched,
            finish_s=time.monotonic() - replayed,
            total_s=time.monotonic() - begun,
            finished_at=datetime.now(UTC),
            connect=self._connect(seen.superuser),
            start=self._pg_ctl(cluster, "start", "-l", str(destination.log_file)),
            stop_command=self._pg_ctl(cluster, "stop"),
            checks=(*_checks(plan, recovered), *seen.checks),
            notes=(*plan.notes, *configuration.notes, *seen.notes),
        )
        write_record(destination.report_file, done)
        durable.remove_durably(destination.marker)
        if not destination.keep_running:
            return done

        self.log(f"starting the restored server on port {destination.port}")
        self._start(cluster, configuration)
        finished = time.monotonic()
        done = done.model_copy(
            update={
                "running": True,
                "finish_s": finished - replayed,
                "total_s": finished - begun,
                "finished_at": datetime.now(UTC),
                "notes": (*plan.notes, *configuration.notes, *seen.notes),
            }
        )
        write_record(destination.report_file, done)
        return done

    def _make_whole(self, cluster: Cluster, configuration: Configuration) -> None:
        """Bring the stopped cluster to disk, with nothing in it but itself."""
        prepared = sum(1 for _ in (cluster.data_directory / "pg_twophase").iterdir())
        if prepared > int(configuration.overrides.get("max_prepared_transactions", "0")):
            configuration.add({"max_prepared_transactions": str(prepared)})
        shutil.rmtree(self.destination.staging)
        self.destination.script.unlink()
        if self.handover is not None:
            self.handover.recovered(cluster, configuration)
        self.report(Progress("sync", 0, 1, "file systems"))
        durable.sync_file_system(self.destination.directory)
        self.report(Progress("sync", 1, 1, "file systems"))

    def _start(self, cluster: Cluster, configuration: Configuration) -> None:
        """Start the restored server as it is to be; it survives us."""
        log_file = self.destination.log_file
        try:
            try:
                cluster.start(log_file=log_file, timeout_s=_START_S)
            except ServerNotReady as error:
                if "could not load" not in error.what or "pg_hba.conf" not in error.what:
                    raise
                configuration.replace_access_rules("the server cannot use it here")
                cluster.start(log_file=log_file, timeout_s=_START_S)
        except ServerNotReady as error:
            taken = (
                "" if port_is_free(self.destination.port) else f"; the port {self.destination.port} is taken"
            )
            raise RecoveryFailed(
                f"{self.plan.database} is restored, whole and on disk, in {self.destination.data_directory}, "
                f"but its server does not start{taken}: {error.what}",
                remedy=f"Correct {self.destination.data_directory / 'postgresql.conf'} and start it: "
                + self._pg_ctl(cluster, "start", "-l", str(log_file)),
            ) from None

    def _connect(self, superuser: str | None) -> str:
        name = shutil.which("psql") or str(self.binaries.directory / "psql")
        user = f" -U {shlex.quote(superuser)}" if superuser else ""
        return f"{shlex.quote(name)} -h 127.0.0.1 -p {self.destination.port}{user} -d postgres"

    def _pg_ctl(self, cluster: Cluster, *words: str) -> str:
        command = [str(self.binaries.directory / "pg_ctl"), "-D", str(cluster.data_directory), *words]
        if cluster.account.switch:
            command = ["runuser", "-u", cluster.account.name, "--", *command]
        return shlex.join(command)


def _checks(plan: Plan, recovered: Recovered) -> Iterator[str]:
    if isinstance(plan.stop, StopAtTime) and recovered.stopped_before is not None:
        yield (
            f"recovery stopped before the first transaction after the target, of "
            f"{recovered.stopped_before.isoformat(sep=' ')}"
        )
    elif recovered.stopped is not None:
        yield f"PostgreSQL's log says: {recovered.stopped}"
    else:
        yield f"all WAL to the end of {plan.segments[-1].name} was replayed"
    yield "the cluster shut down cleanly, and all of it is on disk"


@contextmanager
def _in_sentences(destination: Destination) -> Iterator[None]:
    """Turn errors of the file system into ours."""
    try:
        yield
    except OSError as error:
        raise PitrError(
            f"the restore cannot use {error.filename or destination.directory}: {error.strerror}",
            remedy="Make room or mend the file system, or restore into another directory.",
        ) from error


@contextmanager
def terminable() -> Iterator[None]:
    """Let SIGTERM end us as Ctrl-C does, so that a server started here is ended too."""
    if (
        threading.current_thread() is not threading.main_thread()
        or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
    ):
        yield
        return

    def leave(number: int, _frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
