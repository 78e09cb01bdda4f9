"""The ledger against everything that can happen to a call: rivals, crashes, clocks, lost and late answers.

The store and the network are a model, which knows what was truly sent and stored; the ledger is the real
one, in real files. The model keeps to what the promises are made of: nothing is under way longer than three
hours, clocks are off by up to an hour, and nobody removes objects.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from enum import Enum, auto
from pathlib import Path
from zoneinfo import ZoneInfo

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from pitr_pipelines.offsite.answers import NAME_TAKEN, Outcome, StoreUnavailable, Verdict
from pitr_pipelines.offsite.budget import (
    BudgetSpent,
    CallObject,
    CallState,
    Claim,
    LedgerEntry,
    claim,
    day_of,
    days,
    read_entry,
    send,
)
from pitr_pipelines.offsite.object_store import CALL_KEY, SIZE_KEY, StoredObject
from pitr_pipelines.offsite.settling import PATIENCE, call_id_of, conclude, settle
from pitr_pipelines.offsite_settings import Place

UTC_ZONE = ZoneInfo("UTC")
SIZE = 7
PLACE = Place(bucket="backups")
LONGEST = timedelta(hours=3)
assert LONGEST + timedelta(hours=2) < PATIENCE


class Fate(Enum):
    """What becomes of a request, and of the answer to it."""

    ANSWERED = auto()
    ANSWER_LOST = auto()
    LOST = auto()
    LATE = auto()
    """It arrives at some time, and nobody hears of it."""
    REFUSED = auto()
    FALSE_SUCCESS = auto()
    """Something on the way takes it, says that it was stored, and stores nothing."""
    LATE_FALSE_SUCCESS = auto()
    TWICE = auto()
    """Something on the way sends it twice, and hands on the second answer."""


@dataclass
class ModelStore:
    """A store that never replaces an object. `up` tells whether it answers looks."""

    objects: dict[str, str] = field(default_factory=dict)
    up: bool = True
    reads: int = 0
    requests: Mapping[str, int] = field(default_factory=dict)
    place: Place = PLACE

    def store(self, key: str, call_id: str) -> bool:
        return self.objects.setdefault(key, call_id) == call_id

    def head(self, key: str) -> StoredObject | None:
        self.reads += 1
        if not self.up:
            raise StoreUnavailable("no answer", remedy="wait")
        if key not in self.objects:
            return None
        metadata = {CALL_KEY: self.objects[key], SIZE_KEY: str(SIZE)}
        return StoredObject(key, SIZE, '"e"', datetime(2026, 1, 1, tzinfo=UTC), metadata)


@dataclass
class Caller:
    """A process that makes a call, as far as it has come."""

    claimed: Claim
    entry: LedgerEntry | None = None
    sent_at: datetime | None = None
    outcome: Outcome | None = None


@dataclass(frozen=True)
class UnderWay:
    """A request that may still arrive, until then."""

    key: str
    call_id: str
    until: datetime


class Budget(RuleBasedStateMachine):
    """What processes, the network, the store, clocks and strangers do, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.TemporaryDirectory(prefix="pitr-ledger-")
        self.ledger = Path(self.directory.name) / "offsite"
        self.true_time = datetime(2026, 3, 1, 20, tzinfo=UTC)
        self.clock_is_off = timedelta(0)
        self.clock_was_off = False
        self.store = ModelStore()
        self.callers: list[Caller] = []
        self.under_way: list[UnderWay] = []
        self.written: Counter[date] = Counter()
        self.written_in_truth: Counter[date] = Counter()

    @property
    def clock(self) -> datetime:
        return self.true_time + self.clock_is_off

    @rule()
    def claims(self) -> None:
        self._claims()

    @precondition(lambda self: bool(self.callers))
    @rule(data=st.data())
    def says_that_it_sends(self, data: st.DataObject) -> None:
        self._says_that_it_sends(data.draw(st.sampled_from(self.callers)))

    @precondition(lambda self: any(caller.sent_at and not caller.outcome for caller in self.callers))
    @rule(data=st.data(), fate=st.sampled_from(Fate))
    def sends(self, data: st.DataObject, fate: Fate) -> None:
        ready = [caller for caller in self.callers if caller.sent_at and not caller.outcome]
        self._sends(data.draw(st.sampled_from(ready)), fate)

    @rule(fate=st.sampled_from(Fate), concludes=st.booleans())
    def makes_a_call(self, fate: Fate, concludes: bool) -> None:
        """All at once, as it mostly goes; he may die before he has put on record what became of it."""
        caller = self._claims()
        if caller is not None:
            self._says_that_it_sends(caller)
            self._sends(caller, fate)
            if concludes:
                self._concludes(caller)
            else:
                self.callers.remove(caller)

    def _claims(self) -> Caller | None:
        taken = days(self.ledger)
        day = day_of(self.clock, UTC_ZONE)
        try:
            caller = Caller(claim(self.ledger, day, at=self.clock))
        except BudgetSpent:
            assert any(other >= day for other in taken)
            return None
        assert not any(other >= day for other in taken)
        self.callers.append(caller)
        return caller

    def _says_that_it_sends(self, caller: Caller) -> None:
        carries = CallObject(bucket=PLACE.bucket, key=f"{caller.claimed.day}.tar", size_bytes=SIZE)
        try:
            caller.entry = send(caller.claimed, carries, at=self.clock, zone=UTC_ZONE)
            caller.sent_at = self.true_time
        except BudgetSpent:
            assert day_of(self.clock, UTC_ZONE) != caller.claimed.day
            self.callers.remove(caller)
        except ValueError:
            assert caller.sent_at is not None

    def _sends(self, caller: Caller, fate: Fate) -> None:
        entry = caller.entry
        assert entry is not None
        assert entry.object is not None
        assert caller.sent_at is not None
        self.written[entry.day] += 1
        self.written_in_truth[caller.sent_at.date()] += 1
        key, call_id = entry.object.key, call_id_of(entry)
        if fate in (Fate.LATE, Fate.LATE_FALSE_SUCCESS):
            self.under_way.append(UnderWay(key, call_id, caller.sent_at + LONGEST))
        ours = False
        if fate in (Fate.ANSWERED, Fate.ANSWER_LOST, Fate.TWICE):
            ours = self.store.store(key, call_id)
        caller.outcome = _outcome(fate, ours)

    def _concludes(self, caller: Caller) -> None:
        assert caller.outcome is not None
        self.callers.remove(caller)
        self.store.requests = {"PutObject": 1}
        entry = conclude(self.ledger, caller.claimed.day, caller.outcome, self.store, at=self.clock)
        assert entry.request_count == 1

    @precondition(lambda self: any(caller.outcome for caller in self.callers))
    @rule(data=st.data())
    def puts_on_record_what_became_of_it(self, data: st.DataObject) -> None:
        self._concludes(data.draw(st.sampled_from([caller for caller in self.callers if caller.outcome])))

    @precondition(lambda self: bool(self.callers))
    @rule(data=st.data())
    def dies(self, data: st.DataObject) -> None:
        self.callers.remove(data.draw(st.sampled_from(self.callers)))

    @precondition(lambda self: bool(self.under_way))
    @rule(data=st.data())
    def arrives_late(self, data: st.DataObject) -> None:
        late = data.draw(st.sampled_from(self.under_way))
        self.under_way.remove(late)
        self.store.store(late.key, late.call_id)

    @rule(days_from_now=st.integers(-1, 1))
    def a_stranger_takes_the_name(self, days_from_now: int) -> None:
        key = f"{(self.true_time + timedelta(days=days_from_now)).date()}.tar"
        self.store.store(key, "a stranger's")

    @rule(up=st.booleans())
    def the_store_goes_or_comes(self, up: bool) -> None:
        self.store.up = up

    @precondition(lambda self: bool(days(self.ledger)))
    @rule(data=st.data())
    def somebody_settles(self, data: st.DataObject) -> None:
        self._settle(data.draw(st.sampled_from(days(self.ledger))))

    @rule(minutes=st.sampled_from([1, 30, 90, 300, 600, 1500]))
    def time_goes_by(self, minutes: int) -> None:
        self.true_time += timedelta(minutes=minutes)
        self.under_way = [late for late in self.under_way if late.until > self.true_time]
        # A process that was about to send for so long is gone, or its connection is.
        self.callers = [
            caller
            for caller in self.callers
            if not caller.sent_at or self.true_time < caller.sent_at + LONGEST
        ]

    @rule(minutes=st.integers(-60, 60))
    def the_clock_is_set(self, minutes: int) -> None:
        self.clock_is_off = timedelta(minutes=minutes)
        self.clock_was_off = self.clock_was_off or minutes != 0

    @invariant()
    def at_most_one_write_a_day(self) -> None:
        assert all(count == 1 for count in self.written.values())
        if not self.clock_was_off:
            assert all(count == 1 for count in self.written_in_truth.values())

    @invariant()
    def what_is_final_is_true_for_ever(self) -> None:
        for day in days(self.ledger):
            entry = read_entry(self.ledger, day)
            assert entry is not None
            assert self.written[day] == 0 or entry.state is not CallState.CLAIMED
            if entry.object is None:
                continue
            holder = self.store.objects.get(entry.object.key)
            if entry.state is CallState.CONFIRMED:
                assert holder == call_id_of(entry)
            if entry.state is CallState.REFUSED:
                assert holder != call_id_of(entry)
                still = [late for late in self.under_way if late.call_id == call_id_of(entry)]
                assert not still or holder is not None

    def teardown(self) -> None:
        """In the end, when the store answers and nothing is under way, every call is settled as it was."""
        try:
            self.store.up = True
            self.callers.clear()
            for late in self.under_way:
                self.store.store(late.key, late.call_id)
            self.under_way.clear()
            self.true_time += PATIENCE + timedelta(hours=2)
            for day in days(self.ledger):
                entry = self._settle(day)
                if entry.object is None:
                    assert self.written[day] == 0
                    continue
                stored = self.store.objects.get(entry.object.key) == call_id_of(entry)
                assert entry.state is (CallState.CONFIRMED if stored else CallState.REFUSED)
            self.what_is_final_is_true_for_ever()
        finally:
            self.directory.cleanup()

    def _settle(self, day: date) -> LedgerEntry:
        before = read_entry(self.ledger, day)
        reads = self.store.reads
        entry, _ = settle(self.ledger, day, self.store, at=self.clock)
        assert before is not None
        assert entry is not None
        assert entry.reads == before.reads + self.store.reads - reads
        return entry


def _outcome(fate: Fate, ours: bool) -> Outcome:
    if fate in (Fate.FALSE_SUCCESS, Fate.LATE_FALSE_SUCCESS) or (fate is Fate.ANSWERED and ours):
        return Outcome(Verdict.STORED, "stored")
    if fate is Fate.REFUSED:
        return Outcome(Verdict.REFUSED, "403", code="AccessDenied")
    if fate in (Fate.ANSWERED, Fate.TWICE):
        return Outcome(Verdict.UNKNOWN, "412", code=NAME_TAKEN)
    return Outcome(Verdict.UNKNOWN, "no answer")


TestBudget = Budget.TestCase
TestBudget.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)
