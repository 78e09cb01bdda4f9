"""Every kind of target brings back exactly the state it names, on real servers; or is refused."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from datetime import UTC, date, datetime

import psycopg
import pytest

from pitr_pipelines.errors import NotRestorable
from pitr_pipelines.postgres.base_backup import take_base_backup
from pitr_pipelines.restore.plan import NotCovered
from pitr_pipelines.restore.prepare import plan_restore
from pitr_pipelines.restore.stop import StopAtLsn, StopAtXid
from pitr_pipelines.restore.target import (
    ImmediateTarget,
    LsnTarget,
    NameTarget,
    Target,
    TimeTarget,
    XidTarget,
)
from pitr_pipelines.settings import Settings
from pitr_pipelines.wal.bundles import make_bundle
from pitr_pipelines.wal.hours import Hour
from pitr_pipelines.wal.lsn import Lsn
from pitr_pipelines_tests.integration.restoring import now, restored, restored_ids
from pitr_pipelines_tests.servers import MAJORS, ServerFactory, SettingsMaker, TestServer

pytestmark = pytest.mark.slow


@dataclass
class Written:
    """A source and what was written to it: for each row its xid, commit time, and the LSN after it."""

    server: TestServer
    settings: Settings
    connection: psycopg.Connection
    base_ended_at: datetime
    xids: dict[int, int] = field(default_factory=dict)
    lsns: dict[int, Lsn] = field(default_factory=dict)
    times: dict[int, datetime] = field(default_factory=dict)

    def insert(self, number: int) -> None:
        with self.connection.transaction():
            self.connection.execute("INSERT INTO rows VALUES (%s)", [number])
            self.xids[number] = int(self.ask("SELECT pg_current_xact_id()::text"))
        self.lsns[number] = Lsn.parse(self.ask("SELECT pg_current_wal_insert_lsn()::text"))
        at = self.ask("SELECT pg_xact_commit_timestamp(xmin)::text FROM rows WHERE id = %s", number)
        self.times[number] = datetime.fromisoformat(at).astimezone(UTC)
        time.sleep(0.005)

    def mark(self, name: str) -> None:
        self.ask("SELECT pg_create_restore_point(%s)::text", name)

    def ask(self, question: str, *values: object) -> str:
        row = self.connection.execute(question.encode(), values or None).fetchone()
        assert row is not None
        return str(row[0])

    def rows(self, target: Target, *, seal: bool = False) -> set[int]:
        return restored_ids(self.settings, target, seal=seal)


def start(server_factory: ServerFactory, pitr_settings: SettingsMaker, major: int | None) -> Written:
    """Start a source with row 0 in it, and take its base backup."""
    options = {"track_commit_timestamp": "on", "max_prepared_transactions": "5"}
    server = server_factory(major=major, options=options)
    settings = pitr_settings(server)
    connection = server.connect()
    connection.execute("CREATE TABLE rows (id int)")
    connection.execute("INSERT INTO rows VALUES (0)")
    base = take_base_backup(settings, "order-db")
    return Written(server, settings, connection, base.ended_at)


@pytest.mark.parametrize("major", MAJORS[:1] + MAJORS[-1:])
def test_every_kind_of_target_is_reached_exactly(
    server_factory: ServerFactory, pitr_settings: SettingsMaker, major: int
) -> None:
    made = start(server_factory, pitr_settings, major)
    made.insert(1)
    made.mark("same name")
    made.insert(2)
    made.mark("before the bundle")
    make_bundle(made.settings, "order-db", Hour.containing(now()))
    made.insert(3)
    with made.connection.transaction(force_rollback=True):
        made.connection.execute("INSERT INTO rows VALUES (-1)")
        rolled_back = int(made.ask("SELECT pg_current_xact_id()::text"))
    made.insert(4)
    made.mark("same name")
    with made.connection.transaction():
        made.connection.execute("INSERT INTO rows VALUES (5)")
        prepared = int(made.ask("SELECT pg_current_xact_id()::text"))
        made.connection.execute("PREPARE TRANSACTION 'five'")
    made.connection.execute("COMMIT PREPARED 'five'")
    made.insert(6)
    made.connection.execute("SELECT pg_switch_wal()")
    made.insert(7)

    # The last rows are not archived, so the first of these seals.
    assert made.rows(LsnTarget(made.lsns[7], inclusive=False), seal=True) == set(range(8))
    assert made.rows(XidTarget(made.xids[7], inclusive=False)) == set(range(7))
    made.connection.close()
    made.server.stop()

    assert made.rows(LsnTarget(made.lsns[1], inclusive=False)) == {0, 1}
    assert made.rows(LsnTarget(made.lsns[3], inclusive=False)) == {0, 1, 2, 3}
    # The record there is not yet the next transaction's commit.
    assert made.rows(LsnTarget(made.lsns[3])) == {0, 1, 2, 3}
    for number in (2, 4):
        assert made.rows(XidTarget(made.xids[number])) == set(range(number + 1))
        assert made.rows(XidTarget(made.xids[number], inclusive=False)) == set(range(number))
        assert made.rows(TimeTarget(made.times[number])) == set(range(number + 1))
        assert made.rows(TimeTarget(made.times[number], inclusive=False)) == set(range(number))
    assert made.rows(XidTarget(rolled_back)) == {0, 1, 2, 3}
    assert made.rows(XidTarget(prepared)) == {0, 1, 2, 3, 4, 5}
    assert made.rows(XidTarget(prepared, inclusive=False)) == {0, 1, 2, 3, 4}
    assert made.rows(NameTarget("before the bundle")) == {0, 1, 2}
    assert made.rows(NameTarget("same name")) == {0, 1, 2, 3, 4}
    assert made.rows(ImmediateTarget()) == {0}


def test_what_cannot_be_reached_is_refused_before_anything_is_touched(
    server_factory: ServerFactory, pitr_settings: SettingsMaker
) -> None:
    made = start(server_factory, pitr_settings, None)
    made.insert(1)
    with made.connection.transaction():
        made.connection.execute("INSERT INTO rows VALUES (2)")
        parent = int(made.ask("SELECT pg_current_xact_id()::text"))
        with made.connection.transaction():
            made.connection.execute("INSERT INTO rows VALUES (3)")
            child = int(made.ask("SELECT max(xmin::text::bigint)::text FROM rows"))
    assert child > parent
    made.connection.execute("SELECT pg_switch_wal()")
    made.connection.close()
    made.server.stop()
    refusals: dict[Target, str] = {
        LsnTarget(Lsn.parse("0/28")): "is before the end of the first base backup",
        LsnTarget(Lsn.parse("FF/0")): "holds no record at FF/0 or later",
        NameTarget("nowhere"): "the restore point 'nowhere' is not in the WAL",
        XidTarget(made.xids[1] + 1000): "is not in the WAL",
        XidTarget(child): "is not in the WAL",
        ImmediateTarget(date(2020, 1, 1)): "there is no base backup",
    }
    for target, said in refusals.items():
        with pytest.raises(NotRestorable, match=said) as caught:
            plan_restore(made.settings, "order-db", target)
        assert "There are those of" in caught.value.remedy or "can be restored" in caught.value.remedy
        covered_by_a_seal = isinstance(caught.value, NotCovered)
        assert covered_by_a_seal == ("could not be sealed to cover it" in caught.value.what)
    assert not made.settings.restore_root.exists()
    plan = plan_restore(made.settings, "order-db", XidTarget(parent))
    assert isinstance(plan.stop, StopAtXid)
    assert plan.stop.committed


def test_a_name_is_recovered_to_its_newest_point_whatever_came_before(
    server_factory: ServerFactory, pitr_settings: SettingsMaker
) -> None:
    """PostgreSQL itself stops at the first point of a name; the report says where it was."""
    made = start(server_factory, pitr_settings, None)
    for number in (1, 2, 3):
        made.insert(number)
        made.mark("again")
    made.connection.execute("SELECT pg_switch_wal()")
    made.connection.close()
    made.server.stop()
    with restored(made.settings, NameTarget("again"), seal=False) as (plan, report, connection):
        assert {row[0] for row in connection.execute("SELECT id FROM rows")} == {0, 1, 2, 3}
        assert isinstance(plan.stop, StopAtLsn)
        assert any(
            f'recovery stopping after WAL location (LSN) "{plan.stop.lsn}"' in c for c in report.checks
        )
        assert report.directory.name == "order-db-point-again"
