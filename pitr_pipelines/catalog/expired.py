"""The record of the WAL that retention has removed, so that nobody takes it for lost.

Behind a generation that is kept alone the WAL is missing on purpose. Written before anything is removed;
it only ever grows, by runs that are joined where they touch. What it names may still exist; what is
missing and not named here was not removed by retention.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict

from pitr_pipelines import durable
from pitr_pipelines.catalog.layout import Layout
from pitr_pipelines.catalog.records import Record, SegmentSize, WalRun, read_record, write_record
from pitr_pipelines.wal.lsn import SegmentName

_LONG_AGO = datetime(1970, 1, 1, tzinfo=UTC)


class ExpiredRun(BaseModel):
    """Consecutive segments of one timeline that were removed, both ends included."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    first: SegmentName
    last: SegmentName

    def as_run(self) -> WalRun:
        """Return it as a run of WAL, for what follows chains. It proves nothing of when it was written."""
        return WalRun(first=self.first, last=self.last, closed_at=_LONG_AGO)


class ExpiredRecord(Record):
    """Everything that retention has removed of one database's WAL, in order."""

    kind: Literal["expired"] = "expired"
    wal_segment_size: SegmentSize
    runs: tuple[ExpiredRun, ...]


def read_expired(layout: Layout, database: str) -> tuple[ExpiredRun, ...]:
    """Return what was removed. Raises ArtifactDamaged if its record cannot be read."""
    try:
        return read_record(layout.expired(database), ExpiredRecord).runs
    except FileNotFoundError:
        return ()


def note_expired(layout: Layout, database: str, runs: Iterable[WalRun], segment_size: int) -> None:
    """Write down, durably, that these runs are about to be removed."""
    known = read_expired(layout, database)
    joined = join([*known, *(ExpiredRun(first=run.first, last=run.last) for run in runs)], segment_size)
    if joined == known:
        return
    durable.make_directory(layout.expired(database).parent)
    write_record(
        layout.expired(database),
        ExpiredRecord(database=database, wal_segment_size=segment_size, runs=joined),
    )


def join(runs: Sequence[ExpiredRun], segment_size: int) -> tuple[ExpiredRun, ...]:
    """Return the runs in order, those that touch or overlap as one."""
    found: list[ExpiredRun] = []
    for run in sorted(runs, key=lambda run: (run.first, run.last)):
        held = found[-1] if found else None
        if (
            held is not None
            and held.first.timeline == run.first.timeline
            and run.first.number(segment_size) <= held.last.number(segment_size) + 1
        ):
            found[-1] = ExpiredRun(first=held.first, last=max(held.last, run.last))
        else:
            found.append(run)
    return tuple(found)
