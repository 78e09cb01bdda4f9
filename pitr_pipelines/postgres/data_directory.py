"""A new data directory, and the tablespaces that belong to it, being filled from a base backup.

Never writes outside these directories and never over a file that exists: every name is checked
before it comes here, files are created exclusively, and links to tablespaces are made last.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Set
from contextlib import suppress
from pathlib import Path

from pitr_pipelines.errors import BadRequest, DestinationInUse
from pitr_pipelines.postgres.account import Account
from pitr_pipelines.postgres.tablespace_map import TABLESPACE_MAP, format_tablespace_map

INCOMPLETE = "INCOMPLETE"
"""A file that marks a directory which a restore fills; it may lie in one that counts as empty."""

_LINKS = "pg_tblspc"
_DIRECTORY_MODE = 0o700
_FILE_MODE = 0o600
_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class DataDirectory:
    """A data directory that receives files by their path in the source's data directory.

    What the source had in `pg_tblspc/<oid>` goes to that tablespace's new location. Everything
    belongs to `account` and is closed to everybody else, as PostgreSQL demands. Nothing is synced.
    """

    def __init__(self, path: Path, tablespaces: Mapping[int, Path], account: Account) -> None:
        self.path = path
        self._account = account
        self._tablespaces = {oid: location.absolute() for oid, location in tablespaces.items()}
        self._roots = {str(oid): os.fspath(place) for oid, place in self._tablespaces.items()}

    def prepare(self) -> None:
        """Make the empty directories ready.

        The data directory must exist; tablespaces are created with their parents if they do not.
        Raises DestinationInUse if one is not empty.
        """
        for place in self._tablespaces.values():
            place.mkdir(mode=_DIRECTORY_MODE, parents=True, exist_ok=True)
        for place in (self.path, *self._tablespaces.values()):
            if any(entry.name != INCOMPLETE for entry in place.iterdir()):
                raise DestinationInUse(
                    f"{place} is not empty", remedy="Name a new or empty directory; nothing was touched."
                )
        for place in (self.path, *self._tablespaces.values()):
            self._own(place)

    def make_directory(self, name: str) -> None:
        """Create the directory `name`, whose parent exists, if it is not there yet."""
        path = self._place(name)
        with suppress(FileExistsError):
            os.mkdir(path, _DIRECTORY_MODE)  # noqa: PTH102 - a path object for each costs time
            self._own(path)

    def create_file(self, name: str) -> int:
        """Create the file `name` and return a descriptor for writing, which the caller closes."""
        descriptor = os.open(self._place(name), _FLAGS, _FILE_MODE)
        if self._account.switch:
            os.fchown(descriptor, self._account.uid, self._account.gid)
        return descriptor

    def link_tablespaces(self) -> None:
        """Link the tablespaces to their new locations, and make recovery do the same."""
        if not self._tablespaces:
            return
        for oid, place in self._tablespaces.items():
            link = self.path / _LINKS / str(oid)
            link.symlink_to(place)
            if self._account.switch:
                os.chown(link, self._account.uid, self._account.gid, follow_symlinks=False)
        (self.path / TABLESPACE_MAP).write_bytes(
            format_tablespace_map({oid: os.fspath(place) for oid, place in self._tablespaces.items()})
        )

    def _place(self, name: str) -> str:
        top, _, rest = name.partition("/")
        if top == _LINKS and rest:
            oid, _, inner = rest.partition("/")
            root = self._roots.get(oid)
            if root is not None:
                return f"{root}/{inner}" if inner else root
        return f"{self.path}/{name}"

    def _own(self, path: str | Path) -> None:
        os.chmod(path, _DIRECTORY_MODE)  # noqa: PTH101 - whatever our umask is
        if self._account.switch:
            os.chown(path, self._account.uid, self._account.gid)


def check_mapping(needed: Set[int], tablespaces: Mapping[int, Path]) -> None:
    """Raise BadRequest unless every tablespace that is needed has a new location, and no other."""
    missing = sorted(needed - set(tablespaces))
    unknown = sorted(set(tablespaces) - needed)
    if missing or unknown:
        problems = [f"tablespace {oid} has no new location" for oid in missing]
        problems += [f"there is no tablespace {oid} in this base backup" for oid in unknown]
        raise BadRequest("; ".join(problems), remedy="Map each tablespace of the base backup, by its oid.")
