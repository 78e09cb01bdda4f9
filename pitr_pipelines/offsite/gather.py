"""Bringing every database's bundles up to this moment, so that what goes off-site reaches it.

The running hour is sealed and bundled early, and with it every hour whose WAL is still only in the raw
archive. A database that is down, or fails, is named and holds up no other: what it has archived is bundled
all the same. Nothing is removed but what bundling itself prunes.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from functools import partial

from pitr_pipelines.catalog.coverage import Coverage
from pitr_pipelines.catalog.inventory import read_inventory
from pitr_pipelines.catalog.layout import Layout
from pitr_pipelines.catalog.records import BundleState
from pitr_pipelines.errors import PitrError, storage_failed
from pitr_pipelines.progress import Progress, Report, silent
from pitr_pipelines.settings import Settings
from pitr_pipelines.wal.bundles import make_bundle
from pitr_pipelines.wal.hours import Hour
from pitr_pipelines.wal.lsn import WalFileKind

_AT_ONCE = 8
"""Most of the time is spent waiting for servers to archive what was sealed."""


@dataclass(frozen=True, slots=True)
class Gathered:
    """How far one database's bundles reach, and in a line each what could not be done.

    `sealed_at` is the server's clock at the seal of the running hour; None if it could not be sealed.
    """

    database: str
    sealed_at: datetime | None
    problems: tuple[str, ...]


def gather(
    settings: Settings, *, now: datetime, at_once: int = _AT_ONCE, report: Report = silent
) -> list[Gathered]:
    """Seal every database and bundle all of its WAL, up to the running hour. Never raises for one of them."""
    names = list(settings.databases)
    gathered = []
    with ThreadPoolExecutor(max_workers=min(at_once, len(names)), thread_name_prefix="gather") as pool:
        for done, found in enumerate(pool.map(partial(_gather, settings, now), names), 1):
            gathered.append(found)
            report(Progress("seal and bundle", done, len(names), "databases"))
    return gathered


def hours_to_gather(layout: Layout, database: str, now: datetime) -> Sequence[Hour]:
    """Return the hours that have to be bundled so that no WAL is in the raw archive alone, oldest first.

    The last is the running hour, and the one before it is always among them: its seal may be due.
    """
    inventory = read_inventory(layout, database)
    size = inventory.segment_size or 1
    closed = (entry for entry in inventory.bundles if entry.state is BundleState.CLOSED)
    bundled = Coverage.of((run for entry in closed for run in entry.runs), size)
    running = Hour.containing(now)
    hours = {running, running.preceding()}
    for file in inventory.raw:
        if file.kind is not WalFileKind.SEGMENT:
            continue
        if bundled.stretch_with(file.segment.timeline, file.segment.number(size)) is None:
            hours.add(min(Hour.containing(file.closed_at), running))
    return sorted(hours)


def _gather(settings: Settings, now: datetime, database: str) -> Gathered:
    problems: dict[str, list[Hour]] = {}
    sealed_at = None
    running = Hour.containing(now)
    try:
        hours = hours_to_gather(Layout(settings.backup_root), database, now)
    except (PitrError, OSError) as error:
        return Gathered(database, None, (_said(error),))
    for hour in hours:
        try:
            outcome = make_bundle(settings, database, hour, now=now)
        except (PitrError, OSError) as error:
            problems.setdefault(_said(error), []).append(hour)
            continue
        if outcome.problem is not None:
            problems.setdefault(_said(outcome.problem), []).append(hour)
        if hour == running and outcome.problem is None and outcome.record.seal is not None:
            sealed_at = outcome.record.seal.at
    lines = tuple(f"{_hours(hours)}: {said}" for said, hours in problems.items())
    return Gathered(database, sealed_at, lines)


def _hours(hours: Sequence[Hour]) -> str:
    """Name hours that share a problem: a server that is down has it with all of them."""
    if len(hours) == 1:
        return f"hour {hours[0]}"
    return f"{len(hours)} hours from {hours[0]} to {hours[-1]}"


def _said(error: PitrError | OSError) -> str:
    """Return what happened in one line; what libpq says has several."""
    what = error.what if isinstance(error, PitrError) else storage_failed(error).what
    return " ".join(what.split())
