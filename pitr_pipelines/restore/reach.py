"""Reaching the target: recovery, what is done there, and one look at what came of it.

The same for a new restore and for one that is moved on. Afterwards the server is stopped, the
configuration fits what is to become of it, and nothing is on disk yet.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pitr_pipelines.postgres.server import Cluster
from pitr_pipelines.progress import Report
from pitr_pipelines.restore.at_target import AtTarget
from pitr_pipelines.restore.configure import Configuration
from pitr_pipelines.restore.destination import Destination
from pitr_pipelines.restore.diversion import settle
from pitr_pipelines.restore.feeder import Feeder
from pitr_pipelines.restore.plan import Plan, StopAtTime
from pitr_pipelines.restore.recover import Recovered, recover
from pitr_pipelines.restore.standing import recover_and_stand, standing
from pitr_pipelines.restore.verification import check_amcheck
from pitr_pipelines.settings import Settings

if TYPE_CHECKING:
    from pitr_pipelines.catalog.drills import CheckResult
    from pitr_pipelines.restore.verify import Look


@dataclass(frozen=True, slots=True)
class Aim:
    """What a recovery is to come to: the stop of `plan`, and what is done there."""

    plan: Plan
    destination: Destination
    at_target: AtTarget
    amcheck: bool = False


@dataclass(frozen=True, slots=True)
class Reached:
    """What recovery came to, what a look into it said, and whether its server is now to run.

    `amcheck` is None if it was not asked for.
    """

    recovered: Recovered
    seen: Look
    checks: tuple[str, ...]
    notes: tuple[str, ...]
    amcheck: CheckResult | None
    is_to_run: bool


def reach(
    settings: Settings,
    cluster: Cluster,
    aim: Aim,
    configuration: Configuration,
    feeder: Feeder,
    report: Report,
    log: Callable[[str], None],
) -> Reached:
    """Replay to the stop of the plan, do there what is asked for, and look at it. Raises RecoveryFailed."""
    plan, destination = aim.plan, aim.destination
    # Slow to import, and only needed here.
    from pitr_pipelines.restore.drill_checks import Copy
    from pitr_pipelines.restore.verify import look, nobody_can_look

    if aim.at_target is AtTarget.PROMOTE:
        with recover(cluster, plan, destination, feeder, report=report) as (recovered, sockets):
            seen = look(settings, plan.database, destination, sockets)
            copy = Copy(plan.database, sockets, destination.port, seen.superuser or "postgres")
            amcheck = check_amcheck(copy, cluster, log=log, report=report) if aim.amcheck else None
        checks = (*_checks(plan, recovered), "the cluster shut down cleanly, and all of it is on disk")
        moved = tuple(settle(cluster, destination, feeder.diverted))
        return Reached(recovered, seen, checks, moved, amcheck, destination.keep_running)
    recovered = recover_and_stand(cluster, plan, destination, feeder, report=report)
    moved = tuple(settle(cluster, destination, feeder.diverted))
    with standing(cluster, plan.database, recovered.timeline, destination) as place:
        seen = look(settings, plan.database, destination, place) if place else nobody_can_look()
    configuration.hold_in_recovery(recovered.timeline, cluster.control_data())
    runs = aim.at_target is AtTarget.PAUSE and place is not None
    came_back = f"started again, it came back to {recovered.end_lsn}; it opens nowhere else, and is on disk"
    return Reached(recovered, seen, (*_checks(plan, recovered), came_back), moved, None, runs)


def _checks(plan: Plan, recovered: Recovered) -> Iterator[str]:
    if isinstance(plan.stop, StopAtTime) and recovered.stopped_before is not None:
        yield (
            f"recovery stopped before the first transaction after the target, of "
            f"{recovered.stopped_before.isoformat(sep=' ')}"
        )
    elif recovered.stopped is not None:
        yield f"PostgreSQL's log says: {recovered.stopped}"
    else:
        yield f"all WAL to the end of {plan.segments[-1].name} was replayed"
