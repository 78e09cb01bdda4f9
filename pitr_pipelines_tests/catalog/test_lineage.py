"""The server's timeline is found whatever else archives; where it cannot be known, the other is named."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pitr_pipelines.catalog.lineage import Life, Sighting, Standing, fork, server_timeline
from pitr_pipelines.wal.lsn import Lsn
from pitr_pipelines.wal.timelines import Ancestor, TimelineHistory
from pitr_pipelines_tests.wal_files import at

STEP = timedelta(seconds=30)


@dataclass
class Machine:
    """A running server: the timeline it is on, and how far it has written."""

    history: TimelineHistory
    position: int


@dataclass
class World:
    """What really happens, step by step, and what of it can be seen in the archive."""

    server: Machine = field(default_factory=lambda: Machine(TimelineHistory(1), 100))
    strays: list[Machine] = field(default_factory=list)
    now: datetime = field(default_factory=lambda: at(8))
    numbers: int = 1
    began: dict[int, datetime] = field(default_factory=dict)
    written: dict[int, datetime] = field(default_factory=dict)
    histories: dict[int, TimelineHistory] = field(default_factory=lambda: {1: TimelineHistory(1)})
    seen: Sighting | None = None
    reigns: list[int] = field(default_factory=lambda: [1])

    def promoted(self, history: TimelineHistory, position: int) -> Machine:
        self.numbers += 1
        position = max([position, *(ancestor.switched_at for ancestor in history.ancestors)])
        ancestors = (*history.ancestors, Ancestor(history.timeline, Lsn(position)))
        new = TimelineHistory(self.numbers, ancestors)
        self.histories[self.numbers], self.began[self.numbers] = new, self.now
        return Machine(new, position)

    def write(self, machine: Machine) -> None:
        machine.position += 10
        self.written[machine.history.timeline] = self.now

    def see(self) -> None:
        """Seal the server, which archives what it has."""
        self.write(self.server)
        self.seen = Sighting(self.server.history.timeline, Lsn(self.server.position), self.now)

    def lives(self) -> list[Life]:
        return [Life(self.histories[t], self.began.get(t), written) for t, written in self.written.items()]

    @property
    def truth(self) -> int:
        return self.server.history.timeline


@st.composite
def worlds(draw: st.DrawFn) -> World:
    world = World()
    world.see()
    for _ in range(draw(st.integers(0, 12))):
        world.now += STEP
        match draw(
            st.sampled_from(["write", "write", "see", "fail over", "restore", "stray", "stray writes"])
        ):
            case "write":
                world.write(world.server)
            case "see":
                world.see()
            case "fail over":
                # What the old primary archived last may be more than the new one had got.
                position = world.server.position - draw(st.sampled_from([0, 0, 5]))
                world.server = world.promoted(world.server.history, position)
                world.reigns.append(world.truth)
            case "restore":
                history = world.histories[draw(st.sampled_from(world.reigns))]
                world.server = world.promoted(history, draw(st.integers(50, 150)))
                world.reigns.append(world.truth)
            case "stray":
                history = world.histories[draw(st.sampled_from(world.reigns))]
                world.strays.append(world.promoted(history, draw(st.integers(50, 150))))
            case "stray writes" if world.strays:
                world.write(draw(st.sampled_from(world.strays)))
    return world


def decide(world: World) -> Standing:
    standing = server_timeline(world.lives(), world.seen)
    assert standing is not None
    return standing


@given(worlds())
def test_the_servers_timeline_is_chosen_or_named_if_it_has_archived_anything(world: World) -> None:
    standing = decide(world)
    # What wrote before the sighting only cannot be where the server has gone since.
    if world.truth in world.written:
        known = {standing.timeline, *standing.rivals}
        known |= {ancestor.timeline for ancestor in world.histories[standing.timeline].ancestors}
        assert world.truth in known


@given(worlds())
def test_right_after_it_was_seen_there_is_no_doubt(world: World) -> None:
    world.now += STEP
    world.see()
    assert decide(world) == Standing(world.truth, world.seen, ())


@given(worlds())
def test_a_failover_is_followed_and_a_stray_that_the_server_outlived_is_not(world: World) -> None:
    world.see()
    world.now += STEP
    stray = world.promoted(world.server.history, world.server.position)
    world.now += STEP
    world.write(world.server)
    world.now += STEP
    world.write(stray)
    assert decide(world) == Standing(world.truth, world.seen, (stray.history.timeline,))
    world.now += STEP
    world.server = world.promoted(world.server.history, world.server.position)
    for machine in (world.server, stray):
        world.now += STEP
        world.write(machine)
    assert decide(world) == Standing(world.truth, world.seen, (stray.history.timeline,))


@given(worlds(), st.integers(1, 200), st.data())
def test_branches_part_where_their_bytes_differ(world: World, lsn: int, data: st.DataObject) -> None:
    names = st.sampled_from(sorted(world.histories))
    one, other = world.histories[data.draw(names)], world.histories[data.draw(names)]
    parted = fork(one, other)
    assert parted == fork(other, one)
    assert (parted is None) == (one == other)
    if parted is None or lsn < parted:
        assert one.timeline_at(Lsn(lsn)) == other.timeline_at(Lsn(lsn))
    else:
        ends = [a.switched_at for a in (*one.ancestors, *other.ancestors) if a.switched_at >= parted]
        assert any(
            one.timeline_at(Lsn(end)) != other.timeline_at(Lsn(end)) for end in (int(parted), *ends, 10_000)
        )


def branch(timeline: int, *ancestors: tuple[int, int]) -> TimelineHistory:
    return TimelineHistory(timeline, tuple(Ancestor(number, Lsn(lsn)) for number, lsn in ancestors))


SEEN = Sighting(1, Lsn(1000), at(14))


@pytest.mark.parametrize(
    ("ended", "began", "left_at", "expected"),
    [
        pytest.param(at(14, 20), at(14, 21), 1500, (2, ()), id="failover"),
        pytest.param(at(14, 20), at(14, 21), 1000, (2, ()), id="failover to the very seal"),
        pytest.param(at(14, 30), at(14, 21), 1500, (1, (2,)), id="the old primary is still alive"),
        pytest.param(at(14, 20), at(14, 21), 999, (1, (2,)), id="from before the seal"),
        pytest.param(at(14, 20, 0.5), at(14, 20), 1500, (2, ()), id="clocks half a second apart"),
        pytest.param(at(14, 20), None, 1500, (1, (2,)), id="no history file"),
    ],
)
def test_what_takes_over_goes_on_from_where_the_server_was_seen_and_after_it_fell_silent(
    ended: datetime, began: datetime | None, left_at: int, expected: tuple[int, tuple[int, ...]]
) -> None:
    lives = [
        Life(branch(1), None, ended),
        Life(branch(2, (1, left_at)) if began else branch(2), began, at(14, 50)),
    ]
    assert server_timeline(lives, SEEN) == Standing(expected[0], SEEN, expected[1])


def test_two_failovers_since_it_was_seen_are_both_followed() -> None:
    lives = [
        Life(branch(1), None, at(14, 10)),
        Life(branch(2, (1, 1500)), at(14, 11), at(14, 20)),
        Life(branch(3, (1, 1500), (2, 1800)), at(14, 21), at(14, 30)),
    ]
    assert server_timeline(lives, SEEN) == Standing(3, SEEN, ())


def test_without_any_sighting_it_is_the_timeline_that_was_written_last() -> None:
    lives = [Life(branch(1), None, at(14, 10)), Life(branch(2, (1, 1500)), at(9), at(14, 5))]
    assert server_timeline(lives, None) == Standing(1, None, (2,))
    assert server_timeline([], None) is None
