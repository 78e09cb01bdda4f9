"""Running a piece of a test as another user, by numbers that may have no name, in a child process.

Root can become anybody; an ordinary user only himself. Tests take their users from here, so that they
check something in either case.
"""

from __future__ import annotations

import codecs
import os
import pickle
import re
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from pitr_pipelines.postgres.account import Account
from pitr_pipelines_tests.servers import ServerFactory, TestServer, create_backup_role

T = TypeVar("T")
IS_ROOT = os.geteuid() == 0

# Somebody else may not be able to read our Python: what is imported late must be there before.
for _encoding in ("ascii", "latin-1", "idna"):
    codecs.lookup(_encoding)


@dataclass(frozen=True)
class Users:
    """Whom a server runs as, and whom pitr runs as."""

    server: int
    ours: int

    def __str__(self) -> str:
        return f"server-{self.server}-pitr-{self.ours}"


USERS = [Users(999, 12345), Users(70, 12345)] if IS_ROOT else [Users(os.geteuid(), os.geteuid())]
"""Debian's and Alpine's postgres and a user without a name, as in containers; else what we can be."""


def run_as(uid: int, function: Callable[[], T]) -> T:
    """Return what `function` returns when it runs as a user with the group of the same number and no other.

    An ordinary user must name himself, and keeps his groups.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.close(reader)
            if IS_ROOT:
                os.setgroups([])
                os.setgid(uid)
                os.setuid(uid)
            assert os.geteuid() == uid
            os.environ.pop("HOME", None)  # without a name there is none in passwd either
            result: object
            try:
                result = (True, function())
            except Exception as error:  # it is raised again in the parent
                result = (False, f"{type(error).__name__}: {error}")
            with os.fdopen(writer, "wb") as file:
                pickle.dump(result, file)
            status = 0
        finally:
            os._exit(status)
    os.close(writer)
    with os.fdopen(reader, "rb") as file:
        content = file.read()
    os.waitpid(child, 0)
    assert content, f"the child that ran as uid {uid} said nothing"
    ok, value = pickle.loads(content)
    assert ok, value
    return value  # type: ignore[no-any-return]


def mend(remedy: str | None) -> str:
    """Run the commands that a remedy names for root, as they stand, and return them."""
    assert remedy is not None
    match = re.search(r"^As root, where that volume is mounted: (.*?)(?: \(Debian's .*)?$", remedy, re.M)
    assert match, remedy
    subprocess.run(["sh", "-euc", match[1]], check=True)
    return match[1]


def give(path: Path, uid: int, gid: int | None = None) -> None:
    """Let a tree belong to a user, if we are root; else it is ours already."""
    if IS_ROOT:
        subprocess.run(["chown", "-R", f"{uid}:{uid if gid is None else gid}", path], check=True)


def server_as(factory: ServerFactory, uid: int, name: str = "order-db") -> TestServer:
    """Make a running, archiving server that runs as a user, in the group of the same number."""
    server = factory(name, start=False)
    if IS_ROOT:
        server.cluster = replace(server.cluster, account=Account(uid, uid, str(uid), switch=True))
        give(server.cluster.data_directory, uid)
        give(factory.directory / "sockets", uid)
        give(server.archive, uid)
    server.start()
    create_backup_role(server)
    return server
