"""What lies off-site, as a person reads it, and as a script does."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any
from zoneinfo import ZoneInfo

from pitr_pipelines.offsite.encryption import WrongKey
from pitr_pipelines.offsite.overview import Contents, Reach, Seen
from pitr_pipelines.offsite_settings import Place
from pitr_pipelines.restore.target import show_moment
from pitr_pipelines.units import show_bytes


def envelope_rows(seen: Iterable[Seen], zone: ZoneInfo) -> Iterator[Sequence[str]]:
    """Yield a row of a table for each envelope."""
    for one in seen:
        made = show_moment(one.made_at.replace(microsecond=0), zone) if one.made_at else "?"
        if one.needs_key:
            holds = "encrypted: what is in it shows with --key FILE"
        elif isinstance(one.problem, WrongKey):
            holds = "encrypted to another key than those given"
        elif one.envelope is None:
            holds = "cannot be read: see below"
        else:
            holds = "; ".join(_held(contents) for contents in one.contents) or "nothing"
        yield one.day.isoformat(), show_bytes(one.size_bytes), made, holds


def problem_lines(seen: Iterable[Seen]) -> Iterator[str]:
    """Yield what is wrong with envelopes, and what to do about it."""
    for one in seen:
        if one.problem is not None and not isinstance(one.problem, WrongKey):
            yield f"PROBLEM  {one.day}: {one.problem.what}"
            yield f"         {one.problem.remedy}"


def contents_lines(contents: Contents, reach: Reach | None, zone: ZoneInfo) -> Iterator[str]:
    """Yield what all envelopes hold of a database, and what of it can be restored, if that was asked."""
    yield contents.database
    yield f"  bases       {', '.join(map(str, contents.bases)) or 'none: nothing can be restored'}"
    yield f"  WAL         {_hours(contents)}"
    if reach is None:
        return
    for window in reach.windows:
        yield f"  restorable  {show_moment(window.start, zone)}  to  {show_moment(window.end, zone)}"
    if not reach.windows:
        yield "  restorable  nothing"
    for gap in reach.gaps:
        yield f"  WAL MISSING {gap.first}" + (f" to {gap.last}" if gap.first != gap.last else "")
    for problem in reach.problems:
        yield f"  PROBLEM     {problem}"


def overview_json(
    place: Place, seen: Iterable[Seen], everything: Iterable[Contents], reaches: Mapping[str, Reach]
) -> dict[str, Any]:
    """Return all of it as JSON values. `restorable` is null where it was not asked."""
    return {
        "bucket": place.bucket,
        "prefix": place.prefix,
        "envelopes": [
            {
                "day": one.day.isoformat(),
                "key": one.key,
                "size_bytes": one.size_bytes,
                "stored_at": one.stored_at.isoformat(),
                "made_at": one.made_at.isoformat() if one.made_at else None,
                "encrypted": one.encrypted,
                "databases": {contents.database: _json(contents) for contents in one.contents},
                "problem": one.problem.what if one.problem else None,
            }
            for one in seen
        ],
        "databases": {
            contents.database: _json(contents)
            | {"restorable": _windows(reaches.get(contents.database))}
            | {
                "problems": list(reaches[contents.database].problems)
                if contents.database in reaches
                else None
            }
            for contents in everything
        },
    }


def _held(contents: Contents) -> str:
    parts = [f"base {day}" for day in contents.bases]
    if contents.hours:
        parts.append(f"{len(contents.hours)} h of WAL")
    return f"{contents.database} ({', '.join(parts) or 'records'}, {show_bytes(contents.size_bytes)})"


def _hours(contents: Contents) -> str:
    if not contents.hours:
        return "none but what the bases carry"
    if len(contents.hours) == 1:
        return f"1 hour, {contents.hours[0]} (UTC)"
    return f"{len(contents.hours)} hours, {contents.hours[0]} to {contents.hours[-1]} (UTC)"


def _json(contents: Contents) -> dict[str, Any]:
    return {
        "bases": [day.isoformat() for day in contents.bases],
        "hours": [str(hour) for hour in contents.hours],
        "size_bytes": contents.size_bytes,
    }


def _windows(reach: Reach | None) -> list[dict[str, str]] | None:
    if reach is None:
        return None
    return [{"start": w.start.isoformat(), "end": w.end.isoformat()} for w in reach.windows]
