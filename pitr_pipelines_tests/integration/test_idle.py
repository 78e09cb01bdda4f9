"""An idle database can be restored to a recent moment, although recovery stops only at commits."""

from __future__ import annotations

import time
from datetime import timedelta

import pytest

from pitr_pipelines.errors import NotRestorable
from pitr_pipelines.postgres.base_backup import take_base_backup
from pitr_pipelines.restore.target import TimeTarget
from pitr_pipelines.wal.bundles import make_bundle
from pitr_pipelines.wal.hours import Hour
from pitr_pipelines_tests.integration.restoring import now, restored_ids
from pitr_pipelines_tests.servers import MAJORS, ServerFactory, SettingsMaker, TestServer

pytestmark = pytest.mark.slow


def idle_server(server_factory: ServerFactory, major: int) -> TestServer:
    server = server_factory(major=major)
    server.execute("CREATE TABLE rows (id bigint)")
    return server


@pytest.mark.parametrize("major", MAJORS[:1] + MAJORS[-1:])
def test_a_recent_moment_is_sealed_on_demand_while_the_source_answers(
    server_factory: ServerFactory, pitr_settings: SettingsMaker, major: int
) -> None:
    server = idle_server(server_factory, major)
    settings = pitr_settings(server)
    take_base_backup(settings, "order-db")
    server.execute("INSERT INTO rows VALUES (1)")
    time.sleep(1)
    assert restored_ids(settings, TimeTarget(now() - timedelta(seconds=0.5))) == {1}


@pytest.mark.parametrize("major", MAJORS[:1] + MAJORS[-1:])
def test_without_the_source_every_moment_up_to_the_last_seal_can_be_restored_and_no_later_one(
    server_factory: ServerFactory, pitr_settings: SettingsMaker, major: int
) -> None:
    server = idle_server(server_factory, major)
    settings = pitr_settings(server)
    take_base_backup(settings, "order-db")
    server.execute("INSERT INTO rows VALUES (1)")
    time.sleep(1.5)
    idle = now()
    time.sleep(0.1)
    make_bundle(settings, "order-db", Hour.containing(now()))
    time.sleep(0.5)
    after_seal = now()
    server.stop()
    with pytest.raises(NotRestorable) as refused:
        restored_ids(settings, TimeTarget(after_seal))
    assert "known to be complete until" in refused.value.what
    assert [moment for moment in refused.value.nearest if moment < after_seal]
    assert restored_ids(settings, TimeTarget(idle)) == {1}
    assert restored_ids(settings, TimeTarget(refused.value.nearest[0])) == {1}
