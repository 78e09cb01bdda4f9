"""pg_basebackup never outlives us nor shows a password, and its failures leave nothing and say why."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from pitr_pipelines.catalog.layout import BASE_RECORD, Layout
from pitr_pipelines.errors import (
    ArtifactBusy,
    BinariesNotFound,
    PitrError,
    ServerNotReady,
    ServerUnavailable,
)
from pitr_pipelines.postgres.base_backup import take_base_backup
from pitr_pipelines.postgres.base_contents import verify_base
from pitr_pipelines.postgres.binaries import Binaries
from pitr_pipelines.postgres.pg_basebackup import choose_compression
from pitr_pipelines.progress import Progress
from pitr_pipelines_tests.postgres.base_leftovers import hidden, published
from pitr_pipelines_tests.servers import (
    ServerFactory,
    SettingsMaker,
    TestServer,
    wait_for,
)

_TAKE = """
import os, signal, sys
from pitr_pipelines.postgres import base_backup
from pitr_pipelines.settings import load_settings

def die(*args):
    os.kill(os.getpid(), signal.SIGKILL)

settings, name, where = load_settings(sys.argv[1]), sys.argv[2], sys.argv[3]
if where == "record":
    base_backup.write_record = die
base_backup.take_base_backup(settings, name, progress=lambda at: die() if at.step == where else None)
"""


def start_taking(maker: SettingsMaker, server: TestServer, die_at: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", _TAKE, str(maker.file), server.name, die_at])


def processes_naming(text: str) -> dict[int, str]:
    """Every process of this machine with `text` among its arguments."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            arguments = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if text in arguments:
            found[int(process.name)] = arguments
    return found


@pytest.mark.parametrize("where", ["copy", "verify", "record"])
def test_killed_half_way_it_leaves_nothing_that_counts_and_the_next_run_cleans_up(
    where: str, server_factory: ServerFactory, pitr_settings: SettingsMaker
) -> None:
    server = server_factory()
    settings = pitr_settings(server)
    layout = Layout(settings.backup_root)
    assert start_taking(pitr_settings, server, where).wait(60) == -signal.SIGKILL
    assert hidden(settings, server.name) != []
    assert published(settings, server.name) == []
    wait_for(lambda: not processes_naming(str(layout.bases(server.name))), what="pg_basebackup to end")
    record = take_base_backup(settings, server.name)
    verify_base(layout.base(server.name, record.day), record)
    assert hidden(settings, server.name) == []


def test_a_second_run_is_told_to_wait_and_pg_basebackup_dies_with_the_first(
    server_factory: ServerFactory, pitr_settings: SettingsMaker
) -> None:
    # A spread checkpoint with many dirty buffers lets the backup wait as long as we like.
    server = server_factory(options={"checkpoint_timeout": "1h", "checkpoint_completion_target": "1"})
    server.execute("CREATE TABLE big AS SELECT generate_series(1, 200000) AS n")
    slow = pitr_settings(server, base_backup={"fast_checkpoint": False})
    bases = str(Layout(slow.backup_root).bases(server.name))
    first = start_taking(pitr_settings, server, "never")
    try:
        wait_for(
            lambda: server.execute(
                "SELECT 1 FROM pg_stat_progress_basebackup WHERE phase ~ 'waiting for checkpoint'"
            ),
            what="the backup to wait for its checkpoint",
        )
        with pytest.raises(ArtifactBusy, match=f"the base backups of {server.name}"):
            take_base_backup(slow, server.name)
        assert len(processes_naming(bases)) >= 1
    finally:
        first.kill()
        first.wait()
    wait_for(lambda: not processes_naming(bases), what="pg_basebackup to end", timeout_s=5)
    record = take_base_backup(pitr_settings(server), server.name)
    assert hidden(slow, server.name) == []
    assert record.day == record.started_at.date()


def test_the_password_is_used_and_nobody_sees_it(
    server_factory: ServerFactory, pitr_settings: SettingsMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = f"s3cret{os.getpid()}"
    password = f"{secret}: \\with colon"
    server = server_factory()
    server.execute(f"ALTER ROLE pitr PASSWORD '{password}'")
    server.write_hba(
        "host all postgres 127.0.0.1/32 trust",
        "host all pitr 127.0.0.1/32 scram-sha-256",
        "host replication pitr 127.0.0.1/32 scram-sha-256",
    )
    settings = pitr_settings(
        server, databases={server.name: {**server.settings_entry, "password_env": "ORDER_PW"}}
    )
    monkeypatch.setenv("ORDER_PW", "wrong")
    with pytest.raises(ServerUnavailable):
        take_base_backup(settings, server.name)
    monkeypatch.setenv("ORDER_PW", password)
    seen: list[str] = []
    environments: list[str] = []

    def look(progress: Progress) -> None:
        seen.extend(processes_naming(str(settings.backup_root)).values())
        assert processes_naming(secret) == {}
        for pid in processes_naming(str(settings.backup_root)):
            with suppress(OSError):  # it has just ended, or is just ending
                environments.append(Path(f"/proc/{pid}/environ").read_text(errors="replace"))

    record = take_base_backup(settings, server.name, progress=look)
    assert any("--dbname=" in arguments for arguments in seen)
    assert any("PGPASSFILE=" in environment for environment in environments)
    assert not any(secret in environment for environment in environments)
    directory = Layout(settings.backup_root).base(server.name, record.day)
    assert secret not in (directory / BASE_RECORD).read_text()


def test_a_server_without_a_replication_line_in_pg_hba_is_named_with_what_to_do(
    server_factory: ServerFactory, pitr_settings: SettingsMaker
) -> None:
    server = server_factory()
    server.write_hba("host all all 127.0.0.1/32 trust")
    settings = pitr_settings(server)
    with pytest.raises(ServerNotReady, match=r"no pg_hba\.conf entry for replication") as caught:
        take_base_backup(settings, server.name)
    assert "Add a line for database `replication`" in caught.value.remedy
    assert hidden(settings, server.name) == []


@pytest.mark.parametrize(
    ("options", "remedy"),
    [
        ({"max_wal_senders": "1"}, "raise max_wal_senders"),
        ({"max_replication_slots": "0"}, "raise max_replication_slots"),
    ],
)
def test_too_few_places_for_replication_are_named_with_what_to_do(
    options: dict[str, str], remedy: str, server_factory: ServerFactory, pitr_settings: SettingsMaker
) -> None:
    server = server_factory(options=options)
    settings = pitr_settings(server)
    with pytest.raises(ServerNotReady) as caught:
        take_base_backup(settings, server.name)
    assert remedy in caught.value.remedy
    assert hidden(settings, server.name) == []
    assert published(settings, server.name) == []


def test_a_server_that_is_gone_is_unavailable(
    server_factory: ServerFactory, pitr_settings: SettingsMaker
) -> None:
    server = server_factory()
    settings = pitr_settings(server)
    server.stop()
    with pytest.raises(ServerUnavailable):
        take_base_backup(settings, server.name)


def test_a_server_that_goes_away_in_the_middle_leaves_nothing(
    server_factory: ServerFactory, pitr_settings: SettingsMaker
) -> None:
    server = server_factory()
    settings = pitr_settings(server)

    def crash(progress: Progress) -> None:
        if server.cluster.pid() is not None:
            server.crash()

    with pytest.raises(PitrError):
        take_base_backup(settings, server.name, progress=crash)
    assert hidden(settings, server.name) == []
    assert published(settings, server.name) == []


def test_a_pg_basebackup_that_is_killed_is_noticed_and_leaves_nothing(
    server_factory: ServerFactory, pitr_settings: SettingsMaker
) -> None:
    server = server_factory()
    settings = pitr_settings(server)
    bases = Layout(settings.backup_root).bases(server.name)

    def kill_leader(progress: Progress) -> None:
        if progress.step == "copy":
            for pid in processes_naming(str(bases)):
                if os.getpgid(pid) == pid:
                    os.kill(pid, signal.SIGKILL)

    with pytest.raises(PitrError, match="ended by SIGKILL"):
        take_base_backup(settings, server.name, progress=kill_leader)
    wait_for(lambda: not processes_naming(str(bases)), what="its children to end", timeout_s=5)
    assert hidden(settings, server.name) == []


def test_an_interrupt_ends_pg_basebackup_and_leaves_nothing(
    server_factory: ServerFactory, pitr_settings: SettingsMaker
) -> None:
    server = server_factory()
    settings = pitr_settings(server)
    bases = Layout(settings.backup_root).bases(server.name)

    def interrupt(progress: Progress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        take_base_backup(settings, server.name, progress=interrupt)
    wait_for(lambda: not processes_naming(str(bases)), what="pg_basebackup to end", timeout_s=5)
    assert hidden(settings, server.name) == []


def test_an_address_that_leads_to_another_cluster_in_the_middle_is_refused(
    server_factory: ServerFactory, pitr_settings: SettingsMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, other = server_factory(), server_factory("inventory-db")
    dsn = "host=127.0.0.1 user=pitr dbname=postgres"
    settings = pitr_settings(server, databases={server.name: {"dsn": dsn}})
    monkeypatch.setenv("PGPORT", str(server.port))

    def fail_over(progress: Progress) -> None:
        monkeypatch.setenv("PGPORT", str(other.port))

    with pytest.raises(ServerUnavailable, match="led to different clusters"):
        take_base_backup(settings, server.name, progress=fail_over)
    assert hidden(settings, server.name) == []
    assert published(settings, server.name) == []


def fake_binaries(directory: Path, unsupported: str) -> Binaries:
    """Programs whose pg_basebackup was built without some compressions, as the real one says it."""
    directory.mkdir()
    program = directory / "pg_basebackup"
    program.write_text(
        f'#!/bin/sh\ncase "$*" in *client-{unsupported}*)\n'
        "  echo 'pg_basebackup: error: invalid compression specification: this build does not support "
        f"compression with X' >&2;; esac\nexit 1\n"
    )
    program.chmod(0o755)
    return Binaries(directory, 15, "15.0")


def test_auto_takes_the_best_compression_that_pg_basebackup_was_built_with(tmp_path: Path) -> None:
    assert choose_compression("auto", fake_binaries(tmp_path / "all", "nothing")) == "zstd"
    assert choose_compression("auto", fake_binaries(tmp_path / "no-zstd", "zstd")) == "gzip"
    assert choose_compression("auto", fake_binaries(tmp_path / "none", "")) == "none"
    assert choose_compression("none", fake_binaries(tmp_path / "still-none", "")) == "none"
    with pytest.raises(BinariesNotFound, match="built without zstd"):
        choose_compression("zstd", fake_binaries(tmp_path / "asked-for", "zstd"))
