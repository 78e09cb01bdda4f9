"""A server that we start is ready when we say so, outlives us, and can always be ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pitr_pipelines.errors import DestinationInUse, ServerNotReady
from pitr_pipelines.postgres.account import Account
from pitr_pipelines.postgres.server import Cluster, free_port
from pitr_pipelines_tests.servers import ServerFactory, Templates, each_major, wait_for


@each_major
def test_a_started_server_answers_and_a_stopped_is_gone(server_factory: ServerFactory, major: int) -> None:
    server = server_factory(major=major, archiving=False)
    assert server.execute("SELECT current_setting('server_version_num')::int / 10000") == [(major,)]
    pid = server.cluster.pid()
    assert pid is not None
    assert server.cluster.control_data()["Database cluster state"] == "in production"

    server.stop()

    assert server.cluster.pid() is None
    assert _no_process_in(server.cluster.data_directory)
    assert server.cluster.control_data()["Database cluster state"] == "shut down"


@each_major
def test_initdb_makes_a_cluster_with_the_asked_segment_size_and_checksums(
    reachable_tmp: Path, templates: Templates, account: Account, major: int
) -> None:
    binaries = templates.copy(reachable_tmp / "other", major, 16).binaries
    cluster = Cluster.create(
        reachable_tmp / "data dir",
        binaries,
        account,
        wal_segment_size_mb=4,
        data_checksums=False,
        superuser_password="s3cret",
        durable=False,
    )
    control = cluster.control_data()
    assert control["Bytes per WAL segment"] == str(4 * 1024 * 1024)
    assert control["Data page checksum version"] == "0"
    assert cluster.data_directory.stat().st_uid == account.uid


def test_a_cluster_is_never_created_over_another(server_factory: ServerFactory, account: Account) -> None:
    server = server_factory(archiving=False)
    with pytest.raises(DestinationInUse, match="not empty"):
        Cluster.create(server.cluster.data_directory, server.cluster.binaries, account)


def test_options_reach_the_server_exactly_as_they_are(server_factory: ServerFactory) -> None:
    odd = 'it\'s; "$HOME" `id` \\ *'
    server = server_factory(archiving=False, start=False)
    server.cluster.start(log_file=server.log_file, options={"cluster_name": odd})
    assert server.execute("SHOW cluster_name") == [(odd,)]


def test_a_server_that_cannot_start_tells_why(server_factory: ServerFactory) -> None:
    server = server_factory(archiving=False, options={"work_mem": "nonsense"}, start=False)
    server.log_file.write_text("an older line\n")
    with pytest.raises(ServerNotReady, match='invalid value for parameter "work_mem"') as caught:
        server.start()
    assert "an older line" not in str(caught.value)
    assert str(server.log_file) in caught.value.remedy
    assert server.cluster.pid() is None


def test_a_server_that_is_not_ready_in_time_is_ended(server_factory: ServerFactory) -> None:
    server = server_factory(archiving=False)
    server.stop()
    (server.cluster.data_directory / "recovery.signal").touch()
    server.configure({"restore_command": "sleep 3; false"})
    with pytest.raises(ServerNotReady, match="not ready in time"):
        server.cluster.start(log_file=server.log_file, timeout_s=0.5)
    assert server.cluster.pid() is None


def test_a_second_start_is_refused(server_factory: ServerFactory) -> None:
    server = server_factory(archiving=False)
    with pytest.raises(DestinationInUse, match=str(server.cluster.pid())):
        server.start()
    assert server.execute("SELECT 1") == [(1,)]


def test_without_waiting_start_returns_the_number_of_the_server(server_factory: ServerFactory) -> None:
    server = server_factory(archiving=False, start=False)
    pid = server.cluster.start(log_file=server.log_file, wait=False)
    wait_for(lambda: (found := server.cluster.postmaster()) and found.is_ready)
    postmaster = server.cluster.postmaster()
    assert postmaster is not None
    assert (postmaster.pid, postmaster.port) == (pid, server.port)
    assert postmaster.socket_directory == server_factory.directory / "sockets"


def test_a_crashed_server_is_not_taken_for_running(server_factory: ServerFactory) -> None:
    server = server_factory(archiving=False)
    pid = server.cluster.pid()
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: server.cluster.pid() is None)
    assert (server.cluster.data_directory / "postmaster.pid").exists()
    # postgres itself takes a process that nobody has reaped yet for a running server.
    wait_for(lambda: _no_process_in(server.cluster.data_directory) and not Path(f"/proc/{pid}").exists())
    server.start()
    assert server.execute("SELECT 1") == [(1,)]


def test_a_foreign_process_with_the_same_number_is_not_taken_for_the_server(
    server_factory: ServerFactory,
) -> None:
    server = server_factory(archiving=False, start=False)
    pid_file = server.cluster.data_directory / "postmaster.pid"
    pid_file.write_text(f"{os.getpid()}\n{server.cluster.data_directory}\n0\n{server.port}\n\n\n\nready   \n")
    assert server.cluster.pid() is None
    server.cluster.stop()  # and so it is not ended either


def test_a_server_outlives_the_process_and_the_session_that_started_it(server_factory: ServerFactory) -> None:
    server = server_factory(archiving=False, start=False)
    program = (
        "import sys; from pathlib import Path\n"
        "from pitr_pipelines.postgres.account import server_account\n"
        "from pitr_pipelines.postgres.binaries import Binaries\n"
        "from pitr_pipelines.postgres.server import Cluster\n"
        "data, bin, log = map(Path, sys.argv[1:4])\n"
        "cluster = Cluster(data, Binaries(bin, int(sys.argv[4]), sys.argv[5]), server_account(None))\n"
        "print(cluster.start(log_file=log))\n"
    )
    binaries = server.cluster.binaries
    paths = [server.cluster.data_directory, binaries.directory, server.log_file]
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, paths), str(binaries.major), binaries.version],
        start_new_session=True,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    pid = int(done.stdout)
    assert server.cluster.pid() == pid
    assert os.getsid(pid) != os.getsid(0)
    assert server.execute("SELECT 1") == [(1,)]


def test_nothing_of_the_callers_environment_reaches_the_server(
    server_factory: ServerFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGDATA", "/nowhere")
    monkeypatch.setenv("PGPORT", "1")
    monkeypatch.setenv("A_SECRET", "hunter2")
    server = server_factory(archiving=False, start=False)
    pid = server.cluster.start(log_file=server.log_file, env={"WANTED": "yes"})
    environment = Path(f"/proc/{pid}/environ").read_bytes()
    assert b"hunter2" not in environment
    assert b"WANTED=yes" in environment
    assert server.execute("SELECT 1") == [(1,)]


def test_the_log_is_nobody_elses_to_read_or_to_redirect(
    server_factory: ServerFactory, reachable_tmp: Path
) -> None:
    server = server_factory(archiving=False)
    assert server.log_file.stat().st_mode & 0o077 == 0
    server.stop()
    victim = reachable_tmp / "victim"
    victim.touch()
    link = reachable_tmp / "log"
    link.symlink_to(victim)
    with pytest.raises(OSError, match="symbolic links"):
        server.cluster.start(log_file=link)
    assert victim.read_text() == ""


def test_a_server_that_will_not_stop_is_reported(server_factory: ServerFactory) -> None:
    server = server_factory(archiving=False)
    with server.connect(), pytest.raises(ServerNotReady, match="smart shutdown"):
        server.cluster.stop("smart", timeout_s=0.3)  # waits for our connection
    wait_for(lambda: server.cluster.pid() is None)


def test_control_data_of_no_cluster_is_refused(server_factory: ServerFactory, reachable_tmp: Path) -> None:
    server = server_factory(archiving=False, start=False)
    empty = Cluster(reachable_tmp, server.cluster.binaries, server.cluster.account)
    with pytest.raises(ServerNotReady, match="pg_controldata cannot read"):
        empty.control_data()


def test_two_servers_have_two_system_identifiers(server_factory: ServerFactory) -> None:
    one, other = server_factory("one", archiving=False), server_factory("other", archiving=False)
    query = "SELECT system_identifier FROM pg_control_system()"
    assert one.execute(query) != other.execute(query)


def test_a_free_port_can_be_listened_on() -> None:
    ports = {free_port() for _ in range(5)}
    assert len(ports) > 1
    assert all(20000 <= port < 32000 for port in ports)


def _no_process_in(directory: Path) -> bool:
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (process / "cwd").samefile(directory):
                return False
        except OSError:
            continue
    return True
