"""Which timeline the server is on, and where branches of history part.

Pure functions over what the storage holds. A number is no proof: a copy of the server with the same system
identifier can be promoted anywhere, and may archive here. What proves on which timeline the server is are
its seals and base backups, because they are made over a connection to it. Beyond the newest of
them there is only a likelihood, and then whoever asks is told of the other possibility.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from pitr_pipelines.catalog.records import BaseRecord, SealRecord
from pitr_pipelines.wal.lsn import Lsn
from pitr_pipelines.wal.timelines import TimelineHistory

_MARGIN = timedelta(seconds=1)
"""How far the clocks of two machines may be apart before a failover looks like two servers at once."""


@dataclass(frozen=True, slots=True)
class Sighting:
    """The server was seen on `timeline` when its WAL had come to `lsn`, at `at` by its own clock."""

    timeline: int
    lsn: Lsn
    at: datetime

    @classmethod
    def in_seal(cls, seal: SealRecord) -> Sighting:
        return cls(seal.segment.timeline, seal.lsn, seal.at)

    @classmethod
    def in_base(cls, base: BaseRecord) -> Sighting:
        return cls(base.timeline, base.end_lsn, base.ended_at)


@dataclass(frozen=True, slots=True)
class Life:
    """A timeline with WAL of its own: its past, when it began (if that is known), when it was last written.

    `began` is when the history file was written, which is the moment of the promotion.
    """

    history: TimelineHistory
    began: datetime | None
    ended: datetime

    @property
    def timeline(self) -> int:
        return self.history.timeline


@dataclass(frozen=True, slots=True)
class Standing:
    """The timeline that is taken for the server's, and those that might be it instead.

    `seen` is the newest sighting; None if there is none. If it is on another timeline, nothing but the
    order of events speaks for `timeline`. `rivals` were written to after that sighting and are not part of
    the past of `timeline`.
    """

    timeline: int
    seen: Sighting | None
    rivals: tuple[int, ...] = ()


def newest_sighting(bases: Iterable[BaseRecord], seals: Iterable[SealRecord]) -> Sighting | None:
    """Return when and where the server was last seen."""
    sightings = [Sighting.in_base(base) for base in bases] + [Sighting.in_seal(seal) for seal in seals]
    return max(sightings, key=lambda sighting: (sighting.at, sighting.lsn), default=None)


def server_timeline(lives: Iterable[Life], seen: Sighting | None) -> Standing | None:
    """Decide which timeline the server is on; None if there is no WAL and no sighting.

    It is the one on which it was last seen, unless a later one took over: one that goes on from where it
    was seen, and that began when the one before had fallen silent, as after a failover (what the old
    primary archived until then does no harm). While both are written to, which a stray copy
    and a failover with the old primary still alive have in common, the sighting counts. Without a sighting
    it is the timeline that was written last.
    """
    found = {life.timeline: life for life in lives}
    if seen is None:
        if not found:
            return None
        last = max(found.values(), key=lambda life: (life.ended, life.timeline))
        return Standing(last.timeline, None, _rivals(found, last.timeline, None))
    current = seen.timeline
    silent_since = found[current].ended if current in found else seen.at
    for began, timeline in sorted(
        (life.began, life.timeline)
        for life in found.values()
        if life.began is not None
        and life.timeline != seen.timeline
        and life.history.includes(seen.timeline, Lsn(seen.lsn - 1))
    ):
        if silent_since <= began + _MARGIN:
            current, silent_since = timeline, found[timeline].ended
    return Standing(current, seen, _rivals(found, current, seen))


def _rivals(found: Mapping[int, Life], current: int, seen: Sighting | None) -> tuple[int, ...]:
    past = [current]
    if current in found:
        past += [ancestor.timeline for ancestor in found[current].history.ancestors]
    return tuple(
        timeline
        for timeline, life in sorted(found.items())
        if timeline not in past and (seen is None or life.ended > seen.at)
    )


def fork(one: TimelineHistory, other: TimelineHistory) -> Lsn | None:
    """Return the LSN from which on two branches hold different WAL; None if they are the same."""
    common = Lsn(0)
    for (timeline, end), (other_timeline, other_end) in zip(_parts(one), _parts(other), strict=False):
        if timeline != other_timeline:
            return common
        if end != other_end:
            return min(lsn for lsn in (end, other_end) if lsn is not None)
        common = common if end is None else end
    return None


def _parts(branch: TimelineHistory) -> list[tuple[int, Lsn | None]]:
    return [*((a.timeline, a.switched_at) for a in branch.ancestors), (branch.timeline, None)]
