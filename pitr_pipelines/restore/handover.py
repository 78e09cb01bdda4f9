"""Handing over: a recovered cluster is brought to disk, started as it is to be, and explained.

Nothing counts as restored before all of it is on disk. The server that is started here survives us.
"""

from __future__ import annotations

import shlex
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from pitr_pipelines import durable
from pitr_pipelines.errors import PitrError, RecoveryFailed, ServerNotReady
from pitr_pipelines.postgres.server import Cluster
from pitr_pipelines.progress import Progress, Report
from pitr_pipelines.restore.configure import Configuration
from pitr_pipelines.restore.destination import Destination, port_is_free

_START_S = 300.0


@dataclass(frozen=True, slots=True)
class Handover:
    """A cluster of `database` that recovery has just left, stopped, at `destination`."""

    cluster: Cluster
    destination: Destination
    database: str

    def make_whole(
        self,
        configuration: Configuration,
        report: Report,
        at_last: Callable[[Cluster, Configuration], None] | None = None,
    ) -> None:
        """Bring the stopped cluster to disk, with nothing in it but itself, and what `at_last` does."""
        prepared = sum(1 for _ in (self.cluster.data_directory / "pg_twophase").iterdir())
        if prepared > int(configuration.overrides.get("max_prepared_transactions", "0")):
            configuration.add({"max_prepared_transactions": str(prepared)})
        if self.destination.wal.exists():
            shutil.rmtree(self.destination.wal)
        self.destination.script.unlink(missing_ok=True)
        if at_last is not None:
            at_last(self.cluster, configuration)
        report(Progress("sync", 0, 1, "file systems"))
        for directory in self.destination.directories:
            durable.sync_file_system(directory)
        report(Progress("sync", 1, 1, "file systems"))

    def start(self, configuration: Configuration) -> None:
        """Start the server as it is to be. Raises RecoveryFailed, which says that the data is whole."""
        log_file = self.destination.log_file
        try:
            try:
                self.cluster.start(log_file=log_file, timeout_s=_START_S)
            except ServerNotReady as error:
                if "could not load" not in error.what or "pg_hba.conf" not in error.what:
                    raise
                configuration.replace_access_rules("the server cannot use it here")
                self.cluster.start(log_file=log_file, timeout_s=_START_S)
        except ServerNotReady as error:
            taken = (
                "" if port_is_free(self.destination.port) else f"; the port {self.destination.port} is taken"
            )
            raise RecoveryFailed(
                f"{self.database} is restored, whole and on disk, in {self.destination.data_directory}, "
                f"but its server does not start{taken}: {error.what}",
                remedy=f"Correct {self.destination.data_directory / 'postgresql.conf'} and start it: "
                + self.start_command,
            ) from None

    def connect_command(self, superuser: str | None) -> str:
        """Return how to connect as the cluster's superuser, in a shell."""
        name = shutil.which("psql") or str(self.cluster.binaries.directory / "psql")
        user = f" -U {shlex.quote(superuser)}" if superuser else ""
        return f"{shlex.quote(name)} -h 127.0.0.1 -p {self.destination.port}{user} -d postgres"

    @property
    def start_command(self) -> str:
        return self._pg_ctl("start", "-l", str(self.destination.log_file))

    @property
    def stop_command(self) -> str:
        return self._pg_ctl("stop")

    def _pg_ctl(self, *words: str) -> str:
        directory = self.cluster.binaries.directory
        command = [str(directory / "pg_ctl"), "-D", str(self.cluster.data_directory), *words]
        if self.cluster.account.switch:
            command = ["runuser", "-u", self.cluster.account.name, "--", *command]
        return shlex.join(command)


@contextmanager
def in_sentences(destination: Destination) -> Iterator[None]:
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
