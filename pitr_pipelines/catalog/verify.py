"""Re-reading every artifact against its record, byte for byte.

A base's files are compared by SHA-256; every member of every bundle is unpacked and compared; raw
segments are checked by header and size; the chain is followed from each base; and the manifest is
compared with what the records say. Nothing is changed, and one finding does not stop the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from pitr_pipelines.catalog import manifest
from pitr_pipelines.catalog.inventory import Inventory, RecordCache, take_inventory
from pitr_pipelines.catalog.layout import Layout
from pitr_pipelines.catalog.records import BundleRecord, read_record
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
    for base in inventory.bases:
        yield _checked(
            database, f"base {base.day}", partial(verify_base, layout.base(database, base.day), base)
        )
    for entry in inventory.bundles:
        yield _checked(database, f"bundle {entry.hour}", partial(_check_bundle, layout, database, entry.hour))
    yield from _without_record(layout, database)
    for file in inventory.raw:
        if file.kind is WalFileKind.SEGMENT:
            yield _checked(database, f"segment {file.name}", partial(_check_raw, file, inventory))
    yield from _gaps(inventory)


def verify_manifest(settings: Settings) -> Verified:
    """Compare the manifest with what the records say."""
    layout = Layout(settings.backup_root)
    remedy = "Run `pitr manifest rebuild`."
    try:
        held = manifest.read_manifest(layout)
    except FileNotFoundError:
        return Verified("", "manifest", f"{layout.manifest} is missing", remedy)
    except ArtifactDamaged as error:
        return Verified("", "manifest", error.what, remedy)
    for name in settings.databases:
        true = manifest.describe(take_inventory(layout, name, RecordCache())[0])
        if held.databases.get(name) != true:
            return Verified("", "manifest", f"{layout.manifest} differs from the records of {name}", remedy)
    return Verified("", "manifest", None)


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


def _without_record(layout: Layout, database: str) -> Iterator[Verified]:
    """Name the bundles that count for nothing, because an interrupted bundling left no record."""
    for bundle in sorted(layout.bundles(database).glob("[0-9]*.tar.gz")):
        hour = bundle.name.removesuffix(".tar.gz")
        if not bundle.with_name(f"{hour}.json").exists():
            yield Verified(
                database,
                f"bundle {hour}",
                f"the bundle {bundle} has no record, so it counts as not made",
                f"Run `pitr bundle {database} --hour {hour}`, which takes up from there.",
            )


def _check_bundle(layout: Layout, database: str, hour: Hour) -> None:
    record = read_record(layout.bundle_record(database, hour), BundleRecord)
    bundle_file.verify_members(layout.bundle(database, hour), record)


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


def _gaps(inventory: Inventory) -> Iterator[Verified]:
    for gap in inventory.windows()[1]:
        span = str(gap.first) if gap.first == gap.last else f"{gap.first} to {gap.last}"
        yield Verified(
            inventory.database,
            "WAL",
            f"WAL is missing: {span} of {inventory.database} is neither in the archive nor in a bundle",
            "If the server or a copy still has these segments, put them into the archive; otherwise "
            f"`pitr backup --replace {inventory.database}` makes later moments restorable again.",
        )
