"""What a restore is asked in Dagster's Launchpad, and what is filled in there once an hour is chosen.

No setting but the database has to be given, and none has a default that Dagster knows: it would write those
into the Launchpad, before everything that matters. What is not given is what its description says.
"""

# Dagster reads the annotations of assets and ops as objects: no `from __future__ import annotations`.

import hashlib
from collections.abc import Iterable
from datetime import datetime
from enum import Enum
from typing import Any

import dagster as dg
from pydantic import Field, create_model

from pitr_pipelines.restore.at_target import AtTarget
from pitr_pipelines.restore.target import show_moment
from pitr_pipelines.settings import Settings
from pitr_pipelines.wal.hours import Hour

PLAN_STEP = "plan_restore"
RUN_STEP = "run_restore"

_NAMED = 12
"""So many databases are named in the Launchpad; the others are counted."""


class WhatAtTarget(Enum):
    """`AtTarget`, with its words for names: those are what Dagster shows and takes."""

    promote = AtTarget.PROMOTE
    pause = AtTarget.PAUSE
    shutdown = AtTarget.SHUTDOWN


class WhatToRestore(dg.Config):
    """What to restore; the hour is the run's partition. `database` joins in `what_to_restore`."""

    target_time: str | None = Field(
        default=None,
        description="The moment, within the chosen hour: everything committed by then, and nothing later. "
        "Without an offset (+01:00 or Z) it is read in the configured "
        "time zone. Default: the end of the hour.",
    )
    target_lsn: str | None = Field(
        default=None,
        description="Instead of target_time (set that to null): a place in the WAL, such as 0/3000028, "
        "written in that hour.",
    )
    target_name: str | None = Field(
        default=None,
        description="Instead of target_time (set that to null): a named restore point of that hour; the "
        "newest of that name.",
    )
    target_xid: int | None = Field(
        default=None,
        description="Instead of target_time (set that to null): a transaction that ended in that hour.",
    )
    target_immediate: bool | None = Field(
        default=None,
        description="true: instead of target_time (set that to null), a base backup alone, one that ended in "
        "that hour.",
    )
    base: str | None = Field(
        default=None,
        description="With target_immediate: the day of the base backup (2026-01-29). Default: the newest.",
    )
    exclusive: bool | None = Field(
        default=None,
        description="true: leave out what is exactly at target_time, target_lsn or target_xid.",
    )
    timeline: int | None = Field(
        default=None,
        ge=1,
        description="A branch of history other than the one the server is on: one that was left behind by a "
        "promotion or a restore.",
    )


class WhereTo(dg.Config):
    """Where the restored cluster goes."""

    directory: str | None = Field(
        default=None,
        description="New or empty directory, as an absolute path. Default: a new one below restore_root.",
    )
    port: int | None = Field(
        default=None, ge=1, le=65535, description="Port of the restored server. Default: one that is free."
    )
    keep_running: bool | None = Field(
        default=None,
        description="false: stop the restored server when it is done. Default: it runs, but not where "
        "`dagster.restored_servers` says stop, because a run's container would take it along.",
    )
    at_target: WhatAtTarget | None = Field(
        default=None,
        description="promote (the default): make it a cluster of its own. pause: stay in recovery, running "
        "and read-only, to look around. shutdown: the same, but stopped. `pitr restore --resume` goes on "
        "from either.",
    )
    tablespaces: dict[str, str] = Field(
        default_factory=dict,
        description="New or empty directories, as absolute paths, for tablespaces, by oid or by the location "
        "that the original has. Default: below the restored cluster's directory.",
    )
    page_checks: bool | None = Field(
        default=None,
        description="false: do not check every page's checksum before it is started. Default: they are, if "
        "there are any.",
    )
    amcheck: bool | None = Field(
        default=None, description="true: run pg_amcheck over every database of the restored cluster."
    )

    @property
    def then(self) -> AtTarget:
        return AtTarget.PROMOTE if self.at_target is None else self.at_target.value


def what_to_restore(databases: Iterable[str]) -> type[WhatToRestore]:
    """Return WhatToRestore with the field `database`, an Enum of those that are configured."""
    names = list(databases)
    told = " | ".join(names[:_NAMED])
    if len(names) > _NAMED:
        # Dagster takes two enums of one name for the same, within a process: so it tells what is in it.
        digest = hashlib.sha256("\n".join(names).encode()).hexdigest()[:8]
        told += f" | {len(names) - _NAMED} more in pitr.yaml ({digest})"
    # The name is what the Launchpad says of a database that it does not know, and beside the setting.
    choice = Enum(f"({told})", {name: name for name in names})  # type: ignore[misc]
    return create_model(
        "WhatToRestore",
        __base__=WhatToRestore,
        database=(
            choice,
            Field(description="Which database to restore. The original is not touched."),
        ),
    )


def filled_in(settings: Settings, hour: Hour, now: datetime) -> dict[str, Any]:
    """Return what the Launchpad shows when `hour` is chosen: what people change, and nothing else.

    The time is the end of the hour; of the running hour it is `now`, to the second.
    """
    moment = min(hour.end, max(hour.start, now.replace(microsecond=0)))
    what = {
        "database": next(iter(settings.databases)),
        "target_time": show_moment(moment, settings.zone),
    }
    where = {"at_target": WhatAtTarget.promote.name, "directory": None, "port": None}
    return {"ops": {PLAN_STEP: {"config": what}, RUN_STEP: {"config": where}}}
