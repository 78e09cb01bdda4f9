"""A history of backups in which every way to be unrecoverable can be shown, and how to ask of it.

Three bases; a timeline that was left, with a restore point on it; a segment that is missing between the
first two bases; and a server that is gone.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from pathlib import Path

from pitr_pipelines.catalog.layout import Layout
from pitr_pipelines.postgres.base_backup import take_base_backup
from pitr_pipelines.restore.target import (
    ImmediateTarget,
    LatestTarget,
    LsnTarget,
    NameTarget,
    Target,
    TimeTarget,
    XidTarget,
)
from pitr_pipelines.settings import Settings
from pitr_pipelines.wal.bundles import make_bundle
from pitr_pipelines.wal.hours import Hour
from pitr_pipelines.wal.lsn import Lsn
from pitr_pipelines_tests.integration.restoring import age_bases, now
from pitr_pipelines_tests.oracle.twin import copy
from pitr_pipelines_tests.restore.scenes import snapshot
from pitr_pipelines_tests.servers import ServerFactory, SettingsMaker, TestServer, remove_directory, wait_for

DATABASE, WITHOUT_BASE = "order-db", "inventory-db"
HERE = Path(__file__).parents[2]


@dataclass
class History:
    """Three bases; a timeline that was left; a gap between the first two; and a server that is gone."""

    root: Path
    settings: Settings
    server: TestServer
    xid: int = 0
    subtransaction: int = 0
    before_gap: datetime | None = None
    in_gap: datetime | None = None
    late: datetime | None = None
    gone: datetime | None = None
    missing: str = ""
    newest: str = ""

    @property
    def layout(self) -> Layout:
        return Layout(self.settings.backup_root)

    def moment(self, name: str) -> datetime:
        found = getattr(self, name)
        assert isinstance(found, datetime)
        return found

    def target(self, what: str) -> Target:
        """Return what a case asks for, by a short name."""
        first, *_ = sorted(path.name for path in self.layout.bases(DATABASE).iterdir() if path.name[0] == "2")
        started = (self.before_gap or now()) - timedelta(days=300)
        targets: dict[str, Target] = {
            "latest": LatestTarget(),
            "too early": TimeTarget(started),
            "too early an LSN": LsnTarget(Lsn.parse("0/28")),
            "in the future": TimeTarget(now() + timedelta(days=1)),
            "in the gap": TimeTarget(self.moment("in_gap")),
            "not covered yet": TimeTarget(self.moment("gone")),
            "abandoned": NameTarget("on the twin alone"),
            "an unknown xid": XidTarget(self.xid + 100_000),
            "an unknown name": NameTarget("nowhere"),
            "an LSN beyond the end": LsnTarget(Lsn.parse("FF/0")),
            "a subtransaction": XidTarget(self.subtransaction),
            "another day's base": ImmediateTarget(date.fromisoformat(first) - timedelta(days=1)),
            "late": TimeTarget(self.moment("late")),
        }
        return targets[what]


def tell(factory: ServerFactory, root: Path) -> History:
    server = factory(DATABASE, wal_segment_size_mb=1)
    entries = {DATABASE: server.settings_entry, WITHOUT_BASE: {"dsn": "host=127.0.0.1 port=1 user=pitr"}}
    settings = SettingsMaker(root)(server, databases=entries, timezone="Europe/Paris")
    made = History(root, settings, server)
    server.execute("CREATE TABLE rows (id int)")
    take_base_backup(settings, DATABASE)
    with server.connect() as connection, connection.transaction():
        made.xid = connection.execute("SELECT pg_current_xact_id()::text::int").fetchall()[0][0]
        with connection.transaction():
            connection.execute("INSERT INTO rows VALUES (1)")
            made.subtransaction = connection.execute("SELECT xmin::text::int FROM rows").fetchall()[0][0]
    promote(server)
    make_bundle(settings, DATABASE, Hour.containing(now()))
    write(server)
    made.before_gap = now()
    write(server)
    made.missing = server.switch_wal()
    made.in_gap = now()
    write(server)
    server.switch_wal()
    for _ in range(2):
        age_bases(made.layout, DATABASE)
        take_base_backup(settings, DATABASE)
        write(server)
        server.switch_wal()
    made.late = now()
    write(server)
    made.newest = server.switch_wal()
    server.stop()
    time.sleep(0.01)
    made.gone = now()
    (made.layout.wal(DATABASE) / made.missing).unlink()
    kept = settings.restore_root / "kept"
    kept.mkdir(parents=True)
    (kept / "precious").write_text("not to be touched")
    return made


def write(server: TestServer) -> None:
    server.execute("INSERT INTO rows VALUES (2)")
    time.sleep(0.01)


def promote(server: TestServer) -> None:
    """Leave the timeline; a twin goes on there and archives what is on it alone."""
    server.stop()
    twin = copy(server)
    twin.start()
    try:
        twin.execute("SELECT pg_create_restore_point('on the twin alone')")
        twin.switch_wal()
    finally:
        twin.crash()
    (server.cluster.data_directory / "standby.signal").touch()
    server.start()
    server.execute("SELECT pg_promote()")
    wait_for(lambda: not server.execute("SELECT pg_is_in_recovery()")[0][0], what="promotion")
    write(server)
    server.switch_wal()


@contextmanager
def untouched(history: History) -> Iterator[None]:
    """Where restores go, and what they are made from, is afterwards as it was before."""

    def backups() -> dict[str, tuple[int, int, int]]:
        root = history.settings.backup_root
        found = snapshot(root)
        # Locks begin with a dot; that they are taken changes the times of directories.
        whole = {path for path in found if Path(path).name[0] != "." and (root / path).is_file()}
        return {path: found[path] for path in whole}

    root = history.settings.restore_root
    before = snapshot(root), backups(), sorted(path.name for path in history.root.iterdir())
    yield
    assert (snapshot(root), backups(), sorted(path.name for path in history.root.iterdir())) == before
    assert (root / "kept" / "precious").read_text() == "not to be touched"


@contextmanager
def copied(history: History) -> Iterator[History]:
    """Give the history with a copy of its backups, to be damaged."""
    root = history.root / "copy"
    shutil.copytree(history.settings.backup_root, root, symlinks=True)
    try:
        yield History(
            **{**vars(history), "settings": history.settings.model_copy(update={"backup_root": root})}
        )
    finally:
        remove_directory(root)


def pitr(history: History, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", "from pitr_pipelines.cli import main; main(prog_name='pitr')", *words],
        env={**os.environ, "PITR_CONFIG": str(history.root / "pitr.yaml"), "PYTHONPATH": str(HERE)},
        capture_output=True,
        text=True,
        timeout=120,
    )
