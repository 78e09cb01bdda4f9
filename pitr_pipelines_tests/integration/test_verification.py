"""What was damaged in the source is found in what was restored; looking for it leaves nothing behind."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import dagster as dg
import psycopg
import pytest

from pitr_pipelines.defs.build import build_definitions
from pitr_pipelines.errors import RecoveryFailed, RestoredButDamaged
from pitr_pipelines.postgres.account import make_owned_directory, run
from pitr_pipelines.postgres.base_backup import take_base_backup
from pitr_pipelines.postgres.server import Cluster
from pitr_pipelines.progress import Progress
from pitr_pipelines.restore.drill import run_drill
from pitr_pipelines.restore.restore import restore
from pitr_pipelines.restore.target import LatestTarget
from pitr_pipelines.restore.verification import Verification
from pitr_pipelines.wal.bundles import make_bundle
from pitr_pipelines.wal.hours import Hour
from pitr_pipelines_tests.integration.restoring import now
from pitr_pipelines_tests.integration.test_drill import Terminal, flip_in_last_tuple, make_orders
from pitr_pipelines_tests.restore.scenes import Scene, make_scene
from pitr_pipelines_tests.servers import (
    MAJORS,
    ServerFactory,
    SettingsMaker,
    TestServer,
    create_backup_role,
)

pytestmark = pytest.mark.slow

oldest_and_newest = pytest.mark.parametrize("major", MAJORS[:1] + MAJORS[-1:])
AMCHECK = Verification(amcheck=True)


@oldest_and_newest
def test_a_page_that_pg_basebackup_lets_through_is_found_and_named(
    server_factory: ServerFactory, pitr_settings: SettingsMaker, reachable_tmp: Path, major: int
) -> None:
    """It takes a page for one that is just being changed if it claims to be newer than the backup."""
    server = server_factory(major=major)
    make_orders(server)
    space = make_owned_directory(reachable_tmp / "space", server.cluster.account)
    server.execute(f"CREATE TABLESPACE space LOCATION '{space}'")
    server.execute("ALTER TABLE orders SET TABLESPACE space")
    server.execute("CHECKPOINT")
    ((table,),) = server.execute("SELECT pg_relation_filepath('orders')")
    server.stop()
    with (server.cluster.data_directory / table).open("r+b") as file:
        file.seek(8192)
        file.write(b"\xff\xff\xff\xff\xff\xff\xff\xff")
    server.start()
    settings = pitr_settings(server, drills={"amcheck": False})
    take_base_backup(settings, "order-db")
    make_bundle(settings, "order-db", Hour.containing(now()))
    scene = Scene(server, settings)
    plan = scene.plan(LatestTarget())

    destination = scene.destination(plan, tablespaces={str(space): str(reachable_tmp / "moved")})
    with pytest.raises(RecoveryFailed) as failed:
        restore(settings, plan, destination)
    assert str(reachable_tmp / "moved") in failed.value.remedy
    assert (reachable_tmp / "moved" / "INCOMPLETE").exists()
    assert "1 of its pages are damaged" in failed.value.what
    assert f"{table}, block 1" in failed.value.what
    assert str(scene.layout.base("order-db", plan.base.day)) in failed.value.remedy
    assert "--skip-page-checks" in failed.value.remedy
    assert destination.marker.exists()
    assert (destination.data_directory / "PG_VERSION").exists()
    assert scene.restored_cluster(destination).pid() is None

    drill = run_drill(settings, "order-db")
    assert f"{table}, block 1" in drill.problems[0]

    told = scene.destination(plan, keep_running=False)
    report = restore(settings, plan, told, verification=Verification(pages=False))
    assert report.pages is None
    assert "page checksums were not checked, as was asked" in report.notes


@oldest_and_newest
def test_checking_leaves_nothing_behind_and_goes_into_the_report(
    server_factory: ServerFactory, pitr_settings: SettingsMaker, major: int
) -> None:
    scene = make_scene(server_factory, pitr_settings, major=major)
    scene.server.execute("CREATE DATABASE mine")
    with scene.server.connect(dbname="mine") as connection:
        connection.execute("CREATE EXTENSION amcheck")
    # What forbids every change to the schema may not hinder the check.
    scene.server.execute(
        "CREATE FUNCTION forbid() RETURNS event_trigger LANGUAGE plpgsql AS $$BEGIN RAISE 'no'; END$$"
    )
    scene.server.execute("CREATE EVENT TRIGGER forbid ON ddl_command_start EXECUTE FUNCTION forbid()")
    scene.switch()
    plan = scene.plan(LatestTarget())
    destination = scene.destination(plan)
    steps: list[Progress] = []
    report = restore(scene.settings, plan, destination, verification=AMCHECK, report=steps.append)
    cluster = scene.restored_cluster(destination)
    try:
        for dbname in ("postgres", "template1", "mine"):
            with psycopg.connect(
                f"host=127.0.0.1 port={report.port} user=postgres dbname={dbname}"
            ) as connection:
                found = {row[0] for row in connection.execute("SELECT extname FROM pg_extension")}
                assert found == {"plpgsql", *(["amcheck"] if dbname == "mine" else [])}
                functions = connection.execute("SELECT count(*) FROM pg_proc WHERE proname ~ 'bt_index'")
                assert (functions.fetchone() == (0,)) is (dbname != "mine")
    finally:
        cluster.stop("immediate")
    assert report.damage is None
    report.raise_if_damaged()
    assert report.pages is not None
    assert report.amcheck is not None
    assert report.pages.found is not None
    assert report.pages.found.endswith(" pages, no damage")
    assert {step.step for step in steps} >= {"amcheck", "check pages"}
    written = json.loads(destination.report_file.read_text())
    assert written["amcheck"]["found"] == "no damage"
    assert written["pages"]["took_s"] > 0
    assert written["plan"]["base"]["day"] == report.base_day
    assert len(written["plan"]["segments"]) == report.segments
    assert any(line.startswith("page checksums: ") for line in report.checks)


def without_checksums(server_factory: ServerFactory) -> TestServer:
    server = server_factory(start=False)
    program = server.cluster.binaries.program("pg_checksums")
    done = run(server.cluster.account, [program, "--disable", "-D", server.cluster.data_directory])
    assert done.returncode == 0, done.stderr
    server.start()
    create_backup_role(server)
    return server


def test_damage_that_amcheck_finds_is_told_by_every_means_and_the_server_runs_all_the_same(
    server_factory: ServerFactory, pitr_settings: SettingsMaker, reachable_tmp: Path
) -> None:
    server = without_checksums(server_factory)
    make_orders(server)
    space = make_owned_directory(reachable_tmp / "space", server.cluster.account)
    server.execute(f"CREATE TABLESPACE space LOCATION '{space}'")
    server.execute("CHECKPOINT")
    ((table,),) = server.execute("SELECT pg_relation_filepath('orders')")
    server.stop()
    flip_in_last_tuple(server.cluster.data_directory / table)
    server.start()
    settings = pitr_settings(server)
    take_base_backup(settings, "order-db")
    moment = now()
    make_bundle(settings, "order-db", Hour.containing(moment))
    scene = Scene(server, settings)

    plan = scene.plan(LatestTarget())
    destination = scene.destination(plan)
    report = restore(settings, plan, destination, verification=AMCHECK)
    try:
        assert report.running
        assert not destination.marker.exists()
        assert report.pages is None
        assert any("no page checksums" in note for note in report.notes)
        with pytest.raises(RestoredButDamaged, match="orders") as damaged:
            report.raise_if_damaged()
        assert damaged.value.exit_code == 8
        with psycopg.connect(f"host=127.0.0.1 port={report.port} user=postgres dbname=postgres") as copy:
            assert copy.execute("SELECT count(*) FROM orders").fetchone() == (1000,)
            assert copy.execute("SELECT extname FROM pg_extension").fetchall() == [("plpgsql",)]
    finally:
        scene.restored_cluster(destination).stop("immediate")

    told = Terminal(pitr_settings).run("restore", "order-db", "--latest", "--stop", "--amcheck", exit_code=8)
    assert "FAILED    pg_amcheck found damage" in told
    assert "start it" in told

    config = {
        "plan_restore": {"config": {"database": "order-db", "target_time": moment.isoformat()}},
        "run_restore": {
            "config": {
                "keep_running": False,
                "amcheck": True,
                "tablespaces": {str(space): str(reachable_tmp / "moved")},
            }
        },
    }
    with dg.DagsterInstance.ephemeral() as instance:
        job = build_definitions(settings).resolve_job_def("restore")
        done = job.execute_in_process(
            instance=instance,
            partition_key=str(Hour.containing(moment)),
            run_config={"ops": config},
            raise_on_error=False,
        )
        assert not done.success
        event = instance.get_latest_materialization_event(dg.AssetKey(["order_db", "restored_cluster"]))
        assert event is not None
        assert event.asset_materialization is not None
        metadata = event.asset_materialization.metadata
        assert "found damage" in str(metadata["pg_amcheck"].value)
        assert "moved" in str(metadata["plan"].value)
    assert [path.name[:3] for path in (reachable_tmp / "moved").iterdir()] == ["PG_"]
    left = Cluster(report.data_directory, server.cluster.binaries, server.cluster.account)
    assert left.pid() is None
    shutil.rmtree(report.directory)
