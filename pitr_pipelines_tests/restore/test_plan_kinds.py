"""A plan for an LSN, a name, an xid or a base alone stops exactly there; where it cannot, it is refused."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date, datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from pitr_pipelines.catalog.inventory import read_inventory
from pitr_pipelines.errors import NotRestorable
from pitr_pipelines.postgres.wal_inspect import TransactionEnd
from pitr_pipelines.restore.plan import NotCovered, Plan, make_plan
from pitr_pipelines.restore.stop import StopAtConsistency, StopAtLsn, StopAtTime, StopAtXid
from pitr_pipelines.restore.target import (
    ImmediateTarget,
    LsnTarget,
    NameTarget,
    Target,
    TimeTarget,
    XidTarget,
)
from pitr_pipelines.restore.wal_source import InBase, WalIndex, WalSegment
from pitr_pipelines.wal.lsn import Lsn, SegmentName
from pitr_pipelines_tests.wal_files import (
    DATABASE,
    SEGMENT_SIZE,
    Store,
    at,
    base_record,
    bundle_record,
    put_file,
    seal_record,
    segment,
)

FIRST_DAY, SECOND_DAY = date(2026, 1, 29), date(2026, 1, 30)


def place(number: int, offset: int) -> Lsn:
    return Lsn(number * SEGMENT_SIZE + offset)


@dataclass
class FakeProbe:
    """Knows where restore points and transactions are; every segment has a record at 0x28 and at 0x800."""

    points: Mapping[str, Sequence[Lsn]]
    ends: Sequence[TransactionEnd]
    looked_at: list[SegmentName] = field(default_factory=list)

    def ends_transaction_after(
        self, previous: WalSegment | None, segment: WalSegment, moment: datetime
    ) -> bool:
        return any(end.at > moment for end in self.ends if self._holds(segment, end.lsn))

    def last_transaction(self, previous: WalSegment | None, segment: WalSegment) -> datetime | None:
        return max((end.at for end in self.ends if self._holds(segment, end.lsn)), default=None)

    def transaction_end(
        self, previous: WalSegment | None, segment: WalSegment, xid: int
    ) -> TransactionEnd | None:
        self.looked_at.append(segment.name)
        return next((end for end in self.ends if end.xid == xid and self._holds(segment, end.lsn)), None)

    def restore_point(self, previous: WalSegment | None, segment: WalSegment, name: str) -> Lsn | None:
        self.looked_at.append(segment.name)
        return max((lsn for lsn in self.points.get(name, ()) if self._holds(segment, lsn)), default=None)

    def record_from(self, previous: WalSegment | None, segment: WalSegment, lsn: Lsn) -> Lsn | None:
        self.looked_at.append(segment.name)
        starts = (segment.name.start(SEGMENT_SIZE) + offset for offset in (0x28, 0x800))
        return next((Lsn(start) for start in starts if start >= lsn), None)

    def _holds(self, segment: WalSegment, lsn: Lsn) -> bool:
        return SegmentName.containing(lsn, segment.name.timeline, SEGMENT_SIZE) == segment.name


@dataclass
class World:
    store: Store
    probe: FakeProbe

    def plan(self, target: Target) -> Plan:
        inventory = read_inventory(self.store.layout, DATABASE)
        index = WalIndex(self.store.layout, inventory)
        return make_plan(inventory, index, target, self.probe, now=at(36), zone=ZoneInfo("UTC"))

    def refused(self, target: Target) -> NotRestorable:
        with pytest.raises(NotRestorable) as caught:
            self.plan(target)
        assert caught.value.remedy
        assert caught.value.nearest
        assert all(self.plan(TimeTarget(moment)) for moment in caught.value.nearest)
        return caught.value


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """Bases of two days, in the segments 1 to 2 and 6; a sealed bundle; the archive ends with 9."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    store = Store(tmp_path)
    store.add_bases(
        [base_record(1, 2, at(8, 12), day=FIRST_DAY), base_record(6, 6, at(24, 36), day=SECOND_DAY)]
    )
    closed_at = {segment(n): at(8 if n < 6 else 24, 6 * n) for n in range(1, 10)}
    held = {name: closed_at[name] for name in closed_at if name <= segment(5)}
    store.add_bundles([bundle_record(8, held, seal=seal_record(8, 4, at(8, 24)))])
    for name in list(closed_at)[5:]:
        put_file(store.wal, str(name), b"", closed_at[name])
    points = {
        "early": [place(1, 0x900)],
        "deploy": [place(3, 0x500), place(7, 0x500)],
        "in the second base": [place(6, 0x80)],
        f"pitr-{DATABASE}-2026-01-29-08": [place(4, 0xA0)],
    }
    ends = [
        TransactionEnd(700, place(1, 0x300), at(8, 3), committed=True),
        TransactionEnd(703, place(3, 0x300), at(8, 15), committed=True),
        TransactionEnd(706, place(6, 0x80), at(24, 33), committed=True),
        TransactionEnd(708, place(8, 0x300), at(24, 45), committed=False),
    ]
    return World(store, FakeProbe(points, ends))


def names(plan: Plan) -> list[SegmentName]:
    return [one.name for one in plan.segments]


def segments(first: int, last: int) -> list[SegmentName]:
    return [segment(n) for n in range(first, last + 1)]


@pytest.mark.parametrize("inclusive", [True, False])
def test_an_lsn_is_reached_from_the_newest_base_before_it(world: World, inclusive: bool) -> None:
    plan = world.plan(LsnTarget(place(8, 0x300), inclusive))
    assert plan.base.day == SECOND_DAY
    assert plan.stop == StopAtLsn(place(8, 0x300), inclusive)
    assert names(plan) == segments(6, 8)
    assert world.probe.looked_at == [segment(8)]


def test_an_lsn_may_be_where_a_base_ended(world: World) -> None:
    assert world.plan(LsnTarget(place(6, 0x100))).base.day == SECOND_DAY
    before = world.plan(LsnTarget(place(6, 0xFF)))
    assert (before.base.day, names(before)) == (FIRST_DAY, segments(1, 6))


def test_an_lsn_after_the_last_record_of_a_segment_needs_the_next(world: World) -> None:
    assert names(world.plan(LsnTarget(place(7, 0x801)))) == segments(6, 8)


def test_an_lsn_that_the_archive_does_not_reach_is_not_covered(world: World) -> None:
    for lsn in (place(9, 0x801), place(10, 0), place(4000, 0)):
        refusal = world.refused(LsnTarget(lsn))
        assert isinstance(refusal, NotCovered)
        assert f"holds no record at {lsn} or later: it ends with {segment(9)}" in refusal.what
        assert f"goes from {place(2, 0x100)} to {place(10, 0)}" in refusal.remedy


def test_an_lsn_before_the_first_base_is_refused(world: World) -> None:
    refusal = world.refused(LsnTarget(place(2, 0xFF)))
    assert not isinstance(refusal, NotCovered)
    assert f"is before the end of the first base backup of {DATABASE}" in refusal.what


def test_an_lsn_behind_a_gap_is_refused_naming_it(world: World) -> None:
    (world.store.wal / str(segment(7))).unlink()
    assert f"the WAL segment {segment(7)}" in world.refused(LsnTarget(place(8, 0x300))).what


def test_a_name_stops_at_the_newest_point_of_that_name_by_its_place(world: World) -> None:
    plan = world.plan(NameTarget("deploy"))
    assert plan.base.day == SECOND_DAY
    assert plan.stop == StopAtLsn(place(7, 0x500), restore_point="deploy")
    assert names(plan) == segments(6, 7)


def test_a_point_amid_a_base_is_reached_from_the_one_before(world: World) -> None:
    plan = world.plan(NameTarget("in the second base"))
    assert (plan.base.day, names(plan)) == (FIRST_DAY, segments(1, 6))


def test_the_name_of_a_seal_is_looked_up_in_its_segment_alone(world: World) -> None:
    plan = world.plan(NameTarget(f"pitr-{DATABASE}-2026-01-29-08"))
    assert plan.stop == StopAtLsn(place(4, 0xA0), restore_point=f"pitr-{DATABASE}-2026-01-29-08")
    assert names(plan) == segments(1, 4)
    assert world.probe.looked_at == [segment(4)]


def test_a_name_that_is_not_there_is_not_covered(world: World) -> None:
    refusal = world.refused(NameTarget("Deploy"))
    assert isinstance(refusal, NotCovered)
    assert "the restore point 'Deploy' is not in the WAL" in refusal.what
    # Each segment was looked at, but those with which a base begins from both sides.
    assert set(world.probe.looked_at) == set(segments(1, 9))


def test_a_point_before_the_first_base_ended_is_refused(world: World) -> None:
    assert f"at {place(1, 0x900)}, is before the end" in world.refused(NameTarget("early")).what
    assert "is before the end" in world.refused(XidTarget(700)).what


@pytest.mark.parametrize("inclusive", [True, False])
def test_a_transaction_is_found_wherever_it_ended(world: World, inclusive: bool) -> None:
    plan = world.plan(XidTarget(703, inclusive))
    assert plan.stop == StopAtXid(703, inclusive, True, at(8, 15))
    assert (plan.base.day, names(plan)) == (FIRST_DAY, segments(1, 3))
    amid = world.plan(XidTarget(706, inclusive))
    assert (amid.base.day, names(amid)) == (FIRST_DAY, segments(1, 6))
    back = world.plan(XidTarget(708, inclusive))
    assert back.stop == StopAtXid(708, inclusive, False, at(24, 45))
    assert (back.base.day, names(back)) == (SECOND_DAY, segments(6, 8))


def test_a_transaction_that_did_not_end_is_not_covered(world: World) -> None:
    refusal = world.refused(XidTarget(709))
    assert isinstance(refusal, NotCovered)
    assert "the transaction 709 is not in the WAL" in refusal.what
    assert "subtransaction" in refusal.remedy


def test_immediate_takes_a_base_alone(world: World) -> None:
    newest = world.plan(ImmediateTarget())
    assert (newest.base.day, names(newest)) == (SECOND_DAY, segments(6, 6))
    chosen = world.plan(ImmediateTarget(FIRST_DAY))
    assert (chosen.base.day, names(chosen)) == (FIRST_DAY, segments(1, 2))
    assert chosen.stop == StopAtConsistency()
    assert {one.place for one in chosen.segments} == {InBase(FIRST_DAY)}


def test_immediate_names_the_bases_there_are(world: World) -> None:
    refusal = world.refused(ImmediateTarget(date(2026, 1, 28)))
    assert "there is no base backup of order-db of 2026-01-28" in refusal.what
    assert "2026-01-29, 2026-01-30" in refusal.remedy


def test_an_exclusive_time_stops_before_a_commit_at_it(world: World) -> None:
    assert world.plan(TimeTarget(at(8, 15), inclusive=False)).stop == StopAtTime(at(8, 15), inclusive=False)
    assert names(world.plan(TimeTarget(at(8, 15), inclusive=False))) == segments(1, 3)
    inclusive = world.plan(TimeTarget(at(8, 15)))
    assert names(inclusive) != segments(1, 3)
    assert replace(inclusive, notes=()).stop == StopAtTime(at(8, 15))
