"""Errors that say what happened, to what, and what to do next.

One small tree. Every error carries a remedy, and an exit code by which a script can tell the
cases apart; neither ever contains a secret.
"""

from __future__ import annotations

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


class ArtifactBusy(PitrError):
    """Another process is working on the same artifacts right now."""

    exit_code = 9
