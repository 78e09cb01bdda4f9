"""A source with a base backup and rows committed at known moments, and plans made by hand."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime
from pathlib import Path

import psycopg

from pitr_pipelines.catalog.layout import Layout
from pitr_pipelines.catalog.records import BaseRecord
from pitr_pipelines.postgres.base_backup import take_base_backup
from pitr_pipelines.postgres.server import Cluster
from pitr_pipelines.restore.destination import Destination
from pitr_pipelines.restore.plan import Plan, StopAtTime
from pitr_pipelines.restore.prepare import plan_restore
from pitr_pipelines.restore.report import RestoreReport
from pitr_pipelines.restore.restore import choose_destination, restore
from pitr_pipelines.restore.target import LatestTarget, Target, TimeTarget
from pitr_pipelines.restore.wal_source import InBase, WalSegment
from pitr_pipelines.settings import Settings
from pitr_pipelines.wal.lsn import Lsn, SegmentName
from pitr_pipelines.wal.timelines import TimelineHistory
from pitr_pipelines_tests.servers import ServerFactory, SettingsMaker, TestServer, wait_for

MOMENT = datetime(2026, 1, 29, 14, 30, tzinfo=UTC)


def plan_by_hand(*, base_bytes: int = 1000, target: Target | None = None) -> Plan:
    """Return a plan of a database that does not exist."""
    base = BaseRecord(
        database="order-db",
        day=date(2026, 1, 29),
        system_identifier="7000000000000000000",
        server_version=150019,
        timeline=1,
        start_lsn=Lsn.parse("0/3000028"),
        end_lsn=Lsn.parse("0/3000100"),
        started_at=MOMENT,
        ended_at=MOMENT,
        wal_segment_size=16 * 1024 * 1024,
        data_checksums=True,
        compression="none",
        uncompressed_bytes=base_bytes,
        files=(),
    )
    segment = WalSegment(SegmentName.parse("000000010000000000000003"), MOMENT, InBase(base.day))
    return Plan(
        "order-db", target or TimeTarget(MOMENT), base, TimelineHistory(1), (segment,), StopAtTime(MOMENT)
    )


class Scene:
    """A running source under backup, with a table `rows` of numbers."""

    def __init__(self, server: TestServer, settings: Settings) -> None:
        self.server = server
        self.settings = settings
        self.layout = Layout(settings.backup_root)

    def insert(self, number: int) -> datetime:
        """Commit one row; return a moment after its commit and before any later one."""
        self.server.execute("INSERT INTO rows VALUES (%s)", number)
        after: datetime = self.server.execute("SELECT clock_timestamp()")[0][0]
        time.sleep(0.01)
        return after.astimezone(UTC)

    def switch(self) -> str:
        """End the current segment; return its name once it is in the archive."""
        self.server.execute("SELECT pg_logical_emit_message(false, 'scene', 'an empty one is not ended')")
        return self.server.switch_wal()

    def plan(self, target: Target, *, seal: bool = False) -> Plan:
        return plan_restore(self.settings, self.server.name, target, seal=seal)

    def destination(
        self,
        plan: Plan,
        *,
        to: Path | None = None,
        keep_running: bool = True,
        tablespaces: dict[str, str] | None = None,
    ) -> Destination:
        return choose_destination(
            self.settings, plan, to=to, port=None, keep_running=keep_running, tablespaces=tablespaces
        )

    def restored_cluster(self, destination: Destination) -> Cluster:
        source = self.server.cluster
        return Cluster(destination.data_directory, source.binaries, source.account)

    @contextmanager
    def restored(
        self,
        target: Target | None = None,
        *,
        to: Path | None = None,
        tablespaces: dict[str, str] | None = None,
    ) -> Iterator[tuple[RestoreReport, psycopg.Connection]]:
        """Restore and connect as superuser; the restored server is ended afterwards."""
        plan = self.plan(target or LatestTarget())
        destination = self.destination(plan, to=to, tablespaces=tablespaces)
        report = restore(self.settings, plan, destination)
        try:
            with psycopg.connect(
                host="127.0.0.1", port=report.port, user="postgres", dbname="postgres", autocommit=True
            ) as connection:
                yield report, connection
        finally:
            self.restored_cluster(destination).stop("immediate")


def make_scene(
    server_factory: ServerFactory,
    pitr_settings: SettingsMaker,
    *,
    major: int | None = None,
    wal_segment_size_mb: int = 16,
    options: dict[str, str] | None = None,
) -> Scene:
    """Start a source with row 0 in it, and take its base backup."""
    server = server_factory(major=major, wal_segment_size_mb=wal_segment_size_mb, options=options)
    settings = pitr_settings(server)
    server.execute("CREATE TABLE rows (number int)")
    server.execute("INSERT INTO rows VALUES (0)")
    take_base_backup(settings, server.name)
    return Scene(server, settings)


def numbers(connection: psycopg.Connection) -> list[int]:
    """Return the rows of the table `rows`."""
    return [row[0] for row in connection.execute("SELECT number FROM rows ORDER BY number")]


def show(connection: psycopg.Connection, setting: str) -> str:
    row = connection.execute("SELECT current_setting(%s)", [setting]).fetchone()
    assert row is not None
    return str(row[0])


def snapshot(directory: Path) -> dict[str, tuple[int, int, int]]:
    """Return what lies below a directory, with sizes, times and inodes, once nothing is being archived."""
    wait_for(lambda: not list(directory.rglob(".wal-archive.*.tmp")), what="the archiver")
    return {
        str(path.relative_to(directory)): (status.st_size, status.st_mtime_ns, status.st_ino)
        for path in sorted(directory.rglob("*"))
        for status in [path.lstat()]
    }
