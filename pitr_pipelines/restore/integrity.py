"""Re-reading what a plan needs, before a restore touches anything.

The base and the bundles are compared with their records by SHA-256 of the bytes on disk, a tenth of
what a restore reads; raw segments, of which nothing is on record, by their headers and sizes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date

from pitr_pipelines.catalog.layout import Layout
from pitr_pipelines.catalog.records import BaseRecord, BundleRecord, read_record
from pitr_pipelines.errors import ArtifactDamaged
from pitr_pipelines.progress import Progress, Report
from pitr_pipelines.restore.plan import Plan
from pitr_pipelines.restore.wal_source import InArchive, InBase, InBundle
from pitr_pipelines.wal import archive, bundle_file
from pitr_pipelines.wal.hours import Hour


@dataclass(frozen=True, slots=True)
class Damage:
    """An artifact that a plan needs and that is not what it should be: a base, a bundle or a raw file."""

    artifact: date | Hour | str
    problem: str


class UnreadableSource(ArtifactDamaged):
    """Planning had to look into an artifact and could not; it may do without it."""

    def __init__(self, damage: Damage, *, remedy: str) -> None:
        super().__init__(damage.problem, remedy=remedy)
        self.damage = damage


def find_damage(layout: Layout, plan: Plan, report: Report) -> Iterator[Damage]:
    """Yield what is wrong with the artifacts that a plan needs; nothing, if all is well."""
    # Its dependencies are slow to import, and planning without checking does not need them.
    from pitr_pipelines.postgres.base_contents import verify_base

    days = {segment.place.day for segment in plan.segments if isinstance(segment.place, InBase)}
    for day in sorted({plan.base.day, *days}):
        try:
            base = plan.base
            if day != plan.base.day:
                base = read_record(layout.base_record(plan.database, day), BaseRecord)
            verify_base(layout.base(plan.database, day), base, progress=report)
        except ArtifactDamaged as error:
            yield Damage(day, error.what)
    hours = sorted({segment.place.hour for segment in plan.segments if isinstance(segment.place, InBundle)})
    for done, hour in enumerate(hours, 1):
        try:
            record = read_record(layout.bundle_record(plan.database, hour), BundleRecord)
            if record.file is not None:
                bundle_file.verify_file(layout.bundle(plan.database, hour), record.file)
        except ArtifactDamaged as error:
            yield Damage(hour, error.what)
        report(Progress("check bundles", done, len(hours), "bundles"))
    for segment in plan.segments:
        if isinstance(segment.place, InArchive):
            problem = _problem_of(segment.place.file, plan)
            if problem is not None:
                yield Damage(segment.place.file.name, problem)


def _problem_of(file: archive.ArchivedFile, plan: Plan) -> str | None:
    try:
        header = archive.read_header(file.path)
        archive.check_segment(header, file.path, file.size_bytes)
    except FileNotFoundError:
        return None  # bundled and pruned since the plan was made; it is found there
    except ArtifactDamaged as error:
        return error.what
    if header.system_identifier != plan.base.system_identifier:
        return (
            f"the archived segment {file.path} is of the cluster {header.system_identifier}, but the base "
            f"backup is of {plan.base.system_identifier}"
        )
    return None
