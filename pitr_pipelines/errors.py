"""Errors that say what happened, to what, and what to do next.

One small tree. Every error carries a remedy, and an exit code by which a script can tell the
cases apart; neither ever contains a secret.
"""

from __future__ import annotations

import errno
import os
import pwd
from collections.abc import Sequence
from datetime import datetime


class PitrError(Exception):
    """Something this software refuses or could not do.

    `what` says what happened and to which file or database; `remedy` says what to do next.
    """

    exit_code = 1

    def __init__(self, what: str, *, remedy: str) -> None:
        super().__init__(what)
        self.what = what
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.what}\n{self.remedy}"


class SettingsError(PitrError):
    """pitr.yaml is missing, unreadable, or has a key that does not fit."""

    exit_code = 2


class BadRequest(PitrError):
    """What was asked for makes no sense here: an unknown database, a future hour, a past base."""

    exit_code = 2


class BinariesNotFound(PitrError):
    """No usable PostgreSQL programs of the major version that is needed."""

    exit_code = 3


class ServerUnavailable(PitrError):
    """A database does not answer, or refuses the connection."""

    exit_code = 3


class ServerNotReady(PitrError):
    """A database answers but is not set up for what was asked of it."""

    exit_code = 4


class ArchiveStalled(PitrError):
    """WAL that the server has finished does not arrive in the archive."""

    exit_code = 4


class ArtifactDamaged(PitrError):
    """An artifact differs from its record, or its record cannot be read."""

    exit_code = 5


class ForeignWal(ArtifactDamaged):
    """The archive holds the WAL of a copy of the server under a name of the server's own."""


class NotRestorable(PitrError):
    """No plan reaches the target. Nothing was touched.

    `nearest` holds the closest moments, before and after, that can be restored.
    """

    exit_code = 6

    def __init__(self, what: str, *, remedy: str, nearest: Sequence[datetime] = ()) -> None:
        super().__init__(what, remedy=remedy)
        self.nearest = tuple(nearest)


class DestinationInUse(PitrError):
    """The directory or port a restore was told to use is not free. Nothing was touched."""

    exit_code = 7


class RecoveryFailed(PitrError):
    """PostgreSQL did not reach the target; the restore directory is marked incomplete."""

    exit_code = 8


class RestoredButDamaged(PitrError):
    """A restore reached its target, and pg_amcheck found damage in what it brought back."""

    exit_code = 8


class DrillFailed(PitrError):
    """A drill found that a restore does not give what it should. Its record says what."""

    exit_code = 10


class StorageFailed(PitrError):
    """A file or directory could not be read or written."""

    exit_code = 5


class ArtifactBusy(PitrError):
    """Another process is working on the same artifacts right now."""

    exit_code = 9


def storage_failed(error: OSError) -> StorageFailed:
    """Return what an error of the file system means to a person."""
    match error.errno:
        case errno.ENOSPC | errno.EDQUOT:
            remedy = "Make room there, then ask again; what was half done is not there."
        case errno.EACCES | errno.EPERM | errno.EROFS:
            remedy = f"Let the user this runs as ({_user()}) read and write there, then ask again."
        case errno.ENOENT | errno.ENOTDIR:
            remedy = "Is its volume mounted, and is the path in the settings right?"
        case _:
            remedy = "Look at the disk and its file system, then ask again."
    where = error.filename2 or error.filename
    what = error.strerror or str(error)
    return StorageFailed(f"{where}: {what}" if where else what, remedy=remedy)


def _user() -> str:
    # The number always: in containers it is what owners are compared by, and it may have no name.
    try:
        return f"uid {os.geteuid()}, {pwd.getpwuid(os.geteuid()).pw_name}"
    except KeyError:
        return f"uid {os.geteuid()}"
