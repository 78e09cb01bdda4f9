"""Real PostgreSQL servers for tests, ready in a fraction of a second each.

initdb runs once for each version and segment size; a test's server is a copy that gets a system
identifier of its own. They listen on 127.0.0.1 alone, trust every local user, and are ended by
process number when the test is over. Sources under backup run with fsync off: no test pulls the plug.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import psycopg
import pytest
import yaml
from psycopg import sql

import pitr_pipelines
from pitr_pipelines.catalog.layout import Layout
from pitr_pipelines.errors import ServerNotReady
from pitr_pipelines.postgres.account import Account, make_owned_directory, run
from pitr_pipelines.postgres.binaries import Binaries, find_all_binaries, find_binaries
from pitr_pipelines.postgres.server import Cluster, free_port
from pitr_pipelines.settings import DatabaseSettings, Settings, load_settings

REQUIRED_VARIABLE = "PITR_REQUIRE_MAJORS"
"""`15,18`: majors whose absence fails tests. Without it, absent majors are not tested."""

BINARIES_VARIABLE = "PITR_TEST_BINARIES"
"""`15=/path/to/bin,17=/other/bin`: installations to test instead of those that are found."""

ARCHIVE_SCRIPT = Path(pitr_pipelines.__file__).parent / "wal" / "wal-archive.sh"

_SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "fsync": "off",
    "shared_buffers": "16MB",
    "max_connections": "25",
    "max_wal_senders": "5",
    "log_line_prefix": "%m [%p] ",
    "log_statement": "ddl",
}


def configured_binaries() -> dict[int, Path]:
    """Return the installations that the environment names, for Settings.binaries."""
    entries = filter(None, os.environ.get(BINARIES_VARIABLE, "").split(","))
    return {int(major): Path(path) for major, _, path in (entry.partition("=") for entry in entries)}


def required_majors() -> list[int]:
    return [int(major) for major in filter(None, os.environ.get(REQUIRED_VARIABLE, "").split(","))]


MAJORS = sorted({*find_all_binaries(configured_binaries()), *required_majors()})
"""Every major version to test: those this machine has, and those it is required to have."""

each_major = pytest.mark.parametrize("major", MAJORS)
"""Run a test once for each major version, oldest first; it takes the argument `major`."""


def binaries_of(major: int | None) -> Binaries:
    """Return a major's programs, by default the newest. Skips if this machine has none at all."""
    if not MAJORS:
        pytest.skip(f"no PostgreSQL on this machine; {REQUIRED_VARIABLE}=15,18 would make this a failure")
    return find_binaries(major or MAJORS[-1], configured_binaries())


@dataclass
class TestServer:
    """A running server. `dsn` is for the backup role, `admin_dsn` for the superuser."""

    __test__: ClassVar[bool] = False

    name: str
    cluster: Cluster
    port: int
    log_file: Path
    archive: Path
    dsn: str = field(init=False)
    admin_dsn: str = field(init=False)

    def __post_init__(self) -> None:
        self.dsn = f"host=127.0.0.1 port={self.port} user=pitr dbname=postgres"
        self.admin_dsn = f"host=127.0.0.1 port={self.port} user=postgres dbname=postgres"

    @property
    def major(self) -> int:
        return self.cluster.binaries.major

    @property
    def settings_entry(self) -> dict[str, Any]:
        """What pitr.yaml says about this server."""
        return {"dsn": self.dsn, "archive_timeout_s": 0}

    @property
    def settings(self) -> DatabaseSettings:
        return DatabaseSettings.model_validate(self.settings_entry)

    def connect(self, user: str = "postgres", **parameters: Any) -> psycopg.Connection[Any]:
        """Return a new connection in autocommit mode, by default the superuser's."""
        address = {"host": "127.0.0.1", "port": self.port, "user": user, "dbname": "postgres"}
        return psycopg.connect(**{**address, **parameters}, autocommit=True)

    def execute(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        """Run one statement as superuser, in its own transaction, and return its rows if it has any."""
        with self.connect() as connection:
            cursor = connection.execute(statement.encode(), values or None)
            return cursor.fetchall() if cursor.description else []

    def archive_wal(self) -> str:
        """Commit something, end the running segment, and return its name once it is archived."""
        self.execute("SELECT pg_logical_emit_message(true, 'test', 'recovery to a time stops only here')")
        return self.switch_wal()

    def switch_wal(self) -> str:
        """End the running segment as it is, and return its name once it is archived.

        It must hold something: the server ends no empty one. The file is in the archive a moment before
        the archiver knows; only when that has had its answer does nothing wait any more.
        """
        ((name,),) = self.execute("SELECT pg_walfile_name(pg_switch_wal())")
        waiting = "SELECT count(*) FROM pg_ls_archive_statusdir() WHERE name = %s"
        wait_for(
            lambda: (self.archive / name).exists() and self.execute(waiting, f"{name}.ready") == [(0,)],
            what=f"{name} in the archive",
        )
        return str(name)

    def running_segment(self) -> str:
        """Return the segment that is being written: sealing ends it, nothing that the server does alone."""
        ((name,),) = self.execute("SELECT pg_walfile_name(pg_current_wal_insert_lsn())")
        return str(name)

    def configure(self, settings: Mapping[str, str]) -> None:
        """Append settings to postgresql.conf; they hold from the next start or reload."""
        with (self.cluster.data_directory / "postgresql.conf").open("a") as file:
            file.writelines(f"{name} = '{_quoted(value)}'\n" for name, value in settings.items())

    def write_hba(self, *lines: str) -> None:
        """Replace pg_hba.conf and reload it."""
        (self.cluster.data_directory / "pg_hba.conf").write_text("".join(f"{line}\n" for line in lines))
        pid = self.cluster.pid()
        if pid is not None:
            os.kill(pid, signal.SIGHUP)
            # The postmaster reads the file before it takes another connection, but signals can be late.
            time.sleep(0.1)

    def start(self) -> None:
        self.cluster.start(log_file=self.log_file)

    def stop(self) -> None:
        self.cluster.stop("fast")

    def restart(self) -> None:
        self.stop()
        self.start()

    def crash(self) -> None:
        """End the server without a checkpoint, as a crash would."""
        self.cluster.stop("immediate")

    def log(self) -> str:
        return self.log_file.read_text(errors="replace")


class ServerFactory:
    """Makes servers below one directory that the server account can reach, and ends them all."""

    def __init__(self, directory: Path, templates: Templates) -> None:
        self.directory = directory
        self.account = templates.account
        self.backup_root = directory / "backup"
        self._templates = templates
        self._servers: list[TestServer] = []

    def __call__(
        self,
        name: str = "order-db",
        *,
        major: int | None = None,
        wal_segment_size_mb: int = 16,
        options: Mapping[str, str] | None = None,
        archiving: bool = True,
        start: bool = True,
    ) -> TestServer:
        """Make a server; `options` go to its postgresql.conf.

        With `archiving` it archives with wal-archive.sh to <backup_root>/wal/<name>, and has the
        role `pitr` with the rights of the least-privilege role. Without, it is as initdb leaves it.
        """
        data_directory = self.directory / f"{name}.data"
        cluster = self._templates.copy(data_directory, major, wal_segment_size_mb)
        sockets = self.directory / "sockets"
        if not sockets.exists():
            make_owned_directory(sockets, self.account, mode=0o755)
        archive = Layout(self.backup_root).wal(name)
        server = TestServer(name, cluster, free_port(), self.directory / f"{name}.log", archive)
        self._servers.append(server)
        server.configure({**_SETTINGS, "port": str(server.port), "unix_socket_directories": str(sockets)})
        if archiving:
            server.configure({"archive_mode": "on", "archive_command": self.make_archive(name)})
        server.configure(options or {})
        if start:
            server.start()
            if archiving:
                create_backup_role(server)
        return server

    def make_archive(self, name: str) -> str:
        """Create a database's archive and the script; return the archive_command that uses them."""
        layout = Layout(self.backup_root)
        script = layout.archive_script
        for directory in (self.backup_root, script.parent, layout.wal(name).parent):
            directory.mkdir(mode=0o755, exist_ok=True)
            directory.chmod(0o755)
        if not script.exists():
            shutil.copyfile(ARCHIVE_SCRIPT, script)
            script.chmod(0o755)
        if not layout.wal(name).exists():
            make_owned_directory(layout.wal(name), self.account, mode=0o750)
        return f'"{script}" "{layout.wal(name)}" "%p" "%f"'

    def stop_all(self) -> None:
        """End every server, politely or not."""
        for server in self._servers:
            pid = server.cluster.pid()
            try:
                server.cluster.stop("immediate", timeout_s=20)
            except ServerNotReady:
                if pid is not None:
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)


class Templates:
    """Clusters fresh from initdb, one for each version and segment size, made when first needed."""

    def __init__(self, directory: Path, account: Account) -> None:
        self.account = account
        self._directory = directory
        self._made: dict[tuple[int, int], Cluster] = {}

    def copy(self, data_directory: Path, major: int | None, wal_segment_size_mb: int) -> Cluster:
        """Make a new cluster with its own system identifier in `data_directory`."""
        binaries = binaries_of(major).reachable_by(self.account)
        key = (binaries.major, wal_segment_size_mb)
        if key not in self._made:
            self._made[key] = Cluster.create(
                self._directory / f"{binaries.major}-{wal_segment_size_mb}",
                binaries,
                self.account,
                wal_segment_size_mb=wal_segment_size_mb,
                auth_host="trust",
                durable=False,
            )
        template = self._made[key].data_directory
        subprocess.run(["cp", "-a", "--reflink=auto", template, data_directory], check=True)
        cluster = Cluster(data_directory, binaries, self.account)
        _give_new_identity(cluster)
        return cluster


def _give_new_identity(cluster: Cluster) -> None:
    """Let pg_resetwal put another system identifier into pg_control and a new first segment.

    It reads the identifier that we put into pg_control (its first eight bytes), takes the rest as it
    is although the checksum no longer fits, which is what -f is for, and writes everything anew.
    """
    control_file = cluster.data_directory / "global" / "pg_control"
    identifier = (int(time.time()) << 32) | secrets.randbits(32)
    with control_file.open("r+b") as file:
        file.write(identifier.to_bytes(8, "little"))
    program = cluster.binaries.program("pg_resetwal")
    done = run(cluster.account, [program, "-f", "-D", cluster.data_directory])
    assert done.returncode == 0, done.stderr
    assert cluster.control_data()["Database system identifier"] == str(identifier)


def create_backup_role(server: TestServer, role: str = "pitr") -> None:
    """Create the least-privilege role that everything under test should get along with."""
    with server.connect() as connection:
        connection.execute(sql.SQL("CREATE ROLE {} LOGIN REPLICATION").format(sql.Identifier(role)))
        connection.execute(sql.SQL("GRANT pg_monitor TO {}").format(sql.Identifier(role)))
        for function in ("pg_create_restore_point(text)", "pg_switch_wal()"):
            connection.execute(
                sql.SQL("GRANT EXECUTE ON FUNCTION {} TO {}").format(sql.SQL(function), sql.Identifier(role))
            )


class SettingsMaker:
    """Writes pitr.yaml for some servers and reads it back the way the product does."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.file = directory / "pitr.yaml"

    def __call__(self, *servers: TestServer, **keys: Any) -> Settings:
        """Return settings with one database for each server; `keys` are added at the top level."""
        values = {
            "backup_root": str(self.directory / "backup"),
            "restore_root": str(self.directory / "restore"),
            "binaries": {major: str(path) for major, path in configured_binaries().items()},
            "databases": {server.name: server.settings_entry for server in servers},
            **keys,
        }
        self.file.write_text(yaml.safe_dump(values))
        return load_settings(self.file)


def make_reachable_directory() -> Path:
    """Create a directory with a short path that every user can enter, whatever TMPDIR is."""
    while True:
        path = Path("/tmp") / f"pitr-{secrets.token_hex(4)}"
        with suppress(FileExistsError):
            path.mkdir(mode=0o700)
            path.chmod(0o755)
            return path


def remove_directory(path: Path) -> None:
    """Remove a tree although a dying server may still write into it for a moment."""
    for _ in range(50):
        shutil.rmtree(path, ignore_errors=True)
        if not path.exists():
            return
        time.sleep(0.1)
    shutil.rmtree(path)


def wait_for(
    condition: Callable[[], object],
    *,
    timeout_s: float = 60.0,
    what: str = "the condition",
    every_s: float = 0.02,
) -> None:
    """Poll until `condition()` is true, asked every `every_s` seconds; fail after `timeout_s` seconds."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"waited {timeout_s:.0f} s for {what}"
        time.sleep(every_s)


def _quoted(value: str) -> str:
    return value.replace("\\", "\\\\").replace("'", "''")
