"""The WAL that a base backup carries, and without which it can never become consistent.

PostgreSQL's manifest lists no WAL, so this reads every record of the range that the manifest gives,
as pg_verifybackup does: with pg_waldump of the server's own major version.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path

from pitr_pipelines.catalog.records import BaseRecord
from pitr_pipelines.postgres.backup_manifest import WalRange
from pitr_pipelines.postgres.base_contents import check_files, damaged, read_base
from pitr_pipelines.postgres.binaries import Binaries
from pitr_pipelines.progress import Report, silent


def verify_base_contents(
    directory: Path, record: BaseRecord, binaries: Binaries, *, progress: Report = silent
) -> None:
    """Check a base backup to the bottom: its record, PostgreSQL's manifest, and its WAL.

    `binaries` are of the server's major version. Takes temporary space for the WAL in the base.
    Raises ArtifactDamaged, naming the file.
    """
    check_files(directory, record)
    with tempfile.TemporaryDirectory(prefix="pitr-wal-") as wal_directory:
        contents = read_base(directory, wal_directory=Path(wal_directory), progress=progress)
        for expected, found in zip(record.files, contents.files, strict=True):
            if expected != found:
                raise damaged(
                    directory / expected.name,
                    f"it should have SHA-256 {expected.sha256} and has {found.sha256}",
                )
        for wal_range in contents.manifest.wal_ranges:
            check_wal(directory, Path(wal_directory), wal_range, binaries)


def check_wal(directory: Path, wal_directory: Path, wal_range: WalRange, binaries: Binaries) -> None:
    """Check that the WAL files in `wal_directory` hold every record of the range, unbroken.

    They come from the base backup in `directory`, which the error names. Raises ArtifactDamaged.
    """
    argv = [
        str(binaries.program("pg_waldump")),
        "--quiet",
        f"--path={wal_directory}",
        f"--timeline={wal_range.timeline}",
        f"--start={wal_range.start}",
        f"--end={wal_range.end}",
    ]
    done = subprocess.run(
        argv,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
        env={**os.environ, "LC_ALL": "C"},
    )
    if done.returncode != 0:
        path = next(directory.glob("pg_wal.tar*"))
        raise damaged(
            path,
            f"its WAL from {wal_range.start} to {wal_range.end} on timeline {wal_range.timeline} cannot be "
            f"read: {done.stderr.strip() or done.stdout.strip()}",
        )
