"""The history of drills: one record for each, kept for ever, also of those that failed.

A drill's record is written once and never changed. One that cannot be read counts as no drill: it
proves nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Literal
from zoneinfo import ZoneInfo

from pydantic import BaseModel, ConfigDict

from pitr_pipelines.catalog.layout import Layout
from pitr_pipelines.catalog.records import Moment, Record, read_record
from pitr_pipelines.errors import ArtifactDamaged, DrillFailed
from pitr_pipelines.units import show_bytes, show_duration
from pitr_pipelines.wal.lsn import Lsn

STAMP_FORMAT = "%Y%m%dT%H%M%SZ"


class DrillOutcome(StrEnum):
    PASSED = "passed"
    """The moment was restored, the server ran, and every check held."""
    FAILED = "failed"


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class CheckResult(_Part):
    """One check of the restored copy. `found` is what it said, `problem` why that is not good."""

    check: str
    dbname: str | None
    expected: str
    found: str | None
    problem: str | None
    took_s: float


class DrillPlan(_Part):
    """What the restore was made of. Sizes in bytes: the base unpacked, and the WAL to replay."""

    base_day: str
    timeline: int
    segments: int
    base_bytes: int
    wal_bytes: int
    stop: str
    notes: tuple[str, ...]


class DrillSeconds(_Part):
    """Where the time went, in seconds; None for what the drill did not come to.

    `recovery_time` is from the request to a server that accepts connections.
    """

    plan: float | None = None
    fetch: float | None = None
    replay: float | None = None
    pages: float | None = None
    """Of `finish`."""
    finish: float | None = None
    start: float | None = None
    recovery_time: float | None = None
    amcheck: float | None = None
    checks: float | None = None
    total: float


class DrillReport(Record):
    """What came of one drill. `seed` is what the target was drawn with; None if it was asked for.

    `problems` is empty exactly if the outcome is passed. `remedy` says what to do about them.
    """

    kind: Literal["drill"] = "drill"
    started_at: Moment
    finished_at: Moment
    outcome: DrillOutcome
    problems: tuple[str, ...]
    remedy: str | None
    target: Moment | None
    seed: int | None
    server_version: str | None
    recovered_to_lsn: Lsn | None
    last_transaction_at: Moment | None
    plan: DrillPlan | None
    seconds: DrillSeconds
    checks: tuple[CheckResult, ...]

    def raise_if_failed(self) -> None:
        """Raise DrillFailed, with every problem, if the drill did not pass."""
        if self.outcome is DrillOutcome.FAILED:
            raise DrillFailed(
                f"the drill of {self.database} failed: " + "\n".join(self.problems),
                remedy=self.remedy or "Look into the restored copy: `pitr restore` makes one that stays.",
            )

    def lines(self, zone: ZoneInfo) -> list[str]:
        """Return the report as a person reads it, the most important first."""
        shown = self.target.astimezone(zone).isoformat(sep=" ") if self.target else "no moment"
        drawn = f" (drawn with --seed {self.seed})" if self.seed is not None else ""
        lines = [f"drill of {self.database} {self.outcome}: {shown}{drawn}"]
        took = self.seconds
        if took.recovery_time is not None:
            lines.append(f"  recovered in  {show_duration(took.recovery_time)}")
        if self.plan is not None:
            size = show_bytes(self.plan.base_bytes + self.plan.wal_bytes)
            lines.append(
                f"  from          base {self.plan.base_day}, {self.plan.segments} segments; {size} in all"
            )
            lines += [f"  note          {note}" for note in self.plan.notes]
        for result in self.checks:
            mark = "ok  " if result.problem is None else "FAIL"
            lines.append(f"  {mark}          {result.check} ({show_duration(result.took_s)})")
        return lines


def stamp_of(layout: Layout, database: str, started_at: datetime) -> str:
    """Return the name for a new record: a second one of the same second gets a number."""
    first = stamp = started_at.strftime(STAMP_FORMAT)
    number = 1
    while record_file(layout, database, stamp).exists():
        number += 1
        stamp = f"{first}-{number}"
    return stamp


def record_file(layout: Layout, database: str, stamp: str) -> Path:
    """Return where the record of a drill is."""
    return layout.drills(database) / f"{stamp}.json"


def drill_history(layout: Layout, database: str) -> Iterator[DrillReport]:
    """Yield the drills of a database, newest first; each is only read when it is asked for."""
    try:
        names = [path.name for path in layout.drills(database).iterdir()]
    except FileNotFoundError:
        return
    stamps = (name.removesuffix(".json") for name in names if name[0] != "." and name.endswith(".json"))
    for stamp in sorted(stamps, reverse=True):
        try:
            yield read_record(record_file(layout, database, stamp), DrillReport)
        except (ArtifactDamaged, FileNotFoundError):
            continue


def last_good_drill(layout: Layout, database: str) -> DrillReport | None:
    """Return the newest drill that passed, or None."""
    passed = (d for d in drill_history(layout, database) if d.outcome is DrillOutcome.PASSED)
    return next(passed, None)
