"""Every WAL file is made whole, from wherever it lies, or the restore says which file is bad."""

from __future__ import annotations

import os
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from pitr_pipelines.catalog.layout import Layout
from pitr_pipelines.errors import ArtifactDamaged
from pitr_pipelines.postgres.account import Account, make_owned_directory
from pitr_pipelines.restore.plan import Plan
from pitr_pipelines.restore.restore import restore
from pitr_pipelines.restore.segment_files import SegmentFiles, keep_what_was_left
from pitr_pipelines.restore.target import LatestTarget
from pitr_pipelines.restore.wal_source import InArchive, InBase, InBundle, WalSegment
from pitr_pipelines.wal.archive import scan_archive
from pitr_pipelines.wal.bundles import make_bundle
from pitr_pipelines.wal.hours import Hour
from pitr_pipelines.wal.lsn import Lsn, SegmentName
from pitr_pipelines.wal.timelines import Ancestor, TimelineHistory
from pitr_pipelines_tests.restore.scenes import MOMENT, Scene, make_scene, plan_by_hand, snapshot
from pitr_pipelines_tests.servers import ServerFactory, SettingsMaker
from pitr_pipelines_tests.wal_files import put_file, segment_bytes


@pytest.fixture
def scene(server_factory: ServerFactory, pitr_settings: SettingsMaker) -> Scene:
    """A source with a base backup and two archived segments after it."""
    made = make_scene(server_factory, pitr_settings)
    for number in (1, 2):
        made.insert(number)
        made.switch()
    return made


@pytest.fixture
def into(reachable_tmp: Path, account: Account) -> Path:
    """The directory in which files are made."""
    return make_owned_directory(reachable_tmp / "made", account)


def make_all(scene: Scene, plan: Plan, account: Account, into: Path) -> dict[str, bytes]:
    """Make every segment that the base of the plan does not carry; return what they hold."""
    files = SegmentFiles(scene.layout, plan, account)
    for segment in plan.segments:
        if not isinstance(segment.place, InBase):
            files.make(segment, into / str(segment.name))
            assert bytes(files.content(segment)) == (into / str(segment.name)).read_bytes()
    return {path.name: path.read_bytes() for path in into.iterdir()}


def bundle(scene: Scene) -> None:
    """Bundle the running hour as if it were over, and prune what is in the bundle."""
    now = datetime.now(UTC)
    make_bundle(scene.settings, scene.server.name, Hour.containing(now))
    later = now + timedelta(days=1)
    scene.insert(99)
    os.utime(scene.layout.wal(scene.server.name) / scene.switch(), (later.timestamp(),) * 2)
    outcome = make_bundle(scene.settings, scene.server.name, Hour.containing(now), now=later, seal=False)
    assert outcome.pruned > 0


def test_raw_segments_are_copied_and_belong_to_the_server(scene: Scene, account: Account, into: Path) -> None:
    plan = scene.plan(LatestTarget())
    before = snapshot(scene.layout.root)
    made = make_all(scene, plan, account, into)
    wanted = [str(s.name) for s in plan.segments if isinstance(s.place, InArchive)]
    assert len(wanted) >= 2
    assert sorted(made) == wanted
    for name in wanted:
        assert made[name] == (scene.layout.wal("order-db") / name).read_bytes()
        status = (into / name).stat()
        assert (status.st_uid, status.st_mode & 0o777, status.st_nlink) == (account.uid, 0o600, 1)
    assert snapshot(scene.layout.root) == before


def test_segments_come_out_of_bundles(scene: Scene, account: Account, into: Path) -> None:
    raw = {path.name: path.read_bytes() for path in scene.layout.wal("order-db").glob("0*")}
    bundle(scene)
    plan = scene.plan(LatestTarget())
    bundled = {str(s.name) for s in plan.segments if isinstance(s.place, InBundle)}
    assert bundled & set(raw)
    made = make_all(scene, plan, account, into)
    for name in bundled & set(raw):
        assert made[name] == raw[name]
        # What follows the last record was not written.
        assert (into / name).stat().st_blocks * 512 < len(raw[name])


def test_a_segment_that_was_bundled_meanwhile_is_found(scene: Scene, account: Account, into: Path) -> None:
    plan = scene.plan(LatestTarget())
    bundle(scene)
    made = make_all(scene, plan, account, into)
    assert sorted(made) == [str(s.name) for s in plan.segments if not isinstance(s.place, InBase)]


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


def test_wal_of_another_cluster_is_never_served(scene: Scene, account: Account, into: Path) -> None:
    plan = scene.plan(LatestTarget())
    path = next(s.place.file.path for s in plan.segments if isinstance(s.place, InArchive))
    with path.open("r+b") as file:
        file.seek(24)
        file.write(b"\1\2\3\4\5\6\7\0")
    with pytest.raises(ArtifactDamaged, match="holds WAL of the cluster"):
        make_all(scene, plan, account, into)
    assert path.name not in {made.name for made in into.iterdir()}


def test_segments_that_only_another_base_has_come_out_of_it(
    scene: Scene, account: Account, into: Path
) -> None:
    plan = scene.plan(LatestTarget())
    carried = [str(plan.base.first_segment)]
    SegmentFiles(scene.layout, plan, account).make_from_base(plan.base.day, carried, into)
    for name in carried:
        status = (into / name).stat()
        assert (status.st_size, status.st_uid) == (plan.base.wal_segment_size, account.uid)
    with pytest.raises(ArtifactDamaged, match="it does not hold 0000000900000000000000AA"):
        SegmentFiles(scene.layout, plan, account).make_from_base(
            plan.base.day, ["0000000900000000000000AA"], into
        )


def test_the_history_of_a_branch_is_there_even_if_the_archive_lost_it(scene: Scene, account: Account) -> None:
    plan = scene.plan(LatestTarget())
    branch = TimelineHistory(3, (Ancestor(1, Lsn.parse("0/5000000")), Ancestor(2, Lsn.parse("0/6000000"))))
    (scene.layout.wal("order-db") / "00000002.history").write_text("1\t0/5000000\tpromoted\n")
    found = dict(SegmentFiles(scene.layout, replace(plan, branch=branch), account).histories())
    assert found["00000002.history"] == b"1\t0/5000000\tpromoted\n"
    assert TimelineHistory.parse(3, found["00000003.history"].decode()) == branch
    assert "00000001.history" not in found


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0",
        b"x" + bytes(3_000_000),
        bytes(3_000_000) + b"x",
        bytes(2**21),
        b"x" * (2**20) + bytes(2**20),
    ],
    ids=len,
)
def test_a_file_is_written_as_it_is_whatever_zeros_are_in_it(
    reachable_tmp: Path, scene: Scene, account: Account, content: bytes
) -> None:
    files = SegmentFiles(scene.layout, scene.plan(LatestTarget()), account)
    files.write(reachable_tmp / "file", content)
    assert (reachable_tmp / "file").read_bytes() == content


def test_the_begin_of_a_segment_that_a_base_carries_gives_way_to_what_its_timeline_wrote(
    reachable_tmp: Path, account: Account
) -> None:
    """Else a transaction that was prepared further on in it would end the restore."""
    size = 16 * 1024**2
    left_at = Lsn(4 * size + 3 * 8192)
    successor = SegmentName.parse("000000020000000000000004")
    by_hand = plan_by_hand()
    layout = Layout(reachable_tmp / "backup")
    content = segment_bytes(
        successor, segment_size=size, system_identifier=by_hand.base.system_identifier, written_on=1
    )
    put_file(layout.wal("order-db"), str(successor), content, MOMENT)
    [raw] = scan_archive(layout.wal("order-db"))
    plan = replace(
        by_hand,
        branch=TimelineHistory(2, (Ancestor(1, left_at),)),
        segments=(*by_hand.segments, WalSegment(successor, MOMENT, InArchive(raw))),
    )
    pg_wal = reachable_tmp / "pg_wal"
    pg_wal.mkdir()
    carried = pg_wal / str(successor.on(1))
    carried.write_bytes(content[:8192].ljust(size, b"\0"))
    keep_what_was_left(SegmentFiles(layout, plan, account), pg_wal)
    assert carried.read_bytes() == content[: 3 * 8192].ljust(size, b"\0")
    assert carried.stat().st_uid == account.uid
    assert carried.stat().st_mode & 0o777 == 0o600
