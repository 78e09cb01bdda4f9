"""Transactions that were prepared and not finished at the target are prepared again after a restore."""

from __future__ import annotations

import time

import pytest

from pitr_pipelines.postgres.base_backup import take_base_backup
from pitr_pipelines.restore.target import TimeTarget
from pitr_pipelines_tests.integration.restoring import now, restored
from pitr_pipelines_tests.servers import MAJORS, ServerFactory, SettingsMaker, wait_for

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("major", MAJORS[:1] + MAJORS[-1:])
def test_one_prepared_in_the_segment_in_which_the_timeline_was_left_is_prepared_again(
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
    with restored(settings, TimeTarget(moment)) as (_, _, copy):
        assert copy.execute("SELECT id FROM rows").fetchall() == [(2,)]
        copy.execute("COMMIT PREPARED 'open'")
        assert copy.execute("SELECT id FROM rows ORDER BY id").fetchall() == [(1,), (2,)]
