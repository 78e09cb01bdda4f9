"""A bundle file without a record: what a crash between the two leaves behind.

Its hour counts as not bundled, but the file may hold the only copy of WAL whose raw files were
pruned. So its members go back into the archive, from where the hour is bundled again.
"""

from __future__ import annotations

import gzip
import os
import tarfile
from pathlib import Path

from isal import igzip

from pitr_pipelines import durable
from pitr_pipelines.catalog.layout import Layout
from pitr_pipelines.errors import ArtifactDamaged
from pitr_pipelines.wal.bundle_file import UNPACKING_ERRORS, is_whole
from pitr_pipelines.wal.hours import Hour
from pitr_pipelines.wal.lsn import classify

_UNREADABLE: tuple[type[Exception], ...] = (tarfile.TarError, gzip.BadGzipFile, *UNPACKING_ERRORS)


def return_to_archive(layout: Layout, database: str, hour: Hour) -> int:
    """Put the members of an hour's recordless bundle back into the archive; return how many.

    Files that the archive has are left alone. The caller holds the database's bundle lock. Raises
    ArtifactDamaged if the file cannot be read to its end.
    """
    bundle = layout.bundle(database, hour)
    if layout.bundle_record(database, hour).exists() or not bundle.exists():
        return 0
    wal = durable.make_directory(layout.wal(database))
    for leftover in wal.glob(".[0-9A-F]*.tmp"):  # of a process that was killed here
        leftover.unlink(missing_ok=True)
    returned = 0
    try:
        if not is_whole(bundle):
            raise EOFError("it is cut off")
        with (
            igzip.open(bundle, "rb") as unpacked,  # type: ignore[no-untyped-call]
            tarfile.open(fileobj=unpacked, mode="r|") as tar,
        ):
            for entry in tar:
                target = wal / entry.name
                if classify(entry.name) is None or not entry.isreg() or target.exists():
                    continue
                content = tar.extractfile(entry)
                assert content is not None
                _put(target, content.read(), _mtime_ns(entry))
                returned += 1
    except _UNREADABLE as error:
        raise ArtifactDamaged(
            f"the bundle {bundle} has no record and cannot be read: {error}",
            remedy="If the raw segments of this hour are still in the WAL archive, remove this file and "
            "bundle the hour again; otherwise put back a good copy of the bundle with its record.",
        ) from None
    return returned


def _mtime_ns(entry: tarfile.TarInfo) -> int:
    seconds, _, fraction = str(entry.pax_headers.get("mtime", entry.mtime)).partition(".")
    return int(seconds) * 1_000_000_000 + int(fraction[:9].ljust(9, "0"))


def _put(target: Path, content: bytes, mtime_ns: int) -> None:
    # The server's user owns the directory: created exclusively, the file is no link that was put there.
    temporary = durable.temporary_name(target)
    temporary.unlink(missing_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    try:
        with open(os.open(temporary, flags, durable.FILE_MODE), "wb") as file:
            file.write(content)
            file.flush()
            os.utime(file.fileno(), ns=(mtime_ns, mtime_ns))
            os.fsync(file.fileno())
        durable.replace_durably(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
