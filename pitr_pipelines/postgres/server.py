"""A PostgreSQL server that this machine runs: for the demo, for tests, for restores.

A server started here is detached: it is in its own session and no child of ours, so neither Ctrl-C
nor our end takes it along. What says whether it runs is its postmaster.pid together with a live
process that works in its data directory, never a number alone, which may long be somebody else's.
"""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pitr_pipelines.errors import DestinationInUse, ServerNotReady
from pitr_pipelines.postgres.account import Account, clean_environment, give, make_owned_directory, run
from pitr_pipelines.postgres.binaries import Binaries

StopMode = Literal["fast", "immediate", "smart"]

_SIGNALS: dict[StopMode, signal.Signals] = {
    "smart": signal.SIGTERM,
    "fast": signal.SIGINT,
    "immediate": signal.SIGQUIT,
}
_POLL_S = 0.02
_LOG_LINES = 20
# The shell orphans the server at once, so that it never becomes our zombie, and tells its number.
# Arguments reach postgres as they are: nothing is quoted, nothing is parsed.
_LAUNCH = 'umask 077; "$@" </dev/null >&2 & echo $!'
# Below the range from which kernels pick ports for outgoing connections (Linux: from 32768).
_PORTS = range(20000, 32000)


@dataclass(frozen=True, slots=True)
class Postmaster:
    """What a running server wrote into its postmaster.pid.

    `status` is `starting`, `ready`, `standby`, `stopping`, or empty at the very beginning.
    """

    pid: int
    port: int | None
    socket_directory: Path | None
    status: str

    @property
    def is_ready(self) -> bool:
        """Is startup over, as pg_ctl sees it? Connections work, except in recovery with hot_standby=off."""
        return self.status in ("ready", "standby")


@dataclass(frozen=True, slots=True)
class Cluster:
    """One data directory, the programs that run it, and the account they run as."""

    data_directory: Path
    binaries: Binaries
    account: Account

    @classmethod
    def create(
        cls,
        data_directory: Path,
        binaries: Binaries,
        account: Account,
        *,
        wal_segment_size_mb: int = 16,
        data_checksums: bool = True,
        auth_local: str = "trust",
        auth_host: str = "scram-sha-256",
        superuser_password: str | None = None,
        durable: bool = True,
    ) -> Cluster:
        """Make a new cluster with initdb; its superuser is `postgres`.

        `data_directory` must not exist, or be empty; its parent must be one that `account` can
        reach. `durable=False` leaves out initdb's final sync. Locale C, encoding UTF-8, times in
        UTC. Raises DestinationInUse if the directory is not empty, ServerNotReady with initdb's
        words if it fails.
        """
        binaries = binaries.reachable_by(account)
        if not data_directory.exists():
            make_owned_directory(data_directory, account)
        elif any(data_directory.iterdir()):
            raise DestinationInUse(
                f"{data_directory} is not empty, so no cluster can be created there",
                remedy="Name a directory that does not exist yet.",
            )
        else:
            give(data_directory, account)
        argv: list[str | Path] = [binaries.program("initdb"), "-D", data_directory, "-U", "postgres"]
        argv += ["--encoding=UTF8", "--locale=C", "--no-instructions", f"--wal-segsize={wal_segment_size_mb}"]
        argv += [f"--auth-local={auth_local}", f"--auth-host={auth_host}"]
        if data_checksums:
            argv.append("--data-checksums")
        elif binaries.major >= 18:  # checksums became the default
            argv.append("--no-data-checksums")
        if not durable:
            argv.append("--no-sync")
        with tempfile.NamedTemporaryFile("w", prefix="pitr-") as password_file:
            if superuser_password is not None:
                password_file.write(superuser_password + "\n")
                password_file.flush()
                give(Path(password_file.name), account)
                argv.append(f"--pwfile={password_file.name}")
            done = run(account, argv, env={"TZ": "UTC"})
        if done.returncode != 0:
            raise ServerNotReady(
                f"initdb could not create a cluster in {data_directory}: {done.stderr.strip()}",
                remedy=f"Every directory above it must be open to the user {account.name}.",
            )
        return cls(data_directory, binaries, account)

    def start(
        self,
        *,
        log_file: Path,
        options: Mapping[str, str] | None = None,
        env: Mapping[str, str] | None = None,
        wait: bool = True,
        timeout_s: float = 60.0,
    ) -> int:
        """Start the server and return its process number.

        Its output is appended to `log_file`. `options` are settings that beat postgresql.conf;
        `env` is added to its otherwise clean environment. With `wait` this returns when the server
        is ready, as `pg_ctl -w` does, which in recovery is when it is consistent and not when it is
        over; if it is not ready within `timeout_s`, or if we are interrupted, it is stopped again.
        Raises DestinationInUse if it runs already, ServerNotReady with the end of its log if it does
        not start.
        """
        running = self.pid()
        if running is not None:
            raise DestinationInUse(
                f"a server runs in {self.data_directory} already (process {running})",
                remedy="Stop it first, or use another directory.",
            )
        binaries = self.binaries.reachable_by(self.account)
        argv = [str(binaries.program("postgres")), "-D", str(self.data_directory)]
        for name, value in (options or {}).items():
            argv += ["-c", f"{name}={value}"]
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        with open(os.open(log_file, flags, 0o600), "ab") as log:
            log_start = log.seek(0, os.SEEK_END)
            pid = _launch(argv, self.account, clean_environment(self.account, env), log.fileno())
        if wait:
            try:
                self._wait_until_ready(pid, time.monotonic() + timeout_s)
            except BaseException as error:
                _end(pid)
                if isinstance(error, _DidNotStart):
                    raise ServerNotReady(
                        f"the server in {self.data_directory} {error}; its log ends with\n"
                        + _last_lines(log_file, log_start),
                        remedy=f"Correct what the log names; all of it is in {log_file}.",
                    ) from None
                raise
        return pid

    def stop(self, mode: StopMode = "fast", timeout_s: float = 60.0) -> None:
        """Stop the server and return when its process is gone; do nothing if none runs.

        Raises ServerNotReady if it still runs after `timeout_s` seconds.
        """
        pid = self.pid()
        if pid is None:
            return
        try:
            os.kill(pid, _SIGNALS[mode])
        except ProcessLookupError:
            return
        deadline = time.monotonic() + timeout_s
        while _lives(pid):
            if time.monotonic() > deadline:
                raise ServerNotReady(
                    f"the server in {self.data_directory} (process {pid}) did not stop within "
                    f"{timeout_s:.0f} s of a {mode} shutdown",
                    remedy="Look into its log; it may still be writing a checkpoint or archiving. "
                    "An immediate shutdown always ends it and makes the next start run crash recovery.",
                )
            time.sleep(_POLL_S)

    def pid(self) -> int | None:
        """Return the process number of the running server, or None if none runs."""
        postmaster = self.postmaster()
        return postmaster.pid if postmaster else None

    def postmaster(self) -> Postmaster | None:
        """Return what the running server says of itself, or None if none runs."""
        postmaster = _read_postmaster_file(self.data_directory / "postmaster.pid")
        if postmaster is None or not _works_in(postmaster.pid, self.data_directory):
            return None
        return postmaster

    def control_data(self) -> Mapping[str, str]:
        """Return what pg_controldata prints, by its English labels.

        Raises ServerNotReady if the directory holds no readable control file.
        """
        binaries = self.binaries.reachable_by(self.account)
        done = run(self.account, [binaries.program("pg_controldata"), "-D", self.data_directory])
        if done.returncode != 0:
            raise ServerNotReady(
                f"pg_controldata cannot read {self.data_directory}: {done.stderr.strip()}",
                remedy="Is it a data directory, and of the same major version?",
            )
        lines = (line.partition(":") for line in done.stdout.splitlines())
        return {label: value.strip() for label, colon, value in lines if colon}

    def _wait_until_ready(self, pid: int, deadline: float) -> None:
        while True:
            # The file may still be a dead predecessor's: only our own server's word counts.
            postmaster = _read_postmaster_file(self.data_directory / "postmaster.pid")
            if postmaster is not None and postmaster.pid == pid and postmaster.is_ready:
                return
            if not _lives(pid):
                raise _DidNotStart("did not start")
            if time.monotonic() > deadline:
                raise _DidNotStart("was not ready in time and has been stopped")
            time.sleep(_POLL_S)


class _DidNotStart(Exception):
    """Why a server that was just started cannot be used."""


def free_port() -> int:
    """Return a TCP port of 127.0.0.1 on which nothing listens now."""
    candidates = list(_PORTS)
    random.shuffle(candidates)
    for port in candidates:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            # As postgres does: connections that are long closed must not block the port.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise DestinationInUse(
        f"no TCP port from {_PORTS.start} to {_PORTS.stop - 1} is free on 127.0.0.1",
        remedy="Name a port yourself, or end what listens there.",
    )


def _launch(argv: Sequence[str], account: Account, env: Mapping[str, str], log: int) -> int:
    done = subprocess.run(
        ["/bin/sh", "-c", _LAUNCH, "sh", *argv],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=log,
        check=True,
        cwd="/",
        env=dict(env),
        start_new_session=True,
        user=account.uid if account.switch else None,
        group=account.gid if account.switch else None,
        extra_groups=[] if account.switch else None,
    )
    return int(done.stdout)


def _end(pid: int, patience_s: float = 10.0) -> None:
    """End a server that was just started and is not wanted: immediate shutdown, then SIGKILL."""
    for number in (signal.SIGQUIT, signal.SIGKILL):
        if not _lives(pid):
            return
        os.kill(pid, number)
        deadline = time.monotonic() + patience_s
        while _lives(pid) and time.monotonic() < deadline:
            time.sleep(_POLL_S)


def _read_postmaster_file(file: Path) -> Postmaster | None:
    """Read a postmaster.pid. Lines: pid, data directory, start, port, sockets, address, key, status.

    Source: PostgreSQL's src/include/utils/pidfile.h.
    """
    try:
        lines = file.read_text(errors="replace").splitlines()
    except FileNotFoundError:
        return None
    if not lines or not lines[0].strip().lstrip("-").isdigit():
        return None  # being written
    return Postmaster(
        pid=abs(int(lines[0])),
        port=int(lines[3]) if len(lines) > 3 and lines[3].strip().isdigit() else None,
        socket_directory=Path(lines[4]) if len(lines) > 4 and lines[4].strip() else None,
        status=lines[7].strip() if len(lines) > 7 else "",
    )


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    try:
        status = Path(f"/proc/{pid}/stat").read_bytes()
    except FileNotFoundError:
        return not Path("/proc/self/stat").exists()
    # A zombie has ended, even if whoever adopted it has not noticed.
    return status.rpartition(b")")[2].split()[:1] != [b"Z"]


def _works_in(pid: int, data_directory: Path) -> bool:
    """Tell whether the process lives and is a server of this directory, not a later namesake."""
    if not _lives(pid):
        return False
    process = Path(f"/proc/{pid}")
    try:
        if not process.exists():  # no Linux: the number is all there is
            return True
        if process.stat().st_uid != data_directory.stat().st_uid:
            return False  # a server's directory always belongs to the user it runs as
        return (process / "cwd").samefile(data_directory)
    except PermissionError:
        return True
    except FileNotFoundError:
        return False


def _last_lines(log_file: Path, start: int) -> str:
    with log_file.open("rb") as file:
        file.seek(start)
        lines = file.read().decode(errors="replace").splitlines()
    return "\n".join(f"  {line}" for line in lines[-_LOG_LINES:]) or "  (nothing)"
