"""The day's call of real servers: it reaches the moment it is made, and no server holds up another."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest

from pitr_pipelines.catalog.layout import Layout
from pitr_pipelines.catalog.records import BundleRecord, read_record
from pitr_pipelines.offsite.budget import CallState
from pitr_pipelines.offsite.copy import make_copy
from pitr_pipelines.offsite.copy_report import CopyReport
from pitr_pipelines.offsite.envelope_reader import open_envelope
from pitr_pipelines.offsite.gather import gather
from pitr_pipelines.postgres.base_backup import take_base_backup
from pitr_pipelines.settings import Settings
from pitr_pipelines.wal import sealing
from pitr_pipelines.wal.hours import Hour
from pitr_pipelines.wal.lsn import Lsn
from pitr_pipelines_tests.offsite.conftest import StoreMaker
from pitr_pipelines_tests.offsite.copy_scene import Held
from pitr_pipelines_tests.offsite.s3_server import CountingProxy
from pitr_pipelines_tests.servers import MAJORS, ServerFactory, SettingsMaker, TestServer

pytestmark = pytest.mark.slow

oldest_and_newest = pytest.mark.parametrize("major", MAJORS[:1] + MAJORS[-1:])
ServersMaker = Callable[..., tuple[TestServer, TestServer, Settings]]


@pytest.fixture
def two_servers(
    server_factory: ServerFactory, pitr_settings: SettingsMaker, open_store: StoreMaker
) -> ServersMaker:
    """Two servers with a table, a base backup each, and settings that copy them off-site."""

    def make(major: int | None = None, *, base: bool = True) -> tuple[TestServer, TestServer, Settings]:
        place = open_store().place.model_dump(exclude_none=True, exclude_defaults=True)
        servers = (server_factory("order-db", major=major), server_factory("users", major=major))
        settings = pitr_settings(
            *servers, offsite={"store": place, "unencrypted": True}, bundle={"archive_wait_s": 10}
        )
        for server in servers:
            server.execute("CREATE TABLE rows (id int)")
            if base:
                take_base_backup(settings, server.name)
        return (*servers, settings)

    return make


def record_in_the_envelope(settings: Settings, done: CopyReport, database: str, into: Path) -> BundleRecord:
    """Fetch the newest bundle of a database and its record from the store alone, and return the record."""
    reader = open_envelope(Held(settings, done.day))
    bundles = [
        entry
        for entry in reader.index.members
        if entry.artifact.path.startswith(f"bundles/{database}/")
        and not entry.artifact.path.endswith(".seal.json")
    ]
    newest = max(entry.artifact.unit for entry in bundles)
    reader.fetch([entry for entry in bundles if entry.artifact.unit == newest], into)
    return read_record(into / newest, BundleRecord)


@oldest_and_newest
def test_the_copy_reaches_the_moment_it_was_asked_for(
    two_servers: ServersMaker, proxy: CountingProxy, tmp_path: Path, major: int
) -> None:
    orders, users, settings = two_servers(major)
    committed: dict[str, tuple[datetime, Lsn]] = {}
    for server in (orders, users):
        server.execute("INSERT INTO rows VALUES (1)")
        ((at, lsn),) = server.execute("SELECT clock_timestamp(), pg_current_wal_lsn()::text")
        committed[server.name] = at.astimezone(UTC), Lsn.parse(lsn)

    done = make_copy(settings, wait=False)

    assert (done.state, done.problems, done.missing, proxy.writes) == (CallState.CONFIRMED, (), (), 1)
    for server in (orders, users):
        record = record_in_the_envelope(settings, done, server.name, tmp_path)
        assert record.seal is not None
        at, lsn = committed[server.name]
        assert record.seal.at >= at
        assert record.seal.lsn >= lsn
        assert str(record.seal.segment) in {member.name for member in record.segments}


@pytest.mark.usefixtures("proxy")
def test_a_server_that_is_down_is_named_and_what_it_archived_goes_all_the_same(
    two_servers: ServersMaker, tmp_path: Path
) -> None:
    orders, users, settings = two_servers()
    users.execute("INSERT INTO rows VALUES (1)")
    ((archived,),) = users.execute("SELECT pg_walfile_name(pg_switch_wal())")
    users.stop()  # which archives its last segment
    assert (users.archive / archived).exists()

    done = make_copy(settings, wait=False)

    assert done.state is CallState.CONFIRMED
    assert [problem for problem in done.problems if not problem.startswith("users: ")] == []
    (problem,) = done.problems
    assert "does not accept our connection" in problem
    assert "\n" not in problem
    record = record_in_the_envelope(settings, done, "users", tmp_path)
    assert archived in {member.name for member in record.segments}
    assert done.databases["users"].bases == done.databases["order-db"].bases
    record = record_in_the_envelope(settings, done, orders.name, tmp_path)
    assert record.seal is not None


def test_a_server_that_hangs_holds_nobody_up(two_servers: ServersMaker, proxy: CountingProxy) -> None:
    _, users, settings = two_servers()
    pid = users.cluster.pid()
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    try:
        done = make_copy(settings, wait=False)
    finally:
        os.kill(pid, signal.SIGCONT)

    assert done.state is CallState.CONFIRMED
    (problem,) = done.problems
    assert problem.startswith("users: ")
    assert "timeout expired" in problem
    assert proxy.writes == 1


def test_a_server_that_falls_silent_in_the_middle_of_its_seal_holds_nobody_up(
    two_servers: ServersMaker, pitr_settings: SettingsMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    orders, users, _ = two_servers(base=False)
    monkeypatch.setattr(sealing, "SILENCE_S", 1.0)
    with silent_from(users.port, b"pg_create_restore_point") as port:
        entries = {
            orders.name: orders.settings_entry,
            users.name: {"dsn": users.dsn.replace(f"port={users.port}", f"port={port}")},
        }
        settings = pitr_settings(databases=entries, bundle={"archive_wait_s": 1})
        found = {one.database: one for one in gather(settings, now=datetime.now(UTC))}

    assert found[orders.name].problems == ()
    assert found[orders.name].sealed_at is not None
    assert found[users.name].sealed_at is None
    (problem,) = found[users.name].problems
    assert "gave no answer for 2 s" in problem
    running = Hour.containing(datetime.now(UTC))
    assert Layout(settings.backup_root).bundle_record(users.name, running).exists()


@contextmanager
def silent_from(port: int, word: bytes) -> Iterator[int]:
    """Lead to a server, on a port that is yielded, until a client says `word`; from then on nothing comes."""
    listener = socket.create_server(("127.0.0.1", 0))
    ends: list[socket.socket] = []

    def copy(source: socket.socket, sink: socket.socket) -> None:
        try:
            while (data := source.recv(65536)) and word not in data:
                sink.sendall(data)
        except OSError:
            return

    def accept() -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            server = socket.create_connection(("127.0.0.1", port))
            ends.extend((client, server))
            for pair in ((client, server), (server, client)):
                threading.Thread(target=copy, args=pair, daemon=True).start()

    acceptor = threading.Thread(target=accept, daemon=True)
    acceptor.start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        acceptor.join()
        for end in ends:
            end.close()
