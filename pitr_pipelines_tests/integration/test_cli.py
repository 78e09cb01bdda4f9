"""The `pitr` command, as somebody at a terminal uses it: from a bare server to a restored table."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from pitr_pipelines.catalog.layout import Layout
from pitr_pipelines.settings import Settings
from pitr_pipelines.wal.hours import Hour
from pitr_pipelines_tests.integration.restoring import now
from pitr_pipelines_tests.servers import ServerFactory, SettingsMaker, TestServer

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).parents[2]


class Terminal:
    """Runs `pitr` with a settings file, and ends the servers that it restored."""

    def __init__(self, settings_file: Path) -> None:
        self.settings_file = settings_file
        self.restored: list[int] = []

    def run(self, *words: str, exit_code: int = 0) -> str:
        """Run one command and return its output; with `exit_code`, what it must end with."""
        done = self.result(*words)
        assert done.returncode == exit_code, done.stdout + done.stderr
        return done.stdout + done.stderr if exit_code else done.stdout

    def result(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", "from pitr_pipelines.cli import main; main(prog_name='pitr')", *words],
            env={**os.environ, "PITR_CONFIG": str(self.settings_file), "PYTHONPATH": str(REPOSITORY)},
            cwd=self.settings_file.parent,
            capture_output=True,
            text=True,
            timeout=120,
        )

    def restore(self, *words: str) -> Any:
        """Restore with --json and return the report."""
        report = json.loads(self.run("restore", *words, "--json"))
        if report["running"]:
            pid_file = Path(report["data_directory"]) / "postmaster.pid"
            self.restored.append(int(pid_file.read_text().split()[0]))
        return report

    def end_restored(self) -> None:
        """End the servers that were restored."""
        for pid in self.restored:
            try:
                os.kill(pid, signal.SIGQUIT)
            except ProcessLookupError:
                continue
            while Path(f"/proc/{pid}").exists():
                time.sleep(0.02)
        self.restored.clear()


@pytest.fixture
def server(server_factory: ServerFactory) -> TestServer:
    return server_factory(archiving=False)


@pytest.fixture
def settings(server: TestServer, pitr_settings: SettingsMaker) -> Settings:
    return pitr_settings(server)


@pytest.fixture
def terminal(settings: Settings, pitr_settings: SettingsMaker) -> Iterator[Terminal]:
    made = Terminal(pitr_settings.file)
    yield made
    made.end_restored()


def test_from_a_bare_server_to_a_dropped_table_that_is_back(
    server: TestServer, settings: Settings, terminal: Terminal
) -> None:
    assert "FAIL" in terminal.run("check", "order-db", exit_code=1)
    printed = terminal.run("init-db", "order-db", "--admin-dsn", server.admin_dsn, "--print-sql")
    assert "ALTER SYSTEM SET archive_mode" in printed
    assert server.execute("SELECT count(*) FROM pg_roles WHERE rolname = 'pitr'") == [(0,)]

    done = terminal.run("init-db", "order-db", "--admin-dsn", server.admin_dsn)
    assert "restart" in done
    server.restart()
    again = terminal.run("init-db", "order-db", "--admin-dsn", server.admin_dsn)
    assert "needs a restart" not in again
    checked = json.loads(terminal.run("check", "--json"))
    assert [finding for finding in checked["order-db"] if not finding["ok"]] == []

    server.execute("CREATE TABLE rows AS SELECT generate_series(1, 1000) AS id")
    assert "taken and verified" in terminal.run("backup")
    assert "there already" in terminal.run("backup", "order-db")
    assert "restore point" in terminal.run("bundle", "--now")
    server.execute("INSERT INTO rows VALUES (1001)")
    time.sleep(0.01)
    moment = now()
    time.sleep(0.01)
    server.execute("DROP TABLE rows")

    refused = terminal.run("restore", "order-db", moment.isoformat(), "--plan", exit_code=6)
    assert "known to be complete until" in refused
    terminal.run("bundle", "order-db", "--now")
    before = sorted(settings.backup_root.rglob("*")), server.running_segment()
    plan = terminal.run("restore", "order-db", moment.isoformat(), "--plan")
    assert "Nothing was changed" in plan
    assert (sorted(settings.backup_root.rglob("*")), server.running_segment()) == before
    assert not settings.restore_root.exists()

    report = terminal.restore("order-db", moment.isoformat())
    address = f"host=127.0.0.1 port={report['port']} user=postgres dbname=postgres"
    with psycopg.connect(address, autocommit=True) as connection:
        assert connection.execute("SELECT count(*) FROM rows").fetchone() == (1001,)
        assert connection.execute("SHOW archive_mode").fetchone() == ("off",)
        assert connection.execute("SHOW fsync").fetchone() == ("on",)
    again = terminal.run("restore", "order-db", "--latest", "--to", report["directory"], exit_code=7)
    assert report["directory"] in again

    status = json.loads(terminal.run("status", "--json"))
    assert status["order-db"]["windows"]
    assert "restorable" in terminal.run("status")
    assert "0 with problems" in terminal.run("verify")


def test_requests_that_make_no_sense_say_why_and_what_to_do(terminal: Terminal) -> None:
    assert "order-db" in terminal.run("restore", "other-db", "--latest", exit_code=2)
    assert "Give one" in terminal.run("restore", "order-db", exit_code=2)
    assert "not a time" in terminal.run("restore", "order-db", "yesterday", exit_code=2)
    assert "not an hour" in terminal.run("bundle", "--hour", "2026-01-29", exit_code=2)
    tomorrow = str(Hour.containing(now()).following())
    assert "has not begun" in terminal.run("bundle", "order-db", "--hour", tomorrow, exit_code=2)
    assert "no base backup" in terminal.run("restore", "order-db", "--latest", exit_code=6)
    answer = json.loads(terminal.result("restore", "order-db", "--latest", "--json").stdout)
    assert answer["exit_code"] == 6


def test_one_failing_database_does_not_stop_the_others_and_is_the_exit_code(
    server_factory: ServerFactory, pitr_settings: SettingsMaker
) -> None:
    up, down = server_factory("order-db"), server_factory("inventory-db")
    settings = pitr_settings(down, up)
    terminal = Terminal(pitr_settings.file)
    down.stop()
    output = terminal.run("backup", exit_code=3)
    assert "inventory-db does not accept our connection" in output
    assert "order-db: base backup of" in output
    assert Layout(settings.backup_root).base_record("order-db", now().date()).exists()


def test_verify_ends_with_1_when_something_is_wrong(
    server_factory: ServerFactory, pitr_settings: SettingsMaker
) -> None:
    server = server_factory()
    settings = pitr_settings(server)
    terminal = Terminal(pitr_settings.file)
    terminal.run("bundle", "--now")
    hour = Hour.containing(now())
    bundle = Layout(settings.backup_root).bundle("order-db", hour)
    if not bundle.exists():
        bundle = Layout(settings.backup_root).bundle("order-db", hour.preceding())
    bundle.write_bytes(bundle.read_bytes()[:-1])
    assert str(bundle) in terminal.run("verify", exit_code=1)
    manifest = Layout(settings.backup_root).manifest
    manifest.unlink()
    assert "pitr manifest rebuild" in terminal.run("verify", exit_code=1)
    terminal.run("manifest", "rebuild")
    assert manifest.exists()
