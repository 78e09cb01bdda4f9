"""A restore brings back exactly the transactions committed by the moment asked for."""

from __future__ import annotations

import itertools
import random
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta

import pytest

from pitr_pipelines.postgres.base_backup import take_base_backup
from pitr_pipelines.restore.target import LatestTarget, TimeTarget
from pitr_pipelines.wal.bundles import make_bundle
from pitr_pipelines.wal.hours import Hour
from pitr_pipelines_tests.integration.restoring import now, restored_ids
from pitr_pipelines_tests.servers import MAJORS, ServerFactory, SettingsMaker, TestServer

pytestmark = pytest.mark.slow

SEED = 20260129
CLEAR = timedelta(milliseconds=4)
"""Commit times and WAL order may differ by microseconds; targets keep this far from any commit."""


@contextmanager
def writers(server: TestServer, count: int = 3) -> Iterator[None]:
    """Insert numbered rows from several connections until the block ends."""
    stop = threading.Event()

    def write(seed: int) -> None:
        pause = random.Random(seed)
        with server.connect() as connection:
            while not stop.is_set():
                connection.execute("INSERT INTO rows DEFAULT VALUES")
                if pause.random() < 0.1:
                    connection.execute("BEGIN")
                    connection.execute("INSERT INTO rows DEFAULT VALUES")
                    connection.execute("ROLLBACK")
                time.sleep(pause.uniform(0.0, 0.05))

    threads = [threading.Thread(target=write, args=(SEED + n,)) for n in range(count)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()


@contextmanager
def pgbench(server: TestServer) -> Iterator[None]:
    """Run pgbench's own transactions beside the writers until the block ends."""
    program = str(server.cluster.binaries.program("pgbench"))
    address = ["-h", "127.0.0.1", "-p", str(server.port), "-U", "postgres", "postgres"]
    subprocess.run([program, "-i", "-q", *address], check=True, capture_output=True)
    process = subprocess.Popen(
        [program, "-n", "-c", "2", "-T", "120", "-R", "200", *address],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield
    finally:
        process.terminate()
        process.wait()


def committed(server: TestServer) -> dict[int, datetime]:
    """Return when PostgreSQL itself says each row was committed."""
    return dict(server.execute("SELECT id, pg_xact_commit_timestamp(xmin) FROM rows"))


def clear_moment(
    commits: dict[int, datetime], after: datetime, before: datetime, pick: random.Random
) -> datetime:
    """Return a random moment in a span, in the middle between two commits that are not too close."""
    times = sorted(at for at in commits.values() if after <= at <= before)
    gaps = [(a, b) for a, b in itertools.pairwise(times) if b - a > 2 * CLEAR]
    first, second = pick.choice(gaps)
    return first + (second - first) / 2


@pytest.mark.parametrize("major", MAJORS[:1] + MAJORS[-1:])
def test_a_restore_under_load_brings_back_exactly_what_was_committed(
    server_factory: ServerFactory, pitr_settings: SettingsMaker, major: int
) -> None:
    server = server_factory(major=major, options={"track_commit_timestamp": "on"})
    settings = pitr_settings(server)
    server.execute("CREATE TABLE rows (id bigserial PRIMARY KEY, at timestamptz DEFAULT clock_timestamp())")
    with pgbench(server), writers(server):
        base = take_base_backup(settings, "order-db")
        time.sleep(1.5)
        before_bundle = now()
        make_bundle(settings, "order-db", Hour.containing(before_bundle))
        bundled_at = now()
        time.sleep(1.5)
        server.execute("SELECT pg_switch_wal()")
        time.sleep(1.0)
        raw_until = now()
    last_write = now()
    time.sleep(1.5)
    idle = last_write + (now() - last_write) / 2
    commits = committed(server)
    pick = random.Random(SEED)

    targets = {
        "just after the base": clear_moment(
            commits, base.ended_at, base.ended_at + timedelta(seconds=1), pick
        ),
        "before the first bundle's end": clear_moment(commits, base.ended_at, before_bundle, pick),
        "in the raw tail after the last bundle": clear_moment(commits, bundled_at, raw_until, pick),
        "in an idle stretch with no later commit": idle,
    }
    for name, moment in targets.items():
        expected = {row for row, at in commits.items() if at <= moment}
        assert restored_ids(settings, TimeTarget(moment)) == expected, f"{name}: {moment} on {major}"
    server.stop()
    everything = restored_ids(settings, LatestTarget(), seal=False)
    assert everything == set(commits)
