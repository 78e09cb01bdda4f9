"""restore-wal.sh: 0 only with the whole file, 1 only for what never existed, above 125 for the rest."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

import pitr_pipelines
from pitr_pipelines.restore.recover import restore_command

SCRIPT = Path(pitr_pipelines.__file__).parent / "restore" / "restore-wal.sh"
SEGMENT = "000000010000000000000007"
ABORTS = range(126, 256)
"""Statuses at which PostgreSQL aborts recovery, instead of taking them for the end of the archive."""

SHELLS = [
    shell for shell in (["sh"], ["dash"], ["bash", "--posix"], ["busybox", "sh"]) if shutil.which(shell[0])
]

pytestmark = pytest.mark.parametrize("shell", SHELLS, ids=lambda shell: shell[0])


@pytest.fixture
def staging(tmp_path: Path) -> Path:
    directory = tmp_path / 'it\'s a "staging" $dir 100%'
    directory.mkdir()
    (directory / SEGMENT).write_bytes(b"wal" * 1000)
    (directory / "expected").write_text(f"{SEGMENT}\n00000002.history\n")
    return directory


def serve(shell: list[str], staging: Path, name: str, target: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*shell, str(SCRIPT), str(staging), name, str(target)], capture_output=True, text=True, check=False
    )


def test_a_staged_file_is_copied_whole(shell: list[str], staging: Path, tmp_path: Path) -> None:
    done = serve(shell, staging, SEGMENT, tmp_path / "RECOVERYXLOG")
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "RECOVERYXLOG").read_bytes() == b"wal" * 1000
    assert (staging / SEGMENT).stat().st_ino != (tmp_path / "RECOVERYXLOG").stat().st_ino


@pytest.mark.parametrize("name", ["000000010000000000000008", "00000003.history", "00000002xhistory"])
def test_only_a_file_that_is_not_expected_is_known_not_to_exist(
    shell: list[str], staging: Path, tmp_path: Path, name: str
) -> None:
    done = serve(shell, staging, name, tmp_path / "out")
    assert (done.returncode, done.stderr) == (1, "")
    assert not (tmp_path / "out").exists()


def test_a_file_that_is_expected_and_gone_aborts_recovery(
    shell: list[str], staging: Path, tmp_path: Path
) -> None:
    (staging / SEGMENT).unlink()
    done = serve(shell, staging, SEGMENT, tmp_path / "out")
    assert done.returncode in ABORTS
    assert f"restore-wal.sh: {staging}/{SEGMENT} is gone" in done.stderr


@pytest.mark.parametrize("name", [SEGMENT, "000000010000000000000008"])
def test_without_the_list_nothing_is_known(
    shell: list[str], staging: Path, tmp_path: Path, name: str
) -> None:
    (staging / "expected").unlink()
    done = serve(shell, staging, name, tmp_path / "out")
    assert done.returncode in ABORTS
    assert "expected is missing" in done.stderr


def test_a_copy_that_fails_aborts_recovery(shell: list[str], staging: Path, tmp_path: Path) -> None:
    done = serve(shell, staging, SEGMENT, tmp_path / "nowhere" / "out")
    assert done.returncode in ABORTS
    assert "restore-wal.sh: cannot copy" in done.stderr


def test_too_few_arguments_abort_recovery(shell: list[str], staging: Path) -> None:
    done = subprocess.run([*shell, str(SCRIPT), str(staging)], capture_output=True, text=True, check=False)
    assert done.returncode in ABORTS


def test_restore_command_survives_any_path(shell: list[str], staging: Path, tmp_path: Path) -> None:
    script = staging / "restore-wal.sh"
    shutil.copyfile(SCRIPT, script)
    command = restore_command(script, staging)
    # What PostgreSQL makes of it: see BuildRestoreCommand().
    filled = command.replace("%%", "\0").replace("%f", SEGMENT).replace("%p", "pg_wal/RECOVERYXLOG")
    (tmp_path / "pg_wal").mkdir()
    done = subprocess.run([*shell, "-c", filled.replace("\0", "%")], cwd=tmp_path, check=False)
    assert done.returncode == 0
    assert (tmp_path / "pg_wal" / "RECOVERYXLOG").exists()
