"""Who can write and read what below `backup_root`, and the commands that mend it when somebody cannot.

The archive is written by the servers' user and read by ours; in containers these are numbers that
often have no name, and the same number has another name elsewhere: so numbers are shown, and commands
use them. Looks only. What the kernel says of us (access(2)) counts; of the server's user it is
worked out from owner, group and mode, and not said where an access control list has the last word.
"""

from __future__ import annotations

import grp
import os
import pwd
import shlex
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pitr_pipelines.catalog.layout import Layout
from pitr_pipelines.settings import DatabaseSettings
from pitr_pipelines.wal.lsn import classify

ARCHIVE_MODE = 0o2770
"""Of an archive that another user writes than reads: set-gid hands new files to our group, which must be
able to remove what is bundled."""
DEBIAN_UID, ALPINE_UID = 999, 70
"""Whom the servers of the official images run as; the group has the same number."""
_IDENTITY_FILE = "system_identifier"
_AS_ROOT = "As root, where that volume is mounted"
_READ, _WRITE, _PASS = 4, 2, 1


@dataclass(frozen=True, slots=True)
class User:
    """Whom a process runs as. `groups` has the primary one, `gid`, too."""

    uid: int
    gid: int
    groups: frozenset[int] = frozenset()

    def may(self, status: os.stat_result, bits: int) -> bool:
        """Tell whether owner, group and mode allow all of `bits` (4 read, 2 write, 1 execute or pass)."""
        if self.uid == 0:
            return True
        shift = 6 if status.st_uid == self.uid else 3 if status.st_gid in {self.gid, *self.groups} else 0
        return status.st_mode >> shift & bits == bits

    def __str__(self) -> str:
        return f"{show_uid(self.uid)}, groups {', '.join(map(str, sorted({self.gid, *self.groups})))}"


@dataclass(frozen=True, slots=True)
class ServerUser:
    """Whom a server runs as. `certain`: it was seen, and not concluded from the server's version."""

    user: User
    certain: bool
    here: bool = False
    """Its data directory is on this machine, so that it sees the paths that we see."""


@dataclass(frozen=True, slots=True)
class Trouble:
    """What somebody cannot do, and the commands that mend it."""

    what: str
    remedy: str


def ourselves() -> User:
    """Return whom this process runs as."""
    return User(os.geteuid(), os.getegid(), frozenset(os.getgroups()))


def show_uid(uid: int) -> str:
    """Return a user's number and, if he has one here, his name: `uid 999 (postgres)`."""
    try:
        return f"uid {uid} ({pwd.getpwuid(uid).pw_name})"
    except KeyError:
        return f"uid {uid}"


def server_on_this_machine(uid: int, gid: int) -> ServerUser:
    """Return the user of a server whose data directory was seen here, with all groups that he has here."""
    try:
        groups = os.getgrouplist(pwd.getpwuid(uid).pw_name, gid)
    except KeyError:
        groups = [gid]
    return ServerUser(User(uid, gid, frozenset(groups)), certain=True, here=True)


def server_elsewhere(archive: Path, last_archived: str | None, version: str) -> ServerUser:
    """Return whom a server runs as that is not on this machine.

    Who wrote what it archived last is known; before that, its `version()` tells the image's family.
    """
    if last_archived is not None:
        try:
            status = (archive / last_archived).stat()
            return ServerUser(User(status.st_uid, status.st_gid), certain=True)
        except OSError:
            pass  # bundled and removed, or it never came here: then it is the version that tells
    uid = ALPINE_UID if "musl" in version or "Alpine" in version else DEBIAN_UID
    return ServerUser(User(uid, uid), certain=False)


def script_here(layout: Layout, database: DatabaseSettings) -> Path | None:
    """Return the wal-archive.sh that the server runs, if it is our own copy; others we do not see."""
    return layout.archive_script if database.archive_script is None else None


def archiving_trouble(archive: Path, script: Path | None, server: ServerUser) -> Trouble | None:
    """Return what keeps the server's user from archiving, as far as it can be told from here.

    `script` is the copy of wal-archive.sh that the server runs, if it is one that we see.
    """
    whose = "whom the server runs as" if server.certain else "whom servers of the official images run as"
    who = f"{show_uid(server.user.uid)}, {whose},"
    try:
        status = archive.stat()
        if not _has_acl(archive) and not server.user.may(status, _WRITE | _PASS):
            return Trouble(
                f"{who} cannot write to {archive}, which {_belongs(status)}",
                _mend_archive(archive, status, owner=server.user.uid)
                + (
                    ""
                    if server.certain
                    else f" (Debian's images run as {DEBIAN_UID}, Alpine's as {ALPINE_UID}; `id postgres` in "
                    "the server's container says it.)"
                ),
            )
        if script is not None and not _has_acl(script):
            status = script.stat()
            if not server.user.may(status, _READ | _PASS):
                return Trouble(
                    f"{who} cannot execute {script}, which {_belongs(status)}",
                    f"chmod 755 {shlex.quote(str(script))}",
                )
        if server.here:
            for path in (archive, script):
                for above in path.parents if path is not None else ():
                    if not _has_acl(above) and not server.user.may(above.stat(), _PASS):
                        return Trouble(
                            f"{who} cannot pass through {above}, which {_belongs(above.stat())}",
                            f"chmod o+x {shlex.quote(str(above))}, or let that user's group pass.",
                        )
    except OSError:
        return None  # what we cannot look at is told by `reading_trouble`
    return None


def reading_trouble(archive: Path, server: ServerUser | None = None) -> Trouble | None:
    """Return what keeps us from reading the archive, or from removing there what is bundled."""
    us = ourselves()
    try:
        status = archive.stat()
    except FileNotFoundError:
        return None
    except PermissionError as error:
        return _shut(error, us)
    mend = _mend_archive(archive, status)
    if not os.access(archive, os.R_OK | os.X_OK):
        return Trouble(f"we run as {us}, and cannot read {archive}, which {_belongs(status)}", mend)
    newest = None
    for file in _telling_files(archive):
        newest = file
        if not os.access(file, os.R_OK):
            return _unreadable_file(file, archive, status, us)
    if not os.access(archive, os.W_OK) or _keeps_others_files(status, us):
        if os.statvfs(archive).f_flag & os.ST_RDONLY:
            return Trouble(
                f"{archive} is mounted read-only for us, so WAL that is bundled cannot be removed from it",
                "Mount it writable: until then it grows without end.",
            )
        return Trouble(
            f"we run as {us}, and cannot remove WAL that is bundled from {archive}, which {_belongs(status)}",
            mend,
        )
    if _loses_group(status, us, newest, server):
        return Trouble(
            f"{archive} has no set-gid bit: what the server writes there gets the server's own group, and "
            f"we, {us}, will not be able to read it",
            mend,
        )
    return None


def keeping_trouble(layout: Layout, database: str) -> Trouble | None:
    """Return which of the directories and locks that we make backups in we cannot write to."""
    if not os.path.isdir(layout.root):  # noqa: PTH112 - false, and no error, where we may not even look
        return None
    us = ourselves()
    bad: dict[Path, os.stat_result] = {}
    read_only = False
    for place in _our_places(layout, database):
        there = place
        try:
            while not there.exists():
                there = there.parent
        except PermissionError as error:
            return _shut(error, us)
        if not os.access(there, os.R_OK | os.W_OK | (os.X_OK if there.is_dir() else 0)):
            bad[there] = there.stat()
            read_only |= bool(os.statvfs(there).f_flag & os.ST_RDONLY)
    if not bad:
        return None
    shown = "; ".join(f"{path} {_belongs(status)}" for path, status in bad.items())
    if read_only:
        return Trouble(
            f"below {layout.root}, this is mounted read-only for us: {', '.join(map(str, bad))}",
            "Mount backup_root writable where backups are made.",
        )
    return Trouble(
        f"we run as {us}, and cannot write to: {shown}",
        f"{_AS_ROOT}: {_mend_ours(layout.root, bad, us)}",
    )


def forgeable_script(script: Path) -> Trouble | None:
    """Return who besides the owner could change the script that servers execute."""
    for path in (script, script.parent):
        try:
            status = path.stat()
        except OSError:
            return None
        if status.st_mode & 0o022:
            who = "everybody" if status.st_mode & 0o002 else f"gid {status.st_gid}"
            return Trouble(
                f"{who} can change {path}, which {_belongs(status)}: servers execute wal-archive.sh as "
                "their own user",
                f"chmod go-w {shlex.quote(str(path))}; then compare the script with the one of this package: "
                "`pitr init-db` puts it back.",
            )
    return None


def _our_places(layout: Layout, database: str) -> Iterator[Path]:
    yield layout.bases(database)
    yield layout.bundles(database)
    yield layout.drills(database)
    yield layout.retention_ran(database).parent
    yield layout.manifest.parent
    yield layout.ledger
    yield layout.alerts.parent
    yield from (layout.base_lock(database), layout.bundle_lock(database), layout.drill_lock(database))
    yield layout.manifest_lock


def _telling_files(archive: Path) -> list[Path]:
    """Return the files that tell for all: the identity, the oldest, the newest."""
    names = sorted(name for name in os.listdir(archive) if classify(name) is not None)  # noqa: PTH208
    identity = archive / _IDENTITY_FILE
    found = [identity] if identity.exists() else []
    return found + [archive / name for name in dict.fromkeys([*names[:1], *names[-1:]])]


def _unreadable_file(file: Path, archive: Path, directory: os.stat_result, us: User) -> Trouble:
    try:
        status = file.stat()
    except OSError as error:
        return Trouble(f"we run as {us}, and cannot look at {file}: {error.strerror}", str(us))
    why = ""
    if not status.st_mode & 0o040:
        why = "; wal-archive.sh makes files of mode 0640, so another program wrote it"
    elif status.st_gid not in {us.gid, *us.groups} and not directory.st_mode & stat.S_ISGID:
        why = "; its directory has no set-gid bit, so files get the group of who writes them"
    return Trouble(
        f"we run as {us}, and cannot read {file}, which {_belongs(status)}{why}",
        _mend_archive(archive, directory),
    )


def _keeps_others_files(status: os.stat_result, us: User) -> bool:
    return bool(status.st_mode & stat.S_ISVTX) and us.uid not in (0, status.st_uid)


def _loses_group(status: os.stat_result, us: User, newest: Path | None, server: ServerUser | None) -> bool:
    """Tell whether files that are still to come will be of a group that is not ours."""
    ours = {us.gid, *us.groups}
    if us.uid in (0, status.st_uid) or status.st_mode & stat.S_ISGID:
        return False
    if newest is not None:  # what came is what will come, whatever the file system's rule
        return newest.stat().st_gid not in ours
    return server is not None and not ours & {server.user.gid, *server.user.groups}


def _mend_archive(archive: Path, status: os.stat_result, *, owner: int | None = None) -> str:
    """Return the commands that give an archive to the server's user and our group."""
    us, path = ourselves(), shlex.quote(str(archive))
    group = status.st_gid if us.uid == 0 or status.st_gid in us.groups else us.gid
    if us.uid == 0 and owner is not None:
        group = owner  # root reads it anyhow
    whom = f"chown -R {owner}:{group} {path}" if owner is not None else f"chgrp -R {group} {path}"
    return (
        f"{_AS_ROOT}: {whom} && chmod {ARCHIVE_MODE:o} {path} && find {path} -type f -exec chmod ug+r {{}} +"
    )


def _mend_ours(root: Path, bad: Iterable[Path], us: User) -> str:
    """Return the commands that give us our directories; never with them the archives, which are not ours."""
    # Where a lock is foreign, what lies beside it may be, too.
    whole = {path if path.is_dir() else path.parent for path in bad}
    commands = []
    if root in whole:
        commands.append(f"chown {us.uid}:{us.gid} {_quoted([root])} && chmod u+rwx {_quoted([root])}")
        whole.discard(root)
    if whole:
        paths = _quoted(sorted(whole))
        commands.append(f"chown -R {us.uid}:{us.gid} {paths} && chmod -R u+rwX {paths}")
    return " && ".join(commands)


def _shut(error: PermissionError, us: User) -> Trouble:
    above = Path(str(error.filename)).parent
    while not os.access(above.parent, os.X_OK) and above.parent != above:
        above = above.parent
    return Trouble(
        f"we run as {us}, and cannot pass through {above}, which {_belongs(above.stat())}",
        f"{_AS_ROOT}: chgrp {us.gid} {shlex.quote(str(above))} && chmod g+rx {shlex.quote(str(above))}",
    )


def _belongs(status: os.stat_result) -> str:
    try:
        group = f"gid {status.st_gid} ({grp.getgrgid(status.st_gid).gr_name})"
    except KeyError:
        group = f"gid {status.st_gid}"
    return f"belongs to {show_uid(status.st_uid)}, {group}, mode {stat.S_IMODE(status.st_mode):04o}"


def _has_acl(path: Path) -> bool:
    try:
        return bool(os.getxattr(path, "system.posix_acl_access"))
    except OSError:
        return False


def _quoted(paths: Iterable[Path]) -> str:
    return " ".join(shlex.quote(str(path)) for path in dict.fromkeys(paths))
