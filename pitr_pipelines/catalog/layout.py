"""Where everything lies under `backup_root`. Fixed: people script against these paths.

Dates and hours in names are UTC, always. Names that start with a dot are locks and files being
written; they are never artifacts.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from pathlib import Path

from pitr_pipelines.wal.hours import Hour

BASE_RECORD = "backup.json"


@dataclass(frozen=True, slots=True)
class Layout:
    """The paths below one `backup_root`. Computing a path touches no disk."""

    root: Path

    def bases(self, database: str) -> Path:
        return self.root / "base" / database

    def base(self, database: str, day: date) -> Path:
        return self.bases(database) / day.isoformat()

    def base_record(self, database: str, day: date) -> Path:
        return self.base(database, day) / BASE_RECORD

    def base_lock(self, database: str) -> Path:
        return self.bases(database) / ".lock"

    def reading_lock(self, database: str) -> Path:
        """Held shared by whoever restores from a database's artifacts, alone by who removes some."""
        return self.bases(database) / ".reading"

    def wal(self, database: str) -> Path:
        return self.root / "wal" / database

    def archives(self, database: str) -> tuple[Path, ...]:
        """The directories in which raw WAL is looked for."""
        return (self.wal(database),)

    def bundles(self, database: str) -> Path:
        return self.root / "bundles" / database

    def bundle(self, database: str, hour: Hour) -> Path:
        return self.bundles(database) / f"{hour}.tar.gz"

    def bundle_record(self, database: str, hour: Hour) -> Path:
        return self.bundles(database) / f"{hour}.json"

    def seal_record(self, database: str, hour: Hour) -> Path:
        return self.bundles(database) / f"{hour}.seal.json"

    def bundle_lock(self, database: str) -> Path:
        return self.bundles(database) / ".lock"

    def drills(self, database: str) -> Path:
        return self.root / "drills" / database

    def drill_lock(self, database: str) -> Path:
        return self.drills(database) / ".lock"

    def expired(self, database: str) -> Path:
        """The record of the WAL that retention has removed."""
        return self.root / "retention" / database / "expired.json"

    def retention_ran(self, database: str) -> Path:
        """An empty file; its mtime is when retention was last carried out."""
        return self.root / "retention" / database / ".ran"

    def holds(self, database: str) -> Path:
        """One file for each restore that stands at its target and may still be moved on."""
        return self.root / "retention" / database / "holds"

    @property
    def ledger(self) -> Path:
        """The API budget: one file a day, and beside it the index of what that day's call carried."""
        return self.root / "offsite"

    def envelope_index(self, day: date) -> Path:
        return self.ledger / f"{day.isoformat()}.index.json"

    @property
    def outgoing(self) -> Path:
        """Second names of the files that are being sent."""
        return self.ledger / ".outgoing"

    @property
    def manifest(self) -> Path:
        return self.root / "manifests" / "restore-points.json"

    @property
    def report(self) -> Path:
        """The page that shows what can be restored; derived, like the manifest."""
        return self.root / "manifests" / "report.html"

    @property
    def manifest_lock(self) -> Path:
        return self.root / "manifests" / ".lock"

    @property
    def alerts(self) -> Path:
        """The state of the watch: open incidents, and who was told of them."""
        return self.root / "alerts" / "state.json"

    @property
    def archive_script(self) -> Path:
        """The copy of wal-archive.sh that servers on this machine run."""
        return self.root / "bin" / "wal-archive.sh"
