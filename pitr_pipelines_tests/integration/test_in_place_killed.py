"""In-place recovery that is killed: the old one or the new one is in its place, and a call settles it."""

from __future__ import annotations

from pathlib import Path

import pytest

from pitr_pipelines.catalog.records import read_record
from pitr_pipelines.restore.in_place_record import InPlaceRecord, State
from pitr_pipelines_tests.integration.in_place_scene import RUN_PITR, Scene
from pitr_pipelines_tests.servers import ServerFactory, SettingsMaker

pytestmark = pytest.mark.slow

CONFIRMED = ("--confirm", "order-db")
KILLED = -9

DIE = """
import os, signal
from pitr_pipelines import durable
from pitr_pipelines.restore import handover, in_place, in_place_swap
def die(*_args, **_options):
    os.kill(os.getpid(), signal.SIGKILL)
"""
IN_THE_RESTORE = DIE + "handover.Handover.make_whole = die\n" + RUN_PITR
BEFORE_THE_FIRST_RENAME = DIE + "in_place_swap.act = die\n" + RUN_PITR
BETWEEN_THE_RENAMES = (
    DIE
    + """
really = in_place_swap.act
def act(swap, stage):
    really(swap, stage)
    die()
in_place_swap.act = act
"""
    + RUN_PITR
)
WITHOUT_EXCHANGE = "from pitr_pipelines import durable\ndurable.exchange_at_once = lambda *_: False\n"
BEFORE_THE_JOURNAL_SAYS_SO = (
    DIE
    + """
really = in_place.swap_directories
def swap(wanted):
    really(wanted)
    die()
in_place.swap_directories = swap
"""
    + RUN_PITR
)


def state(work: Path) -> State:
    return read_record(work / "in-place.json", InPlaceRecord).state


@pytest.fixture
def scene(server_factory: ServerFactory, pitr_settings: SettingsMaker) -> Scene:
    return Scene.of(server_factory(), pitr_settings)


def starts_as_old(scene: Scene) -> bool:
    scene.server.start()
    try:
        return scene.has_table("after_the_drop") and not scene.has_table("rows")
    finally:
        scene.server.stop()


def starts_as_restored(scene: Scene) -> bool:
    scene.server.start()
    try:
        return not scene.has_table("after_the_drop") and scene.rows() == {1, 2, 3}
    finally:
        scene.server.stop()


def test_killed_before_anything_is_moved_the_old_one_is_untouched_and_the_next_call_restores(
    scene: Scene,
) -> None:
    old = scene.fingerprint()
    scene.in_place(*CONFIRMED, code=IN_THE_RESTORE, exit_code=KILLED)
    [work] = scene.beside("restore")
    assert (work / "INCOMPLETE").exists()
    assert scene.fingerprint() == old

    printed = scene.in_place("--plan")
    assert f"left by an interrupted restore, delete it: {work}" in printed
    scene.in_place(*CONFIRMED, code=BEFORE_THE_FIRST_RENAME, exit_code=KILLED)
    [_, work] = scene.beside("restore")
    assert state(work) is State.REPLACING
    assert scene.fingerprint() == old
    assert starts_as_old(scene)

    printed = scene.in_place(*CONFIRMED)
    assert f"an earlier restore in place of {scene.data} was interrupted before anything was moved" in printed
    assert str(work) in printed
    assert state(work) is State.GIVEN_UP
    assert len(scene.beside("before-restore")) == 1
    assert starts_as_restored(scene)


@pytest.mark.parametrize("exchange", ["", WITHOUT_EXCHANGE], ids=["exchanged", "renamed twice"])
def test_killed_between_the_renames_the_next_call_finishes_and_it_can_be_undone(
    scene: Scene, exchange: str
) -> None:
    old = scene.fingerprint()
    scene.in_place(*CONFIRMED, code=exchange + BETWEEN_THE_RENAMES, exit_code=KILLED)
    [work] = scene.beside("restore")
    assert state(work) is State.REPLACING
    assert scene.data.exists() == (not exchange)
    planned = scene.in_place("--plan", exit_code=7)
    assert f"interrupted while it was replacing {scene.data}" in planned
    assert "Create nothing there" in planned

    printed = scene.in_place(*CONFIRMED)
    assert "An earlier call was interrupted" in printed
    assert "did nothing more" in printed
    assert state(work) is State.IN_PLACE
    [aside] = scene.beside("before-restore")
    assert scene.fingerprint(aside) == old
    assert scene.beside("restore") == [work]
    assert starts_as_restored(scene)

    scene.in_place("--undo", *CONFIRMED, code=exchange + BETWEEN_THE_RENAMES, exit_code=KILLED)
    assert state(work) is State.UNDOING
    assert "undone" in scene.in_place("--undo", *CONFIRMED)
    assert state(work) is State.UNDONE
    assert scene.fingerprint() == old
    assert starts_as_old(scene)


def test_killed_before_the_journal_says_that_it_is_over_it_can_still_be_undone(scene: Scene) -> None:
    old = scene.fingerprint()
    scene.in_place(*CONFIRMED, code=BEFORE_THE_JOURNAL_SAYS_SO, exit_code=KILLED)
    [work] = scene.beside("restore")
    assert state(work) is State.REPLACING
    # Undoing that is killed before it moves anything has not begun, and is begun again.
    scene.in_place("--undo", *CONFIRMED, code=BEFORE_THE_FIRST_RENAME, exit_code=KILLED)
    assert state(work) is State.UNDOING
    assert starts_as_restored(scene)
    scene.in_place("--undo", *CONFIRMED)
    assert scene.fingerprint() == old
    assert starts_as_old(scene)
