"""The job `restore`: the chosen hour's end, or an exact moment in it, in a new cluster of its own.

The plan is logged before anything is touched, and it is the plan that is then carried out, also when
the run is executed again from its failed step. How to connect is the last thing that is logged. What
is wrong with the request is said before the first byte of a backup is read.
"""

# Dagster reads the annotations of assets and ops as objects: no `from __future__ import annotations`.

from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import dagster as dg

from pitr_pipelines.catalog.coverage import CLOCK_MARGIN
from pitr_pipelines.defs.backfills import refuse_backfill
from pitr_pipelines.defs.failures import shown_as_failures
from pitr_pipelines.defs.metadata import restore_metadata
from pitr_pipelines.defs.names import NO_RETRIES, RESTORE, RESTORED_CLUSTER, asset_key
from pitr_pipelines.defs.partitions import Partitions
from pitr_pipelines.defs.progress import LogProgress
from pitr_pipelines.defs.restore_config import (
    PLAN_STEP,
    RUN_STEP,
    WhatToRestore,
    WhereTo,
    filled_in,
    what_to_restore,
)
from pitr_pipelines.errors import BadRequest
from pitr_pipelines.restore.at_target import AtTarget, check_keeps_running
from pitr_pipelines.restore.plan import Plan
from pitr_pipelines.restore.report import RestoreReport
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

_DESCRIPTION = """Restore a database to a moment, in a new cluster beside the original, which is not touched.

1. Open the Launchpad and choose the hour as partition (UTC). Then its form is filled in.
2. Correct `database` and `target_time`. The pointer on a setting shows what it means. Launch.
3. The run's log shows the plan, then the progress, and at its end how to connect.

One hour at a time: a backfill is refused."""


def build_restore_job(settings: Settings, partitions: Partitions) -> dg.JobDefinition:
    """Build the job; `restore_config` says what its Launchpad is filled in with."""
    what = what_to_restore(settings.databases)

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

    def launchpad(key: str) -> dict[str, Any]:
        return filled_in(settings, Hour.parse(key), datetime.now(UTC))

    @dg.job(
        name=RESTORE,
        executor_def=dg.in_process_executor.configured({}, name="in_process"),
        resource_defs={"io_manager": _plan_on_disk},
        config=dg.PartitionedConfig(partitions.hours, run_config_for_partition_key_fn=launchpad),
        tags=NO_RETRIES,
        description=_DESCRIPTION,
    )
    def restore() -> None:
        run_restore(plan_restore())

    return restore


@dg.io_manager(config_schema={}, description="Keeps the plan for the second step.")
def _plan_on_disk(context: dg.InitResourceContext) -> dg.IOManager:
    """On disk, so that a run can be executed again from its failed step with the same plan.

    Dagster's own, without its settings: the Launchpad would explain them before anything that matters.
    """
    return dg.FilesystemIOManager().create_io_manager(context)


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


def _chosen_hour(context: dg.OpExecutionContext) -> Hour:
    refuse_backfill(
        context,
        "a restore goes to one hour, not to every one of a backfill",
        remedy="Open Jobs, restore, Launchpad, choose one hour as partition, and launch that. Nothing was "
        "restored, and the rest of the backfill is called off.",
    )
    keys = context.partition_key_range if context.has_partition_key_range else None
    if keys is not None and keys.start != keys.end:
        raise BadRequest(
            f"a restore goes to one hour, not to every one from {keys.start} to {keys.end}",
            remedy="Open Jobs, restore, Launchpad, choose one hour as partition, and launch that.",
        )
    if keys is None and not context.has_partition_key:
        raise BadRequest(
            "no hour was chosen",
            remedy="Open Jobs, restore, Launchpad, and choose the hour to restore as partition (UTC).",
        )
    return Hour.parse(context.partition_key)


def _plan(context: dg.OpExecutionContext, settings: Settings, database: str, what: WhatToRestore) -> Plan:
    # The restore and its server connections are only imported where there is one.
    from pitr_pipelines.restore.plan_text import plan_json, plan_lines
    from pitr_pipelines.restore.prepare import plan_restore

    hour = _chosen_hour(context)
    _check_where(context, settings)
    target = choose_target(
        hour,
        what.target_time,
        settings.zone,
        datetime.now(UTC),
        lsn=what.target_lsn,
        name=what.target_name,
        xid=what.target_xid,
        immediate=bool(what.target_immediate),
        base=what.base,
        exclusive=bool(what.exclusive),
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
    keep_running = keeps_running(settings, where.keep_running)
    check_keeps_running(where.then, keep_running)
    destination = choose_destination(
        settings,
        plan,
        to=_absolute(where.directory),
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
        at_target=where.then,
        verification=Verification(pages=where.page_checks is not False, amcheck=bool(where.amcheck)),
        report=LogProgress(context.log),
        log=lambda line: context.log.info(line),
    )
    # Before the report, because the page of a run shows the end of its log.
    context.log_event(
        dg.AssetMaterialization(
            asset_key(plan.database, RESTORED_CLUSTER),
            partition=str(hour),
            description=f"{plan.database}, restored to {plan.target}",
            metadata=restore_metadata(report),
        )
    )
    for line in (*report.lines(settings.zone), *what_next(report)):
        context.log.info(line)
    report.raise_if_damaged()


def what_next(report: RestoreReport) -> list[str]:
    """Return what to look at in a restored cluster, and how to be done with it."""
    look = (
        "  look      is what you miss there, and the last transaction above the one you expect? If not, "
        f"launch {RESTORE} again with another target_time"
    )
    if report.stands:
        return [look]
    return [
        look,
        "  copy out  a table: pg_dump -t TABLE from this port, then psql into the original",
        f"  be done   end it, then delete {report.directory}",
    ]


def _check_where(context: dg.OpExecutionContext, settings: Settings) -> None:
    """Refuse a directory or port that cannot be, which the second step would do only after all the reading.

    What comes from an environment variable, as Dagster lets one write it, is left to that step.
    """
    from pitr_pipelines.restore.destination import check_directory, check_port

    run_config: Any = context.run_config
    where = run_config.get("ops", {}).get(RUN_STEP, {}).get("config") or {}
    at_target, keep_running = where.get("at_target"), where.get("keep_running")
    if keep_running is None or isinstance(keep_running, bool):
        keep_running = keeps_running(settings, keep_running)
        if isinstance(at_target, str):
            check_keeps_running(AtTarget(at_target), keep_running)
    directory, port = where.get("directory"), where.get("port")
    if isinstance(directory, str) and (path := _absolute(directory)) is not None:
        check_directory(settings, path)
    if isinstance(port, int):
        check_port(port)


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
