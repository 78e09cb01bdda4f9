"""A plan as a person reads it, and as a script does."""

from __future__ import annotations

from itertools import groupby
from typing import Any
from zoneinfo import ZoneInfo

from pitr_pipelines.restore.plan import Plan, StopAtTime
from pitr_pipelines.restore.target import LatestTarget, show_moment
from pitr_pipelines.units import show_bytes


def plan_lines(plan: Plan, zone: ZoneInfo) -> list[str]:
    """Return the plan in lines, the most important first."""
    base = plan.base
    if isinstance(plan.target, LatestTarget):
        asked = str(plan.target)
    else:
        asked = show_moment(plan.target.moment, zone)
    lines = [
        f"restore {plan.database} to {asked}",
        f"  base      {base.day}, taken until {show_moment(base.ended_at, zone)}, PostgreSQL {base.major}, "
        f"{show_bytes(base.size_bytes)} ({show_bytes(base.uncompressed_bytes)} unpacked)",
        f"  replay    {len(plan.segments)} segments, {show_bytes(plan.wal_bytes)}, to timeline "
        f"{plan.branch.timeline}:",
    ]
    for place, group in groupby(plan.segments, key=lambda segment: str(segment.place)):
        held = list(group)
        span = str(held[0].name) if len(held) == 1 else f"{held[0].name} to {held[-1].name}"
        lines.append(f"              {span}  from {place}")
    if isinstance(plan.stop, StopAtTime):
        lines.append(f"  stop      after the last commit at or before {show_moment(plan.stop.moment, zone)}")
    else:
        lines.append(f"  stop      at the end of that WAL, because {plan.stop.why}")
    lines += [f"  note      {note}" for note in plan.notes]
    return lines


def plan_json(plan: Plan) -> dict[str, Any]:
    """Return the plan as JSON values."""
    stop = plan.stop
    return {
        "database": plan.database,
        "target": None if isinstance(plan.target, LatestTarget) else plan.target.moment.isoformat(),
        "base": {
            "day": plan.base.day.isoformat(),
            "ended_at": plan.base.ended_at.isoformat(),
            "timeline": plan.base.timeline,
            "major": plan.base.major,
        },
        "timeline": plan.branch.timeline,
        "segments": [{"name": str(s.name), "from": str(s.place)} for s in plan.segments],
        "wal_bytes": plan.wal_bytes,
        "stop": {"at": "time", "moment": stop.moment.isoformat()}
        if isinstance(stop, StopAtTime)
        else {"at": "end", "why": stop.why},
        "notes": list(plan.notes),
    }
