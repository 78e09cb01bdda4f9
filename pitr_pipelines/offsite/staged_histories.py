"""Timeline histories of bundles whose files have not been fetched.

An inventory reads the histories that ride in bundles, and by them tells apart the WAL of two servers that
used the same timeline. A bundle's record says which history it holds, by SHA-256: so of all bundles that
hold the same one, one is enough, and none if the archive has it. What is found is remembered as an
inventory remembers it, so that it is read as if the bundles were there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator

from pitr_pipelines import durable
from pitr_pipelines.catalog.histories import BundledHistory, read_bundled_history
from pitr_pipelines.catalog.inventory import (
    BundleEntry,
    RecordCache,
    Remembered,
    read_bundle_record,
    write_cache,
)
from pitr_pipelines.catalog.layout import Layout
from pitr_pipelines.catalog.records import BundleMember, BundleRecord
from pitr_pipelines.wal import archive
from pitr_pipelines.wal.hours import Hour
from pitr_pipelines.wal.lsn import WalFileKind


def remember_histories(layout: Layout, database: str, provide: Callable[[Hour], None]) -> None:
    """Remember the histories of every bundle that is not there, for `read_inventory`.

    `provide` brings a bundle of which only the record is there; what it raises is raised.
    """
    known = {
        hashlib.sha256(content).hexdigest(): content.decode("utf-8", errors="replace")
        for place in layout.archives(database)
        for file in archive.scan_archive(place)
        if file.kind is WalFileKind.HISTORY
        for content in (archive.read_file(file.path),)
    }
    remembered = {}
    for record in _absent(layout, database):
        path = layout.bundle_record(database, record.hour)
        members = [member for member in record.members if member.kind is WalFileKind.HISTORY]
        for member in members:
            if member.sha256 not in known:
                provide(record.hour)
                bundle = layout.bundle(database, record.hour)
                known[member.sha256] = read_bundled_history(bundle, member).text or ""
        if members:
            status = path.stat()
            entry = BundleEntry.of(record, [_history(member, known) for member in members])
            remembered[path.name] = Remembered(
                size_bytes=status.st_size, mtime_ns=status.st_mtime_ns, entry=entry
            )
    durable.make_directory(layout.manifest.parent)
    write_cache(layout, database, RecordCache(bundles=remembered))


def _absent(layout: Layout, database: str) -> Iterator[BundleRecord]:
    """Yield the records of bundles that are not there, the newest first."""
    for path in sorted(layout.bundles(database).glob("[!.]*.json"), reverse=True):
        if not path.name.endswith(".seal.json") and not path.with_name(f"{path.stem}.tar.gz").exists():
            yield read_bundle_record(path)


def _history(member: BundleMember, known: dict[str, str]) -> BundledHistory:
    return BundledHistory(name=member.name, written_at=member.closed_at, text=known[member.sha256])
