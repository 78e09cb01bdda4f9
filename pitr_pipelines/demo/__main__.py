"""`make demo`: tell the story, then leave everything up to be looked at until Ctrl-C.

However it ends, by itself, by Ctrl-C, SIGTERM or a failure, nothing that it started is left, and
neither is its directory. Exit codes: 0 if everything that was claimed held; 1 if not, or if the
story could not be told; 130 or 143 if it was interrupted before its end.
"""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import NoReturn

import psycopg

from pitr_pipelines.demo.dagster_ui import DagsterUi
from pitr_pipelines.demo.narrator import Narrator
from pitr_pipelines.demo.offsite import forget_callers_cloud, open_offsite_place
from pitr_pipelines.demo.place import abandoned, remove, workplace
from pitr_pipelines.demo.processes import (
    adopt_orphans,
    bury_children,
    end_marked,
    end_servers,
    marked_processes,
)
from pitr_pipelines.demo.servers import (
    INVENTORY_DB,
    ORDER_DB,
    choose_binaries,
    plan_servers,
    set_up_servers,
)
from pitr_pipelines.demo.story import Restored, Story, introduce
from pitr_pipelines.demo.workload import Workload
from pitr_pipelines.errors import PitrError
from pitr_pipelines.postgres.binaries import Binaries
from pitr_pipelines.units import show_duration

_WATCH_S = 1.0


class Interrupted(BaseException):
    """Somebody wants us to end."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m pitr_pipelines.demo", description=__doc__)
    parser.add_argument("--once", action="store_true", help="end after the story")
    given = parser.parse_args(arguments)
    # The caller's own PGHOST or PGPASSWORD must not lead us elsewhere.
    for name in [name for name in os.environ if name.startswith("PG")]:
        del os.environ[name]
    forget_callers_cloud()
    narrator = Narrator()
    demo = Demo(narrator, once=given.once)
    _listen_to_signals()
    adopt_orphans()
    try:
        return demo.run()
    except Interrupted as interrupted:
        return 0 if demo.told and not narrator.failed else 128 + interrupted.number
    except PitrError as error:
        narrator.plain("", f"The demo could not go on: {error.what}", *error.remedy.splitlines())
        return 1
    except psycopg.Error as error:
        narrator.plain("", f"The demo could not go on: a server answered {str(error).strip()!r}")
        return 1


class Demo:
    """One demo, from finding PostgreSQL to removing its directory. `told`: the story is over."""

    def __init__(self, narrator: Narrator, *, once: bool) -> None:
        self.narrator = narrator
        self.once = once
        self.told = False
        self._shop: Workload | None = None

    def run(self) -> int:
        """Do all of it; return the exit code."""
        binaries = choose_binaries()
        for place in abandoned():
            self.narrator.say(f"clearing away {place}, which a demo that was killed has left")
            _clear(place, binaries)
        with workplace() as place:
            try:
                self._play(place, binaries)
            finally:
                _ignore_signals()
                self._end(place, binaries)
        if self.once:
            self.narrator.say(self._summary())
        return self._verdict()

    def _play(self, place: Path, binaries: Binaries) -> None:
        narrator = self.narrator
        narrator.plain(
            f"pitr_pipelines: two PostgreSQL {binaries.version} servers and a Dagster of their own,",
            f"in {place}; all of it goes away at the end, or when you press Ctrl-C.",
        )
        narrator.chapter("Two servers, prepared by `pitr init-db`; Dagster starts meanwhile")
        (place / "logs").mkdir()
        offsite = open_offsite_place(place)
        plan = plan_servers(place, binaries, now=datetime.now(UTC), offsite=offsite.settings)
        dagster = DagsterUi(place, plan.config)
        servers = set_up_servers(plan, dagster.go_on)
        orders, inventory = servers[ORDER_DB], servers[INVENTORY_DB]
        self._shop = Workload.open(orders.connect, inventory.connect)
        introduce(plan, servers, narrator)
        narrator.say("   the shop is open: orders and payments, goods in and out, all the time")
        offsite.wait_until_ready()
        dagster.wait_until_ready()
        narrator.say(f"   Dagster is up: {dagster.url}")
        story = Story(plan, servers, dagster, self._shop, offsite, narrator)
        restored = story.tell()
        self.told = True
        if self.once:
            return
        narrator.plain("")
        narrator.say(self._summary())
        _invite(narrator, story, restored)
        _stay(narrator, story)

    def _summary(self) -> str:
        failed = self.narrator.failed
        if not failed:
            return f"All {self.narrator.claims} claims were checked, and hold."
        return f"{len(failed)} of {self.narrator.claims} claims do not hold:\n" + "\n".join(failed)

    def _end(self, place: Path, binaries: Binaries) -> None:
        began = time.monotonic()
        try:
            self.narrator.plain("")
            self.narrator.say("Ending everything that was started ...")
        finally:
            if self._shop is not None:
                self._shop.close()
            _clear(place, binaries)
            bury_children()
        left = list(marked_processes(place))
        self.narrator.claim(
            f"every process has ended and {place} is gone ({show_duration(time.monotonic() - began)})",
            not left and not place.exists(),
            f"left are the processes {left}",
        )

    def _verdict(self) -> int:
        return 0 if self.told and not self.narrator.failed else 1


def _clear(place: Path, binaries: Binaries) -> None:
    """End what runs in a demo's directory, Dagster first because it starts servers; then remove it."""
    end_marked(place)
    end_servers(place, binaries)
    remove(place)


def _invite(narrator: Narrator, story: Story, restored: Restored) -> None:
    """Say what there is to look at."""
    plan, orders = story.plan, story.orders
    psql = str(plan.binaries.directory / "psql")
    pitr = f"PITR_CONFIG={plan.config} {shlex.quote(str(Path(sys.executable).with_name('pitr')))}"
    restore = f'{pitr} restore {ORDER_DB} "{datetime.now(UTC):%Y-%m-%d %H:%M:%S}"'
    narrator.plain(
        "",
        f"Everything stays up until you press Ctrl-C. Open {story.dagster.url} and look at",
        f"  lineage             {story.dagster.url}/asset-groups",
        f"  runs                {story.dagster.url}/runs",
        f"  a restore by click  {story.dagster.url}/locations/pitr_pipelines/jobs/restore/playground",
        "                      (choose an hour as partition and give a target_time within it)",
        "At a terminal:",
        f"  {pitr} status",
        f"  {restore}",
        f"  {shlex.join([psql, orders.dsn()])}   (live)",
        f"  {shlex.join([psql, orders.dsn(restored.port)])}   (restored)",
    )


def _stay(narrator: Narrator, story: Story) -> NoReturn:
    """Leave everything up until a signal comes. Whoever plays with it may break it: that is only said."""
    said = ""
    while True:
        time.sleep(_WATCH_S)
        try:
            story.watch()
        except PitrError as error:
            if error.what != said:
                said = error.what
                narrator.say(said)


def _listen_to_signals() -> None:
    """Turn the first signal that asks us to end into Interrupted, even if our parent ignores it."""

    def end(number: int, _frame: FrameType | None) -> None:
        _ignore_signals()
        raise Interrupted(number)

    for number in _SIGNALS:
        signal.signal(number, end)


def _ignore_signals() -> None:
    """From here on we are ending anyway, and must not be kept from clearing away."""
    for number in _SIGNALS:
        signal.signal(number, lambda _number, _frame: None)


_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


if __name__ == "__main__":
    sys.exit(main())
