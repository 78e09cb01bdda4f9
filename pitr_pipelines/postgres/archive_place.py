"""The WAL archive's directory and script on this machine, made ready for the server that writes there.

Never takes over the archive of another cluster, and never removes a file. Directories are only
opened as far as the server needs: others may pass through them, not list them.
"""

from __future__ import annotations

import os
import shlex
import stat
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from pitr_pipelines import durable
from pitr_pipelines.catalog.layout import Layout
from pitr_pipelines.catalog.rights import (
    ALPINE_UID,
    DEBIAN_UID,
    archiving_trouble,
    reading_trouble,
    server_on_this_machine,
    show_uid,
)
from pitr_pipelines.catalog.rights import ARCHIVE_MODE as SHARED_MODE
from pitr_pipelines.errors import ServerNotReady
from pitr_pipelines.postgres.account import Account, run
from pitr_pipelines.postgres.prepare_plan import State, Step
from pitr_pipelines.wal.archive import open_file, read_identity
from pitr_pipelines.wal.lsn import WalFileKind, classify

IDENTITY_FILE = "system_identifier"
"""In the archive: which cluster it belongs to, in decimal. wal-archive.sh reads it."""

ARCHIVE_MODE = 0o750
"""Of an archive that we make while nobody else has to read it."""
_SCRIPT = ("pitr_pipelines.wal", "wal-archive.sh")
_SCRIPT_MODE = 0o755


@dataclass(frozen=True, slots=True)
class ServerOwner:
    """The system user a server on this machine runs as."""

    uid: int
    gid: int

    @property
    def name(self) -> str:
        return show_uid(self.uid)


@dataclass(frozen=True, slots=True)
class LocalStep:
    """A step on this machine, and what it does; None when there is nothing to do."""

    step: Step
    act: Callable[[], None] | None = None


def script_text() -> bytes:
    """Return wal-archive.sh as this package has it."""
    package, name = _SCRIPT
    return resources.files(package).joinpath(name).read_bytes()


def owner_on_this_machine(data_directory: str, system_identifier: str) -> ServerOwner | None:
    """Return whom the server runs as, or None if its data directory is not on this machine."""
    directory = Path(data_directory)
    try:
        status = directory.stat()
        with (directory / "global" / "pg_control").open("rb") as file:
            found = int.from_bytes(file.read(8), "little")
    except FileNotFoundError:
        return None
    except PermissionError:  # somebody else's, as it should be; then the path has to be proof enough
        return ServerOwner(status.st_uid, status.st_gid) if directory.is_dir() else None
    return ServerOwner(status.st_uid, status.st_gid) if str(found) == system_identifier else None


def archive_owner(archive: Path) -> str | None:
    """Return the system identifier of the cluster that an archive belongs to, None while it has none.

    It is in the identity file, else in the header of the WAL that is there (XLogLongPageHeaderData:
    eight bytes at 24). Raises OSError if it cannot be read, ArtifactDamaged if it is no file.
    """
    try:
        return read_identity(archive)
    except FileNotFoundError:
        pass
    if archive.is_dir():
        for path in sorted(archive.iterdir()):
            if classify(path.name) is WalFileKind.SEGMENT:
                with open_file(path) as file:
                    return str(int.from_bytes(file.read(32)[24:], "little"))
    return None


def name_taken(archive: Path, failed: str) -> str | None:
    """Say what it means that the archive has a file that the server cannot archive; None if it has not.

    wal-archive.sh takes the same content twice, so the one that is there is another server's.
    """
    if not os.path.exists(archive / failed):  # noqa: PTH110 - false, and no error, where we may not look
        return None
    return (
        f"{archive / failed} is there already, with other content: a copy of this server with the same "
        "system identifier was promoted or started elsewhere, and has archived here. Nothing is lost while "
        "the server keeps its WAL: stop the copy, then move its files out of the archive (docs/timelines.md "
        "says which)."
    )


def archive_steps(
    database: str,
    layout: Layout,
    *,
    system_identifier: str,
    owner: ServerOwner | None,
    server_archive: str,
    install_script: bool,
) -> list[LocalStep]:
    """Return what has to be done here so that the server can archive, and change nothing yet.

    `server_archive` is the archive's path as the server sees it. Raises ServerNotReady if the archive
    belongs to another cluster.
    """
    archive = layout.wal(database)
    belongs_to = _checked_owner(archive, database, system_identifier)
    directories = [layout.root, archive.parent, *([layout.archive_script.parent] if install_script else [])]
    steps = [_directory_step(archive, owner)]
    if owner is not None and owner.uid != os.geteuid():
        steps += [step for directory in directories if (step := _passable_step(directory))]
    steps.append(_identity_step(archive, system_identifier, belongs_to))
    if install_script:
        steps.append(_script_step(layout.archive_script))
    shared = _sharing_step(archive, owner, server_archive)
    return [*steps, LocalStep(shared)] if shared is not None else steps


def unreachable_by(owner: ServerOwner, archive: Path, script: Path) -> str | None:
    """Return what keeps the server's user from archiving, or None. Only root can find out."""
    if os.geteuid() != 0 or owner.uid == 0:
        return None
    account = Account(owner.uid, owner.gid, owner.name, switch=True)
    for test, path, right in (("-w", archive, "write to"), ("-x", script, "execute")):
        if run(account, ["/bin/sh", "-c", 'test "$1" "$2"', "sh", test, path]).returncode != 0:
            return f"{owner.name}, whom the server runs as, cannot {right} {path}"
    return None


def _sharing_step(archive: Path, owner: ServerOwner | None, server_archive: str) -> Step | None:
    """Return how to let another user's server write to the archive and us read there, if it needs a hand."""
    if owner is not None and os.geteuid() in (0, owner.uid):
        return None
    there = archive.is_dir()
    if owner is None:
        whom, uid = "the server is not on this machine", DEBIAN_UID
        # Either the directory is the server's user's, or its group is one that he is in, too.
        shared = there and bool(archive.stat().st_mode & stat.S_ISGID) and archive.stat().st_mode & 0o020
        done = there and reading_trouble(archive) is None
        done = done and bool(shared or archive.stat().st_uid != os.geteuid())
        more = f" (Debian's images run as uid {DEBIAN_UID}, Alpine's as {ALPINE_UID}); for it, that is "
        more += f"{server_archive}. Or let its user be in group {os.getegid()}"
    else:
        whom, uid, more = f"the server runs as {owner.name}", owner.uid, ""
        server = server_on_this_machine(owner.uid, owner.gid)
        done = there and archiving_trouble(archive, None, server) is None and reading_trouble(archive) is None
    if done:
        return Step(f"{whom}; {archive} belongs to {show_uid(archive.stat().st_uid)}", State.ALREADY)
    path = shlex.quote(str(archive))
    return Step(
        f"{whom}: as root, run chown {uid}:{os.getegid()} {path} && chmod {SHARED_MODE:o} {path}{more}",
        State.BY_HAND,
    )


def _checked_owner(archive: Path, database: str, system_identifier: str) -> str | None:
    try:
        belongs_to = archive_owner(archive)
    except OSError as error:
        raise ServerNotReady(
            f"cannot read the WAL archive {archive} of {database}: {error.strerror}",
            remedy="Let the user this runs as read that directory, or run this as root.",
        ) from None
    if belongs_to not in (None, system_identifier):
        raise ServerNotReady(
            f"the WAL archive {archive} belongs to the cluster with system identifier {belongs_to}, but "
            f"{database} is {system_identifier}; nothing was changed",
            remedy="A restored, re-created or upgraded cluster is another cluster, or the dsn leads to "
            "the wrong server. Correct the dsn, give the new cluster a new name in the settings, or "
            "move the old archive and its bundles and bases away.",
        )
    return belongs_to


def _directory_step(archive: Path, owner: ServerOwner | None) -> LocalStep:
    may_give = os.geteuid() == 0 and owner is not None
    if archive.is_dir():
        status = archive.stat()
        if not may_give or owner is None or (status.st_uid == owner.uid and status.st_mode & 0o700 == 0o700):
            return LocalStep(Step(f"directory {archive}", State.ALREADY))

    def act() -> None:
        made = not archive.is_dir()
        durable.make_directory(archive)
        # Somebody who shares it with a group has said so with this bit, which chown may clear.
        shared = not made and bool(archive.stat().st_mode & stat.S_ISGID)
        if may_give and owner is not None:
            os.chown(archive, owner.uid, -1 if shared else owner.gid)
        if made or may_give:
            archive.chmod(SHARED_MODE if shared else ARCHIVE_MODE)

    whose = f" of {owner.name}" if may_give and owner is not None else ""
    return LocalStep(Step(f"directory {archive}{whose}", State.TO_DO), act)


def _passable_step(directory: Path) -> LocalStep | None:
    """Let the server's user pass through a directory of ours; whoever owns others must do so himself."""
    if directory.is_dir():
        status = directory.stat()
        if status.st_mode & 0o001 or status.st_uid != os.geteuid():
            return None
    return LocalStep(
        Step(f"others may pass through {directory}", State.TO_DO),
        lambda: durable.make_directory(directory).chmod(directory.stat().st_mode & 0o7777 | 0o011),
    )


def _identity_step(archive: Path, system_identifier: str, belongs_to: str | None) -> LocalStep:
    file = archive / IDENTITY_FILE
    what = f"{file} says {system_identifier}"
    if belongs_to is not None and file.exists():
        return LocalStep(Step(what, State.ALREADY))
    # The server's user must be able to read it; the directory decides who else can.
    return LocalStep(
        Step(what, State.TO_DO), lambda: durable.write_whole(file, f"{system_identifier}\n", mode=0o644)
    )


def _script_step(script: Path) -> LocalStep:
    content = script_text()
    what = f"archive script {script}"
    if script.is_file() and script.read_bytes() == content and script.stat().st_mode & 0o777 == _SCRIPT_MODE:
        return LocalStep(Step(what, State.ALREADY))

    def act() -> None:
        durable.make_directory(script.parent)
        durable.write_whole(script, content, mode=_SCRIPT_MODE)

    return LocalStep(Step(what, State.TO_DO), act)
