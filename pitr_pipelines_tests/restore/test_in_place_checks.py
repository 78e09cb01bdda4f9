"""Whether a data directory may be replaced: each refusal says why, and touches nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from pitr_pipelines.postgres.server import free_port
from pitr_pipelines.restore.in_place_checks import InPlaceRefused, Original, examine, mount_points, server_in
from pitr_pipelines.settings import Settings
from pitr_pipelines_tests.mounting import TIMEOUT_S
from pitr_pipelines_tests.servers import ServerFactory, SettingsMaker, TestServer, wait_for
from pitr_pipelines_tests.test_architecture import ROOT

EXAMINE = """
import sys
from pathlib import Path
from pitr_pipelines.errors import PitrError
from pitr_pipelines.restore.in_place_checks import examine
from pitr_pipelines.settings import load_settings
try:
    examine(load_settings(Path(sys.argv[1])), "order-db", Path(sys.argv[2]))
except PitrError as error:
    print(error)
else:
    print("accepted")
"""


@pytest.fixture
def server(server_factory: ServerFactory) -> TestServer:
    """A server that is stopped."""
    made = server_factory()
    made.stop()
    return made


@pytest.fixture
def settings(server: TestServer, pitr_settings: SettingsMaker) -> Settings:
    return pitr_settings(server)


@pytest.fixture
def data(server: TestServer) -> Path:
    return server.cluster.data_directory


def contents(directory: Path) -> list[tuple[Path, int]]:
    return sorted((path, path.lstat().st_mtime_ns) for path in directory.rglob("*"))


def refusal(settings: Settings, directory: Path, *, running: bool = False) -> str:
    """Return what is said when a directory is refused, which must leave it as it is."""
    before = [] if running else contents(directory.parent)
    with pytest.raises(InPlaceRefused) as refused:
        examine(settings, "order-db", directory)
    assert running or contents(directory.parent) == before
    assert refused.value.remedy.endswith("Nothing was touched.")
    assert refused.value.exit_code == 7
    return str(refused.value)


def test_a_stopped_servers_directory_is_accepted(settings: Settings, data: Path) -> None:
    found = examine(settings, "order-db", data)
    status = data.stat()
    assert found == Original(data, status.st_ino, status.st_uid, status.st_gid, 0o700)


def test_a_link_is_followed_and_that_is_said(settings: Settings, data: Path) -> None:
    link = data.with_name("main")
    link.symlink_to(data)
    found = examine(settings, "order-db", link)
    assert found.path == data
    assert found.notes == (f"{link} leads to {data}: that is what is replaced",)


def test_a_database_that_answers_is_not_stopped_wherever_it_runs(
    server: TestServer, settings: Settings, data: Path
) -> None:
    server.start()
    said = refusal(settings, data, running=True)
    assert f"order-db answers at 127.0.0.1:{server.port}, so it is not stopped" in said
    assert "restart policy" in said


def test_a_running_server_is_found_though_it_does_not_answer(
    server: TestServer, settings: Settings, data: Path
) -> None:
    unanswered = settings.databases["order-db"].model_copy(
        update={"dsn": f"host=127.0.0.1 port={free_port()} user=pitr"}
    )
    settings = settings.model_copy(update={"databases": {"order-db": unanswered}})
    server.start()
    (data / "postmaster.pid").rename(data / "postmaster.aside")  # as in a container, where numbers differ
    try:
        assert f"a server runs in {data} (process " in refusal(settings, data, running=True)
    finally:
        (data / "postmaster.aside").rename(data / "postmaster.pid")


def test_what_a_killed_server_left_is_not_taken_for_a_stopped_one(
    server: TestServer, settings: Settings, data: Path
) -> None:
    server.start()
    pid = server.cluster.pid()
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: server_in(data) is None)
    said = refusal(settings, data)
    assert f"{data / 'postmaster.pid'} says that a server runs there" in said
    assert "it was killed or lost power" in said
    assert f"remove {data / 'postmaster.pid'} and ask again" in said
    (data / "postmaster.pid").unlink()
    assert examine(settings, "order-db", data).path == data


def test_what_is_no_directory_is_refused(settings: Settings, data: Path) -> None:
    assert "does not exist" in refusal(settings, data.with_name("main"))
    assert "create it empty" in refusal(settings, data.with_name("main"))
    assert "is not a directory" in refusal(settings, data / "PG_VERSION")


@pytest.mark.parametrize("name", ["standby.signal", "recovery.signal"])
def test_a_standbys_directory_is_refused(settings: Settings, data: Path, name: str) -> None:
    (data / name).touch()
    said = refusal(settings, data)
    assert f"holds a {name}" in said
    assert "in place of the primary" in said


def test_backups_within_the_data_directory_are_refused_and_the_other_way_round(
    settings: Settings, data: Path
) -> None:
    inside = settings.model_copy(update={"backup_root": data / "backup"})
    assert "lie one within the other" in refusal(inside, data)
    around = settings.model_copy(update={"backup_root": data.parent})
    assert "lie one within the other" in refusal(around, data)


def test_somebody_elses_directory_is_refused(
    settings: Settings, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: data.stat().st_uid + 1)
    assert "belongs to another user" in refusal(settings, data)


def test_a_configuration_that_cannot_be_read_is_refused_before_the_long_work(
    settings: Settings, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = data / "server.key"
    key.touch()
    allowed = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: path != key and allowed(path, mode))
    assert f"{key} is part of the configuration and cannot be read" in refusal(settings, data)


@pytest.mark.parametrize(
    ("mounting", "said"),
    [
        ('mount --bind "$data" "$data"', "is a mount point, so it cannot be moved aside"),
        ('mount -t tmpfs none "$data/pg_wal"', "another file system is mounted within"),
        (
            'mount --bind "$data/.." "$data/.." && mount -o remount,bind,ro "$data/.."',
            "this user cannot write in",
        ),
    ],
    ids=["the directory itself", "something within it", "read-only"],
)
def test_mounts_that_are_in_the_way_are_refused(
    pitr_settings: SettingsMaker,
    settings: Settings,
    data: Path,
    mount_namespace: Sequence[str],
    mounting: str,
    said: str,
) -> None:
    assert settings.databases
    script = f'data=$1; shift; {mounting} || exit 99; cd "$data/.." && exec "$@"'
    python = [sys.executable, "-c", EXAMINE, str(pitr_settings.file), str(data)]
    done = subprocess.run(
        [*mount_namespace, "sh", "-c", script, "sh", str(data), *python],
        env={**os.environ, "PYTHONPATH": str(ROOT.parent)},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
    assert done.returncode == 0, done.stderr
    assert said in done.stdout
    assert "Nothing was touched." in done.stdout


def test_mount_points_are_read_whatever_is_in_their_names() -> None:
    text = (
        "36 35 98:0 / / rw,noatime master:1 - ext3 /dev/root rw\n"
        "37 35 98:1 /a /srv/my\\040data\\134x rw - ext3 /dev/b rw\n"
    )
    assert mount_points(text) == [Path("/"), Path("/srv/my data\\x")]


@pytest.fixture
def shell_inside(data: Path) -> Iterator[int]:
    process = subprocess.Popen(["sleep", "60"], cwd=data)
    yield process.pid
    process.kill()
    process.wait()


def test_a_shell_in_the_directory_is_no_server(settings: Settings, data: Path, shell_inside: int) -> None:
    assert Path(f"/proc/{shell_inside}").exists()
    assert examine(settings, "order-db", data).path == data
