"""What is left in `backup_root`: artifacts whose files are there, each as large as its record says.

A look at names and sizes, so that what is gone is known before anything is planned; what the files hold is
checked where they are used. Nothing is changed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import TypeVar

from pitr_pipelines.catalog.inventory import read_base_record, read_bundle_record
from pitr_pipelines.catalog.layout import BASE_RECORD, Layout
from pitr_pipelines.catalog.records import BaseRecord, BundleRecord, FileDigest
from pitr_pipelines.errors import ArtifactDamaged
from pitr_pipelines.wal.hours import Hour

AnyRecord = TypeVar("AnyRecord", BaseRecord, BundleRecord)


@dataclass(frozen=True, slots=True)
class LeftHere:
    """An artifact below `backup_root`; `path` is its record's."""

    artifact: date | Hour
    record: BaseRecord | BundleRecord
    path: Path

    @property
    def files(self) -> tuple[FileDigest, ...]:
        if isinstance(self.record, BaseRecord):
            return self.record.files
        return (self.record.file,) if self.record.file else ()

    def file(self, digest: FileDigest) -> Path:
        return self.path.with_name(digest.name)


def left_here(layout: Layout, database: str) -> Iterator[LeftHere]:
    """Yield every artifact of a database that seems to be whole."""
    for directory in _names(layout.bases(database)):
        path = layout.bases(database) / directory / BASE_RECORD
        base = _read(path, read_base_record)
        if base is not None and _has_files(path, base.files):
            yield LeftHere(base.day, base, path)
    for name in _names(layout.bundles(database)):
        if name.endswith(".json") and not name.endswith(".seal.json"):
            path = layout.bundles(database) / name
            bundle = _read(path, read_bundle_record)
            if bundle is not None and _has_files(path, (bundle.file,) if bundle.file else ()):
                yield LeftHere(bundle.hour, bundle, path)


def _read(path: Path, read: Callable[[Path], AnyRecord]) -> AnyRecord | None:
    try:
        return read(path)
    except (ArtifactDamaged, OSError):
        return None


def _has_files(path: Path, files: tuple[FileDigest, ...]) -> bool:
    try:
        return all(path.with_name(file.name).stat().st_size == file.size_bytes for file in files)
    except OSError:
        return False


def _names(directory: Path) -> list[str]:
    try:
        return sorted(path.name for path in directory.iterdir() if not path.name.startswith("."))
    except (FileNotFoundError, NotADirectoryError):
        return []
