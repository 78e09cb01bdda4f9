"""A twin: a copy of the server that goes on where a promotion leaves a timeline, into the same archive.

What it commits is on the abandoned branch alone: no restore of the database has it, unless that
timeline is asked for.
"""

from __future__ import annotations

import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from pitr_pipelines.postgres.server import Cluster, free_port
from pitr_pipelines.wal.lsn import Lsn, SegmentName
from pitr_pipelines_tests.oracle.truth import Span, Truth
from pitr_pipelines_tests.servers import TestServer, remove_directory, wait_for

_WRITER = -2
_TRANSACTIONS = 8
_READY = "SELECT name FROM pg_ls_archive_statusdir() WHERE name LIKE '%.ready'"
_INSERT = "INSERT INTO log (writer, thing, value) VALUES (%s, %s, NULL)"


@dataclass(frozen=True, slots=True)
class Branch:
    """A timeline that was abandoned, where on it the twin went on, and what is true there."""

    timeline: int
    span: Span
    truth: Truth


def copy(server: TestServer) -> TestServer:
    """Copy a stopped server, which shares its archive; it is not started."""
    data_directory = Path(f"{server.cluster.data_directory}.twin")
    subprocess.run(["cp", "-a", "--reflink=auto", server.cluster.data_directory, data_directory], check=True)
    cluster = Cluster(data_directory, server.cluster.binaries, server.cluster.account)
    log_file = server.log_file.with_suffix(".twin.log")
    twin = TestServer(server.name, cluster, free_port(), log_file, server.archive)
    twin.configure({"port": str(twin.port)})
    return twin


def go_on(twin: TestServer, since: Lsn) -> Branch:
    """Let the twin commit and archive on its timeline, and end it.

    Places of what is true of its branch are known from `since` on.
    """
    twin.start()
    try:
        ((left_at, name),) = twin.execute(
            "SELECT pg_current_wal_insert_lsn()::text, pg_walfile_name(pg_current_wal_insert_lsn())"
        )
        for n in range(_TRANSACTIONS):
            time.sleep(0.03)
            twin.execute(_INSERT, _WRITER, n)
            if n % 3 == 2:
                twin.execute("SELECT pg_switch_wal()")
        until = Lsn.parse(twin.execute("SELECT pg_current_wal_insert_lsn()::text")[0][0])
        # Recovery to a place in the last segment needs something behind it.
        twin.execute("SELECT pg_logical_emit_message(true, 'oracle', 'the end')")
        twin.execute("SELECT pg_switch_wal()")
        wait_until_archived(twin)
        truth = Truth.of(twin, since)
        times = [at for change, at in truth.commits.items() if change.writer == _WRITER]
        span = Span(min(times), max(times), Lsn.parse(left_at), until)
        return Branch(SegmentName.parse(name).timeline, span, truth)
    finally:
        twin.crash()
        remove_directory(twin.cluster.data_directory)


def speak_last(server: TestServer) -> None:
    """Let the server itself be the one that archived last."""
    server.execute("SELECT pg_logical_emit_message(true, 'oracle', 'here I am')")
    server.execute("SELECT pg_switch_wal()")
    wait_until_archived(server)


def wait_until_archived(server: TestServer) -> None:
    """Return when the archive has every segment that the server has ended."""
    wait_for(lambda: not server.execute(_READY), what="the archiver")
