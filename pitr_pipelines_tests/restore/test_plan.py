"""A plan reaches exactly what was asked for; where there is none, what is offered instead can be had."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st

from pitr_pipelines.catalog.inventory import Inventory, read_inventory
from pitr_pipelines.catalog.records import BaseRecord, BundleState
from pitr_pipelines.errors import NotRestorable
from pitr_pipelines.postgres.wal_inspect import TransactionEnd
from pitr_pipelines.restore.plan import (
    NotCovered,
    Plan,
    StopAtEnd,
    StopAtTime,
    make_plan,
)
from pitr_pipelines.restore.target import HourTarget, LatestTarget, Target, TimeTarget
from pitr_pipelines.restore.wal_source import InArchive, InBase, InBundle, WalIndex, WalSegment
from pitr_pipelines.wal.hours import Hour
from pitr_pipelines.wal.lsn import Lsn, SegmentName
from pitr_pipelines_tests.wal_files import (
    DATABASE,
    SEGMENT_SIZE,
    Store,
    at,
    base_record,
    bundle_record,
    hour_of,
    put_file,
    segment,
)

ZONE = ZoneInfo("Europe/Paris")
NOW = at(12)
COUNT = 10


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@dataclass
class FakeProbe:
    """Knows which commits lie in which segment, as pg_waldump would find them."""

    commits: Mapping[SegmentName, Sequence[datetime]]

    def ends_transaction_after(
        self, previous: WalSegment | None, segment: WalSegment, moment: datetime
    ) -> bool:
        return any(commit > moment for commit in self.commits.get(segment.name, ()))

    def last_transaction(self, previous: WalSegment | None, segment: WalSegment) -> datetime | None:
        return max(self.commits.get(segment.name, ()), default=None)

    def transaction_end(
        self, previous: WalSegment | None, segment: WalSegment, xid: int
    ) -> TransactionEnd | None:
        raise AssertionError("no transaction was asked for")

    def restore_point(self, previous: WalSegment | None, segment: WalSegment, name: str) -> Lsn | None:
        raise AssertionError("no restore point was asked for")

    def record_from(self, previous: WalSegment | None, segment: WalSegment, lsn: Lsn) -> Lsn | None:
        raise AssertionError("no LSN was asked for")


@dataclass
class World:
    """A database's true history, and what of it was saved."""

    store: Store
    commits: dict[SegmentName, list[datetime]]
    """Every commit that ever was, in the segment that records it, other branches' included."""
    path: list[SegmentName]
    """The segments of the branch that the server is on, in order, archived or not."""

    def inventory(self) -> Inventory:
        return read_inventory(self.store.layout, DATABASE)

    def plan(self, target: Target, inventory: Inventory | None = None, **options: Any) -> Plan:
        inventory = inventory or self.inventory()
        index = WalIndex(self.store.layout, inventory)
        return make_plan(inventory, index, target, FakeProbe(self.commits), now=NOW, zone=ZONE, **options)

    def committed_by(self, moment: datetime) -> set[datetime]:
        """Return the truth: what was committed by then on the server's branch."""
        return {commit for name in self.path for commit in self.commits[name] if commit <= moment}

    def brought_back_by(self, plan: Plan) -> set[datetime]:
        """Recover as PostgreSQL does: replay, and stop before the first commit beyond the target.

        Raises AssertionError where PostgreSQL would fail: a segment out of order, or no such commit.
        """
        start = self.path.index(plan.base.first_segment.on(self.path_timeline(plan.base)))
        names = [one.name for one in plan.segments]
        assert names == self.path[start : start + len(names)]
        state = {commit for name in self.path[:start] for commit in self.commits[name]}
        for name in names:
            for commit in self.commits[name]:
                if isinstance(plan.stop, StopAtTime) and commit > plan.stop.moment:
                    return state
                state.add(commit)
        assert isinstance(plan.stop, StopAtEnd), (
            "recovery ended before configured recovery target was reached"
        )
        return state

    def path_timeline(self, base: BaseRecord) -> int:
        number = base.first_segment.number(SEGMENT_SIZE)
        return next(name.timeline for name in self.path if name.number(SEGMENT_SIZE) == number)


def closed_at_of(number: int) -> datetime:
    """A segment every six minutes; an idle hour after the sixth."""
    return at(8, 6 * number + (60 if number > 6 else 0))


@st.composite
def worlds(draw: st.DrawFn, root: Path) -> World:
    store = Store(root)
    switch = draw(st.none() | st.integers(3, 8))
    path = [segment(n, 2 if switch is not None and n >= switch else 1) for n in range(1, COUNT + 3)]
    stray = (
        [] if switch is None else [segment(n) for n in range(switch, draw(st.integers(switch, COUNT)) + 1)]
    )
    offsets = st.lists(st.sampled_from([2.0, 60.0, 180.0, 358.5, 359.5, 360.0]), max_size=3)
    commits = {}
    for name in [*path, *stray]:
        number = name.number(SEGMENT_SIZE)
        begin = closed_at_of(number) - timedelta(minutes=6)
        commits[name] = sorted({begin + timedelta(seconds=offset) for offset in draw(offsets)})
    if switch is not None:
        text = f"1\t{Lsn(switch * SEGMENT_SIZE + 0x500)}\tno recovery target specified\n"
        put_file(store.wal, "00000002.history", text.encode(), at(8))

    bases = []
    for first in sorted(draw(st.sets(st.integers(1, COUNT), max_size=3))):
        last = min(COUNT, first + draw(st.integers(0, 1)))
        timeline = 2 if switch is not None and first >= switch else 1
        if timeline == 1 and switch is not None and last >= switch:
            last = first
        # The backup ended with its last segment; nothing was committed between the two.
        bases.append(
            base_record(
                first,
                last,
                closed_at_of(last) + timedelta(milliseconds=5),
                timeline=timeline,
                day=at(24 * first).date(),
                took=timedelta(minutes=6 * (last - first) + 7),
            )
        )
    store.add_bases(bases)

    archived = path[: draw(st.integers(1, COUNT))]
    lost = draw(st.sets(st.sampled_from(archived), max_size=2))
    hours: dict[int, dict[SegmentName, datetime]] = {}
    for name in [*archived, *stray]:
        # The server, on its new timeline, wrote last; the stray one was ahead of it for a while.
        closed_at = closed_at_of(name.number(SEGMENT_SIZE)) - timedelta(seconds=5 * (name in stray))
        place = draw(st.sampled_from(["raw", "bundle", "both"])) if name not in lost else "nowhere"
        if place in ("raw", "both"):
            put_file(store.wal, str(name), b"", closed_at)
        if place in ("bundle", "both"):
            hours.setdefault(closed_at.hour, {})[name] = closed_at
    states = st.sampled_from([BundleState.CLOSED, BundleState.CLOSED, BundleState.OPEN])
    store.add_bundles(bundle_record(hour, held, state=draw(states)) for hour, held in hours.items())
    return World(store, commits, path)


@st.composite
def moments(draw: st.DrawFn, world: World) -> datetime:
    inventory = world.inventory()
    marks = [commit for found in world.commits.values() for commit in found]
    marks += [closed_at_of(n) for n in range(1, COUNT + 1)] + [base.ended_at for base in inventory.bases]
    marks += [moment for window in inventory.windows()[0] for moment in (window.start, window.end)]
    marks += [at(7), at(9, 1), at(12, 1)]
    off = draw(st.sampled_from([0.0, 0.0, 0.000001, -0.000001, 0.5, -0.5, 1.0, -1.0, 1.5, 61.0, -61.0]))
    return draw(st.sampled_from(marks)) + timedelta(seconds=off)


def in_windows(inventory: Inventory, moment: datetime) -> bool:
    return any(window.start <= moment <= window.end for window in inventory.windows()[0])


def wrote_last(inventory: Inventory, world: World) -> bool:
    """Tell whether what was saved shows which branch the server is on; else there is no one truth."""
    branch = inventory.branch()
    return branch is not None and branch.timeline == world.path[-1].timeline


model = settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@model
@given(data=st.data())
def test_a_plan_brings_back_exactly_what_was_committed_by_then_or_is_refused(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    world = data.draw(worlds(tmp_path_factory.mktemp("world")))
    inventory = world.inventory()
    moment = data.draw(moments(world))
    note(f"{inventory.windows()} {moment}")
    try:
        plan = world.plan(TimeTarget(moment))
    except NotRestorable as refusal:
        nearest, remedy = refusal.nearest, refusal.remedy
    else:
        assert plan.base.ended_at <= moment <= NOW
        if wrote_last(inventory, world):
            assert world.brought_back_by(plan) == world.committed_by(moment)
        return
    assert moment > NOW or not in_windows(inventory, moment)
    assert bool(nearest) == bool(inventory.windows()[0])
    for offered in nearest:
        assert offered.astimezone(ZONE).isoformat(sep=" ") in remedy
        plan = world.plan(TimeTarget(offered))
        if wrote_last(inventory, world):
            assert world.brought_back_by(plan) == world.committed_by(offered)


@model
@given(data=st.data())
def test_every_moment_of_a_window_can_be_planned(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    world = data.draw(worlds(tmp_path_factory.mktemp("world")))
    inventory = world.inventory()
    for window in inventory.windows()[0]:
        part = data.draw(st.floats(0, 1))
        for moment in (window.start, window.start + part * (window.end - window.start), window.end):
            plan = world.plan(TimeTarget(moment))
            if wrote_last(inventory, world):
                assert world.brought_back_by(plan) == world.committed_by(moment)


@model
@given(data=st.data())
def test_latest_is_everything_there_is_or_refused_because_of_a_gap(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    world = data.draw(worlds(tmp_path_factory.mktemp("world")))
    inventory = world.inventory()
    branch = inventory.branch()
    try:
        plan = world.plan(LatestTarget())
    except NotRestorable as refusal:
        what, nearest = refusal.what, refusal.nearest
    else:
        last = plan.segments[-1].name
        coverage = inventory.coverage()
        assert branch is not None
        later = [coverage.first_from(branch.timeline, last.number(SEGMENT_SIZE) + 1)]
        assert later == [None]
        if wrote_last(inventory, world):
            assert world.brought_back_by(plan) == {
                commit for name in world.path[: world.path.index(last) + 1] for commit in world.commits[name]
            }
        return
    assert "missing" in what or "no base backup" in what
    for offered in nearest:
        world.plan(TimeTarget(offered))


@model
@given(data=st.data())
def test_without_damaged_artifacts_a_plan_still_brings_back_the_same(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    world = data.draw(worlds(tmp_path_factory.mktemp("world")))
    whole = world.inventory()
    artifacts: list[date | Hour | str] = [base.day for base in whole.bases]
    artifacts += [entry.hour for entry in whole.bundles]
    artifacts += [file.name for file in whole.raw]
    damaged = data.draw(st.sets(st.sampled_from(artifacts), max_size=3) if artifacts else st.just(set()))
    left = whole.without(damaged)
    moment = data.draw(moments(world))
    try:
        plan = world.plan(TimeTarget(moment), left)
    except NotRestorable as refusal:
        for offered in refusal.nearest:
            world.plan(TimeTarget(offered), left)
    else:
        assert plan.base.day not in damaged
        for one in plan.segments:
            match one.place:
                case InBundle(hour):
                    assert hour not in damaged
                case InBase(day):
                    assert day not in damaged
                case InArchive(file):
                    assert file.name not in damaged
        if wrote_last(left, world):
            assert world.brought_back_by(plan) == world.committed_by(moment)


# One by one ---------------------------------------------------------------------------------------


@pytest.fixture
def world(tmp_path: Path) -> World:
    """A base at 8:12, bundles of 8 and 9, a raw tail; a commit amid each segment."""
    store = Store(tmp_path)
    store.add_bases([base_record(1, 2, at(8, 12))])
    path = [segment(n) for n in range(1, COUNT + 3)]
    commits = {name: [closed_at_of(name.number(SEGMENT_SIZE)) - timedelta(minutes=3)] for name in path}
    closed_at = {name: closed_at_of(name.number(SEGMENT_SIZE)) for name in path[:COUNT]}
    for hour in (8, 9):
        held = {name: moment for name, moment in closed_at.items() if moment.hour == hour}
        store.add_bundles([bundle_record(hour, held)])
    for name in path[7:COUNT]:
        put_file(store.wal, str(name), b"", closed_at[name])
    return World(store, commits, path)


def test_recovery_stops_at_the_first_commit_after_the_target(world: World) -> None:
    plan = world.plan(TimeTarget(at(8, 20)))
    assert plan.stop == StopAtTime(at(8, 20))
    assert [one.name for one in plan.segments] == [segment(n) for n in (1, 2, 3, 4)]
    assert [str(one.place) for one in plan.segments] == [
        "base 2026-01-29",
        "bundle 2026-01-29-08",
        "bundle 2026-01-29-08",
        "bundle 2026-01-29-08",
    ]
    assert plan.wal_bytes == 4 * SEGMENT_SIZE


def test_a_target_just_at_a_commit_includes_it(world: World) -> None:
    plan = world.plan(TimeTarget(at(8, 21)))
    assert at(8, 21) in world.brought_back_by(plan)


def test_an_idle_stretch_is_restored_by_going_on_to_the_next_commit(world: World) -> None:
    plan = world.plan(HourTarget(hour_of(8)))
    assert plan.stop == StopAtTime(at(9))
    assert plan.segments[-1].name == segment(7)


def test_a_covered_target_without_a_later_commit_is_restored_to_the_end_of_what_exists(world: World) -> None:
    world.commits[segment(10)] = []
    world.commits[segment(9)] = []
    plan = world.plan(TimeTarget(at(9, 59)))
    assert isinstance(plan.stop, StopAtEnd)
    assert "nothing was committed between the target and 2026-01-29 10:59:59+01:00" in plan.stop.why
    assert plan.segments[-1].name == segment(10)


def test_a_long_stretch_without_any_commit_is_covered_too(world: World) -> None:
    for name in world.commits:
        world.commits[name] = []
    assert isinstance(world.plan(TimeTarget(at(8, 30))).stop, StopAtEnd)
    with pytest.raises(NotCovered, match=r"until 2026-01-29 10:59:59\+01:00"):
        world.plan(TimeTarget(at(10, 30)))


def test_a_target_that_the_archive_does_not_cover_yet_may_be_cured_by_a_seal(world: World) -> None:
    with pytest.raises(NotCovered) as caught:
        world.plan(TimeTarget(at(10, 30)))
    assert caught.value.nearest == (at(9, 59, 59),)
    assert "ask for the latest moment" in caught.value.remedy


def test_the_future_is_refused(world: World) -> None:
    with pytest.raises(NotRestorable, match="is in the future") as caught:
        world.plan(TimeTarget(NOW + timedelta(microseconds=1)))
    assert not isinstance(caught.value, NotCovered)


def test_before_the_first_base_is_refused_and_the_first_moment_offered(world: World) -> None:
    with pytest.raises(NotRestorable, match="before the end of the first base backup") as caught:
        world.plan(TimeTarget(at(8, 11, 59)))
    assert caught.value.nearest == (at(8, 12),)
    assert "2026-01-29 09:12:00+01:00" in caught.value.remedy


def test_without_any_base_nothing_can_be_restored(tmp_path: Path) -> None:
    with pytest.raises(NotRestorable, match="there is no base backup of order-db") as caught:
        World(Store(tmp_path), {}, []).plan(LatestTarget())
    assert "pitr backup order-db" in caught.value.remedy


def test_a_gap_is_refused_by_the_names_of_the_missing_segments(world: World) -> None:
    (world.store.wal / str(segment(9))).unlink()
    nine = {segment(n): closed_at_of(n) for n in (7, 8)}
    world.store.add_bundles([bundle_record(9, nine)])
    for target in (TimeTarget(at(9, 58)), LatestTarget()):
        with pytest.raises(
            NotRestorable, match=f"the WAL segment {segment(9)} of order-db is missing"
        ) as caught:
            world.plan(target)
        assert not isinstance(caught.value, NotCovered)
        assert caught.value.nearest[-1] == closed_at_of(8) - timedelta(seconds=1)
    assert world.plan(TimeTarget(at(9, 40))).stop == StopAtTime(at(9, 40))


def test_a_newer_base_behind_a_gap_serves_later_targets(world: World) -> None:
    (world.store.wal / str(segment(8))).unlink()
    world.store.add_bundles([bundle_record(9, {segment(n): closed_at_of(n) for n in (7, 10)})])
    world.store.add_bases([base_record(9, 9, closed_at_of(9), day=at(24).date())])
    assert world.plan(TimeTarget(at(9, 57))).base.day == at(24).date()
    assert world.plan(LatestTarget()).base.day == at(24).date()
    with pytest.raises(NotRestorable, match=str(segment(8))) as caught:
        world.plan(TimeTarget(at(9, 50)))
    assert caught.value.nearest == (closed_at_of(7) - timedelta(seconds=1), closed_at_of(9))


def test_a_record_that_cannot_be_read_is_mentioned_where_wal_is_missing(world: World) -> None:
    path = world.store.layout.bundle_record(DATABASE, hour_of(8))
    path.write_text("{")
    with pytest.raises(NotRestorable, match=r"2026-01-29-08\.json"):
        world.plan(TimeTarget(at(8, 30)))


def test_what_is_offered_is_on_the_timeline_that_was_asked_for(world: World) -> None:
    """The server went on as timeline 2 from segment 5; timeline 1 can still be asked for."""
    text = f"1\t{segment(5).start(SEGMENT_SIZE)}\tx\n"
    put_file(world.store.wal, "00000002.history", text.encode(), at(11))
    for number in (5, 6):
        put_file(world.store.wal, str(segment(number, 2)), b"", at(11, number))
        world.commits[segment(number, 2)] = [at(11, number, -30)]
    with pytest.raises(NotCovered) as caught:
        world.plan(TimeTarget(at(11, 20)), timeline=1)
    assert caught.value.nearest == (at(9, 59, 59),)
    assert world.plan(TimeTarget(at(9, 59, 59)), timeline=1).branch.timeline == 1
    assert world.plan(TimeTarget(at(11, 5))).branch.timeline == 2


def test_a_timeline_that_never_was_is_refused(world: World) -> None:
    with pytest.raises(NotRestorable, match="there is no timeline 7 of order-db"):
        world.plan(LatestTarget(), timeline=7)


def test_when_a_servers_clock_is_ahead_nothing_in_our_future_is_offered(
    world: World,
) -> None:
    inventory = world.inventory()
    index = WalIndex(world.store.layout, inventory)
    with pytest.raises(NotRestorable, match="in the future") as caught:
        make_plan(inventory, index, TimeTarget(at(9, 30)), FakeProbe(world.commits), now=at(8, 40), zone=ZONE)
    assert caught.value.nearest == (at(8, 40),)


def test_segments_that_only_a_later_base_carries_are_looked_into(world: World) -> None:
    """The archive stalled, but a base was taken: its own WAL is what later targets can be found in."""
    for name in (8, 9, 10):
        (world.store.wal / str(segment(name))).unlink()
    world.store.add_bundles([bundle_record(9, {segment(7): closed_at_of(7)})])
    ended_at = closed_at_of(9) + timedelta(milliseconds=5)
    later = base_record(8, 9, ended_at, day=at(24).date(), took=timedelta(minutes=9))
    world.store.add_bases([later])
    plan = world.plan(TimeTarget(at(9, 46)))
    assert [str(one.place) for one in plan.segments[-3:]] == [
        "bundle 2026-01-29-09",
        *["base 2026-01-30"] * 2,
    ]
    assert world.brought_back_by(plan) == world.committed_by(at(9, 46))
    with pytest.raises(NotCovered):
        world.plan(TimeTarget(at(9, 53)))  # nothing proves what was committed while the base was taken


def test_the_archives_until_is_never_before_the_base(world: World) -> None:
    """Segments without commits, closed just after the base: its own end stays a moment to restore to."""
    store = Store(world.store.root / "short")
    store.add_bases([base_record(1, 2, at(8, 12))])
    put_file(store.wal, str(segment(3)), b"", at(8, 12, 0.3))
    short = World(store, {}, world.path)
    with pytest.raises(NotCovered) as caught:
        short.plan(TimeTarget(at(8, 13)))
    assert caught.value.nearest == (at(8, 12),)
    assert replace(short.plan(TimeTarget(at(8, 12))), notes=()).segments[-1].name == segment(3)


def test_of_several_bases_that_carry_the_end_of_the_wal_the_latest_beginning_counts(world: World) -> None:
    for name in (8, 9, 10):
        (world.store.wal / str(segment(name))).unlink()
    world.store.add_bundles([bundle_record(9, {segment(7): closed_at_of(7)})])
    world.commits = {name: [] for name in world.commits}
    ended_at = closed_at_of(9) + timedelta(milliseconds=5)
    world.store.add_bases(
        base_record(8, 9, ended_at, day=at(24 * days).date(), took=timedelta(minutes=minutes))
        for days, minutes in ((1, 9), (2, 7))
    )
    began = ended_at - timedelta(minutes=7)
    assert world.inventory().windows()[0][0].end == began
    assert isinstance(world.plan(TimeTarget(began)).stop, StopAtEnd)
