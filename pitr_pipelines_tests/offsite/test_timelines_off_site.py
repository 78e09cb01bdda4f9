"""A server that was promoted comes back from off-site on the branch that it was on, and on the one before."""

from __future__ import annotations

import time
from datetime import UTC, datetime

import pytest

from pitr_pipelines.catalog.inventory import read_inventory
from pitr_pipelines.catalog.layout import Layout
from pitr_pipelines.offsite.stage import Stage
from pitr_pipelines.restore.target import LatestTarget, NameTarget, TimeTarget, XidTarget
from pitr_pipelines_tests.offsite.conftest import StoreMaker
from pitr_pipelines_tests.offsite.lost_scene import Scene, committed, make_scene, past_days, until
from pitr_pipelines_tests.servers import ServerFactory, SettingsMaker, TestServer, wait_for

pytestmark = pytest.mark.slow

DATABASE = "order-db"


def promote(server: TestServer) -> None:
    server.crash()
    (server.cluster.data_directory / "standby.signal").touch()
    server.start()
    server.execute("SELECT pg_promote()")
    wait_for(lambda: not server.execute("SELECT pg_is_in_recovery()")[0][0], what="promotion")


def insert(server: TestServer) -> None:
    server.execute("INSERT INTO rows (pad) VALUES ('x')")
    time.sleep(0.05)


@pytest.fixture
def promoted(
    server_factory: ServerFactory, pitr_settings: SettingsMaker, open_store: StoreMaker
) -> tuple[Scene, dict[int, datetime], datetime, int]:
    """A database that went to timeline 2 between its envelopes: what was in it, when that was, and an xid."""
    scene = make_scene(server_factory, pitr_settings, open_store, (DATABASE,))
    (server,) = scene.servers
    older, newer = past_days(2)
    scene.base(DATABASE, older)
    for _ in range(3):
        insert(server)
    scene.bundle(DATABASE)
    scene.send(older)
    insert(server)
    server.execute("SELECT pg_create_restore_point('before-promotion')")
    time.sleep(0.1)
    moment = datetime.now(UTC)
    time.sleep(0.1)
    promote(server)
    insert(server)
    with server.connect() as connection:
        connection.execute("BEGIN")
        connection.execute("INSERT INTO rows (pad) VALUES ('marked')")
        ((xid,),) = connection.execute("SELECT pg_current_xact_id()::text").fetchall()
        connection.execute("COMMIT")
    insert(server)
    scene.bundle(DATABASE)
    scene.send(newer)
    truth = committed(server)
    scene.lose_everything()
    return scene, truth, moment, int(xid)


def test_targets_on_both_sides_of_a_promotion_are_reached(
    promoted: tuple[Scene, dict[int, datetime], datetime, int],
) -> None:
    scene, truth, moment, xid = promoted

    assert scene.ids(DATABASE, LatestTarget()) == set(truth)
    assert scene.ids(DATABASE, TimeTarget(moment)) == until(truth, moment)
    assert scene.ids(DATABASE, NameTarget("before-promotion")) == until(truth, moment)
    last = sorted(truth)[-2]
    assert scene.ids(DATABASE, XidTarget(xid)) == {row for row in truth if row <= last}


def test_a_history_that_only_a_bundle_holds_is_found_in_it(
    promoted: tuple[Scene, dict[int, datetime], datetime, int],
) -> None:
    scene, _, _, _ = promoted
    root = scene.settings.restore_root / "stage"
    stage = Stage(scene.shelf(), DATABASE, root, Layout(scene.settings.backup_root))
    stage.set_up()
    known = read_inventory(stage.layout, DATABASE)
    assert not list(stage.layout.bundles(DATABASE).glob("*.tar.gz")), "a bundle was fetched for nothing"

    stage._histories.clear()
    stage.set_up()
    found = read_inventory(stage.layout, DATABASE)

    assert not list(stage.layout.wal(DATABASE).glob("*"))
    assert list(stage.layout.bundles(DATABASE).glob("*.tar.gz"))
    assert found.histories == known.histories
    assert [history.timeline for history in found.timelines()] == [1, 2]
