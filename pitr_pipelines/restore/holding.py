"""Holding on to the backups that a restore needs, so that retention removes nothing of them meanwhile.

Whoever plans and then restores holds them over both (`catalog.holds.reading`); the restore itself does so
in any case, and looks first whether everything that was planned is still there. A restore that stands at
its target holds its base and the WAL after it until it is promoted or deleted.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime

from pitr_pipelines.catalog.holds import HoldRecord, hold, reading
from pitr_pipelines.catalog.layout import Layout
from pitr_pipelines.errors import NotRestorable
from pitr_pipelines.restore.plan import Plan
from pitr_pipelines.restore.report import RestoreReport
from pitr_pipelines.restore.wal_source import InBase, InBundle
from pitr_pipelines.settings import Settings


@contextmanager
def backups_of(settings: Settings, plan: Plan, layout: Layout | None = None) -> Iterator[None]:
    """Hold the backups of a plan for the length of the block; `layout` says where, if not in `backup_root`.

    Raises NotRestorable, before the block, if some were removed since it was planned.
    """
    with reading(settings, plan.database):
        gone = _gone(layout or Layout(settings.backup_root), plan)
        if gone is not None:
            raise NotRestorable(
                f"{gone} was removed since this restore of {plan.database} was planned",
                remedy="Plan again: if the target can still be reached, the new plan says how.",
            )
        yield


def hold_if_it_stands(settings: Settings, report: RestoreReport) -> None:
    """Leave a hold for a restore that stands at its target."""
    if report.stands:
        hold(
            Layout(settings.backup_root),
            HoldRecord(
                database=report.database,
                directory=report.directory,
                base_day=date.fromisoformat(report.base_day),
                timeline=report.branch_timeline or report.timeline,
                made_at=datetime.now(UTC),
            ),
        )


def _gone(layout: Layout, plan: Plan) -> str | None:
    """Name something of the plan that is not there any more."""
    database = plan.database
    if not layout.base_record(database, plan.base.day).exists():
        return f"the base backup of {plan.base.day}"
    for day in {place.day for s in plan.segments if isinstance(place := s.place, InBase)}:
        if not layout.base_record(database, day).exists():
            return f"the base backup of {day}"
    for hour in {place.hour for s in plan.segments if isinstance(place := s.place, InBundle)}:
        if not layout.bundle_record(database, hour).exists():
            return f"the bundle of {hour}"
    return None
