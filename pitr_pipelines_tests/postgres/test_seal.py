"""A seal makes its moment one that recovery can stop at, and says truthfully which moment that is."""

from __future__ import annotations

import re
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg
import pytest

from pitr_pipelines.errors import ArchiveStalled, ServerNotReady, ServerUnavailable
from pitr_pipelines.postgres.account import give, run
from pitr_pipelines.postgres.connection import connect
from pitr_pipelines.postgres.seal import MAX_NAME_BYTES, Seal, seal, wait_until_archived
from pitr_pipelines.postgres.server import Cluster, free_port
from pitr_pipelines.wal.lsn import SegmentName
from pitr_pipelines_tests.servers import ServerFactory, TestServer, each_major, wait_for

SECOND = timedelta(seconds=1)


@each_major
def test_an_idle_database_can_be_restored_to_its_seal(server_factory: ServerFactory, major: int) -> None:
    server = server_factory(major=major)
    base = take_base(server)
    server.execute("CREATE TABLE orders AS SELECT 1 AS id")
    with connect(server.name, server.settings) as connection:
        first = seal_and_wait(connection, server, "one")
        server.execute("INSERT INTO orders VALUES (2)")
        last = seal_and_wait(connection, server, "two")
    server.stop()

    assert rows_at(server, base, first.at) == [1]
    assert rows_at(server, base, last.at) == [1, 2]


@each_major
def test_the_seals_commit_is_later_than_the_moment_it_claims(
    server_factory: ServerFactory, major: int
) -> None:
    server = server_factory(major=major)
    with connect(server.name, server.settings) as connection:
        before = server_clock(connection)
        made = seal_and_wait(connection, server, "here")
        after = server_clock(connection)

    commits = commit_times(server, made.segment)
    assert before < made.at < commits[-1] < after
    assert commits[-1] - made.at < SECOND


def test_the_seals_segment_holds_both_its_records_and_is_finished(server_factory: ServerFactory) -> None:
    server = server_factory(wal_segment_size_mb=1)
    with connect(server.name, server.settings) as connection:
        seals = [seal_and_wait(connection, server, f"seal-{number}") for number in range(3)]
    for number, made in enumerate(seals):
        assert (server.archive / str(made.segment)).stat().st_size == made.wal_segment_size == 1024 * 1024
        assert made.segment.start(made.wal_segment_size) < made.lsn <= made.segment.end(made.wal_segment_size)
        described = waldump(server, made.segment)
        assert f"RESTORE_POINT seal-{number}" in described
        assert 'prefix "pitr"' in described
        assert made.system_identifier == server.cluster.control_data()["Database system identifier"]
    assert sorted({made.segment for made in seals}) == [made.segment for made in seals]


def test_a_seal_before_its_hour_is_over_is_refused_with_both_clocks(server_factory: ServerFactory) -> None:
    server = server_factory()
    with connect(server.name, server.settings) as connection:
        position = server.execute("SELECT pg_current_wal_insert_lsn()")
        ahead = server_clock(connection) + timedelta(minutes=5)
        with pytest.raises(ServerNotReady, match="which is not after") as caught:
            seal(connection, "early", not_before=ahead)
        assert str(caught.value).count("+00:00") == 3
        assert server.execute("SELECT pg_current_wal_insert_lsn()") == position, "it wrote something"
        past = server_clock(connection)
        assert seal(connection, "now", not_before=past).at > past


def test_a_standby_is_never_sealed(server_factory: ServerFactory) -> None:
    server = server_factory(start=False)
    server.start()
    server.execute("CREATE ROLE pitr LOGIN REPLICATION")
    server.stop()
    (server.cluster.data_directory / "standby.signal").touch()
    server.start()
    with (
        connect(server.name, server.settings) as connection,
        pytest.raises(ServerNotReady, match="is a standby"),
    ):
        seal(connection, "never")


def test_a_missing_right_is_named(server_factory: ServerFactory) -> None:
    server = server_factory()
    server.execute("REVOKE EXECUTE ON FUNCTION pg_create_restore_point(text) FROM pitr")
    with (
        connect(server.name, server.settings) as connection,
        pytest.raises(ServerNotReady, match=r"role pitr may not .* pg_create_restore_point") as caught,
    ):
        seal(connection, "no")
    assert "init-db" in caught.value.remedy


def test_what_the_server_refuses_is_quoted(server_factory: ServerFactory) -> None:
    server = server_factory(options={"wal_level": "minimal", "max_wal_senders": "0", "archive_mode": "off"})
    with (
        connect(server.name, server.settings) as connection,
        pytest.raises(ServerNotReady, match="WAL level not sufficient"),
    ):
        seal(connection, "no")


def test_a_broken_connection_is_a_server_that_is_unavailable(server_factory: ServerFactory) -> None:
    server = server_factory()
    with connect(server.name, server.settings) as connection:
        server.crash()
        with pytest.raises(ServerUnavailable, match=str(server.port)):
            seal(connection, "no")


def test_a_seal_does_not_wait_for_standbys_that_are_away(server_factory: ServerFactory) -> None:
    server = server_factory(options={"statement_timeout": "5s"})
    server.configure({"synchronous_standby_names": "ghost"})
    server.restart()
    with connect(server.name, server.settings) as connection:
        seal_and_wait(connection, server, "alone")
        assert connection.execute("SHOW synchronous_commit").fetchone() == ("on",)
    assert "canceling wait for synchronous replication" not in server.log()


def test_a_name_that_postgresql_would_not_take_is_refused_first(server_factory: ServerFactory) -> None:
    server = server_factory()
    with connect(server.name, server.settings) as connection:
        seal(connection, "x" * MAX_NAME_BYTES)
        for name in ("", "x" * (MAX_NAME_BYTES + 1)):
            with pytest.raises(ValueError, match="63 bytes"):
                seal(connection, name)
        connection.autocommit = False
        with pytest.raises(ValueError, match="autocommit"):
            seal(connection, "one")


def test_a_failing_archive_is_reported_with_the_archivers_own_words(server_factory: ServerFactory) -> None:
    server = server_factory(options={"archive_command": "false"})
    with connect(server.name, server.settings) as connection:
        made = seal(connection, "lost")
        with pytest.raises(ArchiveStalled, match="did not arrive") as caught:
            wait_until_archived(connection, server.archive, made.segment, timeout_s=2)
    assert re.search(r"failed [1-9]\d* times, last on [0-9A-F]{24} at 20", str(caught.value))
    assert "server's log" in caught.value.remedy


def test_an_archive_elsewhere_is_told_from_a_slow_one(
    server_factory: ServerFactory, reachable_tmp: Path
) -> None:
    server = server_factory()
    elsewhere = reachable_tmp / "empty"
    elsewhere.mkdir()
    with connect(server.name, server.settings) as connection:
        made = seal_and_wait(connection, server, "there")
        connection.execute("SELECT pg_stat_force_next_flush()")
        time.sleep(0.5)  # the archiver reports its counts when it goes to sleep
        with pytest.raises(ArchiveStalled, match="archives to another place") as caught:
            wait_until_archived(connection, elsewhere, made.segment, timeout_s=0.1)
    assert "wal-archive.sh" in str(caught.value)


def test_a_server_that_archives_nothing_is_told(server_factory: ServerFactory) -> None:
    server = server_factory(options={"archive_mode": "off"})
    with connect(server.name, server.settings) as connection:
        made = seal(connection, "nowhere")
        with pytest.raises(ArchiveStalled, match="archive_mode=off"):
            wait_until_archived(connection, server.archive, made.segment, timeout_s=0)


def test_an_archive_that_cannot_be_read_is_told(server_factory: ServerFactory, reachable_tmp: Path) -> None:
    server = server_factory()
    file = reachable_tmp / "file"
    file.touch()
    with (
        connect(server.name, server.settings) as connection,
        pytest.raises(ArchiveStalled, match="cannot look"),
    ):
        wait_until_archived(connection, file, SegmentName(1, 0, 1), timeout_s=0)


def seal_and_wait(connection: psycopg.Connection[object], server: TestServer, name: str) -> Seal:
    made = seal(connection, name)
    wait_until_archived(connection, server.archive, made.segment, timeout_s=20)
    return made


def server_clock(connection: psycopg.Connection[object]) -> datetime:
    row = connection.execute("SELECT clock_timestamp()").fetchone()
    assert isinstance(row, tuple)
    moment = row[0]
    assert isinstance(moment, datetime)
    return moment.astimezone(UTC)


def waldump(server: TestServer, segment: SegmentName) -> str:
    program = server.cluster.binaries.program("pg_waldump")
    done = run(server.cluster.account, [program, server.archive / str(segment)], env={"TZ": "UTC"})
    return done.stdout


def commit_times(server: TestServer, segment: SegmentName) -> list[datetime]:
    found = re.findall(r"desc: COMMIT (\S+ \S+) UTC", waldump(server, segment))
    return [datetime.fromisoformat(text).replace(tzinfo=UTC) for text in found]


def take_base(server: TestServer) -> Path:
    base = server.cluster.data_directory.parent / "base"
    base.mkdir(mode=0o700)
    give(base, server.cluster.account)
    done = run(
        server.cluster.account,
        [
            server.cluster.binaries.program("pg_basebackup"),
            *("-D", base, "-d", server.dsn, "-X", "none", "-c", "fast", "--no-sync"),
        ],
    )
    assert done.returncode == 0, done.stderr
    return base


def rows_at(server: TestServer, base: Path, target: datetime) -> list[int]:
    """Return the orders in a copy of `base` that was recovered to `target`."""
    data_directory = base.with_name(f"restored-{target.timestamp()}")
    data_directory.mkdir(mode=0o700)
    give(data_directory, server.cluster.account)
    copied = run(server.cluster.account, ["cp", "-a", f"{base}/.", data_directory])
    assert copied.returncode == 0, copied.stderr
    (data_directory / "recovery.signal").touch()
    give(data_directory / "recovery.signal", server.cluster.account)
    cluster = Cluster(data_directory, server.cluster.binaries, server.cluster.account)
    port = free_port()
    options = {
        "archive_mode": "off",
        "port": str(port),
        "restore_command": f'cp "{server.archive}/%f" "%p"',
        "recovery_target_time": target.isoformat(),
        "recovery_target_action": "promote",
    }
    cluster.start(log_file=data_directory.with_suffix(".log"), options=options)
    try:
        dsn = f"host=127.0.0.1 port={port} user=postgres"
        with psycopg.connect(dsn, autocommit=True) as connection:
            # Ready is a hot standby as soon as it is consistent, long before the target.
            wait_for(lambda: connection.execute("SELECT pg_is_in_recovery()").fetchone() == (False,))
            return [row[0] for row in connection.execute("SELECT id FROM orders ORDER BY id")]
    finally:
        cluster.stop("immediate")
