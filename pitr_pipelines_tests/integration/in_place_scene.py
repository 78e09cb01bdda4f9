"""A server with backups, whose data directory is to be replaced, and `pitr restore --in-place` for it."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from pitr_pipelines.catalog.layout import Layout
from pitr_pipelines.postgres.base_backup import take_base_backup
from pitr_pipelines.settings import Settings
from pitr_pipelines.wal.sealing import seal_now
from pitr_pipelines_tests.integration.restoring import now
from pitr_pipelines_tests.servers import SettingsMaker, TestServer

REPOSITORY = Path(__file__).parents[2]
RUN_PITR = "from pitr_pipelines.cli import main; main(prog_name='pitr')"


@dataclass
class Scene:
    """A database with a base backup; `before_drop` is a moment at which its table `rows` was whole."""

    server: TestServer
    settings: Settings
    settings_file: Path
    before_drop: datetime = field(init=False)

    @classmethod
    def of(cls, server: TestServer, make_settings: SettingsMaker) -> Scene:
        """Back up a running server, write three rows, drop the table, and stop it."""
        scene = cls(server, make_settings(server), make_settings.file)
        server.execute("CREATE TABLE rows AS SELECT generate_series(1, 2) AS id")
        take_base_backup(scene.settings, server.name)
        server.execute("INSERT INTO rows VALUES (3)")
        scene.before_drop = moment()
        server.execute("DROP TABLE rows")
        server.execute("CREATE TABLE after_the_drop (id int)")
        scene.seal()
        server.stop()
        return scene

    @property
    def data(self) -> Path:
        return self.server.cluster.data_directory

    def seal(self) -> None:
        """Bring everything that was written so far into the archive."""
        seal_now(self.settings, Layout(self.settings.backup_root), self.server.name, now())

    def rows(self) -> set[int]:
        return {row[0] for row in self.server.execute("SELECT id FROM rows")}

    def has_table(self, name: str) -> bool:
        return self.server.execute("SELECT to_regclass(%s) IS NOT NULL", name) == [(True,)]

    def pitr(self, *words: str, exit_code: int = 0, code: str = RUN_PITR) -> str:
        """Run a command and return all that it printed."""
        done = subprocess.run(
            [sys.executable, "-c", code, *words],
            env={**os.environ, "PITR_CONFIG": str(self.settings_file), "PYTHONPATH": str(REPOSITORY)},
            capture_output=True,
            text=True,
            timeout=180,
            stdin=subprocess.DEVNULL,
        )
        assert done.returncode == exit_code, done.stdout + done.stderr
        return done.stdout + done.stderr

    def in_place(self, *words: str, exit_code: int = 0, code: str = RUN_PITR) -> str:
        """Restore in place, by default to before the drop."""
        target = [] if {"--undo", "--latest"} & set(words) else [self.before_drop.isoformat()]
        name = self.server.name
        return self.pitr(
            "restore", name, *target, "--in-place", str(self.data), *words, exit_code=exit_code, code=code
        )

    def beside(self, what: str) -> list[Path]:
        """Return what lies beside the data directory and belongs to it: `before-restore`, `undone` …"""
        return sorted(self.data.parent.glob(f"{self.data.name}.{what}-*"))

    def fingerprint(self, directory: Path | None = None) -> str:
        """Return a hash of everything in a data directory: names, modes, owners, times, content."""
        root = directory or self.data
        digest = hashlib.sha256()
        for path in sorted(root.rglob("*")):
            status = path.lstat()
            entry = (path.relative_to(root), status.st_mode, status.st_uid, status.st_gid, status.st_mtime_ns)
            digest.update(repr(entry).encode())
            if path.is_file() and not path.is_symlink():
                digest.update(path.read_bytes())
        return digest.hexdigest()


def moment() -> datetime:
    """Return a moment that no transaction shares."""
    time.sleep(0.01)
    taken = now()
    time.sleep(0.01)
    return taken
