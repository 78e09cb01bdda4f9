"""Reading what is to be sent once more before the day's only call is spent on it.

An artifact that is found damaged while it is sent costs the day, and the next day again. Read beforehand,
it is left out and named, and the rest goes.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pitr_pipelines.errors import ArtifactDamaged
from pitr_pipelines.offsite.envelope import EnvelopePlan
from pitr_pipelines.offsite.envelope_index import Artifact
from pitr_pipelines.offsite.envelope_stream import checked_pieces
from pitr_pipelines.progress import Progress, Report, silent


def find_unsound(plan: EnvelopePlan, root: Path, report: Report = silent) -> Iterator[tuple[Artifact, str]]:
    """Yield each file below `root` that is not as its record says, and what is wrong with it."""
    total = sum(entry.artifact.size_bytes for entry in plan.index.members)
    done = 0
    for entry in plan.index.members:
        file = entry.artifact
        try:
            for piece in checked_pieces(root, file):
                done += len(piece)
                report(Progress("check", done, total))
        except ArtifactDamaged as error:
            yield file, error.what
