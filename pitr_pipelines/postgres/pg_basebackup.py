"""Running pg_basebackup: which compression it can do, how far it is, and why it failed.

The program and its children never outlive us, even if we are killed. No password is ever among its
arguments.
"""

from __future__ import annotations

import functools
import os
import re
import signal
import subprocess
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pitr_pipelines.errors import BinariesNotFound, PitrError, ServerNotReady, ServerUnavailable
from pitr_pipelines.postgres.binaries import Binaries
from pitr_pipelines.progress import Progress, Report

Compression = Literal["zstd", "gzip", "none"]

_PROGRESS = re.compile(r"\s*(\d+)/(\d+) kB ")
_WAITING = "waiting for checkpoint"

# Ended by a signal, pg_basebackup leaves behind the process that receives WAL, and that would go on
# receiving for as long as the server lives. So both are in a process group with a shell that waits
# for the other end of its input to close, which also happens when we die, and then ends the group.
_WITH_US = """
exec 3<&0
(read -r line <&3; kill -KILL 0) >/dev/null 2>&1 &
exec "$@" </dev/null 3<&-
"""

# pg_basebackup and the server say why in words only; we run it with English messages.
_CAUSES: tuple[tuple[tuple[str, ...], type[PitrError], str], ...] = (
    (
        ("no pg_hba.conf entry for replication", "pg_hba.conf rejects replication"),
        ServerNotReady,
        "Add a line for database `replication`, this role and this client's address to the server's "
        "pg_hba.conf, and reload it; `pitr check {name}` prints the lines that are needed.",
    ),
    (
        ("max_wal_senders", "requested standby connections"),
        ServerNotReady,
        "A base backup needs two free WAL senders: raise max_wal_senders (and restart the server), or end "
        "other replication connections (pg_stat_replication lists them).",
    ),
    (
        ("replication slots are in use", "max_replication_slots"),
        ServerNotReady,
        "A base backup needs one free replication slot: raise max_replication_slots (and restart the "
        "server), or drop slots that nobody uses (pg_replication_slots lists them).",
    ),
    (
        (
            "must be superuser or replication role",
            "permission denied to start wal sender",
            "replication attr",
        ),
        ServerNotReady,
        "Give the role the REPLICATION attribute: `pitr init-db {name}` does.",
    ),
    (
        ("wal_level",),
        ServerNotReady,
        "Set wal_level = replica and restart the server; `pitr init-db {name}` does the first.",
    ),
    (
        ("no space left", "disk quota"),
        PitrError,
        "Make room on the file system of backup_root, or put backup_root elsewhere; the partial backup "
        "has been removed.",
    ),
    (
        ("permission denied",),
        PitrError,
        "The user this runs as must be able to write below backup_root.",
    ),
    (
        ("connection to server", "could not connect", "terminated unexpectedly", "connection reset"),
        ServerUnavailable,
        "Is the server still up, and reachable from here? `pitr check {name}` tells what it answers.",
    ),
)


def choose_compression(wanted: Literal["auto", "zstd", "gzip", "none"], binaries: Binaries) -> Compression:
    """Return the compression to use: what is wanted, or the best of which pg_basebackup is capable.

    Raises BinariesNotFound if it cannot do what was asked for by name.
    """
    if wanted == "none":
        return "none"
    program = binaries.program("pg_basebackup")
    choices: tuple[Compression, ...] = ("zstd", "gzip") if wanted == "auto" else (wanted,)
    for choice in choices:
        if _supports(program, choice):
            return choice
    if wanted == "auto":
        return "none"
    raise BinariesNotFound(
        f"{program} was built without {wanted}",
        remedy="Set base_backup.compression to auto, or name other programs under binaries: in the settings.",
    )


@functools.cache
def _supports(program: Path, compression: Compression) -> bool:
    """Ask the program itself: it checks the compression before it looks for the server."""
    with tempfile.TemporaryDirectory(prefix="pitr-") as nowhere:
        argv = [str(program), f"--pgdata={nowhere}/base", "--format=tar", "--wal-method=none"]
        argv += [f"--compress=client-{compression}", f"--dbname=host={nowhere}"]
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            env={name: value for name, value in os.environ.items() if not name.startswith("PG")}
            | {"LC_ALL": "C"},
        )
    return "does not support compression" not in done.stderr


def compress_option(compression: Compression, workers: int) -> str:
    """Return the value of --compress. Compression is done here, never on the server."""
    match compression:
        case "zstd":
            return f"client-zstd:level=3,workers={workers}"
        case "gzip":
            return "client-gzip:level=1"
        case "none":
            return "none"


def run_pg_basebackup(
    name: str,
    program: Path,
    directory: Path,
    conninfo: str,
    env: Mapping[str, str],
    *,
    label: str,
    compress: str,
    fast_checkpoint: bool,
    progress: Report,
) -> None:
    """Copy the server into the empty `directory`, in tar format, with a SHA-256 manifest.

    `conninfo` holds no password; `env` tells where one is. Nothing is synced. Raises ServerNotReady,
    ServerUnavailable or PitrError with the program's own words and what to do about them.
    """
    argv = [
        str(program),
        f"--pgdata={directory}",
        "--format=tar",
        "--wal-method=stream",
        f"--checkpoint={'fast' if fast_checkpoint else 'spread'}",
        "--manifest-checksums=SHA256",
        f"--compress={compress}",
        f"--label={label}",
        "--no-sync",
        "--no-password",
        "--progress",
        f"--dbname={conninfo}",
    ]
    said: list[str] = []
    with subprocess.Popen(
        ["/bin/sh", "-c", _WITH_US, "sh", *argv],
        process_group=0,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        env=dict(env),
    ) as process:
        assert process.stderr is not None
        # If it is killed, its child keeps the other end of stderr: without this we would read for ever.
        watcher = threading.Thread(target=_end_group_after, args=(process,), daemon=True)
        watcher.start()
        try:
            for line in process.stderr:
                at = _PROGRESS.match(line)
                if at is not None:
                    progress(Progress("copy", int(at[1]) * 1024, int(at[2]) * 1024))
                elif line.startswith(_WAITING):
                    progress(Progress("checkpoint", 0, None))
                elif line.strip():
                    said.append(line.strip().removeprefix("pg_basebackup: "))
        except BaseException:
            process.kill()
            raise
        finally:
            watcher.join()
    if process.returncode != 0:
        raise _failure(name, process.returncode, "\n".join(said))


def _end_group_after(process: subprocess.Popen[str]) -> None:
    process.wait()
    assert process.stdin is not None
    process.stdin.close()


def _failure(name: str, status: int, said: str) -> PitrError:
    if status < 0:
        said = f"it was ended by {signal.Signals(-status).name}\n{said}".rstrip()
    what = f"pg_basebackup of {name} failed: {said or f'exit status {status}'}"
    words = said.lower()
    for signs, error, remedy in _CAUSES:
        if any(sign in words for sign in signs):
            return error(what, remedy=remedy.format(name=name))
    return PitrError(
        what, remedy=f"See the server's log as well; `pitr check {name}` tells whether it is set up right."
    )
