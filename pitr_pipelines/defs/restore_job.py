"""The job `restore`: the chosen hour's end, or an exact moment in it, in a new cluster of its own.

The plan is logged before anything is touched, and it is the plan that is then carried out, also when
the run is executed again from its failed step.
"""

# Dagster reads the annotations of assets and ops as objects: no `from __future__ import annotations`.

import hashlib
from datetime import UTC, datetime
from enum import Enum
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import dagster as dg
from pydantic import Field, create_model

from pitr_pipelines.catalog.coverage import CLOCK_MARGIN
from pitr_pipelines.defs.failures import shown_as_failures
from pitr_pipelines.defs.metadata import restore_metadata
from pitr_pipelines.defs.names import NO_RETRIES, RESTORE, RESTORED_CLUSTER, asset_key
from pitr_pipelines.defs.partitions import Partitions
from pitr_pipelines.defs.progress import LogProgress
from pitr_pipelines.errors import BadRequest
from pitr_pipelines.restore.at_target import AtTarget, check_keeps_running
from pitr_pipelines.restore.plan import Plan
from pitr_pipelines.restore.target import (
    HourTarget,
    ImmediateTarget,
    Target,
    TimeTarget,
    moment_of,
    parse_moment,
    parse_target,
    show_moment,
)
from pitr_pipelines.settings import Settings
from pitr_pipelines.wal.hours import Hour

PLAN_STEP = "plan_restore"
RUN_STEP = "run_restore"


class WhatAtTarget(Enum):
    """`AtTarget`, with its words for names: those are what Dagster shows and takes."""

    promote = AtTarget.PROMOTE
    pause = AtTarget.PAUSE
    shutdown = AtTarget.SHUTDOWN


class WhatToRestore(dg.Config):
    """What to restore; the hour is the run's partition. `database` joins in `build_restore_job`."""

    target_time: str | None = Field(
        default=None,
        description="Exact moment within the chosen hour, such as '2026-01-29 14:30:00'; read in the "
        "configured time zone unless it has an offset (+01:00 or Z). Default: the end of the hour.",
    )
    target_lsn: str | None = Field(
        default=None,
        description="Instead of a time, a place in the WAL, such as 0/3000028, written in that hour.",
    )
    target_name: str | None = Field(
        default=None,
        description="Instead of a time, a named restore point of that hour; the newest of that name.",
    )
    target_xid: int | None = Field(
        default=None, description="Instead of a time, a transaction that ended in that hour."
    )
    target_immediate: bool = Field(
        default=False, description="Instead of a time, a base backup alone, one that ended in that hour."
    )
    base: str | None = Field(
        default=None,
        description="With target_immediate: the day of the base backup (2026-01-29). Default: the newest.",
    )
    exclusive: bool = Field(
        default=False, description="Leave out what is exactly at target_time, target_lsn or target_xid."
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
        description="Leave the restored server running; otherwise stop it when it is done. Default: true, "
        "but false where `dagster.restored_servers` says stop, because a run's container takes it along.",
    )
    at_target: WhatAtTarget = Field(
        default=WhatAtTarget.promote,
        description="promote: make it a cluster of its own. pause: stay in recovery, running and read-only, "
        "to look around. shutdown: the same, but stopped. `pitr restore --resume` goes on from either.",
    )
    tablespaces: dict[str, str] = Field(
        default_factory=dict,
        description="New or empty directories, as absolute paths, for tablespaces, by oid or by the location "
        "that the original has. Default: below the restored cluster's directory.",
    )
    page_checks: bool = Field(
        default=True,
        description="Check every page's checksum, if there are any, before it is started.",
    )
    amcheck: bool = Field(
        default=False, description="Run pg_amcheck over every database of the restored cluster."
    )


def build_restore_job(settings: Settings, partitions: Partitions) -> dg.JobDefinition:
    """Build the job; its launchpad is filled in with the first database and every default."""
    # Dagster takes two enums of one name for the same, within a process: so the name tells what is in it.
    digest = hashlib.sha256("\n".join(settings.databases).encode()).hexdigest()[:8]
    databases = Enum(f"Database_{digest}", {name: name for name in settings.databases})  # type: ignore[misc]
    what = create_model(
        "WhatToRestore",
        __base__=WhatToRestore,
        database=(databases, Field(description="Which database to restore; the original is not touched.")),
    )

    @dg.op(
        name=PLAN_STEP,
        description="Decides how to reach the target and checks every byte that it needs; changes nothing.",
        out=dg.Out(description="The plan, carried out as it was logged."),
    )
    def plan_restore(context: dg.OpExecutionContext, config: what) -> Plan:  # type: ignore[valid-type]
        chosen: Any = config
        with shown_as_failures():
            return _plan(context, settings, chosen.database.value, chosen)

    @dg.op(
        name=RUN_STEP,
        description="Restores into a new directory, recovers to the target, and proves that it was reached.",
    )
    def run_restore(context: dg.OpExecutionContext, config: WhereTo, plan: Plan) -> None:
        with shown_as_failures():
            _restore(context, settings, plan, config)

    @dg.job(
        name=RESTORE,
        partitions_def=partitions.hours,
        executor_def=dg.in_process_executor,
        # On disk, so that a run can be executed again from its failed step with the same plan.
        resource_defs={"io_manager": dg.FilesystemIOManager()},
        config=_defaults(settings),
        tags=NO_RETRIES,
        description="Restore a database to a moment, in a new cluster beside the original. Choose the hour "
        "as partition (UTC); for an exact moment in it give one of the target_… settings.",
    )
    def restore() -> None:
        run_restore(plan_restore())

    return restore


def choose_target(
    hour: Hour,
    target_time: str | None,
    zone: ZoneInfo,
    now: datetime,
    *,
    lsn: str | None = None,
    name: str | None = None,
    xid: int | None = None,
    immediate: bool = False,
    base: str | None = None,
    exclusive: bool = False,
) -> Target:
    """Return the target that an hour and perhaps something exact within it stand for.

    Raises BadRequest if the time is not in the hour, or if the hour's end is still to come; whether
    another target is in the hour is only known when it is planned: see `check_hour`.
    """
    time = (target_time or "").strip()
    if lsn or name or xid is not None or immediate:
        return parse_target(
            zone,
            time=time or None,
            lsn=lsn,
            name=name,
            xid=None if xid is None else str(xid),
            immediate=immediate,
            base=base,
            exclusive=exclusive,
        )
    if base:
        # The words are parse_target's, but for the target, which here has a default.
        parse_target(zone, time=time or None, hour=None if time else str(hour), base=base)
    span = f"{show_moment(hour.start, zone)} to {show_moment(hour.end, zone)}"
    if not time:
        if exclusive:
            parse_target(zone, hour=str(hour), exclusive=True)
        if hour.end > now:
            raise BadRequest(
                f"the hour {hour} ({span}) is not over, so its end cannot be restored yet",
                remedy="Give target_time: a moment of that hour before now, such as "
                f"'{now.astimezone(zone).isoformat(sep=' ', timespec='seconds')}'. Or choose the hour "
                f"{Hour.containing(now).preceding()}.",
            )
        return HourTarget(hour)
    moment = parse_moment(time, zone)
    if not hour.start <= moment <= hour.end:
        raise BadRequest(
            f"target_time {show_moment(moment, zone)} is not in the chosen hour {hour} ({span})",
            remedy=f"Choose the partition {Hour.containing(moment)}, or a time within the hour; without an "
            f"offset it is read in {zone.key}.",
        )
    return TimeTarget(moment, not exclusive)


def check_hour(plan: Plan, hour: Hour, zone: ZoneInfo) -> None:
    """Raise BadRequest if what the plan stops at was not written in the hour under which it is reported."""
    first, last = plan.stops_between
    if isinstance(plan.target, ImmediateTarget):
        ended = plan.base.ended_at
        if not hour.start <= ended <= hour.end:
            raise BadRequest(
                f"{plan.target} is not in the chosen hour {hour}: it was taken until "
                f"{show_moment(ended, zone)}",
                remedy=f"Choose the partition {Hour.containing(ended)}, or another base.",
            )
        return
    if moment_of(plan.target) is None and not (
        first - CLOCK_MARGIN <= hour.end and hour.start <= last + CLOCK_MARGIN
    ):
        right = " or ".join(dict.fromkeys(str(Hour.containing(moment)) for moment in (first, last)))
        raise BadRequest(
            f"{plan.target} is not in the chosen hour {hour}: it was written between "
            f"{show_moment(first, zone)} and {show_moment(last, zone)}",
            remedy=f"Choose the partition {right}.",
        )


def keeps_running(settings: Settings, asked: bool | None) -> bool:
    """Return whether the restored server is to be left running; BadRequest if it would end with the run."""
    may = settings.dagster.restored_servers == "keep"
    if asked and not may:
        raise BadRequest(
            "a restored server cannot be left running here: this run's container ends with the run, and the "
            "server would with it (`dagster.restored_servers: stop`)",
            remedy="Launch it again with keep_running: false, then serve what it restored: "
            "docker compose run --rm --publish 127.0.0.1:5433:5432 restored",
        )
    return may if asked is None else asked


def _defaults(settings: Settings) -> dict[str, Any]:
    where: dict[str, Any] = {"directory": None, "port": None, "keep_running": keeps_running(settings, None)}
    where |= {"at_target": str(AtTarget.PROMOTE)}
    where |= {"tablespaces": {}, "page_checks": True, "amcheck": False}
    what: dict[str, Any] = {"database": next(iter(settings.databases)), "target_time": None}
    what |= {"target_lsn": None, "target_name": None, "target_xid": None}
    what |= {"target_immediate": False, "base": None, "exclusive": False, "timeline": None}
    return {"ops": {PLAN_STEP: {"config": what}, RUN_STEP: {"config": where}}}


def _chosen_hour(context: dg.OpExecutionContext) -> Hour:
    keys = context.partition_key_range if context.has_partition_key_range else None
    if keys is not None and keys.start != keys.end:
        raise BadRequest(
            f"a restore goes to one hour, not to every one from {keys.start} to {keys.end}",
            remedy="Launch it again with a single partition.",
        )
    if keys is None and not context.has_partition_key:
        raise BadRequest(
            "no hour was chosen", remedy="Launch the job with a partition: the hour to restore, in UTC."
        )
    return Hour.parse(context.partition_key)


def _plan(context: dg.OpExecutionContext, settings: Settings, database: str, what: WhatToRestore) -> Plan:
    # The restore and its server connections are only imported where there is one.
    from pitr_pipelines.restore.plan_text import plan_json, plan_lines
    from pitr_pipelines.restore.prepare import plan_restore

    hour = _chosen_hour(context)
    target = choose_target(
        hour,
        what.target_time,
        settings.zone,
        datetime.now(UTC),
        lsn=what.target_lsn,
        name=what.target_name,
        xid=what.target_xid,
        immediate=what.target_immediate,
        base=what.base,
        exclusive=what.exclusive,
    )
    plan = plan_restore(settings, database, target, timeline=what.timeline, report=LogProgress(context.log))
    check_hour(plan, hour, settings.zone)
    lines = plan_lines(plan, settings.zone)
    for line in lines:
        context.log.info(line)
    context.add_output_metadata(
        {
            "plan": dg.MetadataValue.md("```\n" + "\n".join(lines) + "\n```"),
            "details": dg.MetadataValue.json(plan_json(plan)),
        }
    )
    return plan


def _restore(context: dg.OpExecutionContext, settings: Settings, plan: Plan, where: WhereTo) -> None:
    from pitr_pipelines.restore.destination import choose_destination
    from pitr_pipelines.restore.restore import restore
    from pitr_pipelines.restore.tablespace_places import place_lines
    from pitr_pipelines.restore.verification import Verification

    hour = _chosen_hour(context)
    at_target = where.at_target.value
    keep_running = keeps_running(settings, where.keep_running)
    check_keeps_running(at_target, keep_running)
    directory = _absolute(where.directory)
    destination = choose_destination(
        settings,
        plan,
        to=directory,
        port=where.port,
        keep_running=keep_running,
        tablespaces=where.tablespaces,
    )
    context.log.info(f"restoring {plan.database} into {destination.directory}, port {destination.port}")
    for line in place_lines(plan.base, destination.placed):
        context.log.info(f"tablespace {line}")
    report = restore(
        settings,
        plan,
        destination,
        at_target=at_target,
        verification=Verification(pages=where.page_checks, amcheck=where.amcheck),
        report=LogProgress(context.log),
        log=lambda line: context.log.info(line),
    )
    for line in report.lines(settings.zone):
        context.log.info(line)
    metadata = restore_metadata(report)
    context.log_event(
        dg.AssetMaterialization(
            asset_key(plan.database, RESTORED_CLUSTER),
            partition=str(hour),
            description=f"{plan.database}, restored to {plan.target}",
            metadata=metadata,
        )
    )
    context.add_output_metadata(metadata)
    report.raise_if_damaged()


def _absolute(directory: str | None) -> Path | None:
    if directory is None or not directory.strip():
        return None
    path = Path(directory.strip())
    if not path.is_absolute():
        raise BadRequest(
            f"the directory {directory!r} is not an absolute path",
            remedy="A run's working directory is nobody's choice: write the path from / on.",
        )
    return path
