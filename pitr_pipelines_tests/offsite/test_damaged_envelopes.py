"""Damage off-site: passed over where the target can be reached without it, named where it cannot."""

from __future__ import annotations

import random
import time
from datetime import UTC, datetime

import pytest

from pitr_pipelines.errors import NotRestorable
from pitr_pipelines.offsite.envelope_index import IndexEntry
from pitr_pipelines.restore.target import LatestTarget, TimeTarget
from pitr_pipelines_tests.offsite.conftest import StoreMaker
from pitr_pipelines_tests.offsite.lost_scene import (
    Scene,
    committed,
    get_bytes,
    make_scene,
    past_days,
    put_bytes,
    some_moment,
    until,
    writing,
)
from pitr_pipelines_tests.servers import ServerFactory, SettingsMaker

pytestmark = pytest.mark.slow

SEED = 20260129
DATABASE = "order-db"


def test_what_is_damaged_is_passed_over_where_possible_and_named_otherwise(
    server_factory: ServerFactory, pitr_settings: SettingsMaker, open_store: StoreMaker
) -> None:
    scene = make_scene(server_factory, pitr_settings, open_store, (DATABASE,))
    (server,) = scene.servers
    older, newer = past_days(2)
    with writing(scene.servers, SEED):
        first = scene.base(DATABASE, older)
        time.sleep(0.5)
        scene.bundle(DATABASE)
        first_sent = datetime.now(UTC)
        scene.send(older)
        scene.base(DATABASE, newer)
        time.sleep(1.0)
        last = datetime.now(UTC)
        scene.bundle(DATABASE)
        scene.send(newer)
    truth = committed(server)
    scene.lose_everything()
    pick = random.Random(SEED)
    late = some_moment(pick, last - (last - first_sent) / 4, last, truth)
    early = some_moment(pick, first.ended_at, first_sent, truth)
    key = open_store().key_of(f"{newer}.tar")
    whole = get_bytes(open_store(), key)

    def spoil(name: str) -> None:
        entry = entry_of(scene, newer, name)
        middle = entry.offset + entry.length // 2
        put_bytes(open_store(), key, whole[:middle] + b"damaged!" + whole[middle + 8 :])

    spoil(f"base/{DATABASE}/{newer}/base.tar")
    with scene.come_back(DATABASE, TimeTarget(late)) as (_, report, connection, said):
        assert {row[0] for row in connection.execute("SELECT id FROM rows")} == until(truth, late)
    assert report.base_day == older.isoformat()
    assert any("passed over" in note and "base.tar" in note for note in report.notes)
    assert any("planned anew" in line for line in said)

    spoil(f"bundles/{DATABASE}/")
    assert scene.ids(DATABASE, TimeTarget(early)) == until(truth, early)
    with pytest.raises(NotRestorable) as refused:
        scene.ids(DATABASE, TimeTarget(late))
    assert key in str(refused.value)
    assert ".tar.gz" in str(refused.value)

    put_bytes(open_store(), key, b"something else" * 9000)
    assert scene.ids(DATABASE, TimeTarget(early)) == until(truth, early)
    with scene.come_back(DATABASE, LatestTarget()) as (_, report, connection, _):
        assert {row[0] for row in connection.execute("SELECT id FROM rows")} >= until(truth, early)
    assert any(key in note and "MISSING" in note for note in report.notes)
    with pytest.raises(NotRestorable) as refused:
        scene.ids(DATABASE, TimeTarget(late))
    assert key in str(refused.value)

    put_bytes(open_store(), key, whole)
    assert scene.ids(DATABASE, TimeTarget(late)) == until(truth, late)


def test_a_local_base_that_is_damaged_gives_way_to_the_one_off_site(
    server_factory: ServerFactory, pitr_settings: SettingsMaker, open_store: StoreMaker
) -> None:
    scene = make_scene(server_factory, pitr_settings, open_store, (DATABASE,))
    (server,) = scene.servers
    (today,) = past_days(1)
    with writing(scene.servers, SEED):
        base = scene.base(DATABASE, today)
        time.sleep(0.5)
        scene.bundle(DATABASE)
        scene.send(today)
    server.stop()
    held = next(file for file in base.files if file.name.startswith("base.tar"))
    path = scene.layout.base(DATABASE, today) / held.name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)

    with scene.come_back(DATABASE, LatestTarget()) as (plan, report, connection, _):
        assert connection.execute("SELECT count(*) FROM rows").fetchone() != (0,)

    assert plan["download"]["bytes"] == 0
    assert any("the copy in the envelope" in note and held.name in note for note in report.notes)
    assert path.read_bytes() == bytes(content), "what is here was changed"


def entry_of(scene: Scene, day: object, name: str) -> IndexEntry:
    """Return the largest member whose path begins so."""
    members = [m for d, plan in scene.plans.items() if d == day for m in plan.index.members]
    return max((m for m in members if m.artifact.path.startswith(name)), key=lambda m: m.length)
