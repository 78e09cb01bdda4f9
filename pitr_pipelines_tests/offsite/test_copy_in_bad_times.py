"""Clocks that are wrong, disks that are full, terminals that are gone: no second call, and no day lost."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from operator import attrgetter
from pathlib import Path
from typing import Any

import pytest

from pitr_pipelines.errors import BadRequest, StorageFailed
from pitr_pipelines.offsite import budget as ledger_of_calls
from pitr_pipelines.offsite import copy
from pitr_pipelines.offsite.budget import BudgetSpent, CallState, days
from pitr_pipelines.offsite.copy import settle_now
from pitr_pipelines.offsite.copy_report import CallFailed
from pitr_pipelines.progress import Progress
from pitr_pipelines_tests.mounting import TIMEOUT_S
from pitr_pipelines_tests.offsite.copy_scene import (
    TOMORROW,
    MakeSettings,
    clock_at,
    copied,
    layout_of,
    state_of,
)
from pitr_pipelines_tests.offsite.s3_server import CountingProxy
from pitr_pipelines_tests.offsite.scenes import TODAY

YESTERDAY = TODAY - timedelta(days=1)


def never(*_: object, **__: object) -> Any:
    raise AssertionError("servers are asked for nothing when it is known that no call can be made")


def test_a_clock_that_went_ahead_has_spent_the_day_it_showed_and_that_alone(
    make_settings: MakeSettings, proxy: CountingProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = make_settings()
    copied(settings, clock=clock_at(12, day=TOMORROW))  # and it is today

    with monkeypatch.context() as patch:
        patch.setattr("pitr_pipelines.offsite.copy.gather", never)
        with pytest.raises(BudgetSpent, match=f"call of {TOMORROW} is already on the ledger") as refused:
            copied(settings)
    assert "clock" in refused.value.remedy
    assert copied(settings, clock=clock_at(13, day=TOMORROW)).made is False
    assert proxy.writes == 1

    assert copied(settings, clock=clock_at(12, day=TOMORROW + timedelta(days=1))).made
    assert proxy.writes == 2


def test_a_clock_that_went_back_gets_no_second_call(
    make_settings: MakeSettings, proxy: CountingProxy
) -> None:
    settings = make_settings()
    copied(settings)

    with pytest.raises(BudgetSpent, match="too late"):
        copied(settings, clock=clock_at(12, day=YESTERDAY), wait=False)

    assert copied(settings, clock=clock_at(23)).made is False
    assert proxy.writes == 1
    assert days(layout_of(settings).ledger) == [TODAY]


@pytest.mark.parametrize(
    ("step", "claimed"),
    [("gather", False), ("budget.claim", True), ("budget.send", True)],
    ids=["while it is prepared", "when it is claimed", "when it is put down as sent"],
)
def test_nothing_leaves_after_the_end_of_the_day(
    make_settings: MakeSettings,
    proxy: CountingProxy,
    monkeypatch: pytest.MonkeyPatch,
    step: str,
    claimed: bool,
) -> None:
    """Midnight comes right after a step: what left then would be a call of the next day."""
    settings = make_settings()
    now = [datetime(TODAY.year, TODAY.month, TODAY.day, 23, 59, 59, tzinfo=UTC)]
    real = attrgetter(step)(copy)

    def then_midnight(*arguments: Any, **named: Any) -> Any:
        done = real(*arguments, **named)
        now[0] += timedelta(seconds=2)
        return done

    with monkeypatch.context() as patch:
        patch.setattr(f"pitr_pipelines.offsite.copy.{step}", then_midnight)
        with pytest.raises(CallFailed if claimed else BadRequest) as failed:
            copied(settings, clock=lambda: now[0])

    assert "nothing was sent" in str(failed.value).lower()
    assert proxy.writes == 0
    assert state_of(settings) is (CallState.REFUSED if claimed else None)
    assert copied(settings, clock=clock_at(12, day=TOMORROW)).made, "the next day is not spent by it"
    assert proxy.writes == 1


def test_a_change_of_the_zone_that_days_are_counted_in_gives_no_second_call(
    make_settings: MakeSettings, proxy: CountingProxy
) -> None:
    there = make_settings(api_calls={"day_in": "America/Los_Angeles"})
    assert copied(there, clock=clock_at(7, 30), wait=False).day == YESTERDAY

    here = make_settings()
    with pytest.raises(BudgetSpent, match=f"call of {YESTERDAY} was sent at .* on {TODAY} in UTC") as refused:
        copied(here, clock=clock_at(9))

    assert "`day_in`" in refused.value.remedy
    assert proxy.writes == 1
    assert copied(here, clock=clock_at(12, day=TOMORROW)).made


def test_a_ledger_file_that_cannot_be_read_has_spent_its_day(
    make_settings: MakeSettings, proxy: CountingProxy
) -> None:
    settings = make_settings()
    layout_of(settings).ledger.mkdir()
    (layout_of(settings).ledger / f"{TODAY}.json").write_text('{"half')

    with pytest.raises(BudgetSpent, match="cannot be used"):
        copied(settings)

    assert proxy.writes == 0
    assert copied(settings, clock=clock_at(12, day=TOMORROW)).made


def test_a_terminal_that_is_gone_does_not_cost_the_day(
    make_settings: MakeSettings, proxy: CountingProxy
) -> None:
    def gone(_: Progress | str) -> None:
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    done = copied(make_settings(), report=gone, log=gone)

    assert done.state is CallState.CONFIRMED
    assert proxy.writes == 1


def test_without_any_base_backup_the_day_is_not_spent(
    make_settings: MakeSettings, proxy: CountingProxy
) -> None:
    """As when the volume is not mounted, and its directory is empty."""
    settings = make_settings()
    for database in settings.databases:
        layout_of(settings).base_record(database, TODAY).unlink()

    with pytest.raises(StorageFailed, match="there is no base backup of any database"):
        copied(settings, wait=False)

    assert (proxy.requests.total(), days(layout_of(settings).ledger)) == (0, [])


@pytest.mark.parametrize("where", ["wal", "bundles", "bases"])
def test_what_cannot_be_read_of_one_database_hides_nothing_of_another(
    make_settings: MakeSettings, tmp_path: Path, where: str
) -> None:
    settings = make_settings()
    directory: Path = getattr(layout_of(settings), where)("users")
    directory.rename(tmp_path / "aside")
    directory.write_text("a file in the place of a directory\n")

    done = copied(settings, wait=False)

    assert done.state is CallState.CONFIRMED
    assert done.databases["order-db"].bases == (TODAY,)
    assert done.databases["order-db"].hours >= 2
    assert any(str(directory) in problem for problem in done.problems), done.problems


def test_a_full_disk_costs_no_day(
    make_settings: MakeSettings, proxy: CountingProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = make_settings()
    with monkeypatch.context() as patch:
        patch.setattr("shutil.disk_usage", lambda _: _Usage())
        with pytest.raises(StorageFailed, match="is full: there is no room for the ledger") as full:
            copied(settings)
    assert "not spent" in full.value.remedy
    assert (proxy.writes, days(layout_of(settings).ledger)) == (0, [])

    assert copied(settings).made


class _Usage:
    free = 1024 * 1024


FULL_DISK = """
import json, os, sys
from pathlib import Path
from pitr_pipelines.catalog.layout import Layout
from pitr_pipelines.errors import PitrError
from pitr_pipelines.offsite.budget import days
from pitr_pipelines.settings import load_settings
from pitr_pipelines_tests.offsite.copy_scene import copied
from pitr_pipelines_tests.offsite.scenes import fill

settings = load_settings(Path(sys.argv[1]))
layout = Layout(settings.backup_root)
fill(layout, list(settings.databases))
ballast = layout.root / "ballast"

def attempt(free_bytes):
    with ballast.open("wb", buffering=0) as file:
        free = os.statvfs(layout.root)
        left = free.f_bavail * free.f_frsize - free_bytes
        while left > 0:
            try:
                left -= file.write(bytes(min(left, 65536)))
            except OSError:
                break
    try:
        said = copied(settings).state
    except PitrError as error:
        said = type(error).__name__
    taken = len(days(layout.ledger))
    ballast.unlink()
    return [said, taken]

print(json.dumps([attempt(0), attempt(1024 * 1024), attempt(8 * 1024 * 1024)]))
"""


def test_on_a_disk_that_is_really_full_nothing_is_claimed(
    make_settings: MakeSettings, proxy: CountingProxy, mount_namespace: Sequence[str], tmp_path: Path
) -> None:
    root = make_settings().backup_root
    mounted = 'mount -t tmpfs -o size=16m none "$1" && shift && exec "$@"'
    command = [sys.executable, "-c", FULL_DISK, str(tmp_path / "pitr.yaml")]

    done = subprocess.run(
        [*mount_namespace, "sh", "-c", mounted, "sh", str(root), *command],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )

    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [["StorageFailed", 0], ["StorageFailed", 0], ["confirmed", 1]]
    assert proxy.writes == 1


def test_an_outcome_that_the_disk_does_not_take_is_found_out_by_a_look(
    make_settings: MakeSettings, proxy: CountingProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = make_settings()
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def no_room(*_: object, **__: object) -> Any:
        raise full

    with monkeypatch.context() as patch:
        patch.setattr(ledger_of_calls, "end", no_room)
        patch.setattr("pitr_pipelines.offsite.settling.end", no_room)
        with pytest.raises(
            StorageFailed, match=r"was made .*stored.*could not be put on the ledger: No space"
        ):
            copied(settings)
    assert state_of(settings) is CallState.SENT

    (settled,) = settle_now(settings, now=clock_at(6)())

    assert settled.state is state_of(settings) is CallState.CONFIRMED
    assert copied(settings, clock=clock_at(9)).made is False
    assert proxy.writes == 1


def test_while_it_is_sent_nothing_lies_on_the_disk_twice(
    make_settings: MakeSettings, proxy: CountingProxy
) -> None:
    settings = make_settings()
    before = used_bytes(settings.backup_root)
    during: list[int] = []

    def look(progress: Progress) -> None:
        if progress.step == "envelope" and progress.total and progress.done > progress.total // 2:
            during.append(used_bytes(settings.backup_root))

    copied(settings, report=look)

    assert during
    names = sum(file.stat().st_size for file in settings.backup_root.rglob("*") if file.is_file())
    assert names > 400_000
    # The ledger, the envelope's index, and records of the running hour are new; the artifacts are 400 kB.
    assert max(during) - before < 150_000
    assert not layout_of(settings).outgoing.exists()


def used_bytes(root: Path) -> int:
    """Return what the files below a directory take, each counted once whatever names it has."""
    found = {}
    for file in root.rglob("*"):
        status = file.lstat()
        if file.is_file():
            found[status.st_ino] = status.st_blocks * 512
    return sum(found.values())
