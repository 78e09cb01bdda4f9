"""Histories of a database's backups, made up: failed days and hours, failovers, strays; and judged by hand.

The judge goes from segment to segment, as recovery does, and shares nothing with what decides.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from hypothesis import strategies as st

from pitr_pipelines.catalog.histories import BundledHistory
from pitr_pipelines.catalog.inventory import BundleEntry, Inventory
from pitr_pipelines.catalog.records import BaseRecord, BundleState
from pitr_pipelines.catalog.retention import Keep
from pitr_pipelines.wal.archive import ArchivedFile
from pitr_pipelines.wal.lsn import Lsn, SegmentName, WalFileKind
from pitr_pipelines.wal.timelines import Ancestor, TimelineHistory, history_file_name
from pitr_pipelines_tests.wal_files import (
    DATABASE,
    SEGMENT_SIZE,
    at,
    base_record,
    bundle_record,
    seal_record,
    segment,
)

HOURS_A_DAY = 24
PER_HOUR = 2
KEEPS = st.builds(
    Keep,
    st.sampled_from([timedelta(days=1), timedelta(days=2), timedelta(hours=30)]),
    daily=st.integers(0, 5),
    weekly=st.integers(0, 3),
    monthly=st.integers(0, 3),
)


@dataclass(repr=False)
class World:
    """Everything that ever happened, hour by hour; `until` gives what existed at an hour."""

    bases: list[BaseRecord]
    bundles: list[BundleEntry]
    histories: dict[int, TimelineHistory]
    began: dict[int, datetime]
    hours: int

    def __repr__(self) -> str:
        bases = ", ".join(f"{base.timeline}:{base.ended_at:%d %H:%M}" for base in self.bases)
        return f"World({self.hours} hours; bases {bases}; {self.histories})"

    def now(self, hour: int) -> datetime:
        return at(hour, 5)

    def until(self, hour: int) -> Inventory:
        """Return what existed five minutes into an hour."""
        now = self.now(hour)
        known = {t: h for t, h in self.histories.items() if self.began[t] <= now}
        return Inventory(
            DATABASE,
            tuple(base for base in self.bases if base.ended_at <= now),
            tuple(entry for entry in self.bundles if entry.hour.end <= now),
            tuple(
                ArchivedFile(Path(f"/{history_file_name(t)}"), WalFileKind.HISTORY, 100, self.began[t])
                for t in known
            ),
            known,
            (),
            {t: moment for t, moment in self.began.items() if t in known},
        )


@st.composite
def worlds(draw: st.DrawFn) -> World:
    """A few days or weeks: a base on most days, a sealed bundle in most hours, up to two switches."""
    days = draw(st.integers(2, 16))
    hours = days * HOURS_A_DAY
    failed_days = draw(st.sets(st.integers(0, days - 1), max_size=days // 2))
    lost = draw(st.sets(st.integers(0, hours - 1), max_size=4))
    unsealed = draw(st.sets(st.integers(0, hours - 1), max_size=8))
    idle = draw(st.sets(st.integers(0, hours - 1), max_size=4))
    late = st.integers(max(1, hours - 40), hours - 1)  # where a branch that was left is still in the window
    switches = sorted(draw(st.sets(late | st.integers(1, hours - 1), max_size=2)))
    back = draw(st.lists(st.sampled_from([0, 1, 30, 40, 60]), min_size=len(switches), max_size=len(switches)))
    base_hour = draw(st.integers(0, 23))

    histories: dict[int, TimelineHistory] = {}
    began: dict[int, datetime] = {}
    current = TimelineHistory(1)
    number = 10
    numbers: dict[int, int] = {}
    bases: list[BaseRecord] = []
    bundles: list[BundleEntry] = []
    for hour in range(hours):
        if hour in switches:
            # A failover goes on from here; a restore in place goes on from an earlier hour.
            went_back = back[switches.index(hour)]
            left = min(number, numbers.get(max(hour - went_back, 0), number))
            left = max(
                left, max((int(a.switched_at) // SEGMENT_SIZE for a in current.ancestors), default=0) + 1
            )
            switched_at = Lsn(left * SEGMENT_SIZE + 0x500)
            new = max(histories, default=1) + 1
            current = TimelineHistory(new, (*current.ancestors, Ancestor(current.timeline, switched_at)))
            histories[new], began[new] = current, at(hour, 1)
            number = left
        numbers[hour] = number
        day, hour_of_day = divmod(hour, HOURS_A_DAY)
        timeline = current.timeline
        if hour_of_day == base_hour and day not in failed_days:
            bases.append(base_record(number, number + 1, at(hour, 20), timeline=timeline))
        count = 0 if hour in idle else PER_HOUR
        closed_at = {segment(number + n, timeline): at(hour, 59, 50 + n) for n in range(count)}
        seal = None
        if count and hour not in unsealed:
            seal = seal_record(hour, number + count - 1, at(hour + 1, 0, 0.01), timeline)
            closed_at[segment(number + count - 1, timeline)] = at(hour + 1, 0, 0.02)
        number += count
        if hour in lost:
            continue
        record = bundle_record(hour, closed_at, seal=seal)
        copies = []
        if timeline in histories:
            text = "".join(f"{a.timeline}\t{a.switched_at}\tx\n" for a in current.ancestors)
            copies = [BundledHistory(name=history_file_name(timeline), written_at=began[timeline], text=text)]
        bundles.append(BundleEntry.of(record, copies))
    return World(bases, bundles, histories, began, hours)


def segments_of(inventory: Inventory) -> set[SegmentName]:
    """Return every segment that exists in bundles and bases, by name."""
    found = set()
    for entry in inventory.bundles:
        for run in entry.runs:
            name = run.first
            while name <= run.last:
                found.add(name)
                name = name.following(SEGMENT_SIZE)
    for base in inventory.bases:
        name = base.first_segment
        while name <= base.last_segment:
            found.add(name)
            name = name.following(SEGMENT_SIZE)
    return found


def walk(have: set[SegmentName], base: BaseRecord, branch: TimelineHistory) -> int:
    """Ask for one segment after the other from a base on, as recovery does; return the last number found."""
    number = base.first_segment.number(SEGMENT_SIZE)
    while True:
        timeline = branch.timeline
        for ancestor in branch.ancestors:
            if number < int(ancestor.switched_at) // SEGMENT_SIZE:
                timeline = ancestor.timeline
                break
        if segment(number, timeline) not in have:
            return number - 1
        number += 1


def reachable_seals(inventory: Inventory) -> dict[tuple[str, int], set[str]]:
    """Return, for each seal by name and timeline, the days of the bases from which walking reaches it."""
    have = segments_of(inventory)
    walked: dict[tuple[str, int], int] = {}
    found: dict[tuple[str, int], set[str]] = {}
    for entry in inventory.bundles:
        seal = entry.seal
        if seal is None or entry.state is not BundleState.CLOSED:
            continue
        timeline = seal.segment.timeline
        branch = inventory.histories.get(timeline, TimelineHistory(timeline))
        for base in inventory.bases:
            if base.ended_at > seal.at or not branch.includes(base.timeline, base.end_lsn):
                continue
            key = (str(base.day), timeline)
            if key not in walked:
                walked[key] = walk(have, base, branch)
            if seal.segment.number(SEGMENT_SIZE) <= walked[key]:
                found.setdefault((seal.restore_point, timeline), set()).add(str(base.day))
    return found
