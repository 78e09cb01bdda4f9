"""Servers of every variety come back with everything that was in them, hash for hash."""

from __future__ import annotations

import psycopg
import pytest

from pitr_pipelines.postgres.base_backup import take_base_backup
from pitr_pipelines.restore.restore import restore
from pitr_pipelines.restore.target import LatestTarget, TimeTarget
from pitr_pipelines.restore.verification import Verification
from pitr_pipelines_tests.integration.varieties import (
    Variety,
    begin,
    content_of,
    end,
    go_beyond,
    go_on,
    moment_of,
)
from pitr_pipelines_tests.restore.scenes import Scene
from pitr_pipelines_tests.servers import MAJORS, ServerFactory, SettingsMaker

pytestmark = pytest.mark.slow

OLDEST, NEWEST = MAJORS[0], MAJORS[-1]
VARIETIES = (
    Variety(OLDEST, 1, checksums=True, compression="pglz"),
    Variety(NEWEST, 2, checksums=False, compression="lz4", wal_level="logical"),
    Variety(OLDEST, 16, checksums=False, compression="off"),
    Variety(NEWEST, 32, checksums=True, compression="zstd"),
    Variety(NEWEST, 64, checksums=True, compression="on"),
)
EVERYTHING = Verification(pages=True, amcheck=True)


@pytest.mark.parametrize("variety", VARIETIES, ids=str)
def test_everything_comes_back_and_nothing_else(
    server_factory: ServerFactory, pitr_settings: SettingsMaker, variety: Variety
) -> None:
    server = variety.make(server_factory)
    settings = pitr_settings(server)
    begin(server)
    take_base_backup(settings, "order-db")
    moments = [moment_of(server)] if variety.segment_mb == 16 else []
    between, content = go_on(server)
    if variety.segment_mb in (1, 32):
        moments.append((between, content))
    if variety.segment_mb == 64:
        long = "convert_to(repeat('0123456789abcdef', 4194304), 'UTF8')"
        server.execute(f"UPDATE things SET long = {long} WHERE id = 1")
    afterwards, content = end(server)
    moments.append((afterwards, content))
    numbered = server.execute("SELECT last_value FROM numbered")[0][0]
    go_beyond(server)
    scene = Scene(server, settings)
    scene.switch()

    for moment, content in moments:
        plan = scene.plan(TimeTarget(moment))
        destination = scene.destination(plan)
        report = restore(settings, plan, destination, verification=EVERYTHING)
        try:
            assert report.damage is None
            assert (report.pages is not None) is variety.checksums
            assert content_of(report.port) == content
            with psycopg.connect(
                f"host=127.0.0.1 port={report.port} user=postgres dbname=postgres", autocommit=True
            ) as copy:
                assert copy.execute("SELECT count(*) FROM pg_replication_slots").fetchone() == (0,)
                emptied = "emptied" if moment == afterwards else "fleeting"
                assert copy.execute(f"SELECT count(*) FROM {emptied}".encode()).fetchone() == (0,)
                if moment == afterwards:
                    # PostgreSQL logs a sequence 32 values ahead, and none may be given out twice.
                    (reached,) = copy.execute("SELECT nextval('numbered')").fetchone() or (0,)
                    assert numbered < reached <= numbered + 33
                    copy.execute("INSERT INTO emptied VALUES (1)")
                    assert copy.execute("SELECT gid FROM pg_prepared_xacts").fetchall() == [("open",)]
                    copy.execute("COMMIT PREPARED 'open'")
                    prepared = "SELECT n FROM shrunk WHERE n < 0"
                    assert copy.execute(prepared).fetchall() == [(-7,)]
                    assert copy.execute("SELECT word FROM things WHERE id = 5").fetchall() == [("prepared",)]
                else:
                    copy.execute("INSERT INTO fleeting (word) VALUES ('again')")
                    copy.execute("SET enable_seqscan = off")
                    assert copy.execute("SELECT word FROM fleeting WHERE id > 0").fetchall() == [("again",)]
        finally:
            scene.restored_cluster(destination).stop("immediate")


def test_a_table_of_more_than_one_file_comes_back(
    server_factory: ServerFactory, pitr_settings: SettingsMaker
) -> None:
    """One row fills a page of it, so that it takes 1 GiB with a tenth of that in the WAL."""
    server = server_factory(options={"max_wal_size": "4GB"})
    settings = pitr_settings(server)
    server.execute("CREATE TABLE big (n int, filler text) WITH (fillfactor = 10)")
    grow = "INSERT INTO big SELECT n, repeat('x', 850) FROM generate_series({}, {}) n"
    server.execute(grow.format(1, 68_000))
    take_base_backup(settings, "order-db")
    server.execute(grow.format(68_001, 135_000))
    server.execute("UPDATE big SET n = -n WHERE n % 1000 = 0 OR n > 134000")
    assert server.execute("SELECT pg_relation_size('big') > 1024 ^ 3") == [(True,)]
    question = "SELECT count(*), md5(string_agg(n::text, ',' ORDER BY n)), sum(length(filler)) FROM big"
    expected = server.execute(question)
    scene = Scene(server, settings)
    scene.switch()
    with scene.restored(LatestTarget()) as (report, connection):
        assert connection.execute(question.encode()).fetchall() == expected
        assert len(list((report.data_directory / "base").glob("*/*.1"))) == 1
        assert report.pages is not None
