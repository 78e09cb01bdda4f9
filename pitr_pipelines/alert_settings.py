"""The part of pitr.yaml about what is promised, what is watched, and who is told.

Settings only. They hold no address to send to: those carry tokens and passwords, so they come from
environment variables or a file that are named here.
"""

from __future__ import annotations

import re
from datetime import timedelta
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def _variable(name: str) -> str:
    if not _VARIABLE.fullmatch(name):
        # Never the value: somebody may have put the address itself here.
        raise ValueError(
            "is not the name of an environment variable; write the address, with its secrets, into a "
            "variable such as PITR_ALERT_URL and name that"
        )
    return name


Variable = Annotated[str, AfterValidator(_variable)]


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class Objectives(_Model):
    """What is promised for one database. What is left out follows from the schedules."""

    recovery_point_s: int | None = Field(
        default=None,
        ge=60,
        description="how old, in seconds, the newest moment that can be restored may be; "
        "default: the longest time between two bundles, and an hour",
    )
    base_age_h: float | None = Field(
        default=None,
        gt=0,
        description="how old, in hours, the newest base backup may be; default: the longest time "
        "between two, and six hours",
    )
    window_days: float | None = Field(
        default=None,
        gt=0,
        description="how far back, in days, one must be able to restore; default: nothing is promised",
    )


class AlertSettings(_Model):
    """Who is told of an incident, how often, and from when on something is one."""

    to_env: tuple[Variable, ...] = Field(
        default=(),
        description="environment variables that hold apprise URLs, several separated by white space",
    )
    to_file: Path | None = Field(
        default=None,
        description="a file with one apprise URL on a line, readable by its owner (and group) only",
    )
    reminder_hours: float = Field(
        default=24, gt=0, description="after how many hours an open incident is told again"
    )
    quiet_s: int = Field(
        default=300,
        ge=0,
        description="for how long an incident must be gone before its end is told; one that comes "
        "back sooner is the same one; in seconds",
    )
    gap_s: int = Field(
        default=300, ge=0, description="the least time between two messages to one recipient, in seconds"
    )
    interval_s: int = Field(
        default=120, ge=30, le=3600, description="how often Dagster and `pitr watch` look, in seconds"
    )
    server_grace_s: int = Field(
        default=180,
        ge=0,
        description="for how many seconds a server may not answer before that is an incident",
    )
    archive_slack_s: int = Field(
        default=300,
        ge=0,
        description="how many seconds finished WAL may wait for the archive beyond archive_timeout",
    )
    ready_backlog: int = Field(
        default=64, ge=1, description="how many finished segments may wait for the archive"
    )
    min_free_percent: float = Field(
        default=10,
        ge=0,
        lt=100,
        description="free space in `backup_root`, and in pg_wal where that is visible; less is an incident",
    )
    min_free_bytes: int = Field(default=0, ge=0, description="likewise, in bytes; the larger of both counts")
    full_within_hours: float = Field(
        default=48,
        ge=0,
        description="tell when `backup_root` will be full within so many hours, at the last day's rate",
    )

    @property
    def reminder(self) -> timedelta:
        return timedelta(hours=self.reminder_hours)

    @property
    def quiet(self) -> timedelta:
        return timedelta(seconds=self.quiet_s)

    @property
    def gap(self) -> timedelta:
        return timedelta(seconds=self.gap_s)
