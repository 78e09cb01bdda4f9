"""Fetching: the base backup becomes the data directory of the new cluster.

Every file is checked on the way. WAL comes later, from the feeder; only what recovery looks for in
pg_wal itself, and nowhere else, is put there. Nothing is synced here, and nothing in the backups is
changed.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from pitr_pipelines.postgres.base_contents import extract_base
from pitr_pipelines.progress import Report, silent
from pitr_pipelines.restore.destination import Destination
from pitr_pipelines.restore.segment_files import SegmentFiles, keep_what_was_left

_SCRIPT = Path(__file__).with_name("restore-wal.sh")


def fetch(files: SegmentFiles, destination: Destination, *, report: Report = silent) -> None:
    """Unpack the base of a plan, and put beside it the script through which recovery gets its WAL.

    Raises ArtifactDamaged, naming the file, and PitrError or OSError where it cannot be written.
    """
    plan = files.plan
    tablespaces = {
        tablespace.oid: destination.tablespace(tablespace.oid) for tablespace in plan.base.tablespaces
    }
    extract_base(
        files.layout.base(plan.database, plan.base.day),
        plan.base,
        destination.data_directory,
        tablespaces,
        files.account,
        progress=report,
    )
    keep_what_was_left(files, destination.data_directory / "pg_wal")
    put_script(destination)


def put_script(destination: Destination) -> None:
    """Put restore-wal.sh where the server can read it."""
    shutil.copyfile(_SCRIPT, destination.script)
    destination.script.chmod(0o644)
