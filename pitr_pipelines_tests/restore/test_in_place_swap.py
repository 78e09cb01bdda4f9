"""Two directories change places, and a kill at any moment can be settled."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pitr_pipelines import durable
from pitr_pipelines.errors import PitrError
from pitr_pipelines.restore.in_place_swap import Stage, Swap, stage_of, swap_directories
from pitr_pipelines_tests.test_architecture import ROOT

KILLED_AT = """
import os, signal, sys
from pitr_pipelines import durable
from pitr_pipelines.restore import in_place_swap
from pitr_pipelines.restore.in_place_swap import Swap, swap_directories

left, after, at_once = int(sys.argv[2]), sys.argv[3] == "after", sys.argv[4] == "at once"
really = in_place_swap.act

def act(swap, stage):
    global left
    left -= 1
    if left == 0 and not after:
        os.kill(os.getpid(), signal.SIGKILL)
    really(swap, stage)
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)

in_place_swap.act = act
if not at_once:
    durable.exchange_at_once = lambda first, second: False
swap_directories(Swap.model_validate_json(sys.argv[1]))
"""


@pytest.fixture
def swap(tmp_path: Path) -> Swap:
    work = tmp_path / "main.restore-1"
    for directory, name in ((tmp_path / "main", "old"), (work / "data", "new")):
        directory.mkdir(parents=True)
        (directory / name).touch()
    return Swap.of(tmp_path / "main", work / "data", tmp_path / "main.before-restore-1")


def content(path: Path) -> list[str] | None:
    return [entry.name for entry in path.iterdir()] if path.exists() else None


@pytest.mark.parametrize("at_once", [True, False], ids=["exchanged", "renamed twice"])
def test_the_new_one_gets_the_name_and_the_old_one_goes_aside(
    swap: Swap, at_once: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not at_once:
        monkeypatch.setattr(durable, "exchange_at_once", lambda _first, _second: False)
    swap_directories(swap)
    assert (content(swap.place), content(swap.incoming), content(swap.aside)) == (["new"], None, ["old"])
    swap_directories(swap)
    assert content(swap.place) == ["new"]


@pytest.mark.parametrize("at_once", ["at once", "in two steps"])
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("step", [1, 2])
def test_killed_at_any_step_it_can_be_told_and_finished(
    swap: Swap, at_once: str, when: str, step: int
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", KILLED_AT, swap.model_dump_json(), str(step), when, at_once],
        env={**os.environ, "PYTHONPATH": str(ROOT.parent)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    stage = stage_of(swap, swap.look())
    assert (stage is Stage.NOT_BEGUN) == (step == 1 and when == "before")
    assert (stage is Stage.DONE) == (step == 2 and when == "after")
    there = [content(path) for path in (swap.place, swap.incoming, swap.aside)]
    assert sorted(names for names in there if names is not None) == [["new"], ["old"]]
    if at_once == "at once":
        assert content(swap.place) is not None

    swap_directories(swap)
    assert (content(swap.place), content(swap.incoming), content(swap.aside)) == (["new"], None, ["old"])


def test_what_somebody_else_has_moved_is_left_alone(swap: Swap) -> None:
    swap.place.rename(swap.place.with_name("elsewhere"))
    swap.place.mkdir()
    with pytest.raises(PitrError, match=r"something else.*\n.*put the one you want") as refused:
        swap_directories(swap)
    assert "the new one" in refused.value.what
    assert content(swap.place) == []
    assert content(swap.incoming) == ["new"]


def test_nothing_is_ever_renamed_over_what_is_already_aside(swap: Swap) -> None:
    swap.aside.mkdir()
    with pytest.raises(PitrError, match="something else"):
        swap_directories(swap)
    assert (content(swap.place), content(swap.incoming), content(swap.aside)) == (["old"], ["new"], [])


def test_a_kill_between_the_rename_and_its_sync_is_made_up_for(
    swap: Swap, monkeypatch: pytest.MonkeyPatch
) -> None:
    swap_directories(swap)
    synced: list[Path] = []
    monkeypatch.setattr(durable, "fsync_directory", synced.append)
    swap_directories(swap)
    assert set(synced) == {swap.place.parent, swap.incoming.parent}
