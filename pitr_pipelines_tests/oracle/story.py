"""A story: a random sequence of what happens to a server under backup, drawn from a seed.

Hours do not pass while a story is told. What an hour's end brings, a seal and a closed bundle, is
had by sealing hours of the past late, one after the other, as after an outage of the scheduler; and
bases of earlier days are had by giving today's to the day before.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from pitr_pipelines.catalog.inventory import read_inventory
from pitr_pipelines.catalog.layout import Layout
from pitr_pipelines.catalog.manifest import refresh_manifest
from pitr_pipelines.catalog.records import BundleState
from pitr_pipelines.postgres.base_backup import take_base_backup
from pitr_pipelines.settings import Settings
from pitr_pipelines.wal.bundles import make_bundle
from pitr_pipelines.wal.hours import Hour
from pitr_pipelines.wal.lsn import Lsn
from pitr_pipelines_tests.integration.restoring import age_bases
from pitr_pipelines_tests.oracle.twin import Branch, copy, go_on, speak_last
from pitr_pipelines_tests.oracle.world import World
from pitr_pipelines_tests.servers import TestServer, wait_for

_MARK = "oracle's mark"
"""A restore point that is named again and again; recovery to it goes to the newest."""

_HOURS_BACK = 400
"""How long ago the first hour is that a story seals; each takes the next."""


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened, from `begun` to `ended`."""

    what: str
    begun: datetime
    ended: datetime
    lsn: Lsn | None = None
    """Where the WAL ended in an idle stretch."""

    def __str__(self) -> str:
        return f"{self.begun:%H:%M:%S.%f} to {self.ended:%H:%M:%S.%f}  {self.what}"


@dataclass
class Story:
    """Tells what happens to `server` while the world writes to it."""

    server: TestServer
    settings: Settings
    world: World
    pick: random.Random
    twins: bool = True
    """Whether copies of the server go on, for a while, where a timeline is left."""
    events: list[Event] = field(default_factory=list)
    branches: list[Branch] = field(default_factory=list)

    def __post_init__(self) -> None:
        first = datetime.now(UTC) - timedelta(hours=_HOURS_BACK)
        self._hour = Hour.containing(first)
        self._layout = Layout(self.settings.backup_root)

    def tell(self, events: int) -> None:
        """Let `events` things happen: all there are in random order, and then any of them again."""
        happenings = self._happenings()
        self.base()
        if self.twins:
            # It is not today's, so it is never replaced: the branches that are left have it.
            age_bases(self._layout, self.server.name)
        self._mark(_MARK)
        order = list(happenings)
        self.pick.shuffle(order)
        order = order[:events]
        order += self.pick.choices(list(happenings), list(happenings.values()), k=events - len(order))
        for happening in order:
            time.sleep(self.pick.uniform(0.1, 0.8))
            happening()
            self.world.check()
        time.sleep(0.3)

    def _happenings(self) -> dict[Callable[[], None], int]:
        return {
            self.base: 2,
            self.replaced_base: 1,
            self.early_bundle: 4,
            self.sealed_hour: 4,
            self.hour_without_server: 1,
            self.switch: 3,
            self.idle: 3,
            self.restart: 2,
            self.crash: 2,
            self.promotion: 1,
            self.manifest: 2,
            self.checkpoint: 1,
            self.large_transaction: 2,
            self.mark: 2,
        }

    def base(self) -> None:
        with self._event("a base backup"):
            age_bases(self._layout, self.server.name)
            take_base_backup(self.settings, self.server.name)

    def replaced_base(self) -> None:
        with self._event("today's base backup is replaced"):
            take_base_backup(self.settings, self.server.name, replace=True)

    def early_bundle(self) -> None:
        with self._event("the running hour is bundled early"):
            now = datetime.now(UTC)
            outcome = make_bundle(self.settings, self.server.name, Hour.containing(now), now=now)
            assert outcome.problem is None, outcome.problem

    def sealed_hour(self) -> None:
        self._hour = self._hour.following()
        with self._event(f"the hour {self._hour} is sealed and bundled, and its raw segments are pruned"):
            soon = self._hour.end + timedelta(minutes=1)
            outcome = make_bundle(self.settings, self.server.name, self._hour, now=soon)
            assert outcome.problem is None, outcome.problem
            assert outcome.record.state is BundleState.CLOSED
            again = make_bundle(self.settings, self.server.name, self._hour)
            assert not again.changed

    def hour_without_server(self) -> None:
        with self._event("the server is away while the running hour is bundled"):
            self.server.stop()
            now = datetime.now(UTC)
            outcome = make_bundle(self.settings, self.server.name, Hour.containing(now), now=now)
            assert outcome.problem is not None
            self.server.start()

    def switch(self) -> None:
        with self._event("pg_switch_wal"):
            self.server.execute("SELECT pg_switch_wal()")

    def idle(self) -> None:
        self.world.rest()
        ((lsn,),) = self.server.execute("SELECT pg_current_wal_insert_lsn()::text")
        with self._event("idle", Lsn.parse(lsn)):
            time.sleep(self.pick.uniform(0.3, 2.5))
        self.world.go_on()

    def restart(self) -> None:
        with self._event("a restart"):
            self.server.restart()

    def crash(self) -> None:
        with self._event("a crash and a restart"):
            self.server.crash()
            self.server.start()

    def promotion(self) -> None:
        crashed = self.pick.random() < 0.5
        with_twin = self.twins and (not self.branches or self.pick.random() < 0.3)
        twin: TestServer | None = None
        with self._event(f"a promotion after a {'crash' if crashed else 'shutdown'}"):
            # After a crash the timeline is left amid a segment.
            self.server.cluster.stop("immediate" if crashed else "fast")
            if with_twin:
                twin = copy(self.server)
            (self.server.cluster.data_directory / "standby.signal").touch()
            self.server.start()
            self.server.execute("SELECT pg_promote()")
            wait_for(lambda: not self.server.execute("SELECT pg_is_in_recovery()")[0][0], what="promotion")
        if twin is not None:
            with self._event("a twin goes on, on the timeline that was left"):
                self.branches.append(go_on(twin, self.known_since()))
                speak_last(self.server)

    def known_since(self) -> Lsn:
        """Return where the first base backup ended that can still be restored."""
        return read_inventory(self._layout, self.server.name).bases[0].end_lsn

    def mark(self) -> None:
        with self._event("restore points are named"):
            self._mark(_MARK)
            self._mark(f"{_MARK} {len(self.events)}")

    def _mark(self, name: str) -> None:
        self.server.execute("SELECT pg_create_restore_point(%s)", name)

    def manifest(self) -> None:
        with self._event("the manifest is refreshed"):
            refresh_manifest(self.settings)

    def checkpoint(self) -> None:
        with self._event("a checkpoint"):
            self.server.execute("CHECKPOINT")

    def large_transaction(self) -> None:
        with self._event("a transaction that spans segments"):
            self.world.fill(2 * self._segment_kilobytes())

    def _segment_kilobytes(self) -> int:
        ((size,),) = self.server.execute(
            "SELECT setting::int / 1024 FROM pg_settings WHERE name = 'wal_segment_size'"
        )
        return int(size)

    @contextmanager
    def _event(self, what: str, lsn: Lsn | None = None) -> Iterator[None]:
        begun = datetime.now(UTC)
        try:
            yield
        except BaseException:
            self.events.append(Event(f"{what}: FAILED", begun, datetime.now(UTC)))
            raise
        self.events.append(Event(what, begun, datetime.now(UTC), lsn))
