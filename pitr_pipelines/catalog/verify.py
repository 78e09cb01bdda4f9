"""Re-reading every artifact against its record, byte for byte.

A base's files are compared by SHA-256; every member of every bundle is unpacked and compared; raw
segments are checked by header and size; the chain is followed from the oldest base; and the manifest
is compared with what the records say. Nothing is changed, and one finding does not stop the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from functools import partial

from pitr_pipelines.catalog import manifest
from pitr_pipelines.catalog.coverage import Gap
from pitr_pipelines.catalog.inventory import (
    Inventory,
    RecordCache,
    read_base_record,
    read_bundle_record,
    read_cache,
    take_inventory,
)
from pitr_pipelines.catalog.layout import Layout
from pitr_pipelines.errors import ArtifactDamaged
from pitr_pipelines.postgres.base_contents import verify_base
from pitr_pipelines.settings import Settings
from pitr_pipelines.wal import archive, bundle_file
from pitr_pipelines.wal.hours import Hour
from pitr_pipelines.wal.lsn import WalFileKind


@dataclass(frozen=True, slots=True)
class Verified:
    """One artifact that was re-read; `problem` is None if all is well."""

    database: str
    artifact: str
    problem: str | None
    remedy: str | None = None


def verify_database(settings: Settings, database: str) -> Iterator[Verified]:
    """Verify everything of one database, oldest artifact first. Raises BadRequest if unknown."""
    settings.database(database)
    layout = Layout(settings.backup_root)
    inventory, _ = take_inventory(layout, database, RecordCache())
    for problem in inventory.problems:
        yield Verified(database, "record", problem, "Make the artifact again, or put back its record.")
    for problem in inventory.unexplained():
        yield Verified(database, "history", problem)
    for base in inventory.bases:
        yield verify_base_of(layout, database, base.day)
    for entry in inventory.bundles:
        yield verify_bundle(layout, database, entry.hour)
    for hour in hours_without_record(layout, database):
        yield without_record(layout, database, hour)
    for file in inventory.raw:
        if file.kind is WalFileKind.SEGMENT:
            yield _checked(database, f"segment {file.name}", partial(_check_raw, file, inventory))
    for gap in inventory.gaps():
        yield verify_gap(inventory, gap)


def verify_base_of(layout: Layout, database: str, day: date) -> Verified:
    """Compare one base's files with its record."""

    def check() -> None:
        verify_base(layout.base(database, day), read_base_record(layout.base_record(database, day)))

    return _checked(database, f"base {day}", check)


def verify_bundle(layout: Layout, database: str, hour: Hour) -> Verified:
    """Unpack every member of one hour's bundle and compare it with the record."""

    def check() -> None:
        record = read_bundle_record(layout.bundle_record(database, hour))
        bundle_file.verify_members(layout.bundle(database, hour), record)

    return _checked(database, f"bundle {hour}", check)


def verify_gap(inventory: Inventory, gap: Gap) -> Verified:
    """Say what a gap in the WAL means, and what can be done about it."""
    database = inventory.database
    span = str(gap.first) if gap.first == gap.last else f"{gap.first} to {gap.last}"
    after = inventory.base_after(gap)
    return Verified(
        database,
        "WAL",
        f"WAL is missing: {span} of {database} is neither in the archive nor in a bundle",
        "If the server or a copy still has these segments, put them into the archive; otherwise "
        + (
            f"`pitr backup --replace {database}` makes later moments restorable again."
            if after is None
            else f"nothing is to be done: the base backup of {after.day} makes the moments after "
            f"{after.ended_at.isoformat(sep=' ')} restorable, and those between are lost."
        ),
    )


def verify_manifest(settings: Settings) -> Verified:
    """Compare the manifest with what the records say; name the first thing that is wrong."""
    found = verify_manifest_entries(settings)
    return next((one for one in found if one.problem is not None), Verified("", "manifest", None))


def verify_manifest_entries(
    settings: Settings, *, remembered: bool = False, settling: timedelta = timedelta(0)
) -> Iterator[Verified]:
    """Compare the manifest with what the records say, database by database.

    With `remembered`, records that were read before and did not change are not read again. A manifest
    older than a record that is younger than `settling` is not wrong: whoever wrote that record is about
    to refresh it.
    """
    layout = Layout(settings.backup_root)
    try:
        held = manifest.read_manifest(layout)
        written_ns = layout.manifest.stat().st_mtime_ns
    except FileNotFoundError:
        yield _manifest_is(f"{layout.manifest} is missing")
        return
    except ArtifactDamaged as error:
        yield _manifest_is(error.what)
        return
    youngest_ns = int((datetime.now(UTC) - settling).timestamp() * 1e9)
    for name in settings.databases:
        known = read_cache(layout, name) if remembered else RecordCache()
        inventory, records = take_inventory(layout, name, known)
        if held.databases.get(name) == manifest.describe(inventory):
            yield Verified(name, "manifest", None)
        elif settling and records.newest_ns > max(written_ns, youngest_ns):
            yield Verified(name, "manifest", None, "Its newest record is a moment old: the manifest follows.")
        else:
            yield _manifest_is(f"{layout.manifest} differs from the records of {name}", name)


def hours_without_record(layout: Layout, database: str) -> Iterator[Hour]:
    """Yield the hours whose bundle counts for nothing, as an interrupted bundling left no record."""
    for bundle in sorted(layout.bundles(database).glob("[0-9]*.tar.gz")):
        name = bundle.name.removesuffix(".tar.gz")
        if not bundle.with_name(f"{name}.json").exists():
            try:
                yield Hour.parse(name)
            except ValueError:
                continue


def without_record(layout: Layout, database: str, hour: Hour) -> Verified:
    """Say what a bundle without a record means."""
    return Verified(
        database,
        f"bundle {hour}",
        f"the bundle {layout.bundle(database, hour)} has no record, so it counts as not made",
        f"Run `pitr bundle {database} --hour {hour}`, which takes up from there.",
    )


def _manifest_is(problem: str, database: str = "") -> Verified:
    return Verified(database, "manifest", problem, "Run `pitr manifest rebuild`.")


def _checked(database: str, artifact: str, check: Callable[[], None]) -> Verified:
    try:
        check()
    except ArtifactDamaged as error:
        return Verified(database, artifact, error.what, error.remedy)
    except OSError as error:
        return Verified(
            database,
            artifact,
            f"{error.filename or artifact} cannot be read: {error.strerror}",
            "Check the volume and the rights of the file, then verify again.",
        )
    return Verified(database, artifact, None)


def _check_raw(file: archive.ArchivedFile, inventory: Inventory) -> None:
    try:
        header = archive.read_header(file.path)
    except FileNotFoundError:
        return  # bundled and pruned since it was listed
    archive.check_segment(header, file.path, file.size_bytes)
    if inventory.bases and header.system_identifier != inventory.bases[-1].system_identifier:
        raise ArtifactDamaged(
            f"the archived segment {file.path} is of another cluster ({header.system_identifier})",
            remedy="Find out which server wrote it and give that server an archive of its own.",
        )
