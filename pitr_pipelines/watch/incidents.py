"""Incidents: what is wrong with which subject, said in one sentence, with what to do next.

The key of an incident is stable: the same trouble has the same key at every look, whatever its
numbers are meanwhile, so that it is told once. Each kind has a section in docs/operate.md.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

RUNBOOKS = "docs/operate.md"

STORAGE = "storage"
OFFSITE = "offsite"
DAGSTER = "dagster"
"""Subjects that are no database."""


class Severity(StrEnum):
    CRITICAL = "critical"
    """A restore may fail, or will before long."""
    WARNING = "warning"
    """Somebody should know, in daylight."""


class Scope(StrEnum):
    """Where one has to look to find an incident, and to find that it is over."""

    SERVER = "server"
    """The database's answer to our connection."""
    REACH = "reach"
    """Whether there is one."""
    STORAGE = "storage"
    RUNS = "runs"
    """Dagster's runs, which nobody but Dagster sees."""
    CHECKS = "checks"
    """Its asset checks, likewise."""


class Kind(StrEnum):
    """Every kind of incident; each is a heading in docs/operate.md."""

    SERVER_DOWN = "server-down"
    NOT_PRIMARY = "not-primary"
    CLUSTER_CHANGED = "cluster-changed"
    TIMELINE_CHANGED = "timeline-changed"
    ARCHIVING_OFF = "archiving-off"
    ARCHIVE_FAILING = "archive-failing"
    ARCHIVE_STALLED = "archive-stalled"
    ARCHIVE_BACKLOG = "archive-backlog"
    ARCHIVE_ELSEWHERE = "archive-elsewhere"
    SETTINGS_CHANGED = "settings-changed"
    PG_WAL_FULL = "pg-wal-full"
    RECOVERY_POINT_OLD = "recovery-point-old"
    BASE_OLD = "base-old"
    DRILL_FAILED = "drill-failed"
    DRILL_OLD = "drill-old"
    STORAGE_GONE = "storage-gone"
    STORAGE_UNREADABLE = "storage-unreadable"
    RIGHTS_WRONG = "rights-wrong"
    STORAGE_FULL = "storage-full"
    STORAGE_FILLING = "storage-filling"
    OFFSITE_UNDELIVERED = "offsite-undelivered"
    OFFSITE_INCOMPLETE = "offsite-incomplete"
    CHECK_FAILED = "check-failed"
    RUN_FAILED = "run-failed"
    RESTORE_FAILED = "restore-failed"


@dataclass(frozen=True, slots=True)
class Incident:
    """One thing that is wrong now. `detail` tells several of one kind and subject apart.

    `once`: it is an event that nobody can undo, so it is told once, and neither again nor as over.
    """

    kind: Kind
    subject: str
    scope: Scope
    what: str
    remedy: str
    severity: Severity = Severity.CRITICAL
    detail: str | None = None
    once: bool = False

    @property
    def key(self) -> str:
        """`order-db/archive-stalled`, `dagster/run-failed/hourly_bundles`."""
        return "/".join(filter(None, (self.subject, self.kind.value, self.detail)))

    @property
    def runbook(self) -> str:
        return f"{RUNBOOKS}#{self.kind}"


@dataclass(frozen=True, slots=True)
class Findings:
    """What one look found. Only what was looked at, by subject and scope, can be over."""

    incidents: tuple[Incident, ...] = ()
    looked: frozenset[tuple[str, Scope]] = frozenset()

    @classmethod
    def joined(cls, several: Iterable[Findings]) -> Findings:
        """Return what several looks found together."""
        several = list(several)
        return cls(
            tuple(incident for one in several for incident in one.incidents),
            frozenset(pair for one in several for pair in one.looked),
        )
