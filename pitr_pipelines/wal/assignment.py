"""Which hour a segment belongs to: a pure function of the archive, whatever is bundled first.

The rule: a segment belongs to the hour in which the server last wrote it, made monotone in LSN
order on its timeline; and a segment that seals an hour, with every segment before it, belongs to
that hour at the latest. Segments in closed bundles stay where they are, and bound their neighbours
the same way. So hours can be bundled in any order, once or many times, with the same result.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime

from pitr_pipelines.wal.hours import Hour
from pitr_pipelines.wal.lsn import SegmentName


@dataclass(frozen=True, slots=True)
class Fixed:
    """A fact that is already settled: `segment` belongs to `hour`, by a seal or a closed bundle."""

    segment: SegmentName
    hour: Hour


def assign_hours(
    closed_at: Mapping[SegmentName, datetime], fixed: Iterable[Fixed]
) -> dict[SegmentName, Hour]:
    """Return the hour of each segment in `closed_at`, a mapping to its preserved mtime.

    A later segment of the same timeline never gets an earlier hour.
    """
    settled: dict[int, list[Fixed]] = defaultdict(list)
    for fact in fixed:
        settled[fact.segment.timeline].append(fact)
    segments: dict[int, list[SegmentName]] = defaultdict(list)
    for segment in sorted(closed_at):
        segments[segment.timeline].append(segment)

    hours: dict[SegmentName, Hour] = {}
    for timeline, names in segments.items():
        facts = sorted(settled[timeline], key=lambda fact: fact.segment)
        at = [fact.segment for fact in facts]
        latest: list[Hour] = []  # for each fact: the earliest hour that it or a later fact has
        for fact in reversed(facts):
            latest.append(min(fact.hour, latest[-1]) if latest else fact.hour)
        latest.reverse()
        earliest: Hour | None = None
        seen = 0
        for name in names:
            position = bisect_left(at, name)
            for fact in facts[seen:position]:
                earliest = fact.hour if earliest is None else max(earliest, fact.hour)
            seen = max(seen, position)
            hour = Hour.containing(closed_at[name])
            if earliest is not None:
                hour = max(hour, earliest)
            if position < len(facts):
                hour = min(hour, latest[position])
            hours[name] = hour
            earliest = hour if earliest is None else max(earliest, hour)
    return hours
