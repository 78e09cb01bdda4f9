"""How a server that was replaced is started, and whether its configuration will let it."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from pitr_pipelines.postgres.account import run, server_account
from pitr_pipelines.postgres.binaries import find_binaries
from pitr_pipelines.restore.conf_file import MAIN
from pitr_pipelines.restore.report import RestoreReport
from pitr_pipelines.settings import Settings

_ELSEWHERE = Path("/etc/postgresql")
"""Where Debian keeps the configuration of a cluster, as <major>/<cluster>."""


def how_to_start(data_directory: Path, done: RestoreReport) -> str:
    """Return what to type to start a server as it is always started, as far as that can be told."""
    major, cluster = data_directory.parent.name, data_directory.name
    if (_ELSEWHERE / major / cluster / MAIN).is_file():
        return f"systemctl start postgresql@{major}-{cluster}  (or: pg_ctlcluster {major} {cluster} start)"
    command = re.sub(r" -l \S+$", "", done.start).replace(
        shlex.quote(str(done.data_directory)), shlex.quote(str(data_directory))
    )
    return f"as it is always started (systemctl, docker start), or: {command}"


def ask_configuration(settings: Settings, data_directory: Path, major: int) -> Iterator[str]:
    """Yield what a person should know of the configuration that the server will start with.

    Asks PostgreSQL itself. Nothing, if the configuration is not in the data directory.
    """
    if not (data_directory / MAIN).exists():
        return
    account = server_account(settings.run_as)
    owner = data_directory.stat()
    if account.switch:
        account = replace(account, uid=owner.st_uid, gid=owner.st_gid)
    program = find_binaries(major, settings.binaries).reachable_by(account).program("postgres")
    values: dict[str, str] = {}
    for name in ("shared_memory_size", "port", "archive_mode", "synchronous_standby_names"):
        done = run(account, [program, "-D", data_directory, "-C", name])
        if done.returncode != 0:
            said = " ".join(done.stderr.split())
            yield f"PostgreSQL does not accept the configuration yet: {said}"
            return
        values[name] = done.stdout.strip()
    yield f"the server will listen on port {values['port']}, with the configuration that the old one had"
    if values["archive_mode"] == "off":
        yield "archive_mode is off in that configuration: nothing will be archived"
    if values["synchronous_standby_names"]:
        yield (
            f"synchronous_standby_names is {values['synchronous_standby_names']!r}: commits will wait for "
            "standbys that cannot follow any more, until they are made anew or it is emptied"
        )
