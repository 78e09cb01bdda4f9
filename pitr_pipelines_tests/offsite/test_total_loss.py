"""When everything is gone: from the bucket, the settings and the key alone, every database comes back."""

from __future__ import annotations

import random
import shutil
import time
from datetime import UTC, datetime

import pytest

from pitr_pipelines.restore.target import LatestTarget, TimeTarget
from pitr_pipelines_tests.offsite.conftest import StoreMaker
from pitr_pipelines_tests.offsite.lost_scene import (
    committed,
    make_scene,
    past_days,
    some_moment,
    until,
    writing,
)
from pitr_pipelines_tests.offsite.s3_server import CountingProxy
from pitr_pipelines_tests.servers import MAJORS, ServerFactory, SettingsMaker

pytestmark = pytest.mark.slow

SEED = 20260129
TODAY = datetime.now(UTC).date()
NAMES = ("order-db", "users")


@pytest.mark.parametrize("major", MAJORS[:1] + MAJORS[-1:])
def test_every_database_comes_back_from_the_bucket_and_the_key_alone(
    server_factory: ServerFactory,
    pitr_settings: SettingsMaker,
    open_store: StoreMaker,
    proxy: CountingProxy,
    major: int,
) -> None:
    scene = make_scene(server_factory, pitr_settings, open_store, major=major)
    first: dict[str, datetime] = {}
    sealed: dict[str, datetime] = {}
    for number, day in enumerate(past_days(3)):
        with writing(scene.servers, SEED + number):
            for server in scene.servers:
                base = scene.base(server.name, day)
                first.setdefault(server.name, base.ended_at)
            time.sleep(1.0)
            for server in scene.servers:
                sealed[server.name] = datetime.now(UTC)
                scene.bundle(server.name)
            scene.send(day)
    truth = {server.name: committed(server) for server in scene.servers}
    scene.lose_everything()
    pick = random.Random(SEED)
    writes = proxy.writes

    for name in NAMES:
        for _ in range(3):
            moment = some_moment(pick, first[name], sealed[name], truth[name])
            assert scene.ids(name, TimeTarget(moment)) == until(truth[name], moment), f"{name} at {moment}"
        everything = scene.ids(name, LatestTarget())
        assert until(truth[name], sealed[name]) <= everything <= set(truth[name])

    assert proxy.writes == writes
    assert not scene.settings.backup_root.exists()
    assert not [path for path in scene.settings.restore_root.glob(".offsite/*") if path.is_dir()]


def test_a_lost_base_comes_from_off_site_and_newer_wal_from_the_archive_that_is_left(
    server_factory: ServerFactory, pitr_settings: SettingsMaker, open_store: StoreMaker
) -> None:
    scene = make_scene(server_factory, pitr_settings, open_store, ("order-db",))
    (server,) = scene.servers
    with writing(scene.servers, SEED):
        base = scene.base("order-db", TODAY)
        time.sleep(0.5)
        scene.bundle("order-db")
        scene.send(TODAY)
        sent_at = datetime.now(UTC)
        time.sleep(1.0)
    server.execute("SELECT pg_switch_wal()")
    time.sleep(1.5)
    truth = committed(server)
    server.stop()
    shutil.rmtree(scene.layout.bases("order-db"))
    shutil.rmtree(scene.layout.bundles("order-db"))
    moment = some_moment(random.Random(SEED), sent_at, max(truth.values()), truth)
    assert until(truth, moment) != until(truth, sent_at)

    with scene.come_back("order-db", TimeTarget(moment)) as (plan, _, connection, _):
        assert {row[0] for row in connection.execute("SELECT id FROM rows")} == until(truth, moment)
    places = {segment["from"] for segment in plan["segments"]}

    assert "raw archive" in places
    assert next(part["artifact"] for part in plan["download"]["parts"]) == base.day.isoformat()
    assert scene.ids("order-db", LatestTarget()) == set(truth)
    assert not scene.layout.bases("order-db").exists()


def test_a_restore_fetches_only_what_its_moment_needs(
    server_factory: ServerFactory, pitr_settings: SettingsMaker, open_store: StoreMaker, proxy: CountingProxy
) -> None:
    scene = make_scene(server_factory, pitr_settings, open_store)
    with writing(scene.servers, SEED):
        for day in past_days(3):
            for server in scene.servers:
                scene.base(server.name, day)
            time.sleep(0.3)
            for server in scene.servers:
                scene.bundle(server.name)
            scene.send(day)
    scene.lose_everything()
    proxy.read_bytes = 0
    proxy.requests.clear()

    with scene.come_back("order-db", LatestTarget()) as (plan, _, _, _):
        pass

    # Beside the plan's parts: a listing, the beginning of each envelope, and the records.
    small = 3 * 64 * 1024 + 200_000
    assert plan["download"]["bytes"] < proxy.read_bytes < plan["download"]["bytes"] + small
    assert {part["envelope"] for part in plan["download"]["parts"]} == {TODAY.isoformat()}
    assert proxy.requests["GET"] <= 1 + 3 * 2 + len(plan["download"]["parts"]) + 2
