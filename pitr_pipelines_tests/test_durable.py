"""Files are whole or absent, and locks end with whoever holds them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from pitr_pipelines import durable
from pitr_pipelines.errors import ArtifactBusy


def test_a_file_is_replaced_whole_and_is_not_for_everybody(tmp_path: Path) -> None:
    path = tmp_path / "file"
    durable.write_whole(path, "old")
    durable.write_whole(path, b"new")
    assert path.read_bytes() == b"new"
    assert path.stat().st_mode & 0o007 == 0
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    path = tmp_path / "file"
    durable.write_whole(path, "old")

    def fail(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, failing, fail)
    with pytest.raises(OSError, match="No space left"):
        durable.write_whole(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_content_is_synced_before_the_rename_and_the_directory_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    fsync, replace = os.fsync, os.replace

    def seen_fsync(descriptor: int) -> None:
        steps.append("directory" if Path(f"/proc/self/fd/{descriptor}").is_dir() else "file")
        fsync(descriptor)

    def seen_replace(*args: Path) -> None:
        steps.append("rename")
        replace(*args)

    monkeypatch.setattr(os, "fsync", seen_fsync)
    monkeypatch.setattr(os, "replace", seen_replace)
    durable.write_whole(tmp_path / "file", "content")
    assert steps == ["file", "rename", "directory"]


def test_temporary_names_are_hidden_and_in_the_same_directory(tmp_path: Path) -> None:
    temporary = durable.temporary_name(tmp_path / "file")
    assert temporary.parent == tmp_path
    assert temporary.name.startswith(".")


def test_directories_are_made_with_their_parents(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "c"
    assert durable.make_directory(path) == path
    assert durable.make_directory(path) == path
    assert path.is_dir()
    assert path.stat().st_mode & 0o007 == 0


def test_removing_what_is_not_there_is_fine(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    durable.remove_durably(path)
    durable.remove_durably(path)
    assert not path.exists()


def test_a_file_system_can_be_synced(tmp_path: Path) -> None:
    durable.sync_file_system(tmp_path)
    with pytest.raises(FileNotFoundError):
        durable.sync_file_system(tmp_path / "missing")


def test_a_lock_is_held_by_one_at_a_time_and_says_for_what(tmp_path: Path) -> None:
    path = tmp_path / "locks" / ".lock"
    with (
        durable.exclusive_lock(path, subject="order-db's bundles", wait=False),
        pytest.raises(ArtifactBusy, match="working on order-db's bundles"),
        durable.exclusive_lock(path, subject="order-db's bundles", wait=False),
    ):
        pass
    with durable.exclusive_lock(path, subject="order-db's bundles", wait=False):
        pass


def test_whoever_waits_for_a_lock_gets_it_when_it_is_free(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    order: list[str] = []

    def second() -> None:
        with durable.exclusive_lock(path, subject="it", wait=True):
            order.append("second")

    with durable.exclusive_lock(path, subject="it", wait=True):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join(0.05)
        order.append("first")
    thread.join(10)
    assert order == ["first", "second"]


def test_the_lock_of_a_killed_process_is_free(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    program = (
        "import sys, time; from pathlib import Path; from pitr_pipelines import durable\n"
        "with durable.exclusive_lock(Path(sys.argv[1]), subject='it', wait=True):\n"
        "    print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        with pytest.raises(ArtifactBusy), durable.exclusive_lock(path, subject="it", wait=False):
            pass
        process.send_signal(signal.SIGKILL)
        process.wait()
    with durable.exclusive_lock(path, subject="it", wait=False):
        pass
