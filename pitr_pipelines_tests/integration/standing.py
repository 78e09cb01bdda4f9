"""Restores that stand at their target, in tests: made, looked into, started again, ended."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg

from pitr_pipelines.postgres.account import server_account
from pitr_pipelines.postgres.binaries import find_binaries
from pitr_pipelines.postgres.server import Cluster
from pitr_pipelines.restore.at_target import AtTarget
from pitr_pipelines.restore.prepare import plan_restore
from pitr_pipelines.restore.report import RestoreReport
from pitr_pipelines.restore.restore import choose_destination, restore
from pitr_pipelines.restore.resume import find_standing, move_on, plan_resume, promote
from pitr_pipelines.restore.target import Target
from pitr_pipelines.settings import Settings


class Stand:
    """A restore of `order-db` that stands at its target, and what it is resumed to."""

    def __init__(self, settings: Settings, report: RestoreReport) -> None:
        self.settings = settings
        self.report = report
        major = int(report.server_version.partition(".")[0])
        binaries = find_binaries(major, settings.binaries)
        self.cluster = Cluster(report.data_directory, binaries, server_account(None))

    @property
    def directory(self) -> Path:
        return self.report.directory

    @property
    def state(self) -> str:
        return self.cluster.control_data()["Database cluster state"]

    def connect(self) -> psycopg.Connection:
        address = f"host=127.0.0.1 port={self.report.port} user=postgres dbname=postgres"
        return psycopg.connect(address, autocommit=True)

    def rows(self) -> set[int]:
        with self.connect() as connection:
            return {row[0] for row in connection.execute("SELECT id FROM rows")}

    def is_read_only(self) -> bool:
        with self.connect() as connection:
            try:
                connection.execute("INSERT INTO rows VALUES (99)")
            except psycopg.errors.ReadOnlySqlTransaction:
                return True
        return False

    def replayed_to(self) -> str:
        with self.connect() as connection:
            row = connection.execute("SELECT pg_last_wal_replay_lsn()::text").fetchone()
        assert row is not None
        return str(row[0])

    def start(self) -> None:
        self.cluster.start(log_file=self.directory / "server.log")

    def restart(self, mode: str = "fast") -> None:
        self.cluster.stop("immediate" if mode == "immediate" else "fast")
        self.start()

    def promote(self) -> None:
        standing = find_standing(self.settings, "order-db", self.directory)
        self.report = promote(self.settings, standing)

    def move_on(self, target: Target, at_target: AtTarget = AtTarget.PROMOTE) -> None:
        standing = find_standing(self.settings, "order-db", self.directory)
        plan = plan_resume(self.settings, standing, target, seal=False)
        self.report = move_on(self.settings, standing, plan, at_target=at_target)


@contextmanager
def stood(settings: Settings, target: Target, at_target: AtTarget = AtTarget.PAUSE) -> Iterator[Stand]:
    """Restore to a target, and stay there; the server is ended afterwards."""
    plan = plan_restore(settings, "order-db", target, seal=False)
    destination = choose_destination(settings, plan, to=None, port=None, keep_running=True)
    stand = Stand(settings, restore(settings, plan, destination, at_target=at_target))
    try:
        yield stand
    finally:
        stand.cluster.stop("immediate")
