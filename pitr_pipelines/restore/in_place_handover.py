"""Making a restored cluster fit to take its original's place, while it is still beside it.

An ordinary restore makes a copy harmless; this one is to be the server again. So it gets the
configuration that the original has now, its owner and mode, a timeline of its own, and the duty to
archive. The original is only read; its tablespaces keep their places and their content, and the
restored ones get new places.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from pitr_pipelines.postgres.server import Cluster
from pitr_pipelines.restore.configure import Configuration
from pitr_pipelines.restore.destination import Destination
from pitr_pipelines.restore.in_place_checks import Original
from pitr_pipelines.restore.in_place_configuration import (
    WRITTEN_BY_RESTORE,
    copy_configuration,
    copy_entry,
    entries,
    remove_entry,
)
from pitr_pipelines.restore.in_place_wal import decide_status, mark_for_archiver, reserve_timelines
from pitr_pipelines.wal.lsn import Lsn

_NOT_WANTED = ("recovery.signal", "standby.signal", "postmaster.pid", "postmaster.opts")


@dataclass(slots=True)
class TakingOver:
    """What is done to a restored cluster, besides, so that it can take the place of `original`.

    `followed` is the timeline that recovery follows, `highest` the highest that is known;
    `tablespaces` is the new directory that restored tablespaces are to be in. `notes` are for people.
    """

    original: Original
    destination: Destination
    followed: int
    highest: int
    tablespaces: Path
    notes: list[str] = field(default_factory=list)
    adapted: list[str] = field(default_factory=list)
    """Notes on the configuration that made the copy harmless, none of which is true any more."""
    _reserved: list[Path] = field(default_factory=list)
    _from_original: list[str] = field(default_factory=list)

    @property
    def _kept(self) -> Path:
        return self.destination.directory / "configuration"

    def fetched(self, cluster: Cluster) -> None:
        """Put the configuration aside that the server will have, and keep taken timelines from it."""
        self._kept.mkdir(mode=0o700)
        from_base = copy_configuration(cluster.data_directory, self._kept)
        self._from_original = copy_configuration(self.original.path, self._kept)
        older = [name for name in from_base if name not in self._from_original]
        if older:
            self.notes.append(
                f"the old data directory has no {', '.join(older)}: the restored one has what was in "
                f"the base backup"
            )
        left = entries(self.original.path)[1]
        if left:
            self.notes.append(
                f"not taken over, because too large for configuration: {', '.join(left)}; the restored data "
                "directory has what was in the base backup"
            )
        pg_wal = cluster.data_directory / "pg_wal"
        self._reserved = reserve_timelines(pg_wal, self.followed, self.highest)

    def recovered(self, cluster: Cluster, configuration: Configuration) -> None:
        """Turn the recovered copy into the server that it is to be."""
        self.adapted = list(configuration.notes)
        for path in self._reserved:
            path.unlink(missing_ok=True)
        self._configure(cluster.data_directory)
        moved = self._place_tablespaces(cluster.data_directory)
        self._set_archive_status(cluster)
        # What was copied from the original has the owners and modes that it has there.
        self._own(cluster.data_directory, {cluster.data_directory / name for name in self._from_original})
        for root in moved:
            self._own(root, set())

    def _configure(self, data_directory: Path) -> None:
        for name in (*WRITTEN_BY_RESTORE, *_NOT_WANTED):
            remove_entry(data_directory / name)
        for kept in self._kept.iterdir():
            copy_entry(kept, data_directory / kept.name)
        shutil.rmtree(self._kept)

    def _place_tablespaces(self, data_directory: Path) -> list[Path]:
        """Move the restored tablespaces out of the directory of the restore, which holds only its log."""
        staged = self.destination.tablespaces
        links = [
            link
            for link in sorted((data_directory / "pg_tblspc").iterdir())
            if link.is_symlink() and staged in link.readlink().parents
        ]
        if links:
            self.tablespaces.mkdir(mode=0o700)
        for link in links:
            place = self.tablespaces / link.name
            link.readlink().rename(place)
            link.unlink()
            link.symlink_to(place)
        if not any(staged.iterdir()):
            staged.rmdir()
        return [self.tablespaces] if links else []

    def _set_archive_status(self, cluster: Cluster) -> None:
        control = cluster.control_data()
        pg_wal = cluster.data_directory / "pg_wal"
        status = decide_status(
            (path.name for path in pg_wal.iterdir()),
            int(control["Latest checkpoint's TimeLineID"]),
            Lsn.parse(control["Latest checkpoint location"]),
            int(control["Bytes per WAL segment"]),
        )
        mark_for_archiver(pg_wal, status)

    def _own(self, root: Path, without: set[Path]) -> None:
        """Give everything the owner of the original, and its group the rights that it has there."""
        uid, gid = self.original.uid, self.original.gid
        # initdb --allow-group-access: PostgreSQL goes by the mode of the data directory alone.
        for_group = self.original.mode & 0o050 == 0o050
        for path in _tree(root, without):
            status = path.lstat()
            if os.geteuid() == 0 and (status.st_uid, status.st_gid) != (uid, gid):
                os.chown(path, uid, gid, follow_symlinks=False)
            if for_group and not path.is_symlink():
                path.chmod(status.st_mode & 0o7777 | (0o050 if path.is_dir() else 0o040))


def _tree(root: Path, without: set[Path]) -> Iterator[Path]:
    """Yield a directory and everything below it but the entries `without`. Links are not followed."""
    yield root
    for parent, directories, files in os.walk(root):
        here = Path(parent)
        directories[:] = [name for name in directories if here / name not in without]
        yield from (here / name for name in (*directories, *files) if here / name not in without)
