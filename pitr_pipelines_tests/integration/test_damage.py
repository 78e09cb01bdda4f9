"""Damage is named, by `verify` and by a plan, before a restore touches anything."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from pitr_pipelines.catalog.layout import Layout
from pitr_pipelines.catalog.manifest import refresh_manifest
from pitr_pipelines.catalog.records import BundleState
from pitr_pipelines.catalog.verify import verify_database, verify_manifest
from pitr_pipelines.errors import NotRestorable
from pitr_pipelines.postgres.base_backup import take_base_backup
from pitr_pipelines.restore.prepare import plan_restore
from pitr_pipelines.restore.target import LatestTarget, TimeTarget
from pitr_pipelines.settings import Settings
from pitr_pipelines.wal.bundles import BundleOutcome, make_bundle
from pitr_pipelines.wal.hours import Hour
from pitr_pipelines_tests.integration.restoring import now, restored, restored_ids
from pitr_pipelines_tests.servers import ServerFactory, SettingsMaker, TestServer

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Backed:
    """A database with a base, a closed bundle whose raw segments were pruned, and a raw tail."""

    server: TestServer
    settings: Settings
    layout: Layout
    hour: Hour
    early: datetime
    late: datetime


@pytest.fixture
def backed(server_factory: ServerFactory, pitr_settings: SettingsMaker) -> Backed:
    server = server_factory()
    settings = pitr_settings(server, bundle={"keep_raw_hours": 0})
    layout = Layout(settings.backup_root)
    server.execute("CREATE TABLE rows (id bigint)")
    take_base_backup(settings, "order-db")
    server.execute("INSERT INTO rows VALUES (1)")
    early = now()
    for row in (2, 3):
        server.execute(f"INSERT INTO rows VALUES ({row})")
        server.switch_wal()
    hour = Hour.containing(now())
    make_bundle(settings, "order-db", hour)
    assert close_hour(server, settings, hour).pruned > 0
    server.execute("INSERT INTO rows VALUES (4)")
    server.switch_wal()
    late = now()
    make_bundle(settings, "order-db", Hour.containing(late))
    refresh_manifest(settings)
    return Backed(server, settings, layout, hour, early, late)


def close_hour(server: TestServer, settings: Settings, hour: Hour) -> BundleOutcome:
    """Close an hour as it will be when it is over: the archive then holds a segment of the next one."""
    server.execute("CREATE TABLE filler ()")
    newest = server.archive / server.switch_wal()
    later = hour.end.timestamp() + 60
    os.utime(newest, (later, later))
    outcome = make_bundle(settings, "order-db", hour, now=hour.end + timedelta(minutes=10), seal=False)
    assert outcome.record.state is BundleState.CLOSED
    return outcome


def problems(backed: Backed) -> list[str]:
    return [v.problem for v in verify_database(backed.settings, "order-db") if v.problem]


def flip_byte(path: Path, *, at: float = 0.5) -> None:
    content = bytearray(path.read_bytes())
    content[int(len(content) * at)] ^= 0x10
    path.write_bytes(content)


def refusal(backed: Backed, moment: datetime | None = None) -> NotRestorable:
    before = set(backed.settings.restore_root.rglob("*")) if backed.settings.restore_root.exists() else set()
    with pytest.raises(NotRestorable) as refused:
        restored_ids(backed.settings, TimeTarget(moment or backed.late))
    after = set(backed.settings.restore_root.rglob("*")) if backed.settings.restore_root.exists() else set()
    assert before == after, "the restore touched its directory"
    return refused.value


def test_an_undamaged_backup_has_no_problems_and_restores(backed: Backed) -> None:
    assert problems(backed) == []
    assert verify_manifest(backed.settings).problem is None
    assert restored_ids(backed.settings, TimeTarget(backed.late)) == {1, 2, 3, 4}
    assert restored_ids(backed.settings, TimeTarget(backed.early)) == {1}


def test_a_hole_in_the_wal_is_named_and_only_moments_before_it_are_offered(backed: Backed) -> None:
    wal = backed.layout.wal("order-db")
    segments = sorted(path for path in wal.iterdir() if len(path.name) == 24)
    hole = segments[-2]
    hole.unlink()
    assert any(hole.name in problem for problem in problems(backed))
    refused = refusal(backed)
    assert hole.name in str(refused)
    assert refused.nearest
    nearest = max(moment for moment in refused.nearest if moment <= backed.late)
    assert plan_restore(backed.settings, "order-db", TimeTarget(nearest), seal=False)
    with pytest.raises(NotRestorable, match=hole.name):
        plan_restore(backed.settings, "order-db", LatestTarget(), seal=False)


def break_bundle(damage: Callable[[Path], object]) -> Callable[[Backed], Path]:
    def apply(backed: Backed) -> Path:
        path = backed.layout.bundle("order-db", backed.hour)
        for raw in backed.layout.wal("order-db").iterdir():
            if len(raw.name) == 24:
                raw.unlink()
        damage(path)
        return path

    return apply


def break_base(name: str) -> Callable[[Backed], Path]:
    def apply(backed: Backed) -> Path:
        (directory,) = (p for p in backed.layout.bases("order-db").iterdir() if p.name[0] != ".")
        (path,) = directory.glob(name)
        flip_byte(path)
        return path

    return apply


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(break_bundle(lambda path: path.write_bytes(path.read_bytes()[:-100])), id="truncated"),
        pytest.param(break_bundle(flip_byte), id="flipped"),
        pytest.param(break_bundle(Path.unlink), id="missing"),
        pytest.param(break_base("base.tar*"), id="base"),
        pytest.param(break_base("pg_wal.tar*"), id="base-wal"),
        pytest.param(break_base("backup_manifest"), id="base-manifest"),
    ],
)
def test_damage_is_named_by_verify_and_plan_and_the_restore_refuses(
    backed: Backed, damage: Callable[[Backed], Path]
) -> None:
    path = damage(backed)
    assert any(str(path) in problem for problem in problems(backed)), problems(backed)
    refused = refusal(backed, backed.early)
    assert str(path) in str(refused)
    assert "can be restored" in refused.remedy
    with pytest.raises(NotRestorable, match=path.name):
        plan_restore(backed.settings, "order-db", TimeTarget(backed.early), seal=False)


def test_a_damaged_bundle_is_passed_over_while_its_raw_segments_are_there_and_the_plan_says_so(
    server_factory: ServerFactory, pitr_settings: SettingsMaker
) -> None:
    server = server_factory()
    settings = pitr_settings(server)
    server.execute("CREATE TABLE rows (id bigint)")
    take_base_backup(settings, "order-db")
    server.execute("INSERT INTO rows VALUES (1)")
    moment = now()
    server.execute("INSERT INTO rows VALUES (2)")
    hour = Hour.containing(now())
    make_bundle(settings, "order-db", hour)
    assert close_hour(server, settings, hour).pruned == 0
    bundle = Layout(settings.backup_root).bundle("order-db", hour)
    flip_byte(bundle)
    with restored(settings, TimeTarget(moment)) as (plan, report, connection):
        assert [str(bundle) in note for note in plan.notes] == [True]
        assert plan.notes[0] in report.notes
        assert connection.execute("SELECT id FROM rows").fetchall() == [(1,)]
