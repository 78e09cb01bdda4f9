"""What is wrong with one database: pure, from one look and the memory of those before.

What could not be looked at is not judged: an incident that was open there stays open. The memory is
the one that already knows this look.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from pitr_pipelines.alert_settings import AlertSettings
from pitr_pipelines.catalog.drills import DrillOutcome
from pitr_pipelines.errors import PitrError
from pitr_pipelines.units import show_bytes, show_duration
from pitr_pipelines.watch.incidents import Findings, Incident, Kind, Scope, Severity
from pitr_pipelines.watch.memory import Memory, changes
from pitr_pipelines.watch.observation import Observation, Space, StoredState
from pitr_pipelines.watch.promises import Promises

if TYPE_CHECKING:
    from pitr_pipelines.postgres.archiver import ArchiverState

TOLD_OF_CHANGE = timedelta(days=1)
"""How long a new timeline is news."""
_GROWING_LOOKS = 5
_MIN_DOWN_LOOKS = 2
_ELSEWHERE_AFTER = timedelta(minutes=2)
_FAILING_AFTER = timedelta(minutes=1)


def judge_database(
    seen: Observation,
    memory: Memory,
    *,
    alerts: AlertSettings,
    promises: Promises,
    drill_age: timedelta,
    archive: Path,
) -> Findings:
    """Return what is wrong with a database. `archive` is its directory here, for the texts."""
    incidents: list[Incident] = []
    looked = {(seen.database, Scope.REACH)}
    if isinstance(seen.server, PitrError):
        incidents += _down(seen, seen.server, memory, alerts)
    else:
        wrong = _wrong_server(seen, seen.server, memory)
        incidents += wrong
        if not wrong:  # of another server, nothing is judged
            looked.add((seen.database, Scope.SERVER))
            incidents += _of_server(seen, seen.server, memory, alerts, archive)
    if seen.stored is not None:
        looked.add((seen.database, Scope.STORAGE))
        incidents += _of_storage(seen, seen.stored, memory, promises, drill_age)
    return Findings(tuple(incidents), frozenset(looked))


def lacks_space(space: Space, alerts: AlertSettings) -> bool:
    """Tell whether less is free than the settings ask for."""
    wanted = max(alerts.min_free_bytes, space.size_bytes * alerts.min_free_percent / 100)
    return space.free_bytes < wanted


def _down(seen: Observation, error: PitrError, memory: Memory, alerts: AlertSettings) -> Iterator[Incident]:
    since = memory.down_since or seen.at
    if memory.down_looks < _MIN_DOWN_LOOKS or (seen.at - since).total_seconds() < alerts.server_grace_s:
        return  # a restart takes a moment
    yield Incident(
        Kind.SERVER_DOWN,
        seen.database,
        Scope.REACH,
        f"the server has not answered since {_at(since)}: {error.what}",
        error.remedy,
    )


def _wrong_server(seen: Observation, server: ArchiverState, memory: Memory) -> list[Incident]:
    found = []
    if memory.system_identifier not in (None, server.system_identifier):
        what = f"the server is cluster {server.system_identifier}, but the backups are of "
        found.append(
            Incident(
                Kind.CLUSTER_CHANGED,
                seen.database,
                Scope.REACH,
                what + f"{memory.system_identifier}",
                "Does the dsn lead to the right server? A new cluster needs a new name in the settings, or "
                "the old archive, bundles and bases moved away.",
            )
        )
    elif server.in_recovery:
        found.append(
            Incident(
                Kind.NOT_PRIMARY,
                seen.database,
                Scope.REACH,
                "the dsn leads to a standby, where no WAL can be sealed",
                "Let the dsn lead to the primary (several hosts with target_session_attrs=read-write find "
                "it).",
            )
        )
    return found


def _of_server(
    seen: Observation, server: ArchiverState, memory: Memory, alerts: AlertSettings, archive: Path
) -> Iterator[Incident]:
    name = seen.database

    def incident(kind: Kind, what: str, remedy: str, severity: Severity = Severity.CRITICAL) -> Incident:
        return Incident(kind, name, Scope.SERVER, what, remedy, severity)

    yield from _timeline(seen, server, memory)
    if not server.archives or server.settings.get("wal_level") == "minimal":
        yield incident(
            Kind.ARCHIVING_OFF,
            f"the server archives no WAL: wal_level = {server.settings.get('wal_level')}, archive_mode = "
            f"{server.settings.get('archive_mode')}" + ("" if server.archives else ", no archive_command"),
            f"`pitr init-db {name}` sets it right and says whether a restart is needed. What was recycled "
            f"meanwhile is lost: then `pitr backup --replace {name}`.",
        )
    else:
        yield from _archiver(seen, server, memory, alerts, archive)
    changed = changes(memory.settings, server.settings)
    if changed:
        yield incident(
            Kind.SETTINGS_CHANGED,
            "; ".join(changed),
            f"`pitr check {name}` shows what is in force. Set it back, or say that it is right: "
            f"`pitr watch --accept {name}`.",
            Severity.WARNING,
        )
    if server.pg_wal_free_bytes is not None and server.pg_wal_size_bytes is not None:
        space = Space(server.pg_wal_free_bytes, server.pg_wal_size_bytes)
        if lacks_space(space, alerts):
            holds = f"; pg_wal holds {show_bytes(server.pg_wal_bytes)}" if server.pg_wal_bytes else ""
            yield incident(
                Kind.PG_WAL_FULL,
                f"{_free(space)} where the server keeps its WAL{holds}",
                "A server that cannot write WAL stops. Never delete from pg_wal by hand: see that archiving "
                "works, drop replication slots that nobody reads, make room.",
            )


def _archiver(
    seen: Observation, server: ArchiverState, memory: Memory, alerts: AlertSettings, archive: Path
) -> Iterator[Incident]:
    name = seen.database
    waiting = _waiting(server.ready_backlog)
    since = memory.failing_since
    if server.is_failing and since is not None and seen.at - since >= _FAILING_AFTER:
        failures = server.failed_count - memory.failed_before
        yield Incident(
            Kind.ARCHIVE_FAILING,
            name,
            Scope.SERVER,
            f"archiving fails: {failures} failures so far, the last with {server.last_failed_wal}; {waiting}",
            _why_failing(seen, server, archive),
        )
    allowed_s = server.archive_timeout_s + alerts.archive_slack_s
    age_s = seen.ready_age_s
    if age_s is None:  # the role may not see what waits: judge by what was written and what was archived
        behind = (seen.unarchived_bytes or 0) >= server.wal_segment_size
        last = server.last_archived_at
        age_s = (server.now - last).total_seconds() if behind and last is not None else 0.0
    if age_s > allowed_s:
        unarchived = seen.unarchived_bytes
        yield Incident(
            Kind.ARCHIVE_STALLED,
            name,
            Scope.SERVER,
            f"finished WAL has been waiting for the archive for {show_duration(age_s)}, "
            f"{show_duration(allowed_s)} are allowed; {waiting}"
            + (f", {show_bytes(unarchived)} are not archived" if unarchived else ""),
            f"What is written now would be lost with the server. `pitr check {name}` says what it can "
            "see; the "
            "server's log has the archive command's own words. The server keeps its WAL and tries again.",
        )
    yield from _backlog(seen, server, memory, alerts)
    gone_since = memory.elsewhere_since
    if gone_since is not None and seen.at - gone_since >= _ELSEWHERE_AFTER:
        yield Incident(
            Kind.ARCHIVE_ELSEWHERE,
            name,
            Scope.SERVER,
            f"the server says that it archived {server.last_archived_wal}, but {archive} does not get it",
            f"Does its archive_command (`pitr check {name}` shows it) write there, and is the same volume "
            "mounted on both sides? Find the segments and put them into the archive; those that are lost "
            f"make `pitr backup --replace {name}` necessary.",
        )


def _waiting(backlog: int | None) -> str:
    if not backlog:
        return "WAL waits"
    return "1 segment waits" if backlog == 1 else f"{backlog} segments wait"


def _backlog(
    seen: Observation, server: ArchiverState, memory: Memory, alerts: AlertSettings
) -> Iterator[Incident]:
    backlog = server.ready_backlog
    if backlog is None:
        return
    grows = memory.backlog_grew >= _GROWING_LOOKS
    if backlog < alerts.ready_backlog and not (grows and backlog >= alerts.ready_backlog / 4):
        return
    held = f" and take {show_bytes(server.pg_wal_bytes)} in pg_wal" if server.pg_wal_bytes else ""
    yield Incident(
        Kind.ARCHIVE_BACKLOG,
        seen.database,
        Scope.SERVER,
        f"{backlog} finished segments wait for the archive{held}"
        + (f"; they have become more at {memory.backlog_grew} looks in a row" if grows else ""),
        "The archive is slower than the server writes, or does not work at all. Is the disk of the archive "
        "busy, or the network to it? The server keeps its WAL until it is archived: watch the space "
        "in pg_wal.",
        Severity.WARNING,
    )


def _why_failing(seen: Observation, server: ArchiverState, archive: Path) -> str:
    failed = server.last_failed_wal
    if failed is not None and seen.stored is not None and failed in seen.stored.present:
        return (
            f"{archive / failed} is there already, with other content: a copy of this server was started "
            "elsewhere and archives here, or the file was damaged. Stop the copy, then move its files out of "
            "the archive (docs/timelines.md says which). Nothing is lost while the server keeps its WAL."
        )
    if seen.archiving is not None:
        return (
            f"{_sentence(seen.archiving.what)}. {seen.archiving.remedy} Nothing is lost while the server "
            "keeps its WAL; it tries again by itself."
        )
    return (
        f"The reason is in the server's log. Can the server's user write to {archive}, is there "
        "space, is the "
        "volume mounted? Nothing is lost while the server keeps its WAL; it tries again by itself."
    )


def _timeline(seen: Observation, server: ArchiverState, memory: Memory) -> Iterator[Incident]:
    changed_at, before = memory.timeline_changed_at, memory.timeline_before
    if changed_at is None or before is None or seen.at - changed_at >= TOLD_OF_CHANGE:
        return
    backward = server.timeline < before
    yield Incident(
        Kind.TIMELINE_CHANGED,
        seen.database,
        Scope.SERVER,
        f"the server is on timeline {server.timeline}, it was on {before}"
        + (": it went back, so this is another server, or an older copy" if backward else ""),
        "Is the old primary still running? Then stop it, before both write." + " docs/timelines.md says more."
        if backward
        else "Was it promoted on purpose? docs/timelines.md says what to do after a failover: nothing but to "
        "fence the old primary.",
        Severity.CRITICAL if backward else Severity.WARNING,
        detail=str(server.timeline),
        once=True,
    )


def _of_storage(
    seen: Observation, stored: StoredState, memory: Memory, promises: Promises, drill_age: timedelta
) -> Iterator[Incident]:
    name, watched = seen.database, seen.at - memory.first_seen_at

    def incident(kind: Kind, what: str, remedy: str) -> Incident:
        return Incident(kind, name, Scope.STORAGE, what, remedy)

    if seen.rights:
        yield incident(
            Kind.RIGHTS_WRONG,
            "; ".join(trouble.what for trouble in seen.rights),
            "\n".join(trouble.remedy for trouble in seen.rights),
        )
    lag_s = seen.lag_s
    if lag_s is None and watched > promises.recovery_point:
        yield incident(
            Kind.RECOVERY_POINT_OLD,
            "no WAL of it was ever archived",
            f"`pitr check {name}` says what is missing; `pitr init-db {name}` prepares the server.",
        )
    elif lag_s is not None and lag_s > promises.recovery_point.total_seconds():
        yield incident(
            Kind.RECOVERY_POINT_OLD,
            f"the newest archived WAL is {show_duration(lag_s)} old, "
            f"{show_duration(promises.recovery_point)} "
            "are promised: nothing later can be restored",
            f"`pitr bundle {name} --now` seals the server and says what is wrong; `pitr check "
            f"{name}`, too. Is "
            "`bundle_schedule` on?",
        )
    ended_at = stored.base_ended_at
    if (seen.at - ended_at if ended_at else watched) > promises.base_age:
        state = f"is {show_duration(seen.at - ended_at)} old" if ended_at else "was never taken"
        yield incident(
            Kind.BASE_OLD,
            f"the newest base backup {state}, {show_duration(promises.base_age)} are promised",
            f"`pitr backup {name}` takes one now, and says why if it cannot. Is `base_backup_schedule` on?",
        )
    last, good = stored.last_drill, stored.last_good_drill
    if last is not None and last.outcome is DrillOutcome.FAILED:
        yield incident(
            Kind.DRILL_FAILED,
            f"the drill of {_at(last.finished_at)} failed: {'; '.join(last.problems)}",
            f"{last.remedy or 'Its record in drills/ has all of it.'} `pitr drill {name}"
            + (f" --seed {last.seed}" if last.seed is not None else "")
            + "` does it again.",
        )
    age = seen.at - good.finished_at if good else watched
    if age > drill_age:
        since = f"was {show_duration(age)} ago" if good else "has not been yet"
        yield Incident(
            Kind.DRILL_OLD,
            name,
            Scope.STORAGE,
            f"the last drill that passed {since}, {show_duration(drill_age)} are allowed",
            f"`pitr drill {name}` does one now. Is `drill_schedule` on?",
            Severity.WARNING,
        )


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def _free(space: Space) -> str:
    return (
        f"only {show_bytes(space.free_bytes)} of {show_bytes(space.size_bytes)} "
        f"({space.free_percent:.1f} %) are free"
    )


def _at(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%S}+00:00"
