"""At most one call a day, whoever dies where and however many come at once; and the ledger is true.

The witness is the proxy before a real store: what it counts has left. The calls are made in processes of
their own. A call is killed at each of its steps: every change to the disk, every use of a socket. The
ordinary run kills it before each step of the ledger and of the wire, and at some of the others;
PITR_EXHAUSTIVE=1 before and after each, and at a third of those that come before the claim and after the end.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path

import pytest

from pitr_pipelines.offsite.artifacts import find_artifacts
from pitr_pipelines.offsite.budget import CallState, days
from pitr_pipelines.offsite.envelope_index import MemberKind
from pitr_pipelines.offsite.envelope_reader import open_envelope
from pitr_pipelines.offsite.object_store import ObjectStore
from pitr_pipelines.settings import Settings, load_settings
from pitr_pipelines_tests.offsite.callers import Callers, Ended, callers
from pitr_pipelines_tests.offsite.conftest import StoreMaker
from pitr_pipelines_tests.offsite.copy_scene import TOMORROW, Held, MakeSettings, layout_of, state_of
from pitr_pipelines_tests.offsite.s3_server import ACCESS_KEY, SECRET_KEY, CountingProxy, S3Server
from pitr_pipelines_tests.offsite.scenes import TODAY, put_base
from pitr_pipelines_tests.wal_files import at

EXHAUSTIVE = bool(os.environ.get("PITR_EXHAUSTIVE"))

CLAIM = f"create offsite/{TODAY}.json"
ON_RECORD = f"rename to offsite/{TODAY}.json"


@pytest.fixture(scope="module")
def call(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callers]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "PG"))}
    own = {
        "HOME": str(tmp_path_factory.mktemp("home")),
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_ACCESS_KEY_ID": ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
        "no_proxy": "*",
    }
    with callers(kept | own) as started:
        yield started


@dataclass
class Scene:
    """A storage, a place in the store that no other has, and what reached the store since it was made."""

    settings: Settings
    file: Path
    proxy: CountingProxy
    call: Callers
    reader: ObjectStore
    writes_before: int

    def at(self, hour: int, day: date = TODAY, **how: object) -> Ended:
        """Make a call at an hour of a day, in a new process."""
        return self.call(self.file, datetime(day.year, day.month, day.day, hour, tzinfo=UTC), **how)

    def writes(self) -> int:
        """Return how many writes reached the store since this scene began."""
        self.proxy.wait_until_idle()
        return self.proxy.writes - self.writes_before

    def stored(self, day: date = TODAY) -> bool:
        return self.reader.head(self._held(day).name) is not None

    def undelivered(self) -> set[str]:
        """Return what lies here and is in no confirmed envelope, as the envelopes themselves say."""
        layout = layout_of(self.settings)
        there: set[tuple[str, str]] = set()
        for day in days(layout.ledger):
            if state_of(self.settings, day) is CallState.CONFIRMED:
                there |= open_envelope(self._held(day)).index.delivers
        found = find_artifacts(layout, self.settings.databases).artifacts
        here = {file.identity for file in found if file.kind is not MemberKind.MANIFEST}
        assert len(here) > 10
        return {path for path, _ in here - there}

    def _held(self, day: date) -> Held:
        return Held(self.settings, day, store=self.reader)


@pytest.fixture
def make_scene(
    make_settings: MakeSettings,
    open_store: StoreMaker,
    s3_server: S3Server,
    proxy: CountingProxy,
    call: Callers,
    tmp_path: Path,
) -> Callable[[], Scene]:
    """Make scenes that begin alike."""
    numbers = iter(range(10**6))
    root = make_settings().backup_root
    pristine = root.with_name("pristine")
    root.rename(pristine)
    file = tmp_path / "pitr.yaml"
    reader = open_store(endpoint_url=s3_server.url)

    def make() -> Scene:
        values = json.loads(file.read_text())
        values["offsite"]["store"]["prefix"] = f"{tmp_path.name}-{os.getpid()}-{next(numbers)}/"
        file.write_text(json.dumps(values))
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(pristine, root)
        proxy.wait_until_idle()
        return Scene(load_settings(file), file, proxy, call, reader, proxy.writes)

    return make


def settles_and_goes_on(scene: Scene, said: str) -> None:
    """Run again on the same day and on the next: the promise of this module, wherever the first run ended."""
    assert scene.writes() <= 1, said
    stored = scene.stored()

    again = scene.at(9)

    made = scene.writes()
    assert made <= 1, said
    if stored:
        assert state_of(scene.settings) is CallState.CONFIRMED, (said, again)
        assert again.made is False, said
        assert not layout_of(scene.settings).outgoing.exists(), said
    else:
        assert again.error == "BudgetSpent" or again.state == "confirmed", (said, again)

    next_day = scene.at(12, TOMORROW)

    assert scene.writes() == made + 1, said
    assert next_day.state == "confirmed", (said, next_day)
    there = scene.stored()
    assert state_of(scene.settings) is (CallState.CONFIRMED if there else CallState.REFUSED), said
    assert made or not there, said
    assert not scene.undelivered(), said
    assert not list(layout_of(scene.settings).ledger.glob(".outgoing*")), said


def phases(steps: Sequence[str]) -> dict[str, range]:
    """Return which steps belong to which part of a call, by what they are."""
    claim = steps.index(CLAIM)
    records = [number for number, step in enumerate(steps) if step == ON_RECORD]
    sent, last = records[0], records[-1]
    wire = [n for n in range(sent, last) if steps[n] in ("connect", "sendall", "recv_into")]
    return {
        "preparing": range(claim),
        "claiming": range(claim, wire[0]),
        "sending": range(wire[0], wire[-1] + 1),
        "concluding": range(wire[-1] + 1, last + 2),
        "leaving": range(last + 2, len(steps)),
    }


DEATHS = {"preparing": 3, "claiming": 99, "sending": 12, "concluding": 99, "leaving": 2}
"""At how many steps of each part the ordinary run dies at most; they are spread over it."""


@pytest.mark.slow
@pytest.mark.parametrize("phase", DEATHS)
def test_a_call_that_is_killed_at_any_step_is_never_made_twice_and_the_ledger_ends_true(
    make_scene: Callable[[], Scene], phase: str
) -> None:
    whole = make_scene().at(5)
    assert whole.state == "confirmed"
    among = phases(whole.steps)[phase]
    assert len(among) >= 3, whole.steps
    aside = phase in ("preparing", "leaving")
    ends = [(step, after) for step in among[:: 3 if aside else 1] for after in (False, True)]
    if not EXHAUSTIVE:
        # An answer comes in many small pieces.
        unlike = [step for step in among if whole.steps[step - 1 : step + 1] != ("recv_into", "recv_into")]
        ends = [(step, False) for step in unlike[:: -(-len(unlike) // DEATHS[phase])]]

    for step, after in ends:
        said = f"killed {'after' if after else 'before'} step {step}, {whole.steps[step]}"
        scene = make_scene()
        ended = scene.at(5, die_at=step, after=after)
        assert ended.killed_by == signal.SIGKILL, said
        if phase == "preparing":
            assert scene.writes() == 0, said
            assert state_of(scene.settings) is None, said
        if phase == "claiming":
            assert scene.writes() == 0, said
        if phase in ("concluding", "leaving"):
            assert scene.stored(), said
        settles_and_goes_on(scene, said)


def test_the_parts_of_a_call_that_is_killed_are_all_of_it(make_scene: Callable[[], Scene]) -> None:
    """And what is on disk before the first byte leaves, and after the answer came, is there in this order."""
    steps = make_scene().at(5).steps

    parts = phases(steps)

    assert [step for part in parts.values() for step in part] == list(range(len(steps)))
    claiming = [steps[step] for step in parts["claiming"]]
    assert claiming[:3] == [CLAIM, f"sync offsite/{TODAY}.json", "sync offsite"]
    assert claiming[-2:] == [ON_RECORD, "sync offsite"]
    sending = [steps[step] for step in parts["sending"]]
    assert "connect" in sending
    assert sending.count("sendall") > 5
    concluding = [steps[step] for step in parts["concluding"]]
    assert concluding[-2:] == [ON_RECORD, "sync offsite"]


@pytest.mark.slow
@pytest.mark.parametrize("locked", [True, False], ids=["with the lock", "with the ledger alone"])
def test_of_fifty_that_come_at_once_one_calls(make_scene: Callable[[], Scene], locked: bool) -> None:
    scene = make_scene()

    ended = scene.call.all_at_once(
        scene.file, datetime(2026, 1, 29, 5, tzinfo=UTC), processes=10, threads=5, locked=locked
    )

    assert len(ended) == 50
    assert scene.writes() == 1
    assert [(found.state, found.made) for found in ended].count(("confirmed", True)) == 1
    others = [found for found in ended if not found.made]
    assert {found.error for found in others if found.made is None} <= {"ArtifactBusy", "BudgetSpent"}
    assert state_of(scene.settings) is CallState.CONFIRMED
    assert not scene.undelivered()
    settles_and_goes_on(scene, "fifty at once")


@pytest.mark.slow
def test_what_is_sent_does_not_pass_through_memory_as_a_whole(make_scene: Callable[[], Scene]) -> None:
    small = make_scene().at(5)
    scene = make_scene()
    put_base(layout_of(scene.settings), "users", at(3), bytes(96 * 1024 * 1024))

    large = scene.at(5)

    assert small.state == large.state == "confirmed"
    assert large.peak_bytes - small.peak_bytes < 32 * 1024 * 1024


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
def test_a_call_that_is_broken_off_in_the_middle_is_found_out_by_the_next_run(
    make_scene: Callable[[], Scene], number: int
) -> None:
    steps = make_scene().at(5).steps
    among = phases(steps)["sending"]
    scene = make_scene()

    ended = scene.at(5, die_at=among[len(among) // 2], signal_number=number)

    assert ended.error == "KeyboardInterrupt" or ended.killed_by == signal.SIGTERM
    assert scene.writes() == 1
    assert state_of(scene.settings) is CallState.SENT
    said = scene.at(9)
    assert said.error == "BudgetSpent"
    assert "is sent" in said.what
    settles_and_goes_on(scene, "broken off")
