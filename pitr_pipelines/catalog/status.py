"""How each database stands: what can be restored, how fresh it is, what is wrong.

Reads the storage only, never a server, so that it answers at once and when the servers are gone.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import date, datetime
from typing import Any

from pydantic import BaseModel, ConfigDict

from pitr_pipelines.catalog.coverage import Gap, Window
from pitr_pipelines.catalog.drills import DrillOutcome, drill_history
from pitr_pipelines.catalog.inventory import Inventory, read_inventory
from pitr_pipelines.catalog.layout import Layout
from pitr_pipelines.catalog.records import BundleState, Moment
from pitr_pipelines.settings import Settings
from pitr_pipelines.wal.hours import Hour
from pitr_pipelines.wal.lsn import SegmentName, WalFileKind


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class WindowStatus(_Part):
    """Every moment from `start` to `end` can be restored."""

    start: Moment
    end: Moment


class GapStatus(_Part):
    """Missing WAL: no moment inside it can be restored, nor any later one without a newer base."""

    first: SegmentName
    last: SegmentName


class ArchiveStatus(_Part):
    """The raw archive. `lag_s` is the age in seconds of what the server archived last.

    A server without activity archives nothing, so a long lag alone is no fault.
    """

    last_segment: SegmentName | None
    closed_at: Moment | None
    lag_s: float | None
    files: int
    size_bytes: int


class DrillStatus(_Part):
    """The newest drill, and the newest that passed."""

    last_at: Moment | None = None
    last_outcome: DrillOutcome | None = None
    last_good_at: Moment | None = None


class DatabaseStatus(_Part):
    """One database, as its storage shows it."""

    database: str
    windows: tuple[WindowStatus, ...]
    gaps: tuple[GapStatus, ...]
    last_base: date | None
    last_base_ended_at: Moment | None
    last_bundle: Hour | None
    last_bundle_state: BundleState | None
    archive: ArchiveStatus
    drills: DrillStatus
    problems: tuple[str, ...]


def read_status(settings: Settings, databases: Iterable[str], *, now: datetime) -> list[DatabaseStatus]:
    """Return how each of `databases` stands at `now`. Raises BadRequest for an unknown name."""
    layout = Layout(settings.backup_root)
    return [
        describe(read_inventory(layout, name), now=now, drills=_drills(layout, name))
        for name in databases
        if settings.database(name) is not None
    ]


def describe(inventory: Inventory, *, now: datetime, drills: DrillStatus | None = None) -> DatabaseStatus:
    """Return how one database stands at `now`."""
    windows, gaps = inventory.windows()
    base = inventory.bases[-1] if inventory.bases else None
    bundle = inventory.bundles[-1] if inventory.bundles else None
    return DatabaseStatus(
        database=inventory.database,
        windows=tuple(_window(window) for window in windows),
        gaps=tuple(_gap(gap) for gap in gaps),
        last_base=base.day if base else None,
        last_base_ended_at=base.ended_at if base else None,
        last_bundle=bundle.hour if bundle else None,
        last_bundle_state=bundle.state if bundle else None,
        archive=_archive(inventory, now),
        drills=drills or DrillStatus(),
        problems=(*inventory.problems, *inventory.unexplained(), *inventory.strays()),
    )


def status_json(statuses: Iterable[DatabaseStatus]) -> dict[str, Any]:
    """Return statuses as JSON values, by database."""
    return {status.database: status.model_dump(mode="json", exclude={"database"}) for status in statuses}


def _drills(layout: Layout, database: str) -> DrillStatus:
    newest = good = None
    for report in drill_history(layout, database):
        newest = newest or report
        if report.outcome is DrillOutcome.PASSED:
            good = report
            break
    return DrillStatus(
        last_at=newest.finished_at if newest else None,
        last_outcome=newest.outcome if newest else None,
        last_good_at=good.finished_at if good else None,
    )


def _archive(inventory: Inventory, now: datetime) -> ArchiveStatus:
    known = [(file.closed_at, file.segment) for file in inventory.raw if file.kind is WalFileKind.SEGMENT]
    known += [(run.closed_at, run.last) for entry in inventory.bundles for run in entry.runs]
    closed_at, last = max(known, default=(None, None))
    return ArchiveStatus(
        last_segment=last,
        closed_at=closed_at,
        lag_s=round((now - closed_at).total_seconds(), 3) if closed_at else None,
        files=len(inventory.raw),
        size_bytes=sum(file.size_bytes for file in inventory.raw),
    )


def _window(window: Window) -> WindowStatus:
    return WindowStatus(start=window.start, end=window.end)


def _gap(gap: Gap) -> GapStatus:
    return GapStatus(first=gap.first, last=gap.last)
