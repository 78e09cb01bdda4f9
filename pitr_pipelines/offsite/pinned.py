"""Holding on to the files of an envelope while it is sent.

Artifacts are replaced and removed while the stream runs: the manifest whenever anything appears, an open
bundle when its hour closes, old ones by retention. All of that is done by rename or unlink, so a second
name (a hard link) keeps the content that was planned, at no cost in space. Without it, a day's only call
would be given up in the middle for a manifest that is a minute newer. Artifacts are never changed.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pitr_pipelines import durable
from pitr_pipelines.errors import ArtifactDamaged, StorageFailed
from pitr_pipelines.offsite.envelope import EnvelopePlan
from pitr_pipelines.offsite.envelope_index import Artifact, MemberKind

_LARGE = {MemberKind.BASE, MemberKind.BUNDLE}
"""Kinds that are too large to read twice; their records, which are pinned too, tell them from newer ones."""


class NotAsPlanned(ArtifactDamaged):
    """A file is not the one that was planned: it was replaced since, or is not what its record says."""

    def __init__(self, file: Artifact, path: Path) -> None:
        super().__init__(
            f"{path} is not the file that was planned for the envelope",
            remedy="If it was replaced just now, plan again: nothing was sent. If it stays so, "
            "`pitr verify` says what is wrong with it.",
        )
        self.file = file


@contextmanager
def pinned(plan: EnvelopePlan, root: Path, directory: Path) -> Iterator[Path]:
    """Give every file of a plan a second name below `directory`, for the length of the block.

    `directory` is made anew, on the file system of `root`; what a crash left there is removed first. Gives
    the root from which the envelope is to be streamed. Raises NotAsPlanned, before anything is sent, if
    a file is no longer the one that was planned; StorageFailed where there are no hard links.
    """
    shutil.rmtree(directory, ignore_errors=True)
    try:
        for entry in plan.index.members:
            _pin(entry.artifact, root, directory)
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _link(path: Path, name: Path, file: Artifact) -> None:
    try:
        os.link(path, name)
    except OSError as error:
        # A history file belongs to the server's user, and fs.protected_hardlinks keeps others off it; or
        # the WAL archive is a volume of its own. Such a file is small, and was read for its digest anyhow.
        elsewhere = isinstance(error, PermissionError) or error.errno == errno.EXDEV
        if file.kind in _LARGE or not elsewhere:
            raise
        name.write_bytes(path.read_bytes())


def _pin(file: Artifact, root: Path, directory: Path) -> None:
    path, name = root / file.path, directory / file.path
    name.parent.mkdir(mode=durable.DIRECTORY_MODE, parents=True, exist_ok=True)
    try:
        _link(path, name, file)
        same = name.stat().st_size == file.size_bytes
        if same and file.kind not in _LARGE:
            same = hashlib.sha256(name.read_bytes()).hexdigest() == file.sha256
    except FileNotFoundError:
        same = False
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK):
            raise
        raise StorageFailed(
            f"{path} cannot have a second name in {directory}: {error.strerror}",
            remedy="The backup root must be one file system with hard links, whose files belong to the user "
            "this runs as, or that he may write to (see fs.protected_hardlinks).",
        ) from None
    if not same:
        raise NotAsPlanned(file, path)
