"""Connections say clearly why they fail, and a password shows up nowhere."""

from __future__ import annotations

import os
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from psycopg.conninfo import conninfo_to_dict

from pitr_pipelines.errors import ServerUnavailable, SettingsError
from pitr_pipelines.postgres.connection import (
    address_of,
    child_connection,
    connect,
    identify,
    open_connection,
    parameters_of,
    parse_dsn,
    without_secret,
)
from pitr_pipelines.postgres.server import free_port
from pitr_pipelines.settings import DatabaseSettings
from pitr_pipelines_tests.servers import ServerFactory, TestServer, each_major

SECRET = "it's:a \\ secret"


def database(dsn: str, password_env: str | None = None) -> DatabaseSettings:
    return DatabaseSettings(dsn=dsn, password_env=password_env)


@pytest.fixture
def guarded(server_factory: ServerFactory, monkeypatch: pytest.MonkeyPatch) -> TestServer:
    """A server that lets the backup role in with a password, which is in $ORDER_PW, alone."""
    server = server_factory()
    quoted = SECRET.replace("'", "''")
    server.execute(f"ALTER ROLE pitr PASSWORD '{quoted}'")
    server.write_hba(
        "host all postgres 127.0.0.1/32 trust", "host all,replication pitr 127.0.0.1/32 scram-sha-256"
    )
    monkeypatch.setenv("ORDER_PW", SECRET)
    return server


@each_major
def test_a_server_says_which_cluster_it_is(server_factory: ServerFactory, major: int) -> None:
    server = server_factory(major=major, wal_segment_size_mb=4)
    control = server.cluster.control_data()
    with connect(server.name, server.settings) as connection:
        assert connection.autocommit
        assert connection.execute("SHOW application_name").fetchone() == ("pitr",)
        identity = identify(connection)
    assert identity.system_identifier == control["Database system identifier"]
    assert identity.major == major
    assert identity.wal_segment_size == 4 * 1024 * 1024
    assert identity.data_checksums
    assert not identity.in_recovery
    assert identity.timeline == 1
    assert identity.now.tzinfo is UTC
    assert abs(identity.now - datetime.now(UTC)) < timedelta(seconds=10)


def test_the_timeline_after_a_promotion_is_the_new_one_at_once(server_factory: ServerFactory) -> None:
    server = server_factory()
    server.stop()
    (server.cluster.data_directory / "standby.signal").touch()
    server.configure({"checkpoint_timeout": "1h"})
    server.start()
    with connect(server.name, server.settings) as connection:
        assert identify(connection).in_recovery
        server.execute("SELECT pg_promote()")
        identity = identify(connection)
    assert (identity.timeline, identity.in_recovery) == (2, False)


def test_a_server_that_does_not_run_is_named_with_its_address() -> None:
    port = free_port()
    with pytest.raises(ServerUnavailable, match=f"order-db .* 127.0.0.1:{port}.*refused") as caught:
        connect("order-db", database(f"host=127.0.0.1 port={port} user=pitr"))
    assert "running" in caught.value.remedy


def test_an_unknown_host_is_told_from_a_dead_one() -> None:
    with pytest.raises(ServerUnavailable) as caught:
        connect("order-db", database("host=no-such-host.invalid user=pitr"))
    assert "databases.order-db.dsn" in caught.value.remedy


def test_pg_hba_and_missing_databases_have_remedies_of_their_own(server_factory: ServerFactory) -> None:
    server = server_factory()
    with pytest.raises(ServerUnavailable, match="does not exist") as caught:
        connect("order-db", database(server.dsn.replace("dbname=postgres", "dbname=nope")))
    assert "init-db order-db" in caught.value.remedy
    server.write_hba("host all postgres 127.0.0.1/32 trust")
    with pytest.raises(ServerUnavailable, match=r"pg_hba.conf") as caught:
        connect("order-db", server.settings)
    assert "pg_hba.conf" in caught.value.remedy


def test_a_password_comes_from_the_named_variable(guarded: TestServer) -> None:
    with connect(guarded.name, database(guarded.dsn, "ORDER_PW")) as connection:
        assert connection.info.user == "pitr"


def test_a_wrong_or_missing_password_is_told_and_never_shown(
    guarded: TestServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ServerUnavailable, match="no password supplied") as caught:
        connect(guarded.name, database(guarded.dsn))
    assert "password_env" in caught.value.remedy
    monkeypatch.setenv("ORDER_PW", "wrong-secret")
    with pytest.raises(ServerUnavailable, match="password authentication failed") as caught:
        connect(guarded.name, database(guarded.dsn, "ORDER_PW"))
    assert "wrong-secret" not in repr(caught.value) + str(caught.value)
    assert caught.value.__suppress_context__
    monkeypatch.delenv("ORDER_PW")
    with pytest.raises(SettingsError, match="ORDER_PW, which is not set"):
        connect(guarded.name, database(guarded.dsn, "ORDER_PW"))


def test_postgresqls_programs_get_the_password_by_a_file_of_ours_alone(
    guarded: TestServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGPASSWORD", "a wrong one that would win")
    psql = guarded.cluster.binaries.program("psql")
    with child_connection(guarded.name, database(guarded.dsn, "ORDER_PW")) as (conninfo, env):
        file = Path(env["PGPASSFILE"])
        assert file.stat().st_mode & 0o777 == 0o600
        assert SECRET not in conninfo
        assert SECRET not in "".join(env.values())
        argv = [str(psql), "-X", "-At", "-d", conninfo, "-c", "SELECT current_user"]
        done = subprocess.run(argv, env=env, capture_output=True, text=True, check=False)
        assert done.stdout == "pitr\n", done.stderr
    assert not file.exists()


def test_without_password_env_the_libpq_way_stays_as_it_is(
    guarded: TestServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGPASSWORD", SECRET)
    connect(guarded.name, database(guarded.dsn)).close()
    with child_connection(guarded.name, database(guarded.dsn)) as (conninfo, env):
        assert env["PGPASSWORD"] == SECRET
        assert "PGPASSFILE" not in env
    assert conninfo_to_dict(conninfo)["application_name"] == "pitr"


def test_a_password_with_a_line_break_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORDER_PW", "two\nlines")
    with (
        pytest.raises(SettingsError, match="line break") as caught,
        child_connection("order-db", database("host=x", "ORDER_PW")),
    ):
        pass
    assert "two" not in str(caught.value)


def test_a_dsn_without_user_and_database_gets_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    assert parameters_of("x", database("host=h")) == {"host": "h", "user": "pitr", "dbname": "postgres"}
    assert parameters_of("x", database("postgresql://me@h/shop"))["user"] == "me"
    assert "user" not in parameters_of("x", database("service=s"))
    monkeypatch.setenv("PGUSER", "other")
    assert parameters_of("x", database("host=h"))["user"] == "other"


def test_a_dsn_that_is_none_names_its_key() -> None:
    with pytest.raises(
        SettingsError, match=r"databases.x.dsn is no connection string: invalid connection option"
    ):
        parse_dsn("hots=h", key="databases.x.dsn")


def test_addresses_are_readable() -> None:
    assert address_of({"host": "h", "port": "5433"}) == "h:5433"
    assert address_of({"host": "a,b"}) == "a,b:5432"
    assert address_of({"service": "s"}) == "service s"
    assert address_of({}) == "the local socket:5432"


def test_a_secret_in_somebody_elses_message_is_blotted_out() -> None:
    assert without_secret("said hunter2 twice: hunter2", "hunter2") == "said ******** twice: ********"
    assert without_secret("nothing", None) == "nothing"


def test_the_defaults_of_a_dsn_win_over_ours(server_factory: ServerFactory) -> None:
    server = server_factory()
    parameters = {**parse_dsn(server.dsn, key="dsn"), "application_name": "mine"}
    with open_connection(server.name, parameters) as connection:
        assert connection.execute("SHOW application_name").fetchone() == ("mine",)
    assert "PGAPPNAME" not in os.environ
