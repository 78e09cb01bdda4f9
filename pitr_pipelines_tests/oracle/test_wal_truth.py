"""The oracle's own truth: what it reads of the WAL is what a client sees, and it notices what is wrong."""

from __future__ import annotations

from dataclasses import replace

import psycopg
import pytest

from pitr_pipelines.postgres.base_backup import take_base_backup
from pitr_pipelines.restore.target import LatestTarget
from pitr_pipelines.wal.lsn import Lsn
from pitr_pipelines_tests.oracle.compare import OracleFailure, check_restore
from pitr_pipelines_tests.oracle.truth import State, Truth
from pitr_pipelines_tests.oracle.world import OPTIONS, World
from pitr_pipelines_tests.servers import ServerFactory, SettingsMaker, each_major

pytestmark = pytest.mark.slow

_INSERT = "INSERT INTO log (writer, thing, value) VALUES (0, 1, NULL)"


def place(connection: psycopg.Connection) -> Lsn:
    return Lsn.parse(str(connection.execute("SELECT pg_current_wal_insert_lsn()::text").fetchall()[0][0]))


def xid(connection: psycopg.Connection) -> int:
    return int(connection.execute("SELECT pg_current_xact_id()::text::bigint").fetchall()[0][0])


@each_major
def test_places_transactions_and_restore_points_are_those_that_a_client_saw(
    server_factory: ServerFactory, major: int
) -> None:
    server = server_factory(major=major, options=OPTIONS, wal_segment_size_mb=1)
    World(server, 0)
    with server.connect() as connection:
        since = place(connection)
        with connection.transaction():
            connection.execute(_INSERT)
            first = xid(connection)
        after_first = place(connection)
        with connection.transaction(force_rollback=True):
            connection.execute(_INSERT)
            undone = xid(connection)
        connection.execute("SELECT pg_create_restore_point('here')")
        after_point = place(connection)
        connection.execute("SELECT pg_switch_wal()")
        connection.execute("BEGIN")
        prepared = xid(connection)
        with connection.transaction():
            connection.execute(_INSERT)
        connection.execute("PREPARE TRANSACTION 'one'")
        before_second = place(connection)
        connection.execute("COMMIT PREPARED 'one'")
    truth = Truth.of(server, since)

    assert [(end.xid, end.committed, end.prepared) for end in truth.wal.ends if end.xid >= first] == [
        (first, True, False),
        (undone, False, False),
        (prepared, True, True),
    ]
    (point,) = truth.wal.points
    assert point.name == "here"
    assert after_first <= point.begins < after_point
    assert list(truth.xids.values()) == [first, prepared]
    assert len(truth.subtransactions) == 1
    assert truth.wal.committed_before(after_first) == truth.wal.ended_by(after_first) == {first}
    assert truth.wal.committed_before(before_second) == {first}
    second = truth.wal.ends[-1].begins
    assert second >= before_second
    assert truth.wal.committed_before(second) == {first}
    assert truth.wal.committed_by(second) == {first, prepared}
    assert truth.having({first, prepared}) == truth.all() == truth.at(truth.times[-1])
    assert truth.having({first}) == truth.at(truth.times[-1], inclusive=False) == truth.at(truth.times[0])


def test_a_row_that_is_missing_and_one_too_many_are_noticed(
    server_factory: ServerFactory, pitr_settings: SettingsMaker
) -> None:
    server = server_factory(options=OPTIONS, wal_segment_size_mb=1)
    settings = pitr_settings(server)
    World(server, 0)
    for _ in range(2):
        server.execute(_INSERT)
    take_base_backup(settings, server.name)
    with server.connect() as connection:
        right = State.of(connection)
    check_restore(settings, server.name, LatestTarget(), right, seal=True)
    one = max(right.log)
    with pytest.raises(OracleFailure, match="1 rows of log should not be there"):
        check_restore(settings, server.name, LatestTarget(), replace(right, log=right.log - {one}), seal=True)
    other = replace(one, n=one.n + 1)
    with pytest.raises(OracleFailure, match="1 of 3 rows of log are missing"):
        check_restore(
            settings, server.name, LatestTarget(), replace(right, log=right.log | {other}), seal=True
        )
