"""What Dagster was asked for before: runs that are under way, and runs that have come to an end.

Whoever asks for a run looks here first, so that nothing in flight is asked for twice and what fails is
asked for with growing patience. It is no lock: what keeps two steps from one artifact are the locks in
storage, which the kernel frees on any death. Times in the future, left by a clock that was stepped back,
count as none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property

import dagster as dg
from dagster import RunRecord

ASKED_AT = "pitr/asked_at"
"""The tag in which a request says for which moment it was made."""
WORKER_DIED = "pitr/worker_died"
"""The tag of a run that did not fail by itself: its worker died together with the code server."""

_WAITING = [dg.DagsterRunStatus.NOT_STARTED, dg.DagsterRunStatus.QUEUED]
_AT_WORK = [dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING]
_ENDED = [dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED]
_ENDED_RUNS = 500
"""How many of the newest ended runs are looked at: of the hourly ones a fortnight's, and more."""


@dataclass(frozen=True)
class Asked:
    """The runs of one job, and those under way of any other; read when they are first asked about."""

    instance: dg.DagsterInstance
    job: str
    now: datetime
    patience: timedelta
    """How long a run that is at work is waited for: its worker may be dead."""

    @cached_property
    def under_way(self) -> Sequence[RunRecord]:
        return self.instance.get_run_records(dg.RunsFilter(statuses=[*_WAITING, *_AT_WORK]))

    @cached_property
    def ended(self) -> Sequence[RunRecord]:
        runs = dg.RunsFilter(job_name=self.job, statuses=_ENDED)
        return self.instance.get_run_records(runs, limit=_ENDED_RUNS)

    def is_under_way(self, key: dg.AssetKey, partition: str, *, patience: timedelta | None = None) -> bool:
        """Tell whether a run that makes this partition waits, or is at work."""
        return any(
            makes(record, key, self.job, partition) and not self._is_stale(record, patience)
            for record in self.under_way
        )

    def tries(
        self,
        key: dg.AssetKey,
        partition: str,
        *,
        tagged: tuple[str, str] | None = None,
        by_themselves: bool = False,
    ) -> list[datetime]:
        """Return when the runs ended that were to make this partition, oldest first.

        With `tagged`, only those that carry this tag with this value; with `by_themselves`, not those whose
        worker died with the code server.
        """
        # A dead one came to nothing too.
        runs = [*self.ended, *(run for run in self.under_way if self._is_stale(run))]
        moments = [
            self._last_moment(run)
            for run in runs
            if makes(run, key, self.job, partition)
            and not (by_themselves and WORKER_DIED in run.dagster_run.tags)
            and (tagged is None or run.dagster_run.tags.get(tagged[0]) == tagged[1])
        ]
        return sorted(moment for moment in moments if moment <= self.now)

    def _is_stale(self, record: RunRecord, patience: timedelta | None = None) -> bool:
        if record.dagster_run.status in _WAITING:
            return False
        began = datetime.fromtimestamp(record.start_time, UTC) if record.start_time else _asked_at(record)
        if record.dagster_run.status is dg.DagsterRunStatus.STARTING and record.update_timestamp <= self.now:
            began = max(began, record.update_timestamp)  # it may have waited long for a slot
        return self.now - began > (patience or self.patience)

    def _last_moment(self, record: RunRecord) -> datetime:
        ended = datetime.fromtimestamp(record.end_time, UTC) if record.end_time else None
        return ended if ended is not None and ended <= self.now else _asked_at(record)


def makes(record: RunRecord, key: dg.AssetKey, job: str, partition: str) -> bool:
    """Tell whether a run makes this partition of an asset, alone or in a range."""
    run = record.dagster_run
    if run.asset_selection:
        if key not in run.asset_selection:
            return False
    elif run.job_name != job:
        return False
    first = run.tags.get("dagster/asset_partition_range_start") or run.tags.get("dagster/partition")
    last = run.tags.get("dagster/asset_partition_range_end") or first
    # Keys of one asset have one length: their order as text is their order in time.
    return first is None or last is None or first <= partition <= last


def _asked_at(record: RunRecord) -> datetime:
    text = record.dagster_run.tags.get(ASKED_AT)
    return datetime.fromisoformat(text) if text else record.create_timestamp
