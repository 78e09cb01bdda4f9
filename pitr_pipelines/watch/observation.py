"""One look at a database: what its server says, what its storage holds, and the numbers of both.

The storage's half asks nobody, so it is there when the server is gone, which is when it counts.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from pitr_pipelines.catalog.drills import DrillReport
from pitr_pipelines.catalog.rights import Trouble
from pitr_pipelines.errors import PitrError
from pitr_pipelines.wal.lsn import Lsn, SegmentName

if TYPE_CHECKING:
    from pitr_pipelines.postgres.archiver import ArchiverState


@dataclass(frozen=True, slots=True)
class Space:
    """A file system, in bytes."""

    free_bytes: int
    size_bytes: int

    @property
    def free_percent(self) -> float:
        return 100.0 * self.free_bytes / self.size_bytes if self.size_bytes else 0.0


@dataclass(frozen=True, slots=True)
class StoredState:
    """What storage holds of a database. The newest segment may be raw or in a bundle."""

    raw_files: int
    raw_bytes: int
    newest_segment: SegmentName | None
    newest_at: datetime | None
    """When the newest segment was closed."""
    archive_owner: str | None
    base_ended_at: datetime | None
    last_drill: DrillReport | None
    last_good_drill: DrillReport | None
    present: frozenset[str] = frozenset()
    """The names of the raw files."""


@dataclass(frozen=True, slots=True)
class Observation:
    """A database at `at`, our clock. `server` is what it says, or why it says nothing.

    `stored` is None if the storage could not be read.
    """

    database: str
    at: datetime
    server: ArchiverState | PitrError
    stored: StoredState | None
    space: Space | None
    archiving: Trouble | None = None
    """What keeps the server's user from writing to the archive, as far as it can be told from here."""
    rights: tuple[Trouble, ...] = ()
    """What keeps our own user from reading the archive and from making backups."""

    @property
    def lag_s(self) -> float | None:
        """How long ago the newest archived segment was closed."""
        if self.stored is None or self.stored.newest_at is None:
            return None
        return max(0.0, (self.at - self.stored.newest_at).total_seconds())

    @property
    def unarchived_bytes(self) -> int | None:
        """How much WAL the server has written beyond what it archived last."""
        server = self.server
        if isinstance(server, PitrError) or server.current_lsn is None:
            return None
        archived = segment_of(server.last_archived_wal)
        if archived is None or archived.timeline > server.timeline:
            return None
        return max(0, server.current_lsn - archived.end(server.wal_segment_size))

    @property
    def ready_age_s(self) -> float | None:
        """How long the oldest finished segment has been waiting for the archive."""
        server = self.server
        if isinstance(server, PitrError) or server.ready_backlog is None:
            return None
        if server.oldest_ready_at is None:
            return 0.0
        return max(0.0, (server.now - server.oldest_ready_at).total_seconds())

    def numbers(self) -> dict[str, int | float]:
        """Return everything that can be plotted; what is not known is left out."""
        found: dict[str, int | float | None] = {
            "lag_s": round(self.lag_s, 1) if self.lag_s is not None else None,
            "server_answers": int(not isinstance(self.server, PitrError)),
        }
        if self.stored is not None:
            found |= {"raw_files": self.stored.raw_files, "raw_bytes": self.stored.raw_bytes}
        if self.space is not None:
            found["free_bytes"] = self.space.free_bytes
            found["free_percent"] = round(self.space.free_percent, 2)
        server = self.server
        if not isinstance(server, PitrError):
            found |= {
                "unarchived_bytes": self.unarchived_bytes,
                "ready_backlog": server.ready_backlog,
                "ready_age_s": round(self.ready_age_s, 1) if self.ready_age_s is not None else None,
                "archived_count": server.archived_count,
                "failed_count": server.failed_count,
                "pg_wal_bytes": server.pg_wal_bytes,
                "pg_wal_free_bytes": server.pg_wal_free_bytes,
                "timeline": server.timeline,
            }
        return {name: value for name, value in found.items() if value is not None}

    def texts(self) -> dict[str, str]:
        """Return what is worth seeing and is no number."""
        found: dict[str, str] = {}
        if self.stored is not None and self.stored.newest_segment is not None:
            found["last_segment"] = str(self.stored.newest_segment)
        if isinstance(self.server, PitrError):
            found["server"] = self.server.what
        else:
            found["system_identifier"] = self.server.system_identifier
            if self.server.current_lsn is not None:
                found["current_lsn"] = str(Lsn(self.server.current_lsn))
        return found


def segment_of(name: str | None) -> SegmentName | None:
    """Return the segment that a name in pg_stat_archiver means; None for history files and the like."""
    try:
        return SegmentName.parse(name) if name else None
    except ValueError:
        return None
