"""What a restore should be told about branches of history other than the one it follows.

A restore follows one branch. Where another one also holds what was asked for, or may be the one that
was meant, the plan or its refusal names it, and how to ask for it. Nothing is decided here.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

from pitr_pipelines.catalog.coverage import windows
from pitr_pipelines.catalog.inventory import Inventory
from pitr_pipelines.catalog.lineage import fork
from pitr_pipelines.errors import NotRestorable
from pitr_pipelines.restore.stop import StopAtConsistency
from pitr_pipelines.restore.target import Target, moment_of, show_moment
from pitr_pipelines.wal.lsn import Lsn
from pitr_pipelines.wal.timelines import TimelineHistory

if TYPE_CHECKING:
    from pitr_pipelines.restore.plan import Plan


def exists(inventory: Inventory, timeline: int) -> bool:
    """Tell whether there is anything of a timeline: WAL, a base backup, or its history file."""
    return any(branch.timeline == timeline for branch in inventory.timelines())


def unknown(inventory: Inventory, timeline: int, zone: ZoneInfo) -> NotRestorable:
    """Refuse a timeline that does not exist, and list those that do."""
    known = "".join(f"\n  {line}" for line in describe(inventory, zone))
    return NotRestorable(
        f"there is no timeline {timeline} of {inventory.database}",
        remedy=f"There are:{known}" if known else f"There is none: `pitr backup {inventory.database}`.",
    )


def describe(inventory: Inventory, zone: ZoneInfo) -> Iterator[str]:
    """Yield a line for each timeline: where it came from, until when it was written, whose it is."""
    standing, written = inventory.standing(), inventory.coverage().last_written()
    for branch in inventory.timelines():
        timeline = branch.timeline
        parts = [f"timeline {timeline}"]
        if branch.ancestors:
            parent = branch.ancestors[-1]
            parts.append(f"left timeline {parent.timeline} at {parent.switched_at}")
            if timeline in inventory.began:
                parts[-1] += f" ({show_moment(inventory.began[timeline], zone)})"
        elif timeline > 1:
            parts.append("of unknown origin")
        if timeline in written:
            parts.append(f"written until {show_moment(written[timeline], zone)}")
        else:
            parts.append("without WAL of its own")
        if standing is not None and standing.timeline == timeline:
            parts.append("the server's")
        yield ", ".join(parts)


def notes(inventory: Inventory, plan: Plan, zone: ZoneInfo, *, asked_for: int | None) -> list[str]:
    """Return what should be known about the plan's branch, and about others, in a line each.

    `asked_for` is the timeline that was asked for, if one was: then nobody doubts which was meant.
    """
    found = [text for timeline, text in inventory.contested.items() if _is_on(plan.branch, timeline)]
    if asked_for is not None or isinstance(plan.stop, StopAtConsistency):
        return found
    return [*found, *_doubts(inventory, plan.branch, zone), *_also_covered(inventory, plan, zone)]


def elsewhere(inventory: Inventory, branch: TimelineHistory | None, target: Target) -> str:
    """Say which other branches may hold a target that was refused; nothing if none can."""
    moment, written = moment_of(target), inventory.coverage().last_written()
    found = ""
    for other in inventory.timelines():
        if _has_own_wal(inventory, branch, other) and (moment is None or written[other.timeline] >= moment):
            found += f" Timeline {other.timeline} was not looked at; `--timeline {other.timeline}` does that."
    return found


def trouble(inventory: Inventory) -> str:
    """Return what could not be read, in a line each, for a refusal that it may explain."""
    return "".join(f"\n  {problem}" for problem in (*inventory.problems, *inventory.unexplained()))


def _doubts(inventory: Inventory, branch: TimelineHistory, zone: ZoneInfo) -> Iterator[str]:
    """Say why another timeline than the plan's may be the server's."""
    standing = inventory.standing()
    if standing is None:
        return
    written = inventory.coverage().last_written()
    seen = standing.seen
    last_seen = "" if seen is None else f"timeline {seen.timeline} ({show_moment(seen.at, zone)})"
    if seen is not None and standing.timeline != seen.timeline:
        note = f"the server was last seen on {last_seen}; timeline {standing.timeline} goes on from there, "
        note += "and began when that had fallen silent, so it is taken for the server's"
        if _has_own_wal(inventory, branch, TimelineHistory(seen.timeline)):
            note += f"; if it is a stray copy's, use `--timeline {seen.timeline}`"
        yield note
    for rival in standing.rivals:
        yield (
            f"timeline {rival} was written to until {show_moment(written[rival], zone)}"
            + (f", although the server was last seen on {last_seen}" if seen is not None else "")
            + f": a stray copy, it seems. If it is the server's, use `--timeline {rival}`"
        )


def _also_covered(inventory: Inventory, plan: Plan, zone: ZoneInfo) -> Iterator[str]:
    """Name the branches that were left behind by then, but have a past of their own at the same moment."""
    moment = moment_of(plan.target)
    if moment is None:
        return
    size = plan.base.wal_segment_size
    reached = plan.segments[-1].name.number(size)
    for other in inventory.timelines():
        parted = fork(plan.branch, other)
        if parted is None or reached < parted // size or not _has_own_wal(inventory, plan.branch, other):
            continue
        until = _covered_until(inventory, other, moment)
        if until is not None:
            yield (
                f"timeline {other.timeline} parted from this branch at {parted} and went on until "
                f"{show_moment(until, zone)}: what was committed there by the target is restored with "
                f"`--timeline {other.timeline}`"
            )


def _covered_until(inventory: Inventory, branch: TimelineHistory, moment: datetime) -> datetime | None:
    """Return the end of the window on a branch that holds a moment, or None."""
    spans, _ = windows(inventory.bases, inventory.coverage(), branch)
    return next((window.end for window in spans if window.start <= moment <= window.end), None)


def _has_own_wal(inventory: Inventory, branch: TimelineHistory | None, other: TimelineHistory) -> bool:
    """Tell whether a timeline has WAL that is not part of a branch."""
    stretches = inventory.coverage().stretches.get(other.timeline)
    parted = fork(branch, other) if branch is not None else Lsn(0)
    if not stretches or parted is None:
        return False
    return stretches[-1].last >= parted // (inventory.segment_size or 1)


def _is_on(branch: TimelineHistory, timeline: int) -> bool:
    return timeline in (branch.timeline, *(ancestor.timeline for ancestor in branch.ancestors))
