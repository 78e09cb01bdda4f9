"""restore-wal.sh: 0 only with the whole file, 1 only for what never existed, above 125 for the rest."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

import pitr_pipelines
from pitr_pipelines.restore.recover import restore_command
from pitr_pipelines_tests.servers import wait_for

SCRIPT = Path(pitr_pipelines.__file__).parent / "restore" / "restore-wal.sh"
SEGMENT = "000000010000000000000007"
LATER = "000000010000000000000008"
HISTORY = "00000002.history"
ABORTS = range(126, 256)
"""Statuses at which PostgreSQL aborts recovery, instead of taking them for the end of the archive."""

SHELLS = [
    shell for shell in (["sh"], ["dash"], ["bash", "--posix"], ["busybox", "sh"]) if shutil.which(shell[0])
]

pytestmark = pytest.mark.parametrize("shell", SHELLS, ids=lambda shell: shell[0])


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """What a feeder has made ready: one segment of two, and a history file."""
    directory = tmp_path / "it's a \"feeder's\" $dir 100%"
    directory.mkdir()
    (directory / SEGMENT).write_bytes(b"wal" * 1000)
    (directory / HISTORY).write_text("1\t0/5000000\n")
    (directory / "expected").write_text(f"{SEGMENT}\n{LATER}\n{HISTORY}\n")
    (directory / "alive").write_text("1\n")
    return directory


def command(shell: list[str], directory: Path, name: str, target: Path) -> list[str]:
    return [*shell, str(SCRIPT), str(directory), name, str(target)]


def serve(
    shell: list[str], directory: Path, name: str, target: Path, **variables: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(shell, directory, name, target),
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **variables},
    )


def test_a_segment_that_is_ready_is_handed_over_whole(
    shell: list[str], directory: Path, tmp_path: Path
) -> None:
    (tmp_path / "RECOVERYXLOG").write_bytes(b"left by an earlier attempt")
    inode = (directory / SEGMENT).stat().st_ino
    done = serve(shell, directory, SEGMENT, tmp_path / "RECOVERYXLOG")
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "RECOVERYXLOG").read_bytes() == b"wal" * 1000
    assert (tmp_path / "RECOVERYXLOG").stat().st_ino == inode
    assert not (directory / SEGMENT).exists()
    assert not (directory / "want").exists()


def test_a_history_file_can_be_had_again_and_again(shell: list[str], directory: Path, tmp_path: Path) -> None:
    for _ in range(2):
        done = serve(shell, directory, HISTORY, tmp_path / "RECOVERYHISTORY")
        assert (done.returncode, done.stderr) == (0, "")
        assert (tmp_path / "RECOVERYHISTORY").read_text() == "1\t0/5000000\n"


@pytest.mark.parametrize("name", ["000000010000000000000009", "00000003.history", "00000002xhistory"])
def test_only_a_file_that_is_not_expected_is_known_not_to_exist(
    shell: list[str], directory: Path, tmp_path: Path, name: str
) -> None:
    done = serve(shell, directory, name, tmp_path / "out")
    assert (done.returncode, done.stderr) == (1, "")
    assert not (tmp_path / "out").exists()
    assert not (directory / "want").exists()


def test_a_file_that_is_not_ready_is_asked_for_and_waited_for(
    shell: list[str], directory: Path, tmp_path: Path
) -> None:
    process = subprocess.Popen(command(shell, directory, LATER, tmp_path / "out"))
    want = directory / "want"
    wait_for(lambda: want.exists() and want.read_text().endswith("\n"), what="the script's request")
    assert want.read_text() == f"{LATER}\n"
    assert process.poll() is None
    (directory / f".{LATER}").write_bytes(b"later")
    (directory / f".{LATER}").rename(directory / LATER)
    assert process.wait(timeout=20) == 0
    assert (tmp_path / "out").read_bytes() == b"later"
    assert not want.exists()


def test_a_file_that_cannot_be_made_aborts_recovery(
    shell: list[str], directory: Path, tmp_path: Path
) -> None:
    (directory / "failed").write_text("the bundle is damaged\n")
    done = serve(shell, directory, LATER, tmp_path / "out")
    assert done.returncode in ABORTS
    assert done.stderr == "restore-wal.sh: the bundle is damaged\n"


def test_a_feeder_that_does_not_live_any_more_aborts_recovery(
    shell: list[str], directory: Path, tmp_path: Path
) -> None:
    done = serve(shell, directory, LATER, tmp_path / "out", PITR_PATIENCE="20")
    assert done.returncode in ABORTS
    assert f"{LATER} does not come: the restore that feeds this recovery is gone" in done.stderr


@pytest.mark.parametrize("name", [SEGMENT, LATER])
def test_without_the_list_nothing_is_known(
    shell: list[str], directory: Path, tmp_path: Path, name: str
) -> None:
    (directory / "expected").unlink()
    done = serve(shell, directory, name, tmp_path / "out")
    assert done.returncode in ABORTS
    assert "expected is missing" in done.stderr


def test_without_a_sign_of_life_nothing_is_waited_for(
    shell: list[str], directory: Path, tmp_path: Path
) -> None:
    (directory / "alive").unlink()
    done = serve(shell, directory, LATER, tmp_path / "out")
    assert done.returncode in ABORTS
    assert "alive" in done.stderr


def test_a_move_that_fails_aborts_recovery(shell: list[str], directory: Path, tmp_path: Path) -> None:
    done = serve(shell, directory, SEGMENT, tmp_path / "nowhere" / "out")
    assert done.returncode in ABORTS
    assert "restore-wal.sh: cannot bring" in done.stderr
    assert (directory / SEGMENT).exists()


def test_too_few_arguments_abort_recovery(shell: list[str], directory: Path) -> None:
    done = subprocess.run([*shell, str(SCRIPT), str(directory)], capture_output=True, text=True, check=False)
    assert done.returncode in ABORTS


def test_restore_command_survives_any_path(shell: list[str], directory: Path, tmp_path: Path) -> None:
    script = directory / "restore-wal.sh"
    shutil.copyfile(SCRIPT, script)
    text = restore_command(script, directory)
    # What PostgreSQL makes of it: see BuildRestoreCommand().
    filled = text.replace("%%", "\0").replace("%f", SEGMENT).replace("%p", "pg_wal/RECOVERYXLOG")
    (tmp_path / "pg_wal").mkdir()
    done = subprocess.run([*shell, "-c", filled.replace("\0", "%")], cwd=tmp_path, check=False)
    assert done.returncode == 0
    assert (tmp_path / "pg_wal" / "RECOVERYXLOG").exists()
