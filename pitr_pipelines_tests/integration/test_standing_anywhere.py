"""A restore stands, and is resumed, where that is awkward: prepared transactions, timelines, load."""

from __future__ import annotations

import random
import socket
import time

import pytest

from pitr_pipelines.errors import DestinationInUse, NotRestorable, PitrError
from pitr_pipelines.postgres.base_backup import take_base_backup
from pitr_pipelines.postgres.server import free_port
from pitr_pipelines.restore.at_target import AtTarget
from pitr_pipelines.restore.resume import find_standing, move_on, plan_resume, promote
from pitr_pipelines.restore.target import ImmediateTarget, LatestTarget, LsnTarget, TimeTarget, XidTarget
from pitr_pipelines.restore.wal_source import InArchive
from pitr_pipelines.wal.lsn import Lsn
from pitr_pipelines_tests.integration.restoring import now
from pitr_pipelines_tests.integration.standing import stood
from pitr_pipelines_tests.integration.test_at_target import written
from pitr_pipelines_tests.integration.test_moments import SEED, clear_moment, committed, pgbench, writers
from pitr_pipelines_tests.integration.test_targets import start
from pitr_pipelines_tests.servers import MAJORS, ServerFactory, SettingsMaker, wait_for

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("major", MAJORS[:1] + MAJORS[-1:])
def test_before_and_beyond_a_change_of_timeline_with_a_transaction_prepared(
    server_factory: ServerFactory, pitr_settings: SettingsMaker, major: int
) -> None:
    server = server_factory(major=major, wal_segment_size_mb=1, options={"max_prepared_transactions": "5"})
    settings = pitr_settings(server)
    server.execute("CREATE TABLE rows (id bigint)")
    take_base_backup(settings, "order-db")
    with server.connect() as connection:
        connection.execute("SELECT pg_switch_wal()")
        connection.execute("BEGIN")
        connection.execute("INSERT INTO rows VALUES (1)")
        connection.execute("PREPARE TRANSACTION 'open'")
        connection.execute("INSERT INTO rows VALUES (2)")
        time.sleep(0.1)
        moment = now()
        time.sleep(0.1)
        connection.execute("INSERT INTO rows VALUES (3)")
    # The server ends without a switch, so the timeline is left amid the segment.
    server.crash()
    (server.cluster.data_directory / "standby.signal").touch()
    server.start()
    server.execute("SELECT pg_promote()")
    wait_for(lambda: not server.execute("SELECT pg_is_in_recovery()")[0][0], what="promotion")
    server.execute("INSERT INTO rows VALUES (4)")
    beyond = now()
    time.sleep(0.1)
    server.execute("INSERT INTO rows VALUES (5)")
    server.execute("SELECT pg_switch_wal()")
    server.stop()

    with stood(settings, TimeTarget(moment)) as stand:
        for restart in (None, "immediate"):
            if restart:
                stand.restart(restart)
            assert stand.rows() == {2}
        stand.promote()
        assert stand.rows() == {2}
        with stand.connect() as connection:
            connection.execute("COMMIT PREPARED 'open'")
        assert stand.rows() == {1, 2}
        assert stand.report.timeline == 3
    with stood(settings, TimeTarget(moment)) as stand:
        stand.move_on(TimeTarget(beyond), AtTarget.PAUSE)
        assert stand.rows() == {2, 3, 4}
        stand.restart("immediate")
        assert stand.rows() == {2, 3, 4}
        stand.move_on(LatestTarget())
        assert stand.rows() == {2, 3, 4, 5}
        with stand.connect() as connection:
            connection.execute("COMMIT PREPARED 'open'")
        assert stand.rows() == {1, 2, 3, 4, 5}


@pytest.mark.parametrize("major", MAJORS[:1] + MAJORS[-1:])
def test_where_its_last_record_is_the_checkpoint_from_which_it_starts(
    server_factory: ServerFactory, pitr_settings: SettingsMaker, major: int
) -> None:
    made = start(server_factory, pitr_settings, major)
    made.insert(1)
    made.connection.close()
    made.server.stop()
    checkpoint = Lsn.parse(made.server.cluster.control_data()["Latest checkpoint location"])
    made.server.start()
    made.connection = made.server.connect()
    made.insert(2)
    made.connection.execute("SELECT pg_switch_wal()")
    made.connection.close()
    made.server.stop()
    with stood(made.settings, LsnTarget(checkpoint)) as stand:
        assert stand.cluster.control_data()["Latest checkpoint location"] == str(checkpoint)
        stand.restart("immediate")
        assert stand.rows() == {0, 1}
        stand.move_on(XidTarget(made.xids[2], inclusive=False), AtTarget.PAUSE)
        assert stand.rows() == {0, 1}
        stand.move_on(XidTarget(made.xids[2]))
        assert stand.rows() == {0, 1, 2}
    with stood(made.settings, LsnTarget(checkpoint)) as stand:
        stand.promote()
        assert stand.rows() == {0, 1}


@pytest.mark.parametrize("major", MAJORS[:1] + MAJORS[-1:])
def test_with_nothing_but_a_base_backup_it_stands_at_its_end(
    server_factory: ServerFactory, pitr_settings: SettingsMaker, major: int
) -> None:
    made = start(server_factory, pitr_settings, major)
    made.connection.close()
    made.server.stop()
    for segment in made.server.archive.glob("0*"):
        segment.unlink()
    with stood(made.settings, ImmediateTarget()) as stand:
        assert stand.rows() == {0}
        stand.move_on(LatestTarget(), AtTarget.PAUSE)  # over the end of the segment
        assert stand.rows() == {0}
        with pytest.raises(NotRestorable, match="is not ahead"):
            stand.move_on(LatestTarget())
        stand.promote()
        assert stand.rows() == {0}


def test_wal_that_is_lost_on_the_way_leaves_it_where_it_stood(
    server_factory: ServerFactory, pitr_settings: SettingsMaker
) -> None:
    made = written(server_factory, pitr_settings)
    with stood(made.settings, XidTarget(made.xids[1])) as stand:
        standing = find_standing(made.settings, "order-db", stand.directory)
        plan = plan_resume(made.settings, standing, LatestTarget(), seal=False)
        place = plan.segments[-1].place
        assert isinstance(place, InArchive)
        whole = place.file.path.read_bytes()
        place.file.path.write_bytes(whole[:-1])
        with pytest.raises(PitrError, match=place.file.name):
            move_on(made.settings, standing, plan)
        assert not (stand.directory / "INCOMPLETE").exists()
        assert stand.rows() == {0, 1}
        assert stand.is_read_only()
        place.file.path.write_bytes(whole)
        stand.move_on(LatestTarget())
        assert stand.rows() == {0, 1, 2, 3}


def test_it_can_be_given_another_port_when_its_own_is_taken_meanwhile(
    server_factory: ServerFactory, pitr_settings: SettingsMaker
) -> None:
    made = written(server_factory, pitr_settings)
    with stood(made.settings, XidTarget(made.xids[1]), AtTarget.SHUTDOWN) as stand:
        with socket.create_server(("127.0.0.1", stand.report.port)):
            with pytest.raises(DestinationInUse, match=f"the port {stand.report.port} of 127.0.0.1 is taken"):
                find_standing(made.settings, "order-db", stand.directory)
            port = free_port()
            standing = find_standing(made.settings, "order-db", stand.directory, port=port)
            stand.report = promote(made.settings, standing)
        assert stand.report.port == port
        assert f"-p {port} " in stand.report.connect
        assert stand.rows() == {0, 1}
        stand.restart()
        assert stand.rows() == {0, 1}


def test_under_load_it_goes_from_moment_to_moment_with_exactly_what_was_committed(
    server_factory: ServerFactory, pitr_settings: SettingsMaker
) -> None:
    server = server_factory(options={"track_commit_timestamp": "on"}, wal_segment_size_mb=1)
    settings = pitr_settings(server)
    server.execute("CREATE TABLE rows (id bigserial PRIMARY KEY, at timestamptz DEFAULT clock_timestamp())")
    with pgbench(server), writers(server):
        base = take_base_backup(settings, "order-db")
        time.sleep(1.0)
        server.execute("CHECKPOINT")
        time.sleep(2.0)
    commits = committed(server)
    server.execute("SELECT pg_switch_wal()")
    server.stop()
    pick = random.Random(SEED)
    last = max(commits.values())
    moments = sorted(clear_moment(commits, base.ended_at, last, pick) for _ in range(4))
    with stood(settings, TimeTarget(moments[0])) as stand:
        for moment in moments:
            if moment != moments[0]:
                stand.move_on(TimeTarget(moment), AtTarget.PAUSE)
            stand.restart("immediate")
            assert stand.rows() == {row for row, at in commits.items() if at <= moment}, moment
        stand.promote()
        assert stand.rows() == {row for row, at in commits.items() if at <= moments[-1]}
