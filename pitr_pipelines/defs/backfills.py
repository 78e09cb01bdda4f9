"""Backfills over a job that is launched for one partition at a time are refused.

Dagster launches a run for each partition without asking the job first, so it is the first of these runs
that refuses; it calls the rest off, and leaves the reason where the backfill is shown.
"""

import dagster as dg
from dagster._core.execution.backfill import BulkActionStatus
from dagster._core.storage.tags import BACKFILL_ID_TAG
from dagster_shared.error import SerializableErrorInfo

from pitr_pipelines.errors import BadRequest


def refuse_backfill(context: dg.OpExecutionContext, what: str, *, remedy: str) -> None:
    """Raise BadRequest if the run is one of a backfill, and call off its runs that have not begun."""
    backfill_id = context.run.tags.get(BACKFILL_ID_TAG)
    if backfill_id is None:
        return
    refused = BadRequest(what, remedy=remedy)
    backfill = context.instance.get_backfill(backfill_id)
    if backfill is not None and backfill.status is BulkActionStatus.REQUESTED:
        told = SerializableErrorInfo(str(refused), [], type(refused).__name__)
        failing = backfill._replace(status=BulkActionStatus.FAILING, error=told)
        context.instance.update_backfill(failing)
    raise refused
