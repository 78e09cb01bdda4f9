"""A restore reaches exactly its target, or fails loudly and leaves a directory that says so."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from pitr_pipelines.errors import ArtifactDamaged, DestinationInUse, RecoveryFailed
from pitr_pipelines.postgres.account import make_owned_directory
from pitr_pipelines.postgres.base_backup import take_base_backup
from pitr_pipelines.postgres.server import Cluster
from pitr_pipelines.progress import Progress
from pitr_pipelines.restore.configure import RECOVERY_TARGETS
from pitr_pipelines.restore.destination import Destination
from pitr_pipelines.restore.feeder import Feeder
from pitr_pipelines.restore.plan import Plan, StopAtEnd, StopAtTime
from pitr_pipelines.restore.recover import recovery_options
from pitr_pipelines.restore.restore import restore
from pitr_pipelines.restore.stop import Stop, StopAtConsistency, StopAtLsn, StopAtXid
from pitr_pipelines.restore.target import LatestTarget, TimeTarget
from pitr_pipelines.restore.wal_source import InArchive
from pitr_pipelines.wal.lsn import Lsn
from pitr_pipelines_tests.restore.scenes import (
    MOMENT,
    Scene,
    make_scene,
    numbers,
    plan_by_hand,
    show,
    snapshot,
)
from pitr_pipelines_tests.servers import ServerFactory, SettingsMaker, each_major, wait_for

pytestmark = pytest.mark.slow


@pytest.fixture
def scene(server_factory: ServerFactory, pitr_settings: SettingsMaker) -> Scene:
    return make_scene(server_factory, pitr_settings)


@each_major
def test_a_restore_stops_exactly_at_the_time(
    server_factory: ServerFactory, pitr_settings: SettingsMaker, major: int
) -> None:
    scene = make_scene(server_factory, pitr_settings, major=major)
    scene.insert(1)
    after_two = scene.insert(2)
    scene.insert(3)
    scene.switch()
    scene.insert(4)
    scene.switch()
    source = snapshot(scene.layout.root)
    with scene.restored(TimeTarget(after_two)) as (report, connection):
        assert numbers(connection) == [0, 1, 2]
        connection.execute("INSERT INTO rows VALUES (1000)")
        connection.execute("SELECT pg_switch_wal()")
        connection.execute("CHECKPOINT")
        assert show(connection, "archive_mode") == "off"
        assert show(connection, "fsync") == "on"
        assert show(connection, "port") == str(report.port) != str(scene.server.port)
        assert report.last_transaction_at is not None
        assert report.first_left_out_at is not None
        assert report.last_transaction_at <= after_two < report.first_left_out_at
        assert report.timeline == 2
        assert report.running
        written = json.loads((report.directory / "restore.json").read_text())
        assert written == report.model_dump(mode="json")
        assert sorted(path.name for path in report.directory.iterdir()) == [
            "data",
            "restore.json",
            "run",
            "server.log",
            "tablespaces",
        ]
        left = {path.name for path in report.data_directory.iterdir()}
        assert not left & {"backup_label.old", "recovery.signal", "standby.signal", "pg_hba.recovery.conf"}
    assert snapshot(scene.layout.root) == source
    assert scene.server.execute("SELECT sum(number) FROM rows") == [(10,)]


@each_major
def test_a_restore_to_the_end_replays_everything(
    server_factory: ServerFactory, pitr_settings: SettingsMaker, major: int
) -> None:
    scene = make_scene(server_factory, pitr_settings, major=major)
    for number in (1, 2):
        scene.insert(number)
        scene.switch()
    scene.insert(3)  # never archived
    with scene.restored() as (report, connection):
        assert numbers(connection) == [0, 1, 2]
        assert report.first_left_out_at is None
        assert any("was replayed" in check for check in report.checks)


def test_a_role_that_is_not_in_the_restored_cluster_is_no_failure(
    server_factory: ServerFactory, pitr_settings: SettingsMaker
) -> None:
    scene = make_scene(server_factory, pitr_settings)
    scene.switch()
    database = scene.settings.databases["order-db"]
    stranger = database.model_copy(update={"dsn": database.dsn.replace("user=pitr", "user=stranger")})
    scene.settings = scene.settings.model_copy(update={"databases": {"order-db": stranger}})
    with scene.restored() as (report, _):
        assert "it answers; databases: 1" in report.checks
        assert "-U postgres" in report.connect
        assert report.notes == ()


def test_progress_counts_the_segments(scene: Scene) -> None:
    scene.insert(1)
    scene.switch()
    seen: list[Progress] = []
    plan = scene.plan(LatestTarget())
    destination = scene.destination(plan, keep_running=False)
    report = restore(scene.settings, plan, destination, report=seen.append)
    replayed = [progress for progress in seen if progress.step == "replay"]
    assert (replayed[-1].done, replayed[-1].total) == (report.segments_fed, report.segments_fed)
    assert {progress.step for progress in seen} >= {"extract", "replay", "sync"}


def test_a_restore_can_be_left_stopped(scene: Scene) -> None:
    plan = scene.plan(LatestTarget(), seal=True)
    destination = scene.destination(plan, keep_running=False)
    report = restore(scene.settings, plan, destination)
    cluster = scene.restored_cluster(destination)
    assert not report.running
    assert cluster.pid() is None
    assert cluster.control_data()["Database cluster state"] == "shut down"
    done = subprocess.run(["sh", "-c", report.start], capture_output=True, text=True, check=False)
    try:
        assert done.returncode == 0, done.stdout + done.stderr
    finally:
        cluster.stop("immediate")


@pytest.mark.parametrize("lost", ["first", "last"])
def test_a_segment_that_is_lost_after_planning_ends_the_restore(scene: Scene, lost: str) -> None:
    for number in (1, 2, 3):
        scene.insert(number)
        scene.switch()
    plan = scene.plan(LatestTarget())
    destination = scene.destination(plan)
    raw = [s.place.file.path for s in plan.segments if isinstance(s.place, InArchive)]
    path = raw[0 if lost == "first" else -1]
    path.unlink()
    with pytest.raises(ArtifactDamaged, match="has gone away since the restore was planned") as caught:
        restore(scene.settings, plan, destination)
    assert path.name in caught.value.what
    assert "is marked INCOMPLETE" in caught.value.remedy
    never_promoted(scene, destination)


def test_a_segment_that_cannot_be_made_while_it_replays_ends_recovery(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the feeder says is known to the server too, should nobody watch that any more."""
    for number in (1, 2, 3):
        scene.insert(number)
        scene.switch()
    plan = scene.plan(LatestTarget())
    destination = scene.destination(plan)
    raw = [s.place.file.path for s in plan.segments if isinstance(s.place, InArchive)]

    def lose(progress: Progress) -> None:
        if progress.step == "extract" and raw[-1].exists():
            raw[-1].unlink()

    monkeypatch.setattr(Feeder, "check", lambda _: None)
    with pytest.raises(RecoveryFailed, match="a WAL file could not be given to recovery") as caught:
        restore(scene.settings, plan, destination, report=lose)
    assert raw[-1].name in caught.value.what
    never_promoted(scene, destination)


def test_a_damaged_end_of_the_wal_is_not_taken_for_the_end(scene: Scene) -> None:
    """Of raw segments nothing is on record, so a flipped byte shows only when it is replayed."""
    scene.server.execute("INSERT INTO rows SELECT generate_series(1, 20000)")
    last = scene.layout.wal("order-db") / scene.switch()
    content = bytearray(last.read_bytes())
    content[600_000] ^= 1
    last.write_bytes(content)
    plan = scene.plan(LatestTarget())
    destination = scene.destination(plan)
    with pytest.raises(RecoveryFailed, match="the WAL is damaged"):
        restore(scene.settings, plan, destination)
    assert destination.marker.exists()
    assert scene.restored_cluster(destination).pid() is None


def test_wal_that_ends_before_the_target_fails(scene: Scene) -> None:
    scene.insert(1)
    scene.switch()
    plan = scene.plan(LatestTarget())
    later = Plan(
        plan.database,
        plan.target,
        plan.base,
        plan.branch,
        plan.segments,
        StopAtTime(datetime.now(UTC) + timedelta(hours=1)),
    )
    destination = scene.destination(later)
    with pytest.raises(RecoveryFailed, match="before configured recovery target was reached") as caught:
        restore(scene.settings, later, destination)
    assert "pitr verify" in caught.value.remedy
    never_promoted(scene, destination)


def never_promoted(scene: Scene, destination: Destination) -> None:
    cluster = scene.restored_cluster(destination)
    assert cluster.pid() is None
    assert destination.marker.exists()
    assert not (destination.data_directory / "pg_wal" / "00000002.history").exists()
    assert cluster.control_data()["Latest checkpoint's TimeLineID"] == "1"


def slow_replay(destination_file: Path) -> str:
    """Return a program that restores, and waits for ever in the middle of replay."""
    return f"""
import sys, time
from pathlib import Path
from pitr_pipelines.settings import load_settings
from pitr_pipelines.restore.prepare import plan_restore
from pitr_pipelines.restore.restore import choose_destination, restore
from pitr_pipelines.restore.target import LatestTarget
settings = load_settings(sys.argv[1])
plan = plan_restore(settings, "order-db", LatestTarget(), seal=False)
destination = choose_destination(settings, plan, to=None, port=None, keep_running=True)
Path({str(destination_file)!r}).write_text(str(destination.directory))
def report(progress):
    if progress.step == "replay":
        print("replaying", flush=True)
        time.sleep(600)
restore(settings, plan, destination, report=report)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_restore_is_never_taken_for_whole(
    scene: Scene, reachable_tmp: Path, number: signal.Signals
) -> None:
    scene.insert(1)
    scene.switch()
    named = reachable_tmp / "destination"
    process = subprocess.Popen(
        [sys.executable, "-c", slow_replay(named), str(reachable_tmp / "pitr.yaml")], stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == b"replaying\n"
        directory = Path(named.read_text())
        cluster = Cluster(directory / "data", scene.server.cluster.binaries, scene.server.cluster.account)
        wait_for(cluster.pid, what="the recovering server")
    finally:
        process.send_signal(number)
        process.wait()
        process.stdout.close()
    assert (directory / "INCOMPLETE").exists()
    plan = scene.plan(LatestTarget())
    with pytest.raises(DestinationInUse, match="has not finished") as caught:
        scene.destination(plan, to=directory)
    if number == signal.SIGKILL:  # nobody was left to end its server: the refusal says which one
        pid = cluster.pid()
        assert f"kill -QUIT {pid}" in caught.value.remedy
        cluster.stop("immediate")
    assert cluster.pid() is None


def test_a_directory_is_restored_into_only_once(scene: Scene, reachable_tmp: Path) -> None:
    scene.switch()
    to = reachable_tmp / "once"
    with scene.restored(to=to):
        pass
    with pytest.raises(DestinationInUse, match="is not empty"):
        scene.destination(scene.plan(LatestTarget()), to=to)


@pytest.mark.parametrize("name", ['it\'s 100% "mine", $HOME', "d" * 120])
def test_any_directory_will_do(scene: Scene, reachable_tmp: Path, name: str) -> None:
    """With quotes, spaces, commas and percents; and too long for a socket."""
    after = scene.insert(1)
    scene.insert(2)
    scene.switch()
    with scene.restored(TimeTarget(after), to=reachable_tmp / name) as (report, connection):
        assert numbers(connection) == [0, 1]
        assert report.directory.name == name


def test_tablespaces_go_into_the_directory(scene: Scene, reachable_tmp: Path) -> None:
    place = make_owned_directory(reachable_tmp / "space", scene.server.cluster.account)
    scene.server.execute(f"CREATE TABLESPACE space LOCATION '{place}'")
    scene.server.execute("CREATE TABLE spaced TABLESPACE space AS SELECT 1 AS number")
    made = retake_base(scene)
    scene.server.execute("INSERT INTO spaced VALUES (2)")
    scene.switch()
    before = snapshot(place)
    with made.restored() as (report, connection):
        assert connection.execute("SELECT number FROM spaced ORDER BY 1").fetchall() == [(1,), (2,)]
        connection.execute("INSERT INTO spaced VALUES (3)")
        connection.execute("CHECKPOINT")
        (location,) = connection.execute(
            "SELECT pg_tablespace_location(oid) FROM pg_tablespace WHERE spcname = 'space'"
        ).fetchone() or ("",)
        assert Path(location).parent == report.directory / "tablespaces"
    assert snapshot(place) == before


def retake_base(scene: Scene) -> Scene:
    """Replace the base backup by one of the source as it is now."""
    shutil.rmtree(scene.layout.bases(scene.server.name))
    take_base_backup(scene.settings, scene.server.name)
    return scene


@pytest.mark.parametrize("size_mb", [1, 64])
def test_segments_may_have_another_size(
    server_factory: ServerFactory, pitr_settings: SettingsMaker, size_mb: int
) -> None:
    scene = make_scene(server_factory, pitr_settings, wal_segment_size_mb=size_mb)
    scene.insert(1)
    scene.switch()
    # One record over several segments of 1 MiB, at the very end of what is archived.
    scene.server.execute("SELECT pg_logical_emit_message(false, 'long', repeat('x', 3000000))")
    scene.switch()
    with scene.restored() as (_, connection):
        assert numbers(connection) == [0, 1]


def test_a_record_that_never_ends_is_no_damage(
    server_factory: ServerFactory, pitr_settings: SettingsMaker
) -> None:
    """The archive may end in the middle of a record that is longer than a segment."""
    scene = make_scene(server_factory, pitr_settings, wal_segment_size_mb=1)
    scene.insert(1)
    scene.server.execute("SELECT pg_logical_emit_message(false, 'long', repeat('x', 5000000))")
    scene.switch()
    archive = scene.layout.wal("order-db")
    for path in sorted(archive.glob("0*"))[-3:]:
        path.unlink()
    with scene.restored() as (_, connection):
        assert numbers(connection) == [0, 1]


def test_prepared_transactions_come_back(server_factory: ServerFactory, pitr_settings: SettingsMaker) -> None:
    """Even if the source allowed none when its base backup was taken."""
    scene = make_scene(server_factory, pitr_settings, options={"max_prepared_transactions": "0"})
    scene.server.configure({"max_prepared_transactions": "5"})
    scene.server.restart()
    scene.server.execute("BEGIN; INSERT INTO rows VALUES (7); PREPARE TRANSACTION 'seven'")
    scene.switch()
    with scene.restored() as (_, connection):
        assert numbers(connection) == [0]
        connection.execute("COMMIT PREPARED 'seven'")
        assert numbers(connection) == [0, 7]


def test_a_branch_is_followed_across_a_promotion(
    server_factory: ServerFactory, pitr_settings: SettingsMaker
) -> None:
    scene = make_scene(server_factory, pitr_settings)
    scene.insert(1)
    server = scene.server
    server.stop()
    (server.cluster.data_directory / "standby.signal").touch()
    os.chown(server.cluster.data_directory / "standby.signal", server.cluster.account.uid, -1)
    server.start()
    server.execute("SELECT pg_promote()")
    after = scene.insert(2)
    scene.insert(3)
    scene.switch()
    plan = scene.plan(TimeTarget(after))
    assert plan.branch.timeline == 2
    assert plan.base.timeline == 1
    with scene.restored(TimeTarget(after)) as (report, connection):
        assert numbers(connection) == [0, 1, 2]
        assert report.timeline == 3


def test_subscriptions_stay_asleep(scene: Scene) -> None:
    scene.server.execute(
        "CREATE SUBSCRIPTION sub CONNECTION 'host=127.0.0.1 port=1' PUBLICATION pub "
        "WITH (connect = false, slot_name = 'precious')"
    )
    scene.server.execute("ALTER SUBSCRIPTION sub ENABLE")
    scene.switch()
    with scene.restored() as (report, connection):
        assert any("1 logical subscriptions are kept from connecting" in note for note in report.notes)
        workers = connection.execute("SELECT count(*) FROM pg_stat_activity WHERE backend_type ~ 'logical'")
        assert workers.fetchone() == (0,)


def test_access_rules_that_do_not_work_here_are_replaced(scene: Scene) -> None:
    (scene.server.cluster.data_directory / "pg_hba.conf").write_text(
        "host all all 127.0.0.1/32 nosuchmethod\n"
    )
    made = retake_base(scene)
    scene.switch()
    plan = made.plan(LatestTarget())
    destination = made.destination(plan)
    report = restore(made.settings, plan, destination)
    try:
        assert report.running
        assert any("pg_hba.conf.original" in note for note in report.notes)
    finally:
        made.restored_cluster(destination).stop("immediate")


def test_data_is_whole_even_if_its_server_does_not_start(scene: Scene) -> None:
    scene.switch()
    plan = scene.plan(LatestTarget())
    destination = scene.destination(plan)
    with (
        socket.create_server(("127.0.0.1", destination.port)),
        pytest.raises(RecoveryFailed, match="is restored, whole and on disk") as caught,
    ):
        restore(scene.settings, plan, destination)
    assert f"the port {destination.port} is taken" in caught.value.what
    assert "pg_ctl" in caught.value.remedy
    assert not destination.marker.exists()
    assert (destination.directory / "restore.json").exists()


def test_the_restored_server_outlives_the_restore(scene: Scene, reachable_tmp: Path) -> None:
    scene.switch()
    program = slow_replay(reachable_tmp / "named").replace("time.sleep(600)", "pass")
    done = subprocess.run(
        [sys.executable, "-c", program, str(reachable_tmp / "pitr.yaml")], capture_output=True, check=True
    )
    assert done.stdout
    directory = Path((reachable_tmp / "named").read_text())
    cluster = Cluster(directory / "data", scene.server.cluster.binaries, scene.server.cluster.account)
    try:
        pid = cluster.pid()
        assert pid is not None
        assert os.getsid(pid) != os.getsid(0)
        time.sleep(0.2)
        assert cluster.pid() == pid
    finally:
        cluster.stop("immediate")


def test_the_server_that_replays_is_cut_off(tmp_path: Path) -> None:
    plan = plan_by_hand()
    options = recovery_options(
        plan, Destination(tmp_path, 5555, True), tmp_path, capacity=7, memory=64 * 1024**3
    )
    assert options["listen_addresses"] == ""
    assert options["archive_mode"] == "off"
    assert options["recovery_end_command"] == ""
    assert options["hot_standby"] == "off"
    assert options["max_worker_processes"] == "0"
    assert options["recovery_target_time"] == "2026-01-29 14:30:00.000000+00"
    assert options["shared_buffers"] == "2048MB"
    # Setting any other target after this one would unset it.
    assert list(options)[-1] == "recovery_target_time"
    assert re.fullmatch(r'sh \S+/restore-wal.sh \S+/wal "%f" "%p"', options["restore_command"])
    end = Plan(plan.database, plan.target, plan.base, plan.branch, plan.segments, StopAtEnd("all was asked"))
    at_end = recovery_options(end, Destination(tmp_path, 5555, True), tmp_path, capacity=7)
    assert at_end["recovery_target_time"] == ""
    assert MOMENT.isoformat() not in str(at_end)


@pytest.mark.parametrize(
    ("stop", "name", "value", "inclusive"),
    [
        (StopAtTime(MOMENT, inclusive=False), "recovery_target_time", "2026-01-29 14:30:00.000000+00", "off"),
        (StopAtLsn(Lsn(0x3000028)), "recovery_target_lsn", "0/3000028", "on"),
        (StopAtLsn(Lsn(0x3000028), inclusive=False), "recovery_target_lsn", "0/3000028", "off"),
        (StopAtXid(740, False, True, MOMENT), "recovery_target_xid", "740", "off"),
        (StopAtConsistency(), "recovery_target", "immediate", "on"),
    ],
)
def test_the_target_is_the_last_setting(
    tmp_path: Path, stop: Stop, name: str, value: str, inclusive: str
) -> None:
    plan = replace(plan_by_hand(), stop=stop)
    options = recovery_options(plan, Destination(tmp_path, 5555, True), tmp_path, capacity=7)
    assert list(options)[-1] == name
    assert options[name] == value
    assert options["recovery_target_inclusive"] == inclusive
    others = [other for other in options if other in RECOVERY_TARGETS and other != name]
    assert len(others) == 4
    assert not any(options[other] for other in others)


def test_a_stop_in_the_wrong_place_fails(scene: Scene) -> None:
    """A transaction is stopped at, but it is not the restore point that the plan names."""
    scene.insert(1)
    scene.switch()
    plan = scene.plan(LatestTarget())
    wrong = replace(plan, stop=StopAtLsn(Lsn(plan.base.end_lsn + 1), restore_point="nowhere"))
    destination = scene.destination(wrong)
    with pytest.raises(RecoveryFailed, match="not at the restore point"):
        restore(scene.settings, wrong, destination)
    assert destination.marker.exists()
    assert scene.restored_cluster(destination).pid() is None
