"""How full the file system is that holds the backups."""

from __future__ import annotations

import shutil
from dataclasses import dataclass

from pitr_pipelines.settings import Settings


@dataclass(frozen=True, slots=True)
class Space:
    """A file system, by a path in it; sizes in bytes."""

    path: str
    free: int
    size: int


def storage_space(settings: Settings) -> Space | None:
    """Return how full the file system under `backup_root` is; None if that is not there."""
    try:
        usage = shutil.disk_usage(settings.backup_root)
    except OSError:
        return None
    return Space(str(settings.backup_root), usage.free, usage.total)
