"""What tests of base backups look at, beside the backups themselves."""

from __future__ import annotations

from pathlib import Path

from pitr_pipelines.catalog.layout import Layout
from pitr_pipelines.settings import Settings


def hidden(settings: Settings, name: str) -> list[str]:
    """What is being written, or was left, beside the bases of a database."""
    locks = (".lock", ".reading")
    return [
        path.name for path in Layout(settings.backup_root).bases(name).glob(".*") if path.name not in locks
    ]


def published(settings: Settings, name: str) -> list[Path]:
    """Every directory under the name of a day, whole or not."""
    return sorted(Layout(settings.backup_root).bases(name).glob("[0-9]*"))
