"""Every target and what is done there, as somebody at a terminal asks for it."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from datetime import UTC
from pathlib import Path
from typing import Any

import psycopg
import pytest

from pitr_pipelines_tests.integration.restoring import now
from pitr_pipelines_tests.integration.test_at_target import written
from pitr_pipelines_tests.integration.test_cli import Terminal
from pitr_pipelines_tests.integration.test_targets import start
from pitr_pipelines_tests.servers import ServerFactory, SettingsMaker

pytestmark = pytest.mark.slow


@pytest.fixture
def terminal(pitr_settings: SettingsMaker) -> Iterator[Terminal]:
    made = Terminal(pitr_settings.file)
    yield made
    made.end_restored()


def rows(report: Any) -> set[int]:
    address = f"host=127.0.0.1 port={report['port']} user=postgres dbname=postgres"
    with psycopg.connect(address) as connection:
        return {row[0] for row in connection.execute("SELECT id FROM rows")}


def test_each_option_restores_what_it_names(
    server_factory: ServerFactory, pitr_settings: SettingsMaker, terminal: Terminal
) -> None:
    made = start(server_factory, pitr_settings, None)
    for number in (1, 2, 3):
        made.insert(number)
        made.mark(f"after {number}")
    made.connection.execute("SELECT pg_switch_wal()")
    made.connection.close()
    made.server.stop()
    day = now().astimezone(UTC).date().isoformat()
    asked: dict[tuple[str, ...], set[int]] = {
        (made.times[1].isoformat(),): {0, 1},
        (made.times[1].isoformat(), "--exclusive"): {0},
        ("--lsn", str(made.lsns[2])): {0, 1, 2},
        ("--lsn", str(made.lsns[2]), "--exclusive"): {0, 1, 2},
        ("--name", "after 2"): {0, 1, 2},
        ("--xid", str(made.xids[2])): {0, 1, 2},
        ("--xid", str(made.xids[2]), "--exclusive"): {0, 1},
        ("--immediate",): {0},
        ("--immediate", "--base", day): {0},
        ("--latest",): {0, 1, 2, 3},
    }
    for words, expected in asked.items():
        report = terminal.restore("order-db", *words)
        assert report["at_target"] == "promote"
        assert rows(report) == expected, words
        terminal.end_restored()


def test_paused_looked_into_moved_on_and_promoted(
    server_factory: ServerFactory, pitr_settings: SettingsMaker, terminal: Terminal
) -> None:
    made = written(server_factory, pitr_settings)
    said = terminal.run("restore", "order-db", "--xid", str(made.xids[1]), "--at-target", "shutdown")
    directory = next(made.settings.restore_root.iterdir())
    command = f"pitr restore order-db --resume {directory}"
    assert "in recovery at the target, its server stopped" in said
    assert f"  promote   {command}\n" in said
    assert f"  move on   {command} --latest" in said

    report = terminal.restore(
        "order-db", "--resume", str(directory), "--xid", str(made.xids[2]), "--at-target", "pause"
    )
    assert report["running"] is True
    assert rows(report) == {0, 1, 2}
    planned = terminal.run("restore", "order-db", "--resume", str(directory), "--latest", "--plan")
    assert "Nothing was changed" in planned
    assert rows(report) == {0, 1, 2}
    report = terminal.restore("order-db", "--resume", str(directory))
    assert report["at_target"] == "promote"
    assert rows(report) == {0, 1, 2}


def everything(directory: Path) -> dict[str, tuple[int, int]]:
    """Return what is in a directory, but for what a running server writes by itself."""
    found = (path for path in directory.rglob("*") if path.is_file())
    return {
        str(path.relative_to(directory)): (path.stat().st_mtime_ns, path.stat().st_size)
        for path in found
        if path.name not in ("server.log", "postmaster.pid")
    }


def test_what_cannot_be_resumed_is_refused_and_untouched(
    server_factory: ServerFactory, pitr_settings: SettingsMaker, terminal: Terminal
) -> None:
    made = written(server_factory, pitr_settings)
    terminal.run("restore", "order-db", "--xid", str(made.xids[2]), "--at-target", "shutdown")
    directory = next(made.settings.restore_root.iterdir())
    before = everything(directory)

    def refused(*words: str, exit_code: int, place: Path = directory) -> str:
        said = terminal.run("restore", "order-db", "--resume", str(place), *words, exit_code=exit_code)
        assert everything(directory) == before
        return said

    assert "not ahead of what" in refused("--xid", str(made.xids[1]), exit_code=6)
    assert "not ahead of what" in refused("--xid", str(made.xids[2]), exit_code=6)
    assert "not ahead of what" in refused("--lsn", str(made.lsns[1]), exit_code=6)
    assert "not ahead of what" in refused(made.times[1].isoformat(), exit_code=6)
    assert "holds that already" in refused("--immediate", exit_code=2)
    assert "several targets" in refused("--latest", "--xid", "800", exit_code=2)
    assert "Ask for shutdown" in refused("--latest", "--at-target", "pause", "--stop", exit_code=2)
    assert "there is nothing to plan" in refused("--at-target", "pause", exit_code=2)
    assert "stays where it is" in refused("--to", "/elsewhere", exit_code=2)
    assert "no restore of ours" in refused(exit_code=7, place=made.settings.backup_root)
    assert "no restore of ours" in refused(exit_code=7, place=directory / "nowhere")

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert f"the port {port} of 127.0.0.1 is taken" in refused("--port", port, exit_code=7)

    base = next((made.settings.backup_root / "base" / "order-db").iterdir())
    hidden = base.rename(made.settings.backup_root / "hidden")
    assert "is gone" in refused("--latest", exit_code=6)
    hidden.rename(base)

    report = directory / "restore.json"
    text = report.read_text()
    other = json.loads(text) | {"database": "other-db"}
    report.write_text(json.dumps(other))
    said = terminal.run("restore", "order-db", "--resume", str(directory), exit_code=7)
    assert "is a restore of other-db" in said
    report.write_text(text)

    (directory / "INCOMPLETE").touch()
    assert "INCOMPLETE" in terminal.run("restore", "order-db", "--resume", str(directory), exit_code=7)
    (directory / "INCOMPLETE").unlink()

    moved = directory.rename(directory.with_name("moved"))
    assert "was restored as" in terminal.run("restore", "order-db", "--resume", str(moved), exit_code=7)
    moved.rename(directory)

    terminal.restore("order-db", "--resume", str(directory), "--stop")
    said = terminal.run("restore", "order-db", "--resume", str(directory), exit_code=7)
    assert "is promoted already" in said
