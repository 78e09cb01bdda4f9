"""A server whose history branches: promoted, restored in place of itself, copied; all in one archive."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from pitr_pipelines.catalog.layout import Layout
from pitr_pipelines.postgres.base_backup import take_base_backup
from pitr_pipelines.postgres.server import Cluster, free_port
from pitr_pipelines.restore.plan import Plan
from pitr_pipelines.restore.prepare import plan_restore
from pitr_pipelines.restore.restore import choose_destination, restore
from pitr_pipelines.restore.target import LatestTarget, Target
from pitr_pipelines.settings import Settings
from pitr_pipelines.wal.bundles import BundleOutcome, make_bundle
from pitr_pipelines.wal.hours import Hour
from pitr_pipelines_tests.servers import ServerFactory, SettingsMaker, TestServer, wait_for


@dataclass
class Branching:
    """`server` is the one under backup; others may come to write into the same archive."""

    server: TestServer
    settings: Settings
    factory: ServerFactory
    made: int = 0

    @property
    def layout(self) -> Layout:
        return Layout(self.settings.backup_root)

    def insert(self, number: int, server: TestServer | None = None) -> datetime:
        """Commit a row; return a moment after its commit and before any later one."""
        server = server or self.server
        server.execute("INSERT INTO rows VALUES (%s)", number)
        ((after,),) = server.execute("SELECT clock_timestamp()")
        time.sleep(0.01)
        return after.astimezone(UTC)  # type: ignore[no-any-return]

    def switch(self, server: TestServer | None = None) -> str:
        """End the running segment; return its name once it is in the archive."""
        return (server or self.server).archive_wal()

    def promote(self, server: TestServer | None = None, *, crashed: bool = False) -> None:
        """Let a server begin a new timeline at the end of its WAL."""
        server = server or self.server
        server.cluster.stop("immediate" if crashed else "fast")
        (server.cluster.data_directory / "standby.signal").touch()
        server.start()
        server.execute("SELECT pg_promote()")
        wait_for(lambda: not server.execute("SELECT pg_is_in_recovery()")[0][0], what="the promotion")

    def bundle(self) -> BundleOutcome:
        """Bundle the running hour, which seals it."""
        now = datetime.now(UTC)
        return make_bundle(self.settings, self.server.name, Hour.containing(now), now=now)

    def plan(self, target: Target, *, timeline: int | None = None, seal: bool = False) -> Plan:
        return plan_restore(self.settings, self.server.name, target, timeline=timeline, seal=seal)

    def rows(self, target: Target, *, timeline: int | None = None, seal: bool = False) -> set[int]:
        """Restore to a target and return the rows; the restored server is thrown away."""
        with self.restored(self.plan(target, timeline=timeline, seal=seal)) as copy:
            return numbers(copy)

    @contextmanager
    def restored(self, plan: Plan, *, port: int | None = None) -> Iterator[TestServer]:
        """Restore and yield the running result, which is ended and removed afterwards."""
        self.made += 1
        directory = self.settings.restore_root / f"copy-{self.made}"
        destination = choose_destination(self.settings, plan, to=directory, port=port, keep_running=True)
        report = restore(self.settings, plan, destination)
        cluster = self._cluster(destination.data_directory)
        copy = TestServer(self.server.name, cluster, report.port, destination.log_file, self.server.archive)
        try:
            yield copy
        finally:
            cluster.stop("immediate")
            shutil.rmtree(directory)

    @contextmanager
    def goes_on_from(self, target: Target, *, timeline: int | None = None) -> Iterator[None]:
        """Put a restored cluster in the server's place: same port, same name, same archive."""
        original = self.server
        original.stop()
        with self.restored(self.plan(target, timeline=timeline), port=original.port) as copy:
            archive_again(copy, self.factory)
            self.server = copy
            try:
                yield
            finally:
                self.server = original

    @contextmanager
    def stray(self, target: Target | None = None) -> Iterator[TestServer]:
        """Restore a copy that by mistake archives where the original does."""
        with self.restored(self.plan(target or LatestTarget())) as copy:
            archive_again(copy, self.factory)
            yield copy

    @contextmanager
    def clone(self, *, promoted: bool = False) -> Iterator[TestServer]:
        """Start a byte for byte copy, as a disk snapshot makes one: it goes on along the same timeline.

        Unless it is `promoted`: then it begins the next.
        """
        self.server.stop()
        directory = self.factory.directory / "clone.data"
        subprocess.run(["cp", "-a", self.server.cluster.data_directory, directory], check=True)
        self.server.start()
        log_file = self.factory.directory / "clone.log"
        cluster = self._cluster(directory)
        copy = TestServer(self.server.name, cluster, free_port(), log_file, self.server.archive)
        copy.configure({"port": str(copy.port)})
        try:
            if promoted:
                self.promote(copy)
            else:
                copy.start()
            yield copy
        finally:
            cluster.stop("immediate")
            shutil.rmtree(directory)

    def lose_raw_wal(self) -> None:
        """Empty the archive; only what is bundled is left."""
        for path in self.server.archive.iterdir():
            if path.name != "system_identifier":
                path.unlink()

    def _cluster(self, directory: object) -> Cluster:
        origin = self.server.cluster
        return Cluster(directory, origin.binaries, origin.account)  # type: ignore[arg-type]


def archive_again(server: TestServer, factory: ServerFactory) -> None:
    """Turn archiving on in a restored server, as whoever makes it the new primary does."""
    server.execute("ALTER SYSTEM SET archive_mode = 'on'")
    server.execute(f"ALTER SYSTEM SET archive_command = '{factory.make_archive(server.name)}'")
    server.restart()
    assert server.execute("SHOW archive_mode") == [("on",)]


def numbers(server: TestServer) -> set[int]:
    return {row[0] for row in server.execute("SELECT id FROM rows")}


def begin(
    server_factory: ServerFactory, pitr_settings: SettingsMaker, major: int | None = None, **keys: Any
) -> Branching:
    """Start a server with an empty table `rows`, and take its base backup. `keys` go to the settings."""
    server = server_factory(major=major)
    settings = pitr_settings(server, **keys)
    server.execute("CREATE TABLE rows (id int)")
    take_base_backup(settings, server.name)
    return Branching(server, settings, server_factory)
