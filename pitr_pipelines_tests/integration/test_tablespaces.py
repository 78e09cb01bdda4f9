"""Tablespaces come back where they are wanted, and never where the original has its own."""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest

from pitr_pipelines.errors import RecoveryFailed
from pitr_pipelines.postgres.account import make_owned_directory
from pitr_pipelines.postgres.base_backup import take_base_backup
from pitr_pipelines.postgres.server import Cluster
from pitr_pipelines.progress import Report
from pitr_pipelines.restore.destination import Destination
from pitr_pipelines.restore.fetch import fetch
from pitr_pipelines.restore.restore import restore
from pitr_pipelines.restore.segment_files import SegmentFiles
from pitr_pipelines.restore.target import LatestTarget, TimeTarget
from pitr_pipelines.wal import tablespace_records
from pitr_pipelines.wal.lsn import Lsn, SegmentName
from pitr_pipelines_tests.integration.restoring import now
from pitr_pipelines_tests.restore.scenes import Scene, make_scene, numbers, snapshot
from pitr_pipelines_tests.servers import MAJORS, ServerFactory, SettingsMaker, wait_for
from pitr_pipelines_tests.wal.test_tablespace_records import make_record

pytestmark = pytest.mark.slow

QUIET = {"autovacuum": "off"}
"""Nobody but the tests writes into the original's tablespaces."""

oldest_and_newest = pytest.mark.parametrize("major", MAJORS[:1] + MAJORS[-1:])


def make_tablespace(scene: Scene, directory: Path, name: str) -> Path:
    place = make_owned_directory(directory / f"original {name}", scene.server.cluster.account)
    scene.server.execute(f"CREATE TABLESPACE {name} LOCATION '{place}'")
    return place


def located(connection: psycopg.Connection) -> dict[str, str]:
    """Return where each tablespace lies, by its name."""
    return dict(
        connection.execute(
            "SELECT spcname::text, pg_tablespace_location(oid) FROM pg_tablespace WHERE spcname !~ '^pg_'"
        ).fetchall()
    )


def values(connection: psycopg.Connection, table: str) -> set[int]:
    return {row[0] for row in connection.execute(f"SELECT number FROM {table}".encode())}


@oldest_and_newest
def test_one_that_is_created_after_the_base_is_made_in_the_copy_and_the_originals_is_not_touched(
    server_factory: ServerFactory, pitr_settings: SettingsMaker, reachable_tmp: Path, major: int
) -> None:
    scene = make_scene(server_factory, pitr_settings, major=major, options=QUIET)
    place = make_tablespace(scene, reachable_tmp, "later")
    dropped = make_tablespace(scene, reachable_tmp, "dropped")
    scene.server.execute("CREATE TABLE spaced TABLESPACE later AS SELECT 1 AS number")
    scene.server.execute("CREATE DATABASE there TABLESPACE later")
    scene.server.execute("CREATE TABLE gone TABLESPACE dropped AS SELECT 1 AS number")
    scene.server.execute("DROP TABLE gone")
    scene.server.execute("DROP TABLESPACE dropped")
    dropped.rmdir()
    time.sleep(0.1)
    moment = now()
    scene.server.execute("INSERT INTO spaced VALUES (2)")
    scene.server.execute("CHECKPOINT")
    scene.switch()
    before, archived = snapshot(place), snapshot(scene.layout.wal("order-db"))
    with scene.restored(TimeTarget(moment)) as (report, connection):
        (location,) = located(connection).values()
        assert Path(location).parent == report.directory / "tablespaces"
        assert any(f"after the base backup, in {place}" in note for note in report.notes)
        assert values(connection, "spaced") == {1}
        connection.execute("INSERT INTO spaced VALUES (3)")
        connection.execute("CHECKPOINT")
        # It is there for good: also after crash recovery in the copy.
        source = scene.server.cluster
        copy = Cluster(report.data_directory, source.binaries, source.account)
        copy.stop("immediate")
        copy.start(log_file=report.directory / "server.log")
        with psycopg.connect(f"host=127.0.0.1 port={report.port} user=postgres dbname=there") as there:
            assert located(there) == {"later": location}
    assert snapshot(place) == before
    assert snapshot(scene.layout.wal("order-db")) == archived
    scene.server.restart()
    with scene.server.connect() as original:
        assert values(original, "spaced") == {1, 2}
    shutil.rmtree(report.directory)


def test_it_does_not_matter_that_the_originals_directory_is_not_there(
    server_factory: ServerFactory, pitr_settings: SettingsMaker, reachable_tmp: Path
) -> None:
    """As on another machine, where PostgreSQL alone would not recover at all."""
    scene = make_scene(server_factory, pitr_settings, options=QUIET)
    place = make_tablespace(scene, reachable_tmp, "later")
    scene.server.execute("CREATE TABLE spaced TABLESPACE later AS SELECT 1 AS number")
    scene.switch()
    scene.server.stop()
    shutil.rmtree(place)
    with scene.restored(LatestTarget()) as (_, connection):
        assert values(connection, "spaced") == {1}
    assert not place.exists()


def test_one_that_is_created_while_the_base_begins_stays_where_it_was_put(
    server_factory: ServerFactory, pitr_settings: SettingsMaker, reachable_tmp: Path
) -> None:
    """It is in the base backup and in the WAL, whose replay would link it to the original's directory."""
    server = server_factory(options={"checkpoint_timeout": "1h", **QUIET})
    settings = pitr_settings(server, base_backup={"fast_checkpoint": False})
    scene = Scene(server, settings)
    server.execute("CREATE TABLE dirty AS SELECT repeat('x', 5000) FROM generate_series(1, 1500)")
    with ThreadPoolExecutor(1) as pool:
        taking = pool.submit(take_base_backup, settings, "order-db")
        phase = "SELECT 1 FROM pg_stat_progress_basebackup WHERE phase ~ 'checkpoint'"
        wait_for(lambda: taking.done() or server.execute(phase), what="the checkpoint of the base backup")
        # Now it is under way: what it will begin with is settled, which tablespaces there are is not.
        place = make_tablespace(scene, reachable_tmp, "midway")
        server.execute("CREATE TABLE spaced TABLESPACE midway AS SELECT 1 AS number")
        server.execute("CHECKPOINT")
        record = taking.result()
    scene.switch()
    assert [tablespace.location for tablespace in record.tablespaces] == [str(place)]
    assert creations(scene, record.first_segment, record.last_segment)
    before = snapshot(place)
    with scene.restored(LatestTarget()) as (report, connection):
        (location,) = located(connection).values()
        assert Path(location).parent == report.directory / "tablespaces"
        connection.execute("INSERT INTO spaced VALUES (2)")
        connection.execute("CHECKPOINT")
        assert values(connection, "spaced") == {1, 2}
    assert snapshot(place) == before


@oldest_and_newest
def test_each_goes_where_it_is_wanted_whatever_moves_between_them(
    server_factory: ServerFactory, pitr_settings: SettingsMaker, reachable_tmp: Path, major: int
) -> None:
    scene = make_scene(server_factory, pitr_settings, major=major, options=QUIET)
    one, two = (make_tablespace(scene, reachable_tmp, name) for name in ("one", "two"))
    scene.server.execute("CREATE TABLE moving TABLESPACE one AS SELECT generate_series(1, 1000) AS number")
    scene.server.execute("CREATE TABLE staying TABLESPACE two AS SELECT 7 AS number")
    scene.server.execute("CREATE DATABASE housed TABLESPACE two")
    scene.server.execute("CREATE DATABASE moved TABLESPACE one")
    take_base_backup(scene.settings, "order-db", replace=True)
    scene.server.execute("ALTER TABLE moving SET TABLESPACE two")
    scene.server.execute("INSERT INTO moving VALUES (-1)")
    scene.server.execute("ALTER TABLE staying SET TABLESPACE one")
    scene.server.execute("ALTER DATABASE moved SET TABLESPACE two")
    with scene.server.connect(dbname="housed") as connection:
        connection.execute("CREATE TABLE inside AS SELECT 5 AS number")
    scene.switch()
    scene.server.execute("CHECKPOINT")
    plan = scene.plan(LatestTarget())
    oids = {tablespace.location: tablespace.oid for tablespace in plan.base.tablespaces}
    wanted = {
        str(oids[str(one)]): str(reachable_tmp / "new one"),
        f"{two}/": str(reachable_tmp / "b" / "two"),
    }
    before = [snapshot(one), snapshot(two)]
    with scene.restored(LatestTarget(), tablespaces=wanted) as (report, connection):
        assert located(connection) == {
            "one": str(reachable_tmp / "new one"),
            "two": str(reachable_tmp / "b" / "two"),
        }
        assert values(connection, "moving") == {-1, *range(1, 1001)}
        assert values(connection, "staying") == {7}
        for dbname, table, found in (("housed", "inside", {5}), ("moved", "pg_database", None)):
            with psycopg.connect(f"host=127.0.0.1 port={report.port} user=postgres dbname={dbname}") as other:
                assert found is None or values(other, table) == found
        for path in (report.directory, *map(Path, located(connection).values())):
            assert not (path / "INCOMPLETE").exists()
    assert list((report.directory / "tablespaces").iterdir()) == []
    assert [snapshot(one), snapshot(two)] == before


def test_creations_are_found_wherever_pages_and_segments_divide_them(
    server_factory: ServerFactory, pitr_settings: SettingsMaker, reachable_tmp: Path
) -> None:
    """Every directory is gone, so that recovery would end at the first one that was overlooked."""
    size = 1024 * 1024
    scene = make_scene(server_factory, pitr_settings, wal_segment_size_mb=1)
    place = make_owned_directory(reachable_tmp / "space", scene.server.cluster.account)
    with scene.server.connect() as connection:
        # Then what precedes the record has nearly always the same length, which is measured first.
        connection.execute("ALTER SYSTEM SET full_page_writes = off")
        connection.execute("SELECT pg_reload_conf()")
        ahead = 0
        for unit in (size, 8192, size):
            for distance in range(-48 if ahead else 96, 112, 8):
                end = wal_position(connection) // unit * unit + max(unit, 16384)
                # A message takes some 56 bytes more than what it says, and 24 for each page.
                for left in (16000, 2000, 56):
                    fill(connection, end - ahead - distance - left - wal_position(connection))
                begun = wal_position(connection)
                connection.execute(f"CREATE TABLESPACE space LOCATION '{place}'".encode())
                connection.execute("DROP TABLESPACE space")
            if not ahead:
                last = SegmentName.parse(scene.switch())
                first = SegmentName.containing(begun, last.timeline, size)
                *_, begin = creations(scene, first, last)
                ahead = begin - begun
    place.rmdir()
    scene.switch()
    plan = scene.plan(LatestTarget())
    begins = creations(scene, plan.base.first_segment, plan.segments[-1].name)
    assert len(begins) == 42
    for unit in (8192, size):
        assert any(0 < unit - begin % unit < 40 for begin in begins), [str(b) for b in begins]
    with scene.restored(LatestTarget()) as (_, connection):
        assert located(connection) == {}


def test_somebodys_data_that_looks_like_a_creation_is_left_alone(
    server_factory: ServerFactory, pitr_settings: SettingsMaker
) -> None:
    """Changed, its own record would have a wrong checksum, and recovery would end there."""
    scene = make_scene(server_factory, pitr_settings, options=QUIET)
    record = make_record(16999, "/nowhere")
    with scene.server.connect() as connection:
        for padding in range(8):
            message = b"x" * padding + record
            connection.execute("SELECT pg_logical_emit_message(false, '', %s::bytea)", [message])
    scene.insert(1)
    name = scene.switch()
    content = (scene.layout.wal("order-db") / name).read_bytes()
    looks = [content[at : at + len(record)] for at in tablespace_records.candidates(content, b"")]
    assert any(tablespace_records.parse_creation(found) for found in looks if found == record)
    with scene.restored(LatestTarget()) as (report, connection):
        assert numbers(connection) == [0, 1]
        assert not any("tablespace" in note for note in report.notes)


def test_a_directory_that_the_base_should_have_had_is_not_made_up(
    server_factory: ServerFactory,
    pitr_settings: SettingsMaker,
    reachable_tmp: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Replay may create tablespaces inside the data directory, which makes PostgreSQL lenient: we are not."""
    scene = make_scene(server_factory, pitr_settings, options=QUIET)
    make_tablespace(scene, reachable_tmp, "space")
    take_base_backup(scene.settings, "order-db", replace=True)
    scene.insert(1)
    scene.server.execute("CREATE DATABASE housed TABLESPACE space")
    scene.switch()
    plan = scene.plan(LatestTarget())
    destination = scene.destination(plan)

    def lose(files: SegmentFiles, where: Destination, *, report: Report) -> None:
        fetch(files, where, report=report)
        for lost in where.tablespaces.glob("*/PG_*"):
            shutil.rmtree(lost)

    monkeypatch.setattr("pitr_pipelines.restore.restore.fetch", lose)
    with pytest.raises(RecoveryFailed, match="the base backup lacks pg_tblspc/"):
        restore(scene.settings, plan, destination)
    assert destination.marker.exists()


def wal_position(connection: psycopg.Connection) -> int:
    row = connection.execute("SELECT pg_current_wal_insert_lsn() - '0/0'").fetchone()
    assert row is not None
    return int(row[0])


def fill(connection: psycopg.Connection, length: int) -> None:
    if length > 0:
        connection.execute("SELECT pg_logical_emit_message(false, '', repeat('x', %s))", [length])


def creations(scene: Scene, first: SegmentName, last: SegmentName) -> list[int]:
    """Ask pg_waldump where the records begin in some archived segments."""
    program = scene.server.cluster.binaries.program("pg_waldump")
    done = subprocess.run(
        [program, "--rmgr=Tablespace", f"--path={scene.layout.wal('order-db')}", str(first), str(last)],
        capture_output=True,
        text=True,
        check=False,
    )
    return [Lsn.parse(lsn) for lsn in re.findall(r"lsn: (\S+), .*desc: CREATE", done.stdout)]
