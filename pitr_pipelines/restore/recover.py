"""Recovery: PostgreSQL replays the WAL that is fed to it, alone, and what it says is held against the plan.

The server that replays is cut off: it listens only on a socket in a directory that its own user
alone can enter, and its settings are given on its command line, which beats every file. It runs
without fsync, so until the caller has synced the file system the result is not on disk. A server
that was started here is ended again whatever happens.
"""

from __future__ import annotations

import shlex
import struct
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from pitr_pipelines.errors import RecoveryFailed
from pitr_pipelines.postgres.account import give
from pitr_pipelines.postgres.server import Cluster, Postmaster
from pitr_pipelines.progress import Progress, Report, silent
from pitr_pipelines.restore.conf_file import ConfFile
from pitr_pipelines.restore.configure import HARMLESS
from pitr_pipelines.restore.destination import REPLAYED_WAL_KEPT, Destination, fits_a_socket
from pitr_pipelines.restore.feeder import Feeder
from pitr_pipelines.restore.memory import available_memory
from pitr_pipelines.restore.plan import (
    Plan,
    Stop,
    StopAtConsistency,
    StopAtEnd,
    StopAtLsn,
    StopAtTime,
    StopAtXid,
)
from pitr_pipelines.restore.recovery_log import LINE_PREFIX, RecoveryLog, Stopped, count_segments
from pitr_pipelines.restore.wal_source import InBase
from pitr_pipelines.wal.lsn import Lsn
from pitr_pipelines.wal.timelines import TimelineHistory, history_file_name

RECOVERY_SIGNAL = "recovery.signal"
SHUT_DOWN_IN_RECOVERY = "shut down in recovery"

_POLL_S = 0.1
_START_S = 30.0
_COMING_UP_S = 1.0
_STOP_S = 3600.0
_ACCESS_FILE = "pg_hba.recovery.conf"
_LEFT_BY_THE_SOURCE = ("postmaster.pid", "postmaster.opts", "standby.signal", "recovery.signal", "promote")
_LEFT_BY_RECOVERY = ("backup_label.old", "tablespace_map.old", _ACCESS_FILE)
_PAGE_HEADER = struct.Struct("=HHIQI")
_CONTINUES_RECORD = 0x0001


@dataclass(frozen=True, slots=True)
class Recovered:
    """What recovery came to.

    `end_lsn` is just past the last record that was replayed; `last_transaction_at` is when the last
    transaction in it ended, None if there was none; `stopped_before` is when the first one that was
    left out ended, None if that is not known or there is none. `stopped` is what PostgreSQL said about
    where it stopped, None if it went to the end of the WAL.
    """

    timeline: int
    end_lsn: Lsn
    last_transaction_at: datetime | None
    stopped_before: datetime | None
    segments_replayed: int
    stopped: str | None = None


@contextmanager
def recover(
    cluster: Cluster, plan: Plan, destination: Destination, feeder: Feeder, *, report: Report = silent
) -> Iterator[tuple[Recovered, Path]]:
    """Replay the WAL of the feeder, promote, and check that the target was reached.

    Yields what it came to, and the directory of the socket on which the recovered server accepts
    everybody who can enter it, for the length of the block. Then the server is stopped with a
    checkpoint; after any error or interruption it is ended at once. Raises RecoveryFailed.
    """
    prepare_recovery(cluster, RECOVERY_SIGNAL)
    with private_directory(destination, cluster) as sockets:
        options = recovery_options(plan, destination, sockets, capacity=prepared_transactions(cluster))
        log = RecoveryLog.at_end_of(destination.log_file)
        try:
            cluster.start(log_file=destination.log_file, options=options, wait=False)
            _watch(cluster, plan, log, feeder, report)
            yield _judge(cluster, plan, feeder, log), sockets
            cluster.stop("fast", timeout_s=_STOP_S)
        except BaseException:
            end_at_once(cluster)
            raise
    state = cluster.control_data()["Database cluster state"]
    if state != "shut down":
        raise _failed(plan, log, f"the recovered server did not shut down cleanly (it is {state})")
    tidy_up(cluster)


def recover_and_stop(
    cluster: Cluster, plan: Plan, destination: Destination, feeder: Feeder, *, report: Report = silent
) -> RecoveryLog:
    """Replay the WAL of the feeder up to the plan's stop, where the server ends by itself, still in recovery.

    Nobody can connect to it meanwhile. Whether it stopped where it should is for `missed` to tell, when
    it is known where that is. The stop must not be the end of the WAL: there PostgreSQL promotes.
    Returns what it said; raises RecoveryFailed.
    """
    assert not isinstance(plan.stop, StopAtEnd)
    prepare_recovery(cluster, RECOVERY_SIGNAL)
    with private_directory(destination, cluster) as sockets:
        options = recovery_options(plan, destination, sockets, capacity=prepared_transactions(cluster))
        options |= {"recovery_target_action": "shutdown", "log_checkpoints": "on"}
        log = RecoveryLog.at_end_of(destination.log_file)
        try:
            cluster.start(log_file=destination.log_file, options=options, wait=False)
            life = Life(cluster, log)
            while life.goes_on():
                feeder.check()
                _show(log, feeder, report)
        except BaseException:
            end_at_once(cluster)
            raise
    state = cluster.control_data()["Database cluster state"]
    feeder.check()
    if log.stopped is None or state != SHUT_DOWN_IN_RECOVERY:
        problem, remedy = log.explain()
        raise _failed(plan, log, f"{problem} (the cluster is {state})", remedy)
    _check_directories(plan, log, feeder)
    report(Progress("replay", feeder.total, feeder.total, "segments"))
    return log


def prepare_recovery(cluster: Cluster, signal_file: str) -> None:
    """Let the next start of a stopped cluster be a recovery of the kind that `signal_file` stands for."""
    for name in _LEFT_BY_THE_SOURCE:
        (cluster.data_directory / name).unlink(missing_ok=True)
    ConfFile(cluster.data_directory / _ACCESS_FILE, cluster.account).write("local all all trust\n")
    ConfFile(cluster.data_directory / signal_file, cluster.account).write("")


def tidy_up(cluster: Cluster) -> None:
    """Remove what recovery leaves behind."""
    for name in _LEFT_BY_RECOVERY:
        (cluster.data_directory / name).unlink(missing_ok=True)


@dataclass(slots=True)
class Life:
    """A server that was just started without waiting for it, and what it says."""

    cluster: Cluster
    log: RecoveryLog
    _begun: float = field(default_factory=time.monotonic, init=False)
    _seen: bool = field(default=False, init=False)

    def goes_on(self) -> Postmaster | None:
        """Wait a moment, read its log; return what it says of itself, None if it has ended."""
        while True:
            time.sleep(_POLL_S)
            # In this order: what it said before it went away must be read after it did.
            postmaster = self.cluster.postmaster()
            self.log.update()
            if postmaster is not None:
                self._seen = True
                return postmaster
            # A server with nothing to replay may have come and gone before it was seen.
            over = self._seen or self.log.ended or self.log.problems
            if over or time.monotonic() - self._begun > _START_S:
                time.sleep(_POLL_S)  # it may have been read while it was being written
                postmaster = self.cluster.postmaster()
                self.log.update()
                return postmaster


def recovery_options(
    plan: Plan, destination: Destination, sockets: Path, *, capacity: int, memory: int | None = None
) -> dict[str, str]:
    """Return the settings of the server that replays, in the order in which they must be given.

    `capacity` is how many prepared transactions there may be; `memory` is what can be used, in bytes.
    """
    options = isolated_options(plan.database, destination, sockets, capacity=capacity, memory=memory)
    options |= {
        "restore_command": restore_command(destination.script, destination.wal),
        "recovery_target_timeline": str(plan.branch.timeline),
        "recovery_target_inclusive": "on",
        "recovery_target_action": "promote",
    }
    for name, value in _target_settings(plan.stop).items():
        del options[name]
        options[name] = value
    return options


def isolated_options(
    database: str, destination: Destination, sockets: Path, *, capacity: int, memory: int | None = None
) -> dict[str, str]:
    """Return the settings of a server that is cut off, fast, and has no target and no archive."""
    memory = available_memory() if memory is None else memory
    # PostgreSQL refuses a second target even while it is set to nothing, so the nothings come first.
    options = dict(HARMLESS)
    options |= {
        "data_directory": str(destination.data_directory),
        "hba_file": str(destination.data_directory / _ACCESS_FILE),
        "ident_file": str(destination.data_directory / "pg_ident.conf"),
        "listen_addresses": "",
        "port": str(destination.port),
        "unix_socket_directories": '"' + str(sockets).replace('"', '""') + '"',
        "unix_socket_permissions": "0700",
        "cluster_name": f"{database} recovery",
        # Speed. Nothing here need survive a crash: then the directory is not a database.
        "fsync": "off",
        "shared_buffers": f"{max(16, min(memory // 4, 2 * 1024**3) // 1024**2)}MB",
        "huge_pages": "try",
        "max_wal_size": f"{REPLAYED_WAL_KEPT // 1024**2}MB",
        "checkpoint_timeout": "1h",
        "wal_recycle": "off",
        "autovacuum": "off",
        # No queries while it replays, so nothing can pause it; and nobody's background jobs.
        "hot_standby": "off",
        "max_worker_processes": "0",
        "max_prepared_transactions": str(capacity),
        # A tablespace that the WAL creates is made inside the data directory: see diversion.py. Without
        # this, PostgreSQL takes a directory among the links to tablespaces for damage.
        # Source: CheckTablespaceDirectory() in src/backend/access/transam/xlogrecovery.c.
        # It also lets it make a directory that is missing: that is for `_check_directories` to refuse.
        "allow_in_place_tablespaces": "on",
        # A log that can be read, whatever the source's settings are.
        "lc_messages": "C",
        "TimeZone": "UTC",
        "log_timezone": "UTC",
        "log_line_prefix": LINE_PREFIX,
        "log_min_messages": "warning",
        "log_error_verbosity": "default",
    }
    return options


def _target_settings(stop: Stop) -> dict[str, str]:
    """Return the settings that make recovery stop there; the target itself last."""
    match stop:
        case StopAtTime(moment, inclusive):
            name, value = "recovery_target_time", f"{moment.astimezone(UTC):%Y-%m-%d %H:%M:%S.%f}+00"
        case StopAtLsn(lsn, inclusive):
            name, value = "recovery_target_lsn", str(lsn)
        case StopAtXid(xid, inclusive):
            name, value = "recovery_target_xid", str(xid)
        case StopAtConsistency():
            name, value, inclusive = "recovery_target", "immediate", True
        case StopAtEnd():
            return {}
    return {"recovery_target_inclusive": "on" if inclusive else "off", name: value}


def restore_command(script: Path, directory: Path) -> str:
    """Return the restore_command that takes files from a feeder's directory, whatever is in the paths."""
    parts = [shlex.quote(str(path)).replace("%", "%%") for path in (script, directory)]
    return f'sh {parts[0]} {parts[1]} "%f" "%p"'


def _watch(cluster: Cluster, plan: Plan, log: RecoveryLog, feeder: Feeder, report: Report) -> None:
    """Return when the server is promoted.

    Raises RecoveryFailed as soon as it has ended, or what kept a file from being fed to it.
    """
    begun = time.monotonic()
    seen = False
    while True:
        # In this order: what it said before it went away must be read after it did.
        postmaster = cluster.postmaster()
        log.update()
        feeder.check()
        _show(log, feeder, report)
        if postmaster is not None:
            seen = True
            if postmaster.status == "ready" and log.timeline is not None:
                return
        elif seen or log.problems or time.monotonic() - begun > _START_S:
            time.sleep(_POLL_S)  # it may have been read while it was being written
            if cluster.postmaster() is None:
                log.update()
                problem, remedy = log.explain()
                raise _failed(plan, log, problem, remedy)
        time.sleep(_POLL_S)


def _show(log: RecoveryLog, feeder: Feeder, report: Report) -> None:
    done = min(count_segments(log.restored), feeder.total)
    report(Progress("replay", done, feeder.total, "segments"))


def end_at_once(cluster: Cluster) -> None:
    """End the server at once, even one that is only just coming up."""
    deadline = time.monotonic() + _COMING_UP_S
    while cluster.pid() is None and time.monotonic() < deadline:
        time.sleep(_POLL_S)
    cluster.stop("immediate")


def _judge(cluster: Cluster, plan: Plan, feeder: Feeder, log: RecoveryLog) -> Recovered:
    """Hold what recovery did against what the plan wants."""
    _check_directories(plan, log, feeder)
    if log.timeline is None or log.redo_done_at is None:
        raise _failed(plan, log, "it did not say where it ended")
    last = plan.segments[-1]
    size = plan.base.wal_segment_size
    end = end_of_replay(cluster, log.timeline)
    if not isinstance(plan.stop, StopAtEnd):
        problem = missed(plan, log, end)
        if problem is not None:
            raise _failed(plan, log, problem)
    else:
        fed = last.place != InBase(plan.base.day)
        if fed and str(last.name) not in log.restored:
            raise _failed(
                plan, log, f"the WAL ends early, at {end}: {last.name} should have been replayed to the end"
            )
        if fed and log.invalid is not None and log.invalid[0] < last.name.end(size):
            raise _failed(
                plan, log, f"the WAL is damaged, so what comes after {end} is lost: {log.invalid[1]}"
            )
        if end < last.name.start(size) and not (fed and _only_continues(feeder, plan)):
            raise _failed(plan, log, f"the WAL ends early, at {end}, before {last.name} begins")
    return Recovered(
        timeline=log.timeline,
        end_lsn=end,
        last_transaction_at=log.last_transaction_at,
        stopped_before=log.stopped.at if log.stopped is not None and log.stopped.before else None,
        segments_replayed=len(plan.segments),
        stopped=log.stopped.words if log.stopped is not None else None,
    )


def _check_directories(plan: Plan, log: RecoveryLog, feeder: Feeder) -> None:
    """Refuse a cluster that lacked a directory when it was consistent, as PostgreSQL does by itself.

    Source: recovery_create_dbdir() in src/backend/commands/dbcommands.c.
    """
    if log.made_up and not feeder.diverted:
        raise _failed(plan, log, f"the base backup lacks {', '.join(log.made_up)}")


def missed(plan: Plan, log: RecoveryLog, end: Lsn) -> str | None:
    """Return how recovery missed the place at which it should stop, or None."""
    stopped = log.stopped or Stopped("", before=False)
    last = log.last_transaction_at
    match plan.stop:
        case StopAtTime(moment, inclusive):
            if stopped.at is None or not stopped.before or not _is_after(stopped.at, moment, inclusive):
                when = "later than" if inclusive else "at or after"
                return f"it did not stop at a transaction {when} {moment}"
            if last is not None and _is_after(last, moment, inclusive):
                return (
                    f"it replayed a transaction of {last}, {'after' if inclusive else 'not before'} {moment}"
                )
        case StopAtLsn(lsn, inclusive, point):
            if stopped.lsn is None or stopped.before == inclusive or stopped.lsn < lsn:
                return f"it did not stop {'after' if inclusive else 'before'} a record at {lsn} or later"
            if point is not None and stopped.lsn != lsn:
                return f"it stopped at {stopped.lsn}, not at the restore point at {lsn}"
            if end <= stopped.lsn if inclusive else end > stopped.lsn:
                return f"it ended at {end}, although it stopped at {stopped.lsn}"
        case StopAtXid(xid, inclusive):
            if stopped.xid != xid or stopped.before == inclusive:
                return f"it did not stop {'after' if inclusive else 'before'} the end of transaction {xid}"
        case StopAtConsistency():
            if not stopped.consistent or end < plan.base.end_lsn:
                return f"it did not stop when the base backup of {plan.base.day} was consistent"
    return None


def _is_after(at: datetime, moment: datetime, inclusive: bool) -> bool:
    """Tell whether a transaction that ended at `at` is one to leave out."""
    return at > moment if inclusive else at >= moment


def end_of_replay(cluster: Cluster, timeline: int) -> Lsn:
    """Return where the new timeline branched off, which is just past the last record replayed."""
    path = cluster.data_directory / "pg_wal" / history_file_name(timeline)
    return TimelineHistory.parse(timeline, path.read_text("utf-8", "replace")).ancestors[-1].switched_at


def _only_continues(feeder: Feeder, plan: Plan) -> bool:
    """Tell whether the last segment holds nothing but the middle of one long record."""
    content = feeder.files.content(plan.segments[-1])
    _magic, info, _timeline, _page, remaining = _PAGE_HEADER.unpack(content[: _PAGE_HEADER.size])
    return bool(info & _CONTINUES_RECORD) and remaining >= plan.base.wal_segment_size


def _failed(plan: Plan, log: RecoveryLog, problem: str, remedy: str | None = None) -> RecoveryFailed:
    return RecoveryFailed(
        f"{plan.database} was not recovered to {plan.target}: {problem}; the server's log ends with\n"
        + log.tail(),
        remedy=remedy
        or "`pitr verify` finds damaged files; `pitr restore --plan` says which moments can be reached.",
    )


def prepared_transactions(cluster: Cluster) -> int:
    """Return how many prepared transactions recovery should have room for.

    The source may have raised its limit after the base backup; room costs little.
    """
    return max(1000, int(cluster.control_data().get("max_prepared_xacts setting", "0")))


@contextmanager
def private_directory(destination: Destination, cluster: Cluster) -> Iterator[Path]:
    """Give a directory for the recovering server's socket that only its own user can enter."""
    if fits_a_socket(destination.run, destination.port):
        yield destination.run
        return
    # Not tempfile's choice: TMPDIR may be long, or closed to the server's user.
    with tempfile.TemporaryDirectory(prefix="pitr-", dir="/tmp") as name:
        give(Path(name), cluster.account)
        yield Path(name)
