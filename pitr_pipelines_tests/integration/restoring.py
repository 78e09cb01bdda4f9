"""Restoring in tests: from a target to the rows of the restored cluster, which is stopped again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg

from pitr_pipelines.catalog.layout import BASE_RECORD, Layout
from pitr_pipelines.catalog.records import BaseRecord, read_record, write_record
from pitr_pipelines.postgres.account import server_account
from pitr_pipelines.postgres.binaries import find_binaries
from pitr_pipelines.postgres.server import Cluster
from pitr_pipelines.restore.plan import Plan
from pitr_pipelines.restore.prepare import plan_restore
from pitr_pipelines.restore.report import RestoreReport
from pitr_pipelines.restore.restore import choose_destination, restore
from pitr_pipelines.restore.target import Target
from pitr_pipelines.settings import Settings


@contextmanager
def restored(
    settings: Settings,
    target: Target,
    *,
    database: str = "order-db",
    seal: bool = True,
    to: Path | None = None,
    timeline: int | None = None,
    at: datetime | None = None,
) -> Iterator[tuple[Plan, RestoreReport, psycopg.Connection]]:
    """Restore to a target and connect to the result as superuser; it is stopped afterwards.

    `at` is the time at which that is said to happen.
    """
    plan = plan_restore(settings, database, target, timeline=timeline, seal=seal, now=at)
    destination = choose_destination(settings, plan, to=to, port=None, keep_running=True)
    report = restore(settings, plan, destination)
    cluster = Cluster(
        report.data_directory, find_binaries(plan.base.major, settings.binaries), server_account(None)
    )
    try:
        with psycopg.connect(
            f"host=127.0.0.1 port={report.port} user=postgres dbname=postgres", autocommit=True
        ) as connection:
            yield plan, report, connection
    finally:
        cluster.stop("immediate")


def restored_ids(settings: Settings, target: Target, *, seal: bool = True) -> set[int]:
    """Restore to a target and return the ids in the table `rows`."""
    with restored(settings, target, seal=seal) as (_, _, connection):
        return {row[0] for row in connection.execute("SELECT id FROM rows")}


def now() -> datetime:
    return datetime.now(UTC)


def age_bases(layout: Layout, database: str) -> None:
    """Give every base to the day before its own, so that another one can be taken today."""
    bases = layout.bases(database)
    if not bases.exists():
        return
    for directory in sorted(path for path in bases.iterdir() if path.name[0] != "."):
        record = read_record(directory / BASE_RECORD, BaseRecord)
        older = record.model_copy(update={"day": record.day - timedelta(days=1)})
        write_record(directory / BASE_RECORD, older)
        directory.rename(layout.base(database, older.day))
