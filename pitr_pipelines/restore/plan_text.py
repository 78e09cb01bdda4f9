"""A plan as a person reads it, and as a script does."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import groupby
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

from pitr_pipelines.restore.plan import (
    Plan,
    Stop,
    StopAtConsistency,
    StopAtEnd,
    StopAtLsn,
    StopAtTime,
    StopAtXid,
)
from pitr_pipelines.restore.tablespace_places import place_lines
from pitr_pipelines.restore.target import moment_of, show_moment
from pitr_pipelines.units import show_bytes


def plan_lines(plan: Plan, zone: ZoneInfo, placed: Mapping[int, Path] | None = None) -> list[str]:
    """Return the plan in lines, the most important first.

    `placed` says which tablespaces have been given a place of their own.
    """
    base = plan.base
    moment = moment_of(plan.target)
    asked = str(plan.target) if moment is None else show_moment(moment, zone)
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
    lines.append(f"  stop      {stop_text(plan.stop, zone)}")
    lines += [f"  tablespace {line}" for line in place_lines(base, placed or {})]
    lines += [f"  note      {note}" for note in plan.notes]
    return lines


def stop_text(stop: Stop, zone: ZoneInfo) -> str:
    """Say where recovery stops."""
    match stop:
        case StopAtTime(moment, inclusive):
            return f"after the last commit {'at or ' if inclusive else ''}before {show_moment(moment, zone)}"
        case StopAtLsn(lsn, _, str(name)):
            return f"after the restore point {name!r}, recorded at {lsn}"
        case StopAtLsn(lsn, inclusive):
            return f"{'after' if inclusive else 'before'} the first record that begins at {lsn} or later"
        case StopAtXid(xid, inclusive, committed, at):
            return (
                f"{'after' if inclusive else 'before'} the {'commit' if committed else 'rollback'} of "
                f"transaction {xid}, at {show_moment(at, zone)}"
            )
        case StopAtConsistency():
            return "as soon as the base backup is consistent"
        case StopAtEnd(why):
            return f"at the end of that WAL, because {why}"


def plan_json(plan: Plan, placed: Mapping[int, Path] | None = None) -> dict[str, Any]:
    """Return the plan as JSON values. Of a tablespace without a place of its own, `to` is None."""
    moment = moment_of(plan.target)
    return {
        "database": plan.database,
        "target": moment.isoformat() if moment is not None else None,
        "asked": str(plan.target),
        "base": {
            "day": plan.base.day.isoformat(),
            "ended_at": plan.base.ended_at.isoformat(),
            "timeline": plan.base.timeline,
            "major": plan.base.major,
        },
        "tablespaces": [
            {
                "oid": tablespace.oid,
                "from": tablespace.location,
                "to": str(placed[tablespace.oid]) if placed and tablespace.oid in placed else None,
            }
            for tablespace in plan.base.tablespaces
        ],
        "timeline": plan.branch.timeline,
        "segments": [{"name": str(s.name), "from": str(s.place)} for s in plan.segments],
        "wal_bytes": plan.wal_bytes,
        "stop": _stop_json(plan.stop),
        "notes": list(plan.notes),
    }


def _stop_json(stop: Stop) -> dict[str, Any]:
    match stop:
        case StopAtTime(moment, inclusive):
            return {"at": "time", "moment": moment.isoformat(), "inclusive": inclusive}
        case StopAtLsn(lsn, _, str(name)):
            return {"at": "restore_point", "name": name, "lsn": str(lsn), "inclusive": True}
        case StopAtLsn(lsn, inclusive):
            return {"at": "lsn", "lsn": str(lsn), "inclusive": inclusive}
        case StopAtXid(xid, inclusive, committed, at):
            return {
                "at": "xid",
                "xid": xid,
                "committed": committed,
                "moment": at.isoformat(),
                "inclusive": inclusive,
            }
        case StopAtConsistency():
            return {"at": "consistency"}
        case StopAtEnd(why):
            return {"at": "end", "why": why}
