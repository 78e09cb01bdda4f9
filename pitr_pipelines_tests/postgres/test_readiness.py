"""A check finds each thing that is wrong, by itself, and says what to do about it."""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path

import pytest

from pitr_pipelines.errors import BadRequest
from pitr_pipelines.postgres import readiness
from pitr_pipelines.postgres.connection import connect
from pitr_pipelines.postgres.prepare import prepare
from pitr_pipelines.postgres.readiness import Finding, check
from pitr_pipelines.postgres.seal import seal
from pitr_pipelines.settings import Settings
from pitr_pipelines_tests.servers import (
    MAJORS,
    ServerFactory,
    SettingsMaker,
    TestServer,
    each_major,
    wait_for,
)

TRUST = "host all all 127.0.0.1/32 trust"


def prepared(server_factory: ServerFactory, pitr_settings: SettingsMaker) -> tuple[TestServer, Settings]:
    server = server_factory(archiving=False, options={"archive_mode": "on"})
    settings = pitr_settings(server)
    prepare(server.name, settings, admin_dsn=server.admin_dsn)
    assert wrong(server, settings) == {}
    return server, settings


def wrong(server: TestServer, settings: Settings) -> dict[str, Finding]:
    findings = [finding for finding in check(server.name, settings) if not finding.ok]
    assert all(finding.remedy and finding.detail for finding in findings)
    return {finding.subject: finding for finding in findings}


@each_major
def test_a_bare_server_lacks_what_it_lacks(
    server_factory: ServerFactory, pitr_settings: SettingsMaker, major: int
) -> None:
    server = server_factory(
        major=major, archiving=False, options={"wal_level": "minimal", "max_wal_senders": "0"}
    )
    server.execute("CREATE ROLE pitr LOGIN")
    settings = pitr_settings(server, databases={server.name: {"dsn": server.dsn}})
    assert set(wrong(server, settings)) == {
        "right: REPLICATION",
        "right: pg_monitor",
        "right: sealing functions",
        "wal_level",
        "archive_mode",
        "archive_command",
        "archive_timeout",
        "max_wal_senders",
        "replication",
        "archive",
    }


def test_a_server_that_is_down_is_a_finding_and_the_archive_is_still_looked_at(
    server_factory: ServerFactory, pitr_settings: SettingsMaker
) -> None:
    server, settings = prepared(server_factory, pitr_settings)
    server.stop()
    findings = {finding.subject: finding for finding in check(server.name, settings)}
    assert not findings["connection"].ok
    assert str(server.port) in findings["connection"].detail
    assert findings["archive"].ok
    assert findings["space"].ok


def test_the_line_that_pg_hba_conf_lacks_is_told(
    server_factory: ServerFactory, pitr_settings: SettingsMaker
) -> None:
    server, settings = prepared(server_factory, pitr_settings)
    server.write_hba(TRUST)
    assert set(found := wrong(server, settings)) == {"replication"}
    assert "host  replication  pitr  127.0.0.1/32  scram-sha-256" in str(found["replication"].remedy)

    server.write_hba("host all postgres 127.0.0.1/32 trust")
    found = wrong(server, settings)
    assert "connection" in found
    assert 'host  "postgres"  pitr  127.0.0.1/32  scram-sha-256' in str(found["connection"].remedy)


def test_an_archive_command_that_is_not_ours_is_found(
    server_factory: ServerFactory, pitr_settings: SettingsMaker
) -> None:
    server, settings = prepared(server_factory, pitr_settings)
    server.execute("ALTER SYSTEM SET archive_command = 'cp %p /somewhere/%f'")
    server.execute("SELECT pg_reload_conf()")
    wait_for(lambda: "archive_command" in wrong(server, settings))
    assert "cp %p /somewhere/%f" in wrong(server, settings)["archive_command"].detail


def test_an_archiver_that_fails_is_found_until_it_succeeds(
    server_factory: ServerFactory, pitr_settings: SettingsMaker
) -> None:
    server, settings = prepared(server_factory, pitr_settings)
    identity = server.archive / "system_identifier"
    right = identity.read_text()
    identity.write_text("1\n")
    with connect(server.name, server.settings) as connection:
        seal(connection, "stuck")
        wait_for(lambda: "archiver" in wrong(server, settings), timeout_s=30)
    assert {"archiver", "archive's cluster"} == set(found := wrong(server, settings))
    assert "says 1" in found["archive's cluster"].detail
    identity.write_text(right)
    server.restart()  # the archiver pauses for a minute after three failures
    wait_for(lambda: not wrong(server, settings), timeout_s=30)


def test_a_clock_that_is_wrong_is_found(
    server_factory: ServerFactory, pitr_settings: SettingsMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, settings = prepared(server_factory, pitr_settings)
    monkeypatch.setattr(readiness, "TOLERATED_SKEW", timedelta(seconds=-1))
    assert set(wrong(server, settings)) == {"clock"}


def test_programs_of_another_major_are_not_enough(
    server_factory: ServerFactory, pitr_settings: SettingsMaker, reachable_tmp: Path
) -> None:
    server, settings = prepared(server_factory, pitr_settings)
    none = settings.model_copy(update={"binaries": {server.major: reachable_tmp / "none"}})
    assert server.major in MAJORS
    assert "does not exist" in wrong(server, none)["programs"].detail


def test_an_archive_that_we_cannot_read_is_found(
    server_factory: ServerFactory, pitr_settings: SettingsMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, settings = prepared(server_factory, pitr_settings)
    identity = server.archive / "system_identifier"
    really = os.access
    # Nothing is unreadable for root, and these tests may run as root.
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != identity and really(path, mode))
    assert str(identity) in wrong(server, settings)["archive"].detail


def test_a_full_disk_is_found(
    server_factory: ServerFactory, pitr_settings: SettingsMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, settings = prepared(server_factory, pitr_settings)
    monkeypatch.setattr(readiness, "_size_bytes", lambda connection: 2**60)
    assert set(wrong(server, settings)) == {"space"}


def test_a_standby_is_found(server_factory: ServerFactory, pitr_settings: SettingsMaker) -> None:
    server, settings = prepared(server_factory, pitr_settings)
    server.stop()
    (server.cluster.data_directory / "standby.signal").touch()
    server.start()
    assert set(wrong(server, settings)) == {"primary"}


def test_an_unknown_database_is_refused(server_factory: ServerFactory, pitr_settings: SettingsMaker) -> None:
    server = server_factory(archiving=False, start=False)
    with pytest.raises(BadRequest, match="no database 'nope'"):
        check("nope", pitr_settings(server))
