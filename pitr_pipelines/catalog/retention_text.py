"""Decisions of retention as people and scripts read them: each with its reason, runs of hours in one line."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pitr_pipelines.catalog.expiry import Expiry
from pitr_pipelines.catalog.retention import Decision, Retention, Verdict
from pitr_pipelines.units import show_bytes


def decision_lines(found: Retention) -> Iterator[str]:
    """Yield every decision about a database, with its reason."""
    yield found.database
    for one in found.decisions:
        yield f"  {decision_text(one)}"
    if not found.decisions:
        yield "  there are no base backups and no bundles"
    for note in found.notes:
        yield f"  note    {note}"
    yield f"  {summary(found)}"


def decision_text(one: Decision) -> str:
    """Return one decision as a line."""
    if one.base is not None:
        what = f"base {one.base}"
    elif len(one.hours) == 1:
        what = f"hour {one.hours[0]}"
    else:
        what = f"{len(one.hours)} hours {one.hours[0]} … {one.hours[-1]}"
    return f"{one.verdict:<6}  {what}: {one.reason.text}; {show_bytes(one.size_bytes)}"


def summary(found: Retention) -> str:
    """Return what the decisions come to: how much is kept, may go, and waits."""
    parts = []
    for verdict, word in ((Verdict.KEEP, "kept"), (Verdict.REMOVE, "may go"), (Verdict.WAIT, "waits")):
        bases, hours = len(found.bases(verdict)), len(found.hours(verdict))
        if bases or hours or verdict is not Verdict.WAIT:
            size = show_bytes(found.size_bytes(verdict))
            parts.append(f"{word}: {_count(bases, 'base')} and {_count(hours, 'hour')}, {size}")
    if found.since is not None:
        parts.append(f"every moment from {found.since:%Y-%m-%d %H:%M} UTC on stays restorable")
    return "; ".join(parts)


def expiry_lines(done: Expiry) -> Iterator[str]:
    """Yield what was removed of a database, and what it freed."""
    found = done.retention
    yield found.database
    if done.skipped is not None:
        yield f"  skipped {done.skipped}; the next run does it"
    for one in found.decisions:
        if one.verdict is Verdict.REMOVE and done.removed:
            yield f"  {decision_text(one).replace('remove  ', 'removed ', 1)}"
    if done.raw_files:
        yield f"  removed {done.raw_files} raw WAL files that bundles hold"
    waiting = found.bases(Verdict.WAIT), found.hours(Verdict.WAIT)
    if any(waiting):
        yield f"  waits   {_count(len(waiting[0]), 'base')} and {_count(len(waiting[1]), 'hour')}, " + (
            f"{show_bytes(found.size_bytes(Verdict.WAIT))}: not confirmed off-site yet"
        )
    for note in found.notes:
        yield f"  note    {note}"
    yield f"  freed   {show_bytes(done.freed_bytes)}"


def retention_json(found: Retention) -> dict[str, Any]:
    """Return the decisions about a database as JSON values."""
    return {
        "since": found.since.isoformat() if found.since is not None else None,
        "decisions": [_json(one) for one in found.decisions],
        "notes": list(found.notes),
        "bytes": {str(verdict): found.size_bytes(verdict) for verdict in Verdict},
    }


def expiry_json(done: Expiry) -> dict[str, Any]:
    """Return what came of it as JSON values."""
    return {
        **retention_json(done.retention),
        "removed": done.removed,
        "skipped": done.skipped,
        "freed_bytes": done.freed_bytes,
        "raw_files": done.raw_files,
    }


def _json(one: Decision) -> dict[str, Any]:
    what: dict[str, Any]
    if one.base is not None:
        what = {"base": str(one.base)}
    else:
        what = {"first_hour": str(one.hours[0]), "last_hour": str(one.hours[-1]), "hours": len(one.hours)}
    needed_by = one.reason.needed_by
    return {
        "verdict": str(one.verdict),
        **what,
        "reason": one.reason.text,
        "needed_by": str(needed_by) if needed_by is not None else None,
        "size_bytes": one.size_bytes,
    }


def _count(number: int, word: str) -> str:
    return f"{number} {word}" + ("" if number == 1 else "s")
