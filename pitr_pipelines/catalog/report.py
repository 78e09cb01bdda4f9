"""`report.html`: one page that answers what can be restored, how fresh it is, and what is wrong.

Derived, like the manifest: it can always be made again, and holds nothing that the storage does not. It
reads the storage only, writes one file, and replaces that whole or not at all. It takes no lock: bundling
and backups never wait for it.
"""

from __future__ import annotations

from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path

from pitr_pipelines import durable
from pitr_pipelines.catalog.calls import Calls
from pitr_pipelines.catalog.layout import Layout
from pitr_pipelines.catalog.report_facts import read_facts
from pitr_pipelines.catalog.report_page import Page, render
from pitr_pipelines.catalog.space import storage_space
from pitr_pipelines.errors import BadRequest
from pitr_pipelines.settings import Settings

DAYS = 14


def first_day(settings: Settings, *, now: datetime, days: int = DAYS) -> date:
    """Return the first day that a report of so many days shows, in the configured zone."""
    return now.astimezone(settings.zone).date() - timedelta(days=days - 1)


def write_report(
    settings: Settings,
    *,
    now: datetime,
    calls: Calls | None,
    days: int = DAYS,
    output: Path | None = None,
) -> Path:
    """Write the page of the last `days` days, and return where it is; by default beside the manifest.

    `calls` are what is on record of the off-site copy since `first_day`; None if there is no such copy. A
    database that cannot be read is shown as such. Raises BadRequest if the directory is not there.
    """
    file = output or Layout(settings.backup_root).report
    page = make_page(settings, now=now, calls=calls, days=days)
    if output is None and settings.backup_root.is_dir():
        durable.make_directory(file.parent)
    if not file.parent.is_dir():
        raise BadRequest(
            f"there is no directory {file.parent} to write the report into",
            remedy="Make it, or is its volume not mounted? `pitr report --output FILE` writes elsewhere.",
        )
    durable.write_whole(file, render(page))
    return file


def make_page(settings: Settings, *, now: datetime, calls: Calls | None, days: int = DAYS) -> Page:
    """Find out everything that a page of the last `days` days shows. Writes nothing."""
    since = datetime.combine(first_day(settings, now=now, days=days), time(), settings.zone).astimezone(UTC)
    facts = [read_facts(settings, name, now=now, since=since) for name in settings.databases]
    return Page(facts, calls, storage_space(settings), settings.zone, now, days)
