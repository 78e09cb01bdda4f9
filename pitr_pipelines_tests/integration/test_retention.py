"""Retention on a real server's backups: what is kept restores, what is held stays, the rest is refused."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path

import pytest

from pitr_pipelines.catalog.expiry import Expiry
from pitr_pipelines.catalog.inventory import read_bundle_record, read_inventory
from pitr_pipelines.catalog.layout import BASE_RECORD, Layout
from pitr_pipelines.catalog.manifest import read_manifest, refresh_manifest
from pitr_pipelines.catalog.records import BaseRecord, BundleState, read_record, write_record
from pitr_pipelines.catalog.retention import Keep, Verdict
from pitr_pipelines.catalog.verify import verify_database
from pitr_pipelines.errors import NotRestorable
from pitr_pipelines.offsite.retention import carry_out_retention
from pitr_pipelines.postgres.account import server_account
from pitr_pipelines.postgres.base_backup import take_base_backup
from pitr_pipelines.postgres.binaries import find_binaries
from pitr_pipelines.postgres.server import Cluster
from pitr_pipelines.restore.at_target import AtTarget
from pitr_pipelines.restore.prepare import plan_restore
from pitr_pipelines.restore.restore import choose_destination, restore
from pitr_pipelines.restore.resume import find_standing, move_on, plan_resume
from pitr_pipelines.restore.target import ImmediateTarget, LatestTarget, NameTarget
from pitr_pipelines.settings import Settings
from pitr_pipelines.wal.bundles import make_bundle
from pitr_pipelines.wal.hours import Hour
from pitr_pipelines_tests.integration.restoring import now, restored_ids
from pitr_pipelines_tests.servers import MAJORS, ServerFactory, SettingsMaker, TestServer

pytestmark = pytest.mark.slow

DATABASE = "order-db"
KEEP = Keep(timedelta(hours=12), daily=3, weekly=0, monthly=0)


@dataclass
class Scene:
    """Four days of backups, each of a base and two sealed bundles; `points` are their restore points."""

    server: TestServer
    settings: Settings
    points: dict[str, set[int]]

    @property
    def layout(self) -> Layout:
        return Layout(self.settings.backup_root)

    def days(self) -> list[date]:
        return [base.day for base in read_inventory(self.layout, DATABASE).bases]

    def retain(self) -> Expiry:
        return carry_out_retention(self.settings, DATABASE, now=now(), keep=KEEP)

    def insert(self, number: int) -> None:
        self.server.execute("INSERT INTO rows VALUES (%s)", number)

    def bundle(self) -> None:
        while f"{now():%Y%m%dT%H%M%S}" in "".join(self.points):
            time.sleep(0.05)  # a seal's name has the second in it
        seal = make_bundle(self.settings, DATABASE, Hour.containing(now())).record.seal
        assert seal is not None
        rows = self.server.execute("SELECT id FROM rows")
        self.points[seal.restore_point] = {row[0] for row in rows}


def age(layout: Layout, hours: int) -> None:
    """Let it be later: everything that was backed up was so many hours before, and no raw WAL is left.

    What the files hold is not changed, so times inside the WAL stay what they were.
    """
    span = timedelta(hours=hours)
    for directory in sorted(path for path in layout.bases(DATABASE).iterdir() if path.name[0] != "."):
        record = read_record(directory / BASE_RECORD, BaseRecord)
        began, ended = record.started_at - span, record.ended_at - span
        older = record.model_copy(update={"day": ended.date(), "started_at": began, "ended_at": ended})
        write_record(directory / BASE_RECORD, older)
        if directory != layout.base(DATABASE, older.day):
            directory.rename(layout.base(DATABASE, older.day))
    for path in sorted(layout.bundles(DATABASE).glob("[0-9]*.json")):
        bundle = read_bundle_record(path)
        assert bundle.file is not None
        hour = Hour(bundle.hour.start - span)
        file = bundle.file.model_copy(update={"name": f"{hour}.tar.gz"})
        # A bundle that was made early is closed at the end of its hour, by its own seal.
        runs = tuple(run.model_copy(update={"closed_at": hour.end}) for run in bundle.runs)
        seal = bundle.seal and bundle.seal.model_copy(update={"hour": hour, "at": hour.end})
        update = {"hour": hour, "file": file, "runs": runs, "seal": seal, "state": BundleState.CLOSED}
        path.with_name(f"{bundle.hour}.tar.gz").rename(path.with_name(file.name))
        write_record(path.with_name(f"{hour}.json"), bundle.model_copy(update=update))
        path.unlink()
        for member in bundle.members:
            (layout.wal(DATABASE) / member.name).unlink(missing_ok=True)


@pytest.fixture(params=MAJORS[:1] + MAJORS[-1:])
def scene(
    request: pytest.FixtureRequest, server_factory: ServerFactory, pitr_settings: SettingsMaker
) -> Iterator[Scene]:
    server = server_factory(major=request.param)
    settings = pitr_settings(
        server,
        retention={
            "keep": {"hourly_days": 1, "daily": 3, "weekly": 0, "monthly": 0},
            "require_offsite": False,
        },
    )
    server.execute("CREATE TABLE rows (id int)")
    scene = Scene(server, settings, {})
    for number in range(4):
        if number:
            age(scene.layout, 22)
        take_base_backup(settings, DATABASE)
        scene.insert(2 * number)
        scene.bundle()
        if number < 3:
            age(scene.layout, 2)
            scene.insert(2 * number + 1)
            scene.bundle()
    refresh_manifest(settings)
    yield scene
    for directory in settings.restore_root.glob("*/data"):
        with suppress(FileNotFoundError):
            binaries = find_binaries(request.param, settings.binaries)
            Cluster(directory, binaries, server_account(None)).stop("immediate")


def test_every_point_that_is_kept_restores_and_the_others_are_refused(scene: Scene) -> None:
    days, points = scene.days(), list(scene.points)
    assert len(days) == 4
    done = scene.retain()
    assert done.retention.bases(Verdict.REMOVE) == days[:1]
    assert len(done.retention.hours(Verdict.REMOVE)) == 3  # two of the first day, the second of the next
    assert scene.days() == days[1:]
    assert [one.problem for one in verify_database(scene.settings, DATABASE) if one.problem] == []
    offered = {point.name for point in read_manifest(scene.layout).databases[DATABASE].restore_points}
    assert offered == {points[2], *points[4:]}
    for name in (points[2], points[4], points[5], points[6]):
        assert restored_ids(scene.settings, NameTarget(name), seal=False) == scene.points[name]
    assert restored_ids(scene.settings, LatestTarget()) == {*range(7)}
    for name in (points[0], points[1], points[3]):
        with pytest.raises(NotRestorable):
            plan_restore(scene.settings, DATABASE, NameTarget(name), seal=False)


def test_while_a_restore_is_under_way_nothing_is_removed(scene: Scene) -> None:
    plan = plan_restore(scene.settings, DATABASE, ImmediateTarget(scene.days()[0]), seal=False)
    destination = choose_destination(scene.settings, plan, to=None, port=None, keep_running=False)
    meanwhile: list[Expiry] = []

    def log(line: str) -> None:
        if line.startswith(("unpacking", "replaying")):
            meanwhile.append(scene.retain())

    restore(scene.settings, plan, destination, log=log)
    assert [done.removed for done in meanwhile] == [False, False]
    assert all("is being restored from" in (done.skipped or "") for done in meanwhile)
    assert len(scene.days()) == 4
    assert scene.retain().removed
    assert len(scene.days()) == 3


def test_a_restore_that_was_planned_before_is_refused_before_anything_is_touched(scene: Scene) -> None:
    plan = plan_restore(scene.settings, DATABASE, ImmediateTarget(scene.days()[0]), seal=False)
    destination = choose_destination(scene.settings, plan, to=None, port=None, keep_running=False)
    scene.retain()
    with pytest.raises(NotRestorable, match="was removed since this restore of order-db was planned"):
        restore(scene.settings, plan, destination)
    assert not Path(destination.directory).exists()


def test_a_restore_that_is_paused_can_be_moved_on_and_then_lets_go(scene: Scene) -> None:
    points = list(scene.points)
    plan = plan_restore(scene.settings, DATABASE, NameTarget(points[0]), seal=False)
    destination = choose_destination(scene.settings, plan, to=None, port=None, keep_running=True)
    restore(scene.settings, plan, destination, at_target=AtTarget.PAUSE)
    held = scene.retain()
    assert not held.removed
    assert any("stands at its target" in one.reason.text for one in held.retention.decisions)

    standing = find_standing(scene.settings, DATABASE, destination.directory, keep_running=False)
    later = plan_resume(scene.settings, standing, NameTarget(points[3]), seal=False)
    move_on(scene.settings, standing, later)
    assert scene.retain().removed
    assert len(scene.days()) == 3
    assert not list(scene.layout.holds(DATABASE).iterdir())
