"""A cluster that stands at its target: recovered up to there, still in recovery, and staying there.

The promise: whenever its server is started, it comes back with exactly what was replayed, lets nobody
see less, and neither replays further nor promotes by itself. It is a standby that follows nothing,
whose own WAL ends with the last record before the target, and whose control file says that it is
consistent only there. `pg_ctl promote` or pg_promote() therefore gives exactly that state, too.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from pitr_pipelines.catalog.layout import Layout
from pitr_pipelines.errors import NotRestorable, RecoveryFailed
from pitr_pipelines.postgres.binaries import find_binaries
from pitr_pipelines.postgres.server import Cluster
from pitr_pipelines.progress import Report, silent
from pitr_pipelines.restore.configure import CAPACITIES
from pitr_pipelines.restore.cut_wal import LocalWal
from pitr_pipelines.restore.destination import Destination
from pitr_pipelines.restore.feeder import Feeder
from pitr_pipelines.restore.plan import Plan, StopAtEnd, StopAtLsn
from pitr_pipelines.restore.probe import waldump_probe
from pitr_pipelines.restore.recover import (
    RECOVERY_SIGNAL,
    SHUT_DOWN_IN_RECOVERY,
    Life,
    Recovered,
    end_at_once,
    end_of_replay,
    isolated_options,
    missed,
    prepare_recovery,
    prepared_transactions,
    private_directory,
    recover_and_stop,
    tidy_up,
)
from pitr_pipelines.restore.recovery_log import RecoveryLog
from pitr_pipelines.restore.wal_source import InBase
from pitr_pipelines.settings import Settings
from pitr_pipelines.wal.lsn import Lsn

STANDBY_SIGNAL = "standby.signal"
HELD_STATES = (SHUT_DOWN_IN_RECOVERY, "in archive recovery")

_CONSISTENT_AT = "Minimum recovery ending location"
_OPENS_S = 15.0
_STOP_S = 3600.0


def local_wal(cluster: Cluster) -> LocalWal:
    """Return the WAL that a cluster itself holds."""
    size = int(cluster.control_data()["Bytes per WAL segment"])
    return LocalWal(cluster.data_directory / "pg_wal", cluster.binaries, cluster.account, size)


def end_of_plan(settings: Settings, plan: Plan) -> Plan:
    """Return the plan with a stop at its last record instead of at the end of the WAL.

    At the end of the WAL PostgreSQL can only promote or wait for more. Touches nothing; raises
    NotRestorable if the WAL holds no whole record.
    """
    if not isinstance(plan.stop, StopAtEnd):
        return plan
    layout = Layout(settings.backup_root)
    binaries = find_binaries(plan.base.major, settings.binaries)
    with waldump_probe(layout, plan.database, plan.base.wal_segment_size, lambda: binaries) as probe:
        for index in range(len(plan.segments) - 1, -1, -1):
            segment = plan.segments[index]
            last = probe.last_record(
                plan.segments[index - 1] if index else None,
                segment,
                # A backup may end in the middle of a segment, of which the rest is what was there before.
                may_end_torn=segment.place == InBase(plan.base.day),
            )
            if last is not None:
                return replace(plan, stop=StopAtLsn(last))
    raise NotRestorable(
        f"the WAL of {plan.database} from the base backup of {plan.base.day} on holds no whole record",
        remedy="`pitr verify` finds damaged files.",
    )


def recover_and_stand(
    cluster: Cluster, plan: Plan, destination: Destination, feeder: Feeder, *, report: Report = silent
) -> Recovered:
    """Replay the WAL of the feeder up to the plan's stop, and let the cluster stand there, stopped.

    `plan` is one that `end_of_plan` gave. Checks that the target was reached. The result is not on disk
    yet, and PostgreSQL's configuration is not changed. Raises RecoveryFailed.
    """
    log = recover_and_stop(cluster, plan, destination, feeder, report=report)
    assert log.stopped is not None
    wal = local_wal(cluster)
    try:
        boundary = wal.first_left_out(log.stopped, Lsn.parse(cluster.control_data()[_CONSISTENT_AT]))
    except LookupError:
        raise _failed(
            plan.database,
            destination,
            f"what it says that it stopped at is not in its WAL: {log.stopped.words}",
        ) from None
    if boundary is not None:
        wal.cut(boundary)
    end = _settle(cluster, plan.database, plan.branch.timeline, destination)
    latest = next(wal.transaction_ends(), None)
    if latest is not None:  # else a restartpoint has said so, or there was none
        log.last_transaction_at = latest.at
    problem = missed(plan, log, end)
    if problem is None and boundary is not None and end > boundary:
        problem = f"it holds what comes before {end}, and not only what comes before {boundary}"
    if problem is not None:
        raise _failed(plan.database, destination, problem)
    return Recovered(
        timeline=plan.branch.timeline,
        end_lsn=end,
        last_transaction_at=log.last_transaction_at,
        stopped_before=log.stopped.at if log.stopped.before else None,
        segments_replayed=len(plan.segments),
        stopped=log.stopped.words,
    )


@contextmanager
def standing(
    cluster: Cluster, database: str, timeline: int, destination: Destination
) -> Iterator[Path | None]:
    """Run the server where it stands, cut off, for the length of the block.

    Yields the directory of a socket on which it accepts everybody who can enter it; or None if nobody
    can look into it, because PostgreSQL does not know all transactions that were open. Afterwards it is
    stopped where it was. Raises RecoveryFailed.
    """
    control = cluster.control_data()
    prepare_recovery(cluster, STANDBY_SIGNAL)
    with private_directory(destination, cluster) as sockets:
        options = _standing_options(cluster, database, timeline, destination, sockets)
        options |= {name: control[label] for name, label in CAPACITIES.items() if label in control}
        options["max_prepared_transactions"] = str(prepared_transactions(cluster))
        options["hot_standby"] = "on"
        log = RecoveryLog.at_end_of(destination.log_file)
        try:
            cluster.start(log_file=destination.log_file, options=options, wait=False)
            yield sockets if _opens(Life(cluster, log), database, destination) else None
            cluster.stop("fast", timeout_s=_STOP_S)
        except BaseException:
            end_at_once(cluster)
            raise
    _check_stands(cluster, database, destination, Lsn.parse(control[_CONSISTENT_AT]))
    tidy_up(cluster)


@contextmanager
def promoted(
    cluster: Cluster, database: str, stands_at: Lsn, destination: Destination
) -> Iterator[tuple[int, Path]]:
    """Promote a stopped cluster from where it stands, cut off, without any backup.

    Yields the new timeline and the directory of a socket, as `recover` does; afterwards the server is
    stopped with a checkpoint. Raises RecoveryFailed.
    """
    prepare_recovery(cluster, RECOVERY_SIGNAL)
    with private_directory(destination, cluster) as sockets:
        options = isolated_options(
            database, destination, sockets, capacity=prepared_transactions(cluster)
        ) | {"restore_command": "exit 1"}  # known not to exist: what is needed is in pg_wal
        log = RecoveryLog.at_end_of(destination.log_file)
        try:
            cluster.start(log_file=destination.log_file, options=options, wait=False)
            life = Life(cluster, log)
            while (server := life.goes_on()) and (server.status != "ready" or log.timeline is None):
                pass
            if server is None or log.timeline is None:
                raise _failed(database, destination, log.explain()[0])
            end = end_of_replay(cluster, log.timeline)
            if end != stands_at:
                raise _failed(database, destination, f"it was promoted at {end}, but it stood at {stands_at}")
            yield log.timeline, sockets
            cluster.stop("fast", timeout_s=_STOP_S)
        except BaseException:
            end_at_once(cluster)
            raise
    state = cluster.control_data()["Database cluster state"]
    if state != "shut down":
        raise _failed(database, destination, f"the promoted server did not shut down cleanly (it is {state})")
    tidy_up(cluster)


def _settle(cluster: Cluster, database: str, timeline: int, destination: Destination) -> Lsn:
    """Let the control file say that the cluster is consistent at the end of its WAL only; return that place.

    Replaying from a restartpoint to the last record and stopping there does so: a restartpoint that is
    skipped, because there has been none later to start from, records how far replay came.
    Source: CreateRestartPoint() in PostgreSQL's src/backend/access/transam/xlog.c.
    """
    last = local_wal(cluster).last()
    if last is None:
        raise _failed(database, destination, "its WAL holds no whole record")
    control = cluster.control_data()
    began = [Lsn.parse(control[f"Latest checkpoint{part}"]) for part in (" location", "'s REDO location")]
    if began != [last, last]:  # else there is nothing to replay, and no target is met
        prepare_recovery(cluster, STANDBY_SIGNAL)
        with private_directory(destination, cluster) as sockets:
            options = _standing_options(cluster, database, timeline, destination, sockets)
            del options["recovery_target_lsn"]
            options |= {"recovery_target_action": "shutdown", "recovery_target_lsn": str(last)}
            log = RecoveryLog.at_end_of(destination.log_file)
            try:
                cluster.start(log_file=destination.log_file, options=options, wait=False)
                life = Life(cluster, log)
                while life.goes_on():
                    pass
            except BaseException:
                end_at_once(cluster)
                raise
        if log.stopped is None or log.stopped.lsn != last:
            raise _failed(database, destination, f"started again, it did not come back: {log.explain()[0]}")
    end = Lsn.parse(cluster.control_data()[_CONSISTENT_AT])
    _check_stands(cluster, database, destination, end)
    if end <= last:
        raise _failed(database, destination, f"it stands at {end}, although its last record begins at {last}")
    return end


def _opens(life: Life, database: str, destination: Destination) -> bool:
    """Wait until the server accepts connections; return False if it will not."""
    consistent_since: float | None = None
    while server := life.goes_on():
        if server.status == "ready":
            return True
        if life.log.consistent:
            # It is where it stands, so there is nothing more that could let it open.
            consistent_since = consistent_since or time.monotonic()
            if time.monotonic() - consistent_since > _OPENS_S:
                return False
    raise _failed(database, destination, life.log.explain()[0])


def _check_stands(cluster: Cluster, database: str, destination: Destination, at: Lsn) -> None:
    control = cluster.control_data()
    state, end = control["Database cluster state"], Lsn.parse(control[_CONSISTENT_AT])
    if state != SHUT_DOWN_IN_RECOVERY or end != at:
        raise _failed(database, destination, f"it should stand at {at}, in recovery: it is {state}, at {end}")


def _standing_options(
    cluster: Cluster, database: str, timeline: int, destination: Destination, sockets: Path
) -> dict[str, str]:
    options = isolated_options(database, destination, sockets, capacity=prepared_transactions(cluster))
    return options | {"recovery_target_timeline": str(timeline)}


def _failed(database: str, destination: Destination, problem: str) -> RecoveryFailed:
    log = RecoveryLog(destination.log_file)
    log.update()
    return RecoveryFailed(
        f"{database} does not stand at its target: {problem}; the server's log ends with\n{log.tail()}",
        remedy=f"The whole log is {destination.log_file}.",
    )
