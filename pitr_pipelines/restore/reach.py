"""Reaching the target: recovery, what is done there, and one look at what came of it.

The same for a new restore and for one that is moved on. Afterwards the server is stopped, the
configuration fits what is to become of it, and nothing is on disk yet.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pitr_pipelines.postgres.server import Cluster
from pitr_pipelines.progress import Report
from pitr_pipelines.restore.at_target import AtTarget
from pitr_pipelines.restore.configure import Configuration
from pitr_pipelines.restore.destination import Destination
from pitr_pipelines.restore.feeder import Feeder
from pitr_pipelines.restore.plan import Plan, StopAtTime
from pitr_pipelines.restore.recover import Recovered, recover
from pitr_pipelines.restore.standing import recover_and_stand, standing
from pitr_pipelines.settings import Settings

if TYPE_CHECKING:
    from pitr_pipelines.restore.verify import Look


@dataclass(frozen=True, slots=True)
class Reached:
    """What recovery came to, what a look into it said, and whether its server is now to run."""

    recovered: Recovered
    seen: Look
    checks: tuple[str, ...]
    is_to_run: bool


def reach(
    settings: Settings,
    cluster: Cluster,
    plan: Plan,
    destination: Destination,
    configuration: Configuration,
    at_target: AtTarget,
    feeder: Feeder,
    report: Report,
) -> Reached:
    """Replay to the stop of `plan`, do `at_target` there, and look at it. Raises RecoveryFailed."""
    # Slow to import, and only needed here.
    from pitr_pipelines.restore.verify import look, nobody_can_look

    if at_target is AtTarget.PROMOTE:
        with recover(cluster, plan, destination, feeder, report=report) as (recovered, sockets):
            seen = look(settings, plan.database, destination, sockets)
        checks = (*_checks(plan, recovered), "the cluster shut down cleanly, and all of it is on disk")
        return Reached(recovered, seen, checks, destination.keep_running)
    recovered = recover_and_stand(cluster, plan, destination, feeder, report=report)
    with standing(cluster, plan.database, recovered.timeline, destination) as place:
        seen = look(settings, plan.database, destination, place) if place else nobody_can_look()
    configuration.hold_in_recovery(recovered.timeline, cluster.control_data())
    runs = at_target is AtTarget.PAUSE and place is not None
    came_back = f"started again, it came back to {recovered.end_lsn}; it opens nowhere else, and is on disk"
    return Reached(recovered, seen, (*_checks(plan, recovered), came_back), runs)


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
