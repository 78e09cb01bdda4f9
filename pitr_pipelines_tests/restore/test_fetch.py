"""What recovery will read is staged whole, from wherever it lies, or the restore says which file is bad."""

from __future__ import annotations

import os
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from pitr_pipelines.catalog.layout import Layout
from pitr_pipelines.errors import ArtifactDamaged
from pitr_pipelines.postgres.account import Account
from pitr_pipelines.restore.destination import Destination, claim
from pitr_pipelines.restore.fetch import EXPECTED, Stage, fetch
from pitr_pipelines.restore.plan import Plan
from pitr_pipelines.restore.restore import restore
from pitr_pipelines.restore.target import LatestTarget
from pitr_pipelines.restore.wal_source import InArchive, InBase, InBundle, WalSegment
from pitr_pipelines.wal.bundles import make_bundle
from pitr_pipelines.wal.hours import Hour
from pitr_pipelines.wal.lsn import Lsn, SegmentName
from pitr_pipelines.wal.timelines import Ancestor, TimelineHistory
from pitr_pipelines_tests.restore.scenes import MOMENT, Scene, make_scene, plan_by_hand, snapshot
from pitr_pipelines_tests.servers import ServerFactory, SettingsMaker


@pytest.fixture
def scene(server_factory: ServerFactory, pitr_settings: SettingsMaker) -> Scene:
    """A source with a base backup and two archived segments after it."""
    made = make_scene(server_factory, pitr_settings)
    for number in (1, 2):
        made.insert(number)
        made.switch()
    return made


def fetched(scene: Scene, plan: Plan, account: Account) -> Destination:
    destination = scene.destination(plan)
    claim(destination, plan, account)
    fetch(scene.layout, plan, destination, account)
    return destination


def staged(destination: Destination) -> list[str]:
    return sorted(path.name for path in destination.staging.iterdir() if path.name != EXPECTED)


def bundle(scene: Scene) -> None:
    """Bundle the running hour as if it were over, and prune what is in the bundle."""
    now = datetime.now(UTC)
    make_bundle(scene.settings, scene.server.name, Hour.containing(now))
    later = now + timedelta(days=1)
    scene.insert(99)
    os.utime(scene.layout.wal(scene.server.name) / scene.switch(), (later.timestamp(),) * 2)
    outcome = make_bundle(scene.settings, scene.server.name, Hour.containing(now), now=later, seal=False)
    assert outcome.pruned > 0


def test_raw_segments_are_staged_and_listed(scene: Scene, account: Account) -> None:
    plan = scene.plan(LatestTarget())
    before = snapshot(scene.layout.root)
    destination = fetched(scene, plan, account)
    wanted = [str(s.name) for s in plan.segments if isinstance(s.place, InArchive)]
    assert len(wanted) >= 2
    assert staged(destination) == wanted
    assert (destination.staging / EXPECTED).read_text().split() == wanted
    for name in wanted:
        archived = scene.layout.wal("order-db") / name
        assert (destination.staging / name).read_bytes() == archived.read_bytes()
    assert snapshot(scene.layout.root) == before
    assert (destination.data_directory / "backup_label").exists()
    assert destination.marker.exists()


def test_a_raw_segment_that_the_server_may_not_read_is_copied(scene: Scene, account: Account) -> None:
    plan = scene.plan(LatestTarget())
    name = next(str(s.name) for s in plan.segments if isinstance(s.place, InArchive))
    archived = scene.layout.wal("order-db") / name
    if account.switch:
        os.chown(archived, 0, 0)
    archived.chmod(0o400)
    destination = fetched(scene, plan, account)
    linked = (destination.staging / name).stat().st_ino == archived.stat().st_ino
    assert linked is not account.switch
    assert archived.stat().st_mode & 0o777 == 0o400


def test_segments_come_out_of_bundles(scene: Scene, account: Account) -> None:
    raw = {path.name: path.read_bytes() for path in scene.layout.wal("order-db").glob("0*")}
    bundle(scene)
    plan = scene.plan(LatestTarget())
    bundled = [str(s.name) for s in plan.segments if isinstance(s.place, InBundle)]
    assert bundled
    destination = fetched(scene, plan, account)
    for name in bundled:
        if name in raw:
            assert (destination.staging / name).read_bytes() == raw[name]


def test_a_segment_that_was_bundled_meanwhile_is_found(scene: Scene, account: Account) -> None:
    plan = scene.plan(LatestTarget())
    bundle(scene)
    destination = fetched(scene, plan, account)
    assert staged(destination) == [str(s.name) for s in plan.segments if not isinstance(s.place, InBase)]


def test_a_member_damaged_since_the_plan_stops_the_restore(scene: Scene) -> None:
    bundle(scene)
    plan = scene.plan(LatestTarget())
    place = next(s.place for s in plan.segments if isinstance(s.place, InBundle))
    path = scene.layout.bundle("order-db", place.hour)
    content = bytearray(path.read_bytes())
    content[place.member.offset + place.member.length // 2] ^= 1
    path.write_bytes(content)
    destination = scene.destination(plan)
    with pytest.raises(ArtifactDamaged, match=place.member.name) as caught:
        restore(scene.settings, plan, destination)
    assert f"{destination.directory} is marked INCOMPLETE: delete it" in caught.value.remedy
    assert destination.marker.exists()
    assert not (destination.staging / EXPECTED).exists()
    assert not (destination.data_directory / "postmaster.pid").exists()


def test_a_base_damaged_since_the_plan_stops_the_restore(scene: Scene) -> None:
    plan = scene.plan(LatestTarget())
    path = next(scene.layout.base("order-db", plan.base.day).glob("base.tar*"))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    destination = scene.destination(plan)
    with pytest.raises(ArtifactDamaged, match=r"base\.tar"):
        restore(scene.settings, plan, destination)
    assert destination.marker.exists()


def test_wal_of_another_cluster_is_never_staged(scene: Scene, account: Account) -> None:
    plan = scene.plan(LatestTarget())
    path = next(s.place.file.path for s in plan.segments if isinstance(s.place, InArchive))
    with path.open("r+b") as file:
        file.seek(24)
        file.write(b"\1\2\3\4\5\6\7\0")
    with pytest.raises(ArtifactDamaged, match="holds WAL of the cluster"):
        fetched(scene, plan, account)


def test_segments_that_only_another_base_has_come_out_of_it(scene: Scene, account: Account) -> None:
    plan = scene.plan(LatestTarget())
    first = replace(plan.segments[0], place=InBase(plan.base.day))
    plan = replace(plan, segments=(first, *plan.segments[1:]))
    elsewhere = replace(plan, base=plan.base.model_copy(update={"day": plan.base.day - timedelta(days=1)}))
    own = scene.layout.base("order-db", plan.base.day)
    scene.layout.base("order-db", elsewhere.base.day).symlink_to(own)
    carried = [str(s.name) for s in plan.segments if isinstance(s.place, InBase)]
    assert carried
    destination = fetched(scene, elsewhere, account)
    assert set(carried) <= set(staged(destination))
    for name in carried:
        assert (destination.staging / name).read_bytes()[:4096] == (
            destination.data_directory / "pg_wal" / name
        ).read_bytes()[:4096]


def test_the_history_of_a_branch_is_staged_even_if_the_archive_lost_it(
    scene: Scene, account: Account
) -> None:
    plan = scene.plan(LatestTarget())
    branch = TimelineHistory(3, (Ancestor(1, Lsn.parse("0/5000000")), Ancestor(2, Lsn.parse("0/6000000"))))
    (scene.layout.wal("order-db") / "00000002.history").write_text("1\t0/5000000\tpromoted\n")
    destination = fetched(scene, replace(plan, branch=branch), account)
    names = (destination.staging / EXPECTED).read_text().split()
    assert names[:2] == [n for n in names if n.startswith("000000010000")][:2]
    assert {"00000002.history", "00000003.history"} <= set(names)
    assert (destination.staging / "00000002.history").read_text() == "1\t0/5000000\tpromoted\n"
    rewritten = (destination.staging / "00000003.history").read_text()
    assert TimelineHistory.parse(3, rewritten) == branch


def test_the_begin_of_a_segment_that_a_base_carries_gives_way_to_what_its_timeline_wrote(
    reachable_tmp: Path, account: Account
) -> None:
    """Else a transaction that was prepared further on in it would end the restore."""
    left_at = Lsn(4 * 16 * 1024**2 + 3 * 8192)
    successor = SegmentName.parse("000000020000000000000004")
    by_hand = plan_by_hand()
    plan = replace(
        by_hand,
        branch=TimelineHistory(2, (Ancestor(1, left_at),)),
        segments=(*by_hand.segments, WalSegment(successor, MOMENT, InBase(by_hand.base.day))),
    )
    (reachable_tmp / str(successor)).write_bytes(b"WAL " * 8192)
    pg_wal = reachable_tmp / "pg_wal"
    pg_wal.mkdir()
    carried = pg_wal / str(successor.on(1))
    carried.write_bytes(b"WAL ".ljust(16 * 1024**2, b"\0"))
    Stage(Layout(reachable_tmp), plan, reachable_tmp, account).keep_what_was_left(pg_wal)
    assert carried.read_bytes() == (b"WAL " * 3 * 2048).ljust(16 * 1024**2, b"\0")
    assert carried.stat().st_uid == account.uid
    assert carried.stat().st_mode & 0o777 == 0o600
