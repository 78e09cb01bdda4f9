"""Everything below `backup_root` that an envelope can carry, as its records describe it.

Only records, history files and the manifest are read: they are small. Of a base or a bundle it is its
record that says how large it is and what its SHA-256 shall be; the stream holds the file against it. What
cannot be read is named and left out, so that one bad file does not hide the rest. Nothing is changed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import date, datetime
from functools import partial
from pathlib import Path

from pitr_pipelines.catalog.inventory import read_base_record, read_bundle_record
from pitr_pipelines.catalog.layout import BASE_RECORD, Layout
from pitr_pipelines.catalog.records import FileDigest, SealRecord, read_record
from pitr_pipelines.errors import ArtifactDamaged
from pitr_pipelines.offsite.envelope_index import Artifact, MemberKind
from pitr_pipelines.wal import archive
from pitr_pipelines.wal.hours import Hour
from pitr_pipelines.wal.lsn import WalFileKind


@dataclass(frozen=True)
class Found:
    """What exists, and in a line each what could not be read."""

    artifacts: tuple[Artifact, ...]
    problems: tuple[str, ...]


def find_artifacts(layout: Layout, databases: Iterable[str]) -> Found:
    """List what an envelope can carry of these databases, and the manifest."""
    finder = _Finder(layout)
    for database in databases:
        for look in (finder.bases, finder.bundles, finder.histories):
            try:
                look(database)
            except OSError as error:
                finder.problems.append(f"{error.filename} of {database} cannot be read: {error.strerror}")
    finder.small(layout.manifest, MemberKind.MANIFEST, None)
    return Found(tuple(finder.found), tuple(finder.problems))


class _Finder:
    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self.found: list[Artifact] = []
        self.problems: list[str] = []

    def bases(self, database: str) -> None:
        for directory in _names(self._layout.bases(database)):
            path = self._layout.bases(database) / directory / BASE_RECORD
            self._with_record(path, database, partial(_base, path))

    def bundles(self, database: str) -> None:
        for name in _names(self._layout.bundles(database)):
            path = self._layout.bundles(database) / name
            if name.endswith(".seal.json"):
                self.small(path, MemberKind.SEAL, database, check=_seal, day=_day_of(name))
            elif name.endswith(".json"):
                self._with_record(path, database, partial(_bundle, path))

    def histories(self, database: str) -> None:
        for file in archive.scan_archive(self._layout.wal(database)):
            if file.kind is WalFileKind.HISTORY:
                self.small(file.path, MemberKind.HISTORY, database, modified_at=file.closed_at)

    def small(
        self,
        path: Path,
        kind: MemberKind,
        database: str | None,
        *,
        check: Callable[[Path], object] | None = None,
        day: date | None = None,
        modified_at: datetime | None = None,
    ) -> None:
        """List one small file, whose digest is of what it holds now."""
        try:
            if check is not None:
                check(path)
            unit = self._path(path)
            self.found.append(self._read(path, kind, database, unit, day=day, modified_at=modified_at))
        except FileNotFoundError:
            return
        except ArtifactDamaged as error:
            self.problems.append(error.what)
        except OSError as error:
            self.problems.append(f"{path} cannot be read: {error.strerror}")

    def _with_record(
        self, path: Path, database: str, read: Callable[[], tuple[MemberKind, date, tuple[FileDigest, ...]]]
    ) -> None:
        try:
            kind, day, files = read()
            unit = self._path(path)
            listed = [
                Artifact(
                    path=self._path(path.with_name(file.name)),
                    kind=kind,
                    database=database,
                    unit=unit,
                    day=day,
                    size_bytes=file.size_bytes,
                    sha256=file.sha256,
                )
                for file in files
            ]
            listed.append(self._read(path, MemberKind.RECORD, database, unit, day=day))
        except (FileNotFoundError, NotADirectoryError):
            return  # no record, no artifact
        except ArtifactDamaged as error:
            self.problems.append(error.what)
        except OSError as error:
            self.problems.append(f"the record {path} cannot be read: {error.strerror}")
        else:
            self.found += listed

    def _read(
        self,
        path: Path,
        kind: MemberKind,
        database: str | None,
        unit: str,
        *,
        day: date | None = None,
        modified_at: datetime | None = None,
    ) -> Artifact:
        content = path.read_bytes()
        return Artifact(
            path=self._path(path),
            kind=kind,
            database=database,
            unit=unit,
            day=day,
            size_bytes=len(content),
            sha256=hashlib.sha256(content).hexdigest(),
            modified_at=modified_at,
        )

    def _path(self, path: Path) -> str:
        return path.relative_to(self._layout.root).as_posix()


def _base(path: Path) -> tuple[MemberKind, date, tuple[FileDigest, ...]]:
    record = read_base_record(path)
    return MemberKind.BASE, record.day, record.files


def _bundle(path: Path) -> tuple[MemberKind, date, tuple[FileDigest, ...]]:
    record = read_bundle_record(path)
    return MemberKind.BUNDLE, record.hour.start.date(), (record.file,) if record.file else ()


def _seal(path: Path) -> SealRecord:
    return read_record(path, SealRecord)


def _day_of(name: str) -> date | None:
    try:
        return Hour.parse(name.split(".")[0]).start.date()
    except ValueError:
        return None


def _names(directory: Path) -> Iterator[str]:
    try:
        yield from sorted(path.name for path in directory.iterdir() if not path.name.startswith("."))
    except FileNotFoundError:
        return
