"""Timelines: which branch of history a stretch of WAL belongs to.

A history file `0000000N.history` lists N's ancestors, each with the LSN at which the next one
branched off. Up to that LSN the ancestor's WAL is part of N's past; beyond it, it is not.
Source: PostgreSQL's src/backend/access/transam/timeline.c.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from pitr_pipelines.wal.lsn import Lsn


@dataclass(frozen=True, slots=True)
class Ancestor:
    """One entry of a history file: `timeline` was left at `switched_at`."""

    timeline: int
    switched_at: Lsn


@dataclass(frozen=True, slots=True)
class TimelineHistory:
    """A timeline and the branch that led to it, oldest ancestor first."""

    timeline: int
    ancestors: tuple[Ancestor, ...] = ()

    @classmethod
    def parse(cls, timeline: int, text: str) -> TimelineHistory:
        """Read the text of `0000000N.history`. Raises ValueError if it is not one."""
        ancestors = []
        for line in text.splitlines():
            line = line.split("#", 1)[0].strip()
            if not line:
                continue
            fields = line.split(None, 2)
            if len(fields) < 2 or not fields[0].isdigit():
                raise ValueError(f"not a line of a timeline history: {line!r}")
            ancestors.append(Ancestor(int(fields[0]), Lsn.parse(fields[1])))
        # A server that ended its recovery before the switch to the timeline it was told to follow has left
        # that one at an LSN below the switch. What counts is where the branch really went.
        for index in range(len(ancestors) - 1, 0, -1):
            if ancestors[index].switched_at < ancestors[index - 1].switched_at:
                ancestors[index - 1] = replace(ancestors[index - 1], switched_at=ancestors[index].switched_at)
        numbers = [a.timeline for a in ancestors] + [timeline]
        if numbers != sorted(set(numbers)):
            raise ValueError(f"timelines in the history of {timeline} do not ascend: {numbers}")
        return cls(timeline, tuple(ancestors))

    def last_lsn_of(self, timeline: int) -> Lsn | None:
        """Return where `timeline` was left on the way here, or None for this timeline itself.

        Raises KeyError if `timeline` is no ancestor.
        """
        if timeline == self.timeline:
            return None
        for ancestor in self.ancestors:
            if ancestor.timeline == timeline:
                return ancestor.switched_at
        raise KeyError(timeline)

    def includes(self, timeline: int, lsn: Lsn) -> bool:
        """Tell whether the byte at `lsn` of `timeline` is part of this timeline's past."""
        try:
            last = self.last_lsn_of(timeline)
        except KeyError:
            return False
        return last is None or lsn < last

    def timeline_at(self, lsn: Lsn) -> int:
        """Return the timeline on which this branch was at `lsn`."""
        for ancestor in self.ancestors:
            if lsn < ancestor.switched_at:
                return ancestor.timeline
        return self.timeline


def history_file_name(timeline: int) -> str:
    """Return the name of a timeline's history file: `00000002.history`."""
    return f"{timeline:08X}.history"
