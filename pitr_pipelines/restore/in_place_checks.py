"""Whether a data directory may be replaced: found out before anything is touched, and changing nothing.

The promise: it is the data directory of the cluster that the backups are of, no server runs in it as
far as this machine can tell, and it can be given another name by us. What cannot be told (a server in
a container of another machine, a control file that is destroyed) is refused or said, never assumed.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from pitr_pipelines.catalog.records import BaseRecord
from pitr_pipelines.errors import PitrError
from pitr_pipelines.postgres.account import run, server_account
from pitr_pipelines.postgres.binaries import find_binaries
from pitr_pipelines.restore.in_place_configuration import unreadable
from pitr_pipelines.settings import Settings

UNTOUCHED = "Nothing was touched."

_MOUNTS = Path("/proc/self/mountinfo")
_OCTAL = re.compile(r"\\([0-7]{3})")
_PARTS = ("base", "global", "pg_wal", "pg_xact")
_SIGNALS = ("standby.signal", "recovery.signal")


class InPlaceRefused(PitrError):
    """A data directory cannot or must not be replaced. Nothing was touched."""

    exit_code = 7


@dataclass(frozen=True, slots=True)
class Original:
    """A data directory that may be replaced; `control` is what pg_controldata says, if it can be read."""

    path: Path
    inode: int
    uid: int
    gid: int
    mode: int
    control: Mapping[str, str] | None = None
    notes: tuple[str, ...] = ()

    @property
    def pg_wal(self) -> Path:
        return self.path / "pg_wal"


def examine(settings: Settings, database: str, directory: Path) -> Original:
    """Check everything about the directory that the backups need not tell. Raises InPlaceRefused."""
    path = _resolved(directory)
    _check_backups(settings, path)
    _check_mounts(path, mount_points(_MOUNTS.read_text()) if _MOUNTS.exists() else ())
    _check_answer(settings, database)
    check_stopped(path)
    status = path.stat()
    notes = []
    if path != directory.absolute():
        notes.append(f"{directory} leads to {path}: that is what is replaced")
    owner = (status.st_uid, status.st_gid)
    if status.st_uid == 0:  # somebody created it anew; no server runs as root
        account = server_account(settings.run_as)
        owner = (account.uid, account.gid)
    original = Original(path, status.st_ino, *owner, stat.S_IMODE(status.st_mode), notes=tuple(notes))
    _check_rights(original)
    for name in _SIGNALS:
        if (path / name).exists():
            raise InPlaceRefused(
                f"{path} holds a {name}: it belongs to a standby, or to a recovery that is not over",
                remedy="Restore in place of the primary, and make its standbys anew. If this one is to "
                f"become the primary, remove {name} first. {UNTOUCHED}",
            )
    return original


def check_identity(settings: Settings, original: Original, base: BaseRecord, database: str) -> Original:
    """Check that the directory is of the cluster that `base` is of; return it with what it tells.

    Raises InPlaceRefused if it is another's, or no data directory at all.
    """
    path = original.path
    version = _read(path / "PG_VERSION")
    if version is not None and version != str(base.major):
        raise InPlaceRefused(
            f"{path} is a data directory of PostgreSQL {version}, and the base backup of {base.day} is of "
            f"PostgreSQL {base.major}",
            remedy=f"Is it {database}'s? A cluster that was upgraded since cannot be put back in place: "
            f"restore it beside (--to). {UNTOUCHED}",
        )
    found = [name for name in _PARTS if (path / name).is_dir()]
    control = _control_data(settings, path, base.major) if version is not None else None
    if control is not None:
        identifier = control.get("Database system identifier")
        if identifier != base.system_identifier:
            raise InPlaceRefused(
                f"{path} is the data directory of the cluster {identifier}, and the backups of {database} "
                f"are of {base.system_identifier}",
                remedy=f"Name {database}'s own data directory. {UNTOUCHED}",
            )
        return replace(original, control=control)
    if version is not None or len(found) > 1:
        doubt = "its control file cannot be read, so nothing in it tells whether it is " + database + "'s"
    elif not any(path.iterdir()):
        doubt = f"it is empty, so nothing in it tells whether it is {database}'s"
    else:
        raise InPlaceRefused(
            f"{path} is not a PostgreSQL data directory",
            remedy=f"Name {database}'s data directory (SHOW data_directory told it while the server ran). "
            f"{UNTOUCHED}",
        )
    return replace(original, notes=(*original.notes, f"{doubt}: it is replaced on your word"))


def check_stopped(path: Path) -> None:
    """Raise InPlaceRefused if a server runs in the directory, or may run there unseen."""
    running = server_in(path)
    if running is not None:
        raise InPlaceRefused(
            f"a server runs in {path} (process {running})",
            remedy="Stop it first, the way it is always stopped, and keep whatever starts it again "
            f"(systemd, a container's restart policy, Patroni) from doing so. {UNTOUCHED}",
        )
    lock = path / "postmaster.pid"
    if os.path.lexists(lock):
        raise InPlaceRefused(
            f"{lock} says that a server runs there, and this machine sees none: it was killed or lost power, "
            "or it runs in a container or on a machine that cannot be seen from here",
            remedy="Start it and stop it cleanly. If it does not start, and you are sure that no server uses "
            f"this directory from anywhere, remove {lock} and ask again. {UNTOUCHED}",
        )


def server_in(path: Path) -> int | None:
    """Return the number of a PostgreSQL process that works in the directory, or None.

    Unlike the number in postmaster.pid, this also finds what is left of a server whose main process
    was killed, and one in a container of this machine, where its number is another.
    """
    try:
        wanted = path.stat()
    except FileNotFoundError:
        return None
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            here = (process / "cwd").stat()
            if (here.st_dev, here.st_ino) == (wanted.st_dev, wanted.st_ino) and "postgres" in (
                process / "comm"
            ).read_text():
                return int(process.name)
    return None


def mount_points(mountinfo: str) -> list[Path]:
    """Return where file systems are mounted, from the text of /proc/self/mountinfo (man 5 proc)."""
    fields = (line.split(" ") for line in mountinfo.splitlines())
    return [
        Path(_OCTAL.sub(lambda found: chr(int(found[1], 8)), field[4])) for field in fields if len(field) > 4
    ]


def _resolved(directory: Path) -> Path:
    try:
        path = directory.resolve(strict=True)
    except FileNotFoundError:
        raise InPlaceRefused(
            f"{directory} does not exist",
            remedy="Name the data directory that is to be replaced. If it is lost, create it empty, with the "
            f"owner and mode that it had, and ask again. {UNTOUCHED}",
        ) from None
    if not path.is_dir():
        raise InPlaceRefused(
            f"{directory} is not a directory",
            remedy=f"Name the data directory that is to be replaced. {UNTOUCHED}",
        )
    return path


def _check_backups(settings: Settings, path: Path) -> None:
    root = settings.backup_root.resolve()
    if path == root or root in path.parents or path in root.parents:
        raise InPlaceRefused(
            f"{path} and the backups ({root}) lie one within the other",
            remedy="Restore into a new directory elsewhere (--to), and move the backups out of the data "
            f"directory. {UNTOUCHED}",
        )


def _check_mounts(path: Path, mounts: Iterable[Path]) -> None:
    inside = sorted(mount for mount in mounts if mount == path or path in mount.parents)
    if path in inside or path.parent == path:
        raise InPlaceRefused(
            f"{path} is a mount point, so it cannot be moved aside",
            remedy="Run this where it is an ordinary directory: a container's volume is one on its host "
            "(`docker volume inspect` shows where), with the container stopped. Or restore beside it (--to) "
            f"and let the server use that. {UNTOUCHED}",
        )
    if inside:
        raise InPlaceRefused(
            f"another file system is mounted within {path}, at {inside[0]}: it would go aside with the old "
            "data, and come back over the new at the next start of the machine",
            remedy=f"Restore beside it (--to), and mount {inside[0].name} there by hand. {UNTOUCHED}",
        )


def _check_answer(settings: Settings, database: str) -> None:
    """Ask at the configured address: that finds a server in any container and on any machine."""
    # Slow to import, and only needed here.
    from pitr_pipelines.postgres.connection import address_of, connect, parameters_of

    entry = settings.database(database)
    try:
        connect(database, entry).close()
    except PitrError:
        return
    raise InPlaceRefused(
        f"{database} answers at {address_of(parameters_of(database, entry))}, so it is not stopped",
        remedy="Stop it first, the way it is always stopped, and keep whatever starts it again (systemd, a "
        "container's restart policy, Patroni) from doing so. If a restored copy answers there, stop that. "
        + UNTOUCHED,
    )


def _check_rights(original: Original) -> None:
    path, parent = original.path, original.path.parent
    us = os.geteuid()
    if us not in (0, original.uid):
        raise InPlaceRefused(
            f"{path} belongs to another user (uid {original.uid})",
            remedy=f"Run this as that user, or as root. {UNTOUCHED}",
        )
    if not os.access(parent, os.W_OK | os.X_OK):
        raise InPlaceRefused(
            f"{path} cannot be moved aside: this user cannot write in {parent}",
            remedy=f"Run this as root, or let this user write there. {UNTOUCHED}",
        )
    blocked = unreadable(path)
    if blocked is not None:
        raise InPlaceRefused(
            f"{blocked} is part of the configuration and cannot be read by this user",
            remedy=f"Run this as root, or let this user read it. {UNTOUCHED}",
        )


def _control_data(settings: Settings, path: Path, major: int) -> Mapping[str, str] | None:
    """Return what pg_controldata says, or None if the control file is damaged, absent or unreadable."""
    account = server_account(settings.run_as)
    if account.switch:
        # Whoever owns it, root may read it, and pg_controldata only reads.
        account = replace(account, switch=False)
    program = find_binaries(major, settings.binaries).program("pg_controldata")
    done = run(account, [program, "-D", path])
    # It prints what it finds in a damaged file too, and warns on standard error.
    if done.returncode != 0 or "warning" in done.stderr.lower():
        return None
    return dict(_labels(done.stdout))


def _labels(text: str) -> Iterator[tuple[str, str]]:
    for line in text.splitlines():
        label, colon, value = line.partition(":")
        if colon:
            yield label, value.strip()


def _read(file: Path) -> str | None:
    try:
        return file.read_text(errors="replace").strip()
    except OSError:
        return None
