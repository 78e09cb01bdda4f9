"""One round of the oracle: a story, its targets, and the comparison of each."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

import psycopg

from pitr_pipelines.catalog.inventory import read_inventory
from pitr_pipelines.catalog.layout import Layout
from pitr_pipelines.errors import PitrError
from pitr_pipelines.restore.target import LatestTarget, TimeTarget
from pitr_pipelines_tests.oracle.compare import (
    OracleFailure,
    check_hole,
    check_manifest,
    check_refusal,
    check_restore,
    end_restored,
)
from pitr_pipelines_tests.oracle.story import Story
from pitr_pipelines_tests.oracle.targets import draw
from pitr_pipelines_tests.oracle.world import OPTIONS, Truth, World
from pitr_pipelines_tests.servers import ServerFactory, SettingsMaker, wait_for

DATABASE = "order-db"
_SEGMENT_SIZES_MB = (1, 1, 4, 16)
_WHILE_STOPPED = 3
"""Of a round's targets, how many are restored with the source server stopped."""

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
    story = Story(server, settings, world, pick)
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
        finally:
            world.stop()
        _end_with_raw_segments(story)
        truth = Truth.of(server)
        bases = read_inventory(Layout(settings.backup_root), DATABASE).bases
        moments = draw(truth, story.events, bases[0].ended_at, truth.times[-1], pick, asked.targets - 2)
        pick.shuffle(moments)
        now = datetime.now(UTC)
        assert now > truth.times[-1]

        with checking("every offer of the manifest"):
            check_manifest(settings, DATABASE)
        first = bases[0]
        with checking("a moment before the first base backup's end is refused"):
            early = first.ended_at - timedelta(seconds=pick.uniform(0.001, 3600))
            check_refusal(
                settings, DATABASE, TimeTarget(early), "before the end of the first base", seal=True
            )
        with checking("a moment in the future is refused"):
            later = datetime.now(UTC) + timedelta(minutes=pick.uniform(1, 1e5))
            check_refusal(settings, DATABASE, TimeTarget(later), "in the future", seal=True)
        last = truth.times[-1] - timedelta(microseconds=1)
        with checking("a missing segment is named"):
            check_hole(settings, DATABASE, last, truth.at(last))
        for moment in moments[_WHILE_STOPPED:]:
            with checking(moment):
                check_restore(settings, DATABASE, TimeTarget(moment.at), truth.at(moment.at), seal=True)
        with checking("now, with the server answering"):
            check_restore(settings, DATABASE, TimeTarget(now), truth.all(), seal=True)
        # The last commit lies in the very last segment, and what is idle after it is known to be so.
        server.execute("INSERT INTO log (writer, thing, value) VALUES (-1, 1, NULL)")
        truth = Truth.of(server)
        time.sleep(_PROVABLY_IDLE_S)
        server.stop()
        stopped = datetime.now(UTC)
        with checking("a moment after the last segment, with the server stopped, is refused"):
            reasons = ("known to be complete until", "could not be sealed")
            check_refusal(settings, DATABASE, TimeTarget(stopped), *reasons, seal=True)
        with checking("an idle moment in the last segment, with the server stopped"):
            idle = truth.times[-1] + timedelta(seconds=pick.uniform(0.01, 0.3))
            check_restore(settings, DATABASE, TimeTarget(idle), truth.all(), seal=False)
        for moment in moments[:_WHILE_STOPPED]:
            with checking(f"{moment}, with the server stopped"):
                check_restore(settings, DATABASE, TimeTarget(moment.at), truth.at(moment.at), seal=True)
        with checking("latest, with the server stopped"):
            check_restore(settings, DATABASE, LatestTarget(), truth.all(), seal=False)
    finally:
        end_restored(settings, asked.major)
    return checked


def _end_with_raw_segments(story: Story) -> None:
    """Commit into three segments of their own, which are archived and in no bundle."""
    story.world.check()
    story.server.execute("SELECT pg_switch_wal()")
    for n in range(3):
        time.sleep(0.05)
        story.server.execute("INSERT INTO log (writer, thing, value) VALUES (-1, %s, NULL)", -n)
        story.server.execute("SELECT pg_switch_wal()")
    ready = "SELECT FROM pg_ls_archive_statusdir() WHERE name LIKE '%.ready'"
    wait_for(lambda: not story.server.execute(ready), what="the archiver")
