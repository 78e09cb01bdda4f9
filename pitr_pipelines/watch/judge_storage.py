"""What is wrong with the storage that all databases share, and with the off-site copy: pure."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from pitr_pipelines.alert_settings import AlertSettings
from pitr_pipelines.errors import PitrError
from pitr_pipelines.offsite.standing import Standing
from pitr_pipelines.units import show_bytes, show_duration
from pitr_pipelines.watch.incidents import OFFSITE, STORAGE, Findings, Incident, Kind, Scope, Severity
from pitr_pipelines.watch.judge_database import lacks_space
from pitr_pipelines.watch.memory import SpaceMemory, hours_until_full
from pitr_pipelines.watch.observation import Space


def storage_gone(error: PitrError) -> Findings:
    """Return that backup_root is not there; nothing else of the storage can be told then."""
    gone = Incident(Kind.STORAGE_GONE, STORAGE, Scope.REACH, error.what, error.remedy)
    return Findings((gone,), frozenset({(STORAGE, Scope.REACH)}))


def judge_storage(
    root: Path,
    space: Space | None,
    memory: SpaceMemory,
    unreadable: dict[str, PitrError],
    alerts: AlertSettings,
    now: datetime,
) -> Findings:
    """Return what is wrong with the storage. `unreadable` is what could not be read there."""
    incidents = []
    if unreadable:
        first = next(iter(unreadable.values()))
        incidents.append(
            Incident(
                Kind.STORAGE_UNREADABLE,
                STORAGE,
                Scope.STORAGE,
                f"what is stored of {', '.join(sorted(unreadable))} cannot be read: {first.what}",
                first.remedy,
            )
        )
    reached = frozenset({(STORAGE, Scope.REACH)})
    if space is None:
        return Findings(tuple(incidents), reached)
    hours = hours_until_full(memory.samples, now, space.free_bytes)
    free = f"{show_bytes(space.free_bytes)} of {show_bytes(space.size_bytes)} ({space.free_percent:.1f} %)"
    forecast = f"; at the last day's rate it is full in {show_duration(hours * 3600)}" if hours else ""
    remedy = (
        "Make room or a larger volume: when it is full, servers cannot archive and keep their WAL, "
        "until their "
        "own disks are full. What retention may delete: `pitr status`; never delete single segments by hand."
    )
    if lacks_space(space, alerts):
        incidents.append(
            Incident(
                Kind.STORAGE_FULL, STORAGE, Scope.STORAGE, f"only {free} are free in {root}{forecast}", remedy
            )
        )
    elif hours is not None and hours < alerts.full_within_hours:
        incidents.append(
            Incident(
                Kind.STORAGE_FILLING,
                STORAGE,
                Scope.STORAGE,
                f"{root} fills up: {free} are free{forecast}",
                remedy,
                Severity.WARNING,
            )
        )
    return Findings(tuple(incidents), reached | {(STORAGE, Scope.STORAGE)})


def judge_offsite(standing: Standing) -> Findings:
    """Return what is wrong with the last off-site copy that was due."""
    incidents = [
        Incident(Kind.OFFSITE_UNDELIVERED, OFFSITE, Scope.STORAGE, one.problem, one.remedy)
        for one in standing.delivery[:1]
    ]
    if standing.completeness:
        incidents.append(
            Incident(
                Kind.OFFSITE_INCOMPLETE,
                OFFSITE,
                Scope.STORAGE,
                f"the off-site copy of {standing.day} has no base backup of that day of "
                f"{', '.join(standing.missing)}",
                standing.completeness[0].remedy,
                Severity.WARNING,
            )
        )
    return Findings(tuple(incidents), frozenset({(OFFSITE, Scope.STORAGE)}))
