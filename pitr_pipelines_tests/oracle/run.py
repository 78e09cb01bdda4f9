"""One round of the oracle: a story, its targets, and the comparison of each."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

import psycopg

from pitr_pipelines.catalog.inventory import read_inventory
from pitr_pipelines.catalog.layout import Layout
from pitr_pipelines.catalog.records import BaseRecord
from pitr_pipelines.errors import PitrError
from pitr_pipelines.restore.target import LatestTarget, Target, TimeTarget, XidTarget
from pitr_pipelines.settings import Settings
from pitr_pipelines_tests.oracle.compare import (
    OracleFailure,
    check_ended_hour,
    check_hole,
    check_manifest,
    check_refusal,
    check_restore,
    end_restored,
)
from pitr_pipelines_tests.oracle.story import Story
from pitr_pipelines_tests.oracle.targets import Aim, draw
from pitr_pipelines_tests.oracle.truth import Span, Truth
from pitr_pipelines_tests.oracle.twin import Branch, wait_until_archived
from pitr_pipelines_tests.oracle.world import OPTIONS, World
from pitr_pipelines_tests.servers import ServerFactory, SettingsMaker, TestServer

DATABASE = "order-db"
_SEGMENT_SIZES_MB = (1, 1, 4, 16)
_WHILE_STOPPED = 3
"""Of a round's targets, how many are restored with the source server stopped."""

_FOR_EACH_ON_A_BRANCH = 16
"""For so many targets of a round, one is drawn on each timeline that was left, besides its end."""

_PROVABLY_IDLE_S = 1.6
"""How long nothing is committed at a round's end; more than `CLOCK_MARGIN`."""


@dataclass(frozen=True, slots=True)
class Round:
    """What a round is: all that is random in it is drawn from `seed`, except the writers' timing.

    So is the size of a segment, where none is given.
    """

    seed: int
    major: int
    events: int
    targets: int
    segment_size_mb: int | None = None
    twins: bool = True

    def __str__(self) -> str:
        return (
            f"seed {self.seed}, major {self.major}, {self.events} events, {self.targets} targets, "
            f"segments of {self.segment_size_mb} MB"
        )

    @property
    def again(self) -> str:
        """The command that plays it again."""
        return (
            f"python -m pitr_pipelines_tests.oracle --rounds 1 --seed {self.seed} --major {self.major} "
            f"--events {self.events} --targets {self.targets} --segment-size-mb {self.segment_size_mb}"
            + ("" if self.twins else " --no-twins")
        )


def play(
    asked: Round, factory: ServerFactory, make_settings: SettingsMaker, say: Callable[[str], None]
) -> int:
    """Play a round and return how many targets were checked.

    Raises OracleFailure, with what is needed to play it again, when anything differs.
    """
    pick = random.Random(asked.seed)
    size_mb = pick.choice(_SEGMENT_SIZES_MB)
    asked = replace(asked, segment_size_mb=asked.segment_size_mb or size_mb)
    server = factory(
        DATABASE, major=asked.major, wal_segment_size_mb=asked.segment_size_mb or size_mb, options=OPTIONS
    )
    settings = make_settings(server, bundle={"keep_raw_hours": 0})
    say(str(asked))
    world = World(server, asked.seed)
    story = Story(server, settings, world, pick, asked.twins)
    checked = 0

    @contextmanager
    def checking(what: object) -> Iterator[None]:
        nonlocal checked
        begun = time.monotonic()
        try:
            yield
        except (AssertionError, PitrError, OSError, psycopg.Error) as error:
            told = "\n  ".join(str(event) for event in story.events)
            raise OracleFailure(
                f"{asked}: {what}\n{error}\nwhat had happened:\n  {told}\nplay it again: {asked.again}"
            ) from error
        checked += 1
        say(f"  {checked:3}  {time.monotonic() - begun:4.1f} s  {what}")

    try:
        world.start()
        try:
            with checking(f"the story of {asked.events} events"):
                story.tell(asked.events)
                if story.branches:
                    # Else nothing but the server could say which of two that were written to is its own.
                    story.sealed_hour()
        finally:
            world.stop()
        _end_with_raw_segments(story)
        _Asking(asked, server, settings, story, pick, checking).ask_everything()
    finally:
        end_restored(settings, asked.major)
    return checked


@dataclass
class _Asking:
    """What is asked for after a story, first with the server answering and then without it."""

    asked: Round
    server: TestServer
    settings: Settings
    story: Story
    pick: random.Random
    checking: Callable[[object], AbstractContextManager[None]]

    def ask_everything(self) -> None:
        bases = read_inventory(Layout(self.settings.backup_root), DATABASE).bases
        truth = Truth.of(self.server, bases[0].end_lsn)
        last = truth.wal.ends[-1]
        span = Span(bases[0].ended_at, truth.times[-1], bases[0].end_lsn, last.begins)
        aims = draw(truth, self.story.events, bases, span, self.pick, self.asked.targets - 3)
        self.pick.shuffle(aims)
        now = datetime.now(UTC)
        assert now > truth.times[-1]
        self._refusals(truth, bases[0])
        for aim in aims[_WHILE_STOPPED:]:
            self._restore(aim)
        with self.checking("now, with the server answering"):
            check_restore(self.settings, DATABASE, TimeTarget(now), truth.all(), seal=True)
        self._without_server(aims[:_WHILE_STOPPED], bases)

    def _refusals(self, truth: Truth, first: BaseRecord) -> None:
        with self.checking("every offer of the manifest"):
            check_manifest(self.settings, DATABASE)
        with self.checking("a moment before the first base backup's end is refused"):
            early = first.ended_at - timedelta(seconds=self.pick.uniform(0.001, 3600))
            self._refused(TimeTarget(early), "before the end of the first base")
        with self.checking("a moment in the future is refused"):
            later = datetime.now(UTC) + timedelta(minutes=self.pick.uniform(1, 1e5))
            self._refused(TimeTarget(later), "in the future")
        if truth.subtransactions:
            with self.checking("a subtransaction is refused"):
                self._refused(XidTarget(self.pick.choice(truth.subtransactions)), "is not in the WAL")
        last = truth.times[-1] - timedelta(microseconds=1)
        with self.checking("a missing segment is named"):
            check_hole(self.settings, DATABASE, last, truth.at(last))

    def _without_server(self, aims: Sequence[Aim], bases: Sequence[BaseRecord]) -> None:
        # The last commit lies in the very last segment, and what is idle after it is known to be so.
        self.server.execute("INSERT INTO log (writer, thing, value) VALUES (-1, 1, NULL)")
        truth = Truth.of(self.server, bases[0].end_lsn)
        time.sleep(_PROVABLY_IDLE_S)
        self.server.stop()
        stopped = datetime.now(UTC)
        with self.checking("a moment after the last segment, with the server stopped, is refused"):
            self._refused(TimeTarget(stopped), "known to be complete until", "could not be sealed")
        with self.checking("an idle moment in the last segment, with the server stopped"):
            idle = truth.times[-1] + timedelta(seconds=self.pick.uniform(0.01, 0.3))
            check_restore(self.settings, DATABASE, TimeTarget(idle), truth.all(), seal=False)
        for aim in aims:
            self._restore(aim, ", with the server stopped")
        with self.checking("latest, with the server stopped"):
            check_restore(self.settings, DATABASE, LatestTarget(), truth.all(), seal=False)
        for branch in self.story.branches:
            self._abandoned(branch, bases)
        with self.checking("the end of the hour, as if it were over"):
            check_ended_hour(self.settings, DATABASE, truth.all())

    def _abandoned(self, branch: Branch, bases: Sequence[BaseRecord]) -> None:
        """Ask for what only the twin committed, on the timeline that the server has left."""
        count = max(1, self.asked.targets // _FOR_EACH_ON_A_BRANCH)
        aims = draw(branch.truth, (), bases, branch.span, self.pick, count, timeline=branch.timeline)
        latest = Aim("the end of a twin", LatestTarget(), branch.truth.all, branch.timeline)
        for aim in (*aims, latest):
            self._restore(aim)

    def _restore(self, aim: Aim, how: str = "") -> None:
        with self.checking(f"{aim}{how}"):
            seal = aim.timeline is None
            check_restore(self.settings, DATABASE, aim.target, aim.state(), seal=seal, timeline=aim.timeline)

    def _refused(self, target: Target, *reasons: str) -> None:
        check_refusal(self.settings, DATABASE, target, *reasons, seal=True)


def _end_with_raw_segments(story: Story) -> None:
    """Commit into three segments of their own, which are archived and in no bundle."""
    story.world.check()
    story.server.execute("SELECT pg_switch_wal()")
    for n in range(3):
        time.sleep(0.05)
        story.server.execute("INSERT INTO log (writer, thing, value) VALUES (-1, %s, NULL)", -n)
        story.server.execute("SELECT pg_switch_wal()")
    wait_until_archived(story.server)
