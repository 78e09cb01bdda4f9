"""Owners and modes that keep backups from working are alerts, with the commands that mend them."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from pitr_pipelines.settings import Settings
from pitr_pipelines.watch.lives import Life
from pitr_pipelines.watch.round import watch_once
from pitr_pipelines.watch.state import StateFile
from pitr_pipelines_tests.other_users import IS_ROOT, USERS, Users, mend, run_as, server_as
from pitr_pipelines_tests.servers import ServerFactory, SettingsMaker, TestServer, wait_for
from pitr_pipelines_tests.watch.watching import ALERTS

pytestmark = pytest.mark.slow

Look = Callable[[], dict[str, tuple[str, str]]]


@pytest.fixture(params=USERS, ids=str)
def users(request: pytest.FixtureRequest) -> Users:
    found = request.param
    assert isinstance(found, Users)
    return found


@pytest.fixture
def server(server_factory: ServerFactory, users: Users) -> TestServer:
    server = server_as(server_factory, users.server)
    if IS_ROOT:
        os.chown(server_factory.backup_root, users.ours, users.ours)
        os.chown(server.archive, users.server, users.ours)
    server.archive.chmod(0o2770)
    return server


@pytest.fixture
def look(server: TestServer, users: Users, pitr_settings: SettingsMaker, reachable_tmp: Path) -> Look:
    """Looks as our user, two minutes after the last time; returns open incidents: key to text and remedy."""
    settings = pitr_settings(server, alerts={**ALERTS, "to_env": [], "archive_slack_s": 3600})
    local = reachable_tmp / "local"
    local.mkdir()
    if IS_ROOT:
        os.chown(local, users.ours, users.ours)
    moments = iter(datetime.now(UTC) + timedelta(minutes=2 * count) for count in range(100))

    def look_once() -> dict[str, tuple[str, str]]:
        now = next(moments)
        lives: tuple[Life, ...] = run_as(users.ours, lambda: _round(settings, local, now))
        return {life.incident.key: (life.what, life.remedy) for life in lives}

    _round(settings, local, next(moments))  # so that all that is imported late is imported
    (settings.backup_root / "alerts" / "state.json").unlink()
    for path in (settings.backup_root / "alerts", *(settings.backup_root / "alerts").iterdir()):
        os.chown(path, users.ours, users.ours if IS_ROOT else -1)
    return look_once


def _round(settings: Settings, local: Path, now: datetime) -> tuple[Life, ...]:
    return watch_once(settings, now=now, state_file=StateFile(settings.backup_root, local=local)).open


def archive_one(server: TestServer) -> Path:
    server.execute("SELECT pg_logical_emit_message(true, 'test', 'something')")
    name = str(server.execute("SELECT pg_walfile_name(pg_switch_wal())")[0][0])
    # The file is there before the archiver's own word for it: what a test then takes away, it still needs.
    said = "SELECT last_archived_wal FROM pg_stat_archiver"
    wait_for(lambda: server.execute(said)[0][0] == name, timeout_s=90, what="the archiver")
    return server.archive / name


def test_segments_that_we_cannot_read_are_an_alert_until_they_are_mended(
    server: TestServer, users: Users, look: Look
) -> None:
    segment = archive_one(server)
    assert look() == {}
    if IS_ROOT:
        os.chown(segment, users.server, users.server)
    segment.chmod(0o600 if IS_ROOT else 0o000)

    what, remedy = look()["order-db/rights-wrong"]
    assert f"cannot read {segment}, which belongs to uid {users.server}" in what
    assert f"we run as uid {users.ours}" in what

    mend(remedy)
    for _ in range(4):
        left = look()
    assert left == {}


def test_an_archive_that_we_cannot_enter_is_unreadable_storage_with_the_commands(
    server: TestServer, users: Users, look: Look
) -> None:
    archive_one(server)
    assert look() == {}
    server.archive.chmod(0o700 if IS_ROOT else 0o300)

    what, remedy = look()["storage/storage-unreadable"]
    assert f"cannot read {server.archive}, which belongs to uid {users.server}" in what

    if not IS_ROOT:  # the commands are for root, who can enter
        server.archive.chmod(0o2770)
    mend(remedy)
    for _ in range(4):
        left = look()
    assert left == {}


def test_a_server_that_cannot_write_fails_with_the_commands(
    server: TestServer, users: Users, look: Look
) -> None:
    archive_one(server)
    assert look() == {}
    if IS_ROOT:
        os.chown(server.archive, 0, users.ours)
    server.archive.chmod(0o2770 if IS_ROOT else 0o2570)
    server.execute("SELECT pg_logical_emit_message(true, 'test', 'something')")
    server.execute("SELECT pg_switch_wal()")
    failed = "SELECT last_failed_time > last_archived_time FROM pg_stat_archiver"
    wait_for(lambda: server.execute(failed)[0][0], timeout_s=60, what="a failure")
    for _ in range(3):
        found = look()

    what, remedy = found["order-db/archive-failing"]
    assert "archiving fails" in what
    assert f"cannot write to {server.archive}" in remedy
    assert f"chown -R {users.server}:" in remedy
    ran = remedy.partition("mounted: ")[2].partition(" {} + ")[0]
    mend(f"As root, where that volume is mounted: {ran} {{}} +")
    server.restart()  # the archiver pauses for a minute after three failures
    archive_one(server)
    wait_for(lambda: not server.execute(failed)[0][0], timeout_s=90, what="the archiver's word")
    for _ in range(5):
        left = look()
    assert left == {}
