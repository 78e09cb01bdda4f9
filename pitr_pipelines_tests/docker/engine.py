"""A Docker engine for the tests alone: its own socket, data and process, all of it gone afterwards.

Needs root and Debian's docker.io. Nothing of an engine that the machine may have is touched. Ports are
published on loopback by docker-proxy, and no firewall rule is set.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

START_S = 60.0
STOP_S = 60.0
SYSTEM_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"


class CommandFailed(AssertionError):
    """A command of the tests failed; with what it said."""


@dataclass(frozen=True)
class Engine:
    """A running engine. `directory` has everything of it, volumes and all."""

    directory: Path
    process: subprocess.Popen[bytes] | None
    """None for an engine that somebody else ends."""

    @property
    def socket(self) -> Path:
        return self.directory / "docker.sock"

    @property
    def environment(self) -> dict[str, str]:
        """What docker and docker-compose are started with: nothing of the caller's own settings."""
        return {
            "PATH": f"{SYSTEM_PATH}:{os.environ.get('PATH', '')}",
            "HOME": str(self.directory),
            "LC_ALL": "C.UTF-8",
            "DOCKER_HOST": f"unix://{self.socket}",
            "DOCKER_BUILDKIT": "0",
            "COMPOSE_HTTP_TIMEOUT": "300",
        }

    def docker(self, *arguments: str, timeout_s: float = 300.0, stdin: bytes | None = None) -> str:
        """Run docker, and return what it printed. Raises CommandFailed."""
        return self.run(("docker", *arguments), timeout_s=timeout_s, stdin=stdin)

    def run(
        self,
        argv: tuple[str, ...],
        *,
        timeout_s: float,
        stdin: bytes | None = None,
        env: Mapping[str, str] | None = None,
    ) -> str:
        done = subprocess.run(
            [shutil.which(argv[0], path=self.environment["PATH"]) or argv[0], *argv[1:]],
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            env=self.environment | dict(env or {}),
            timeout=timeout_s,
            check=False,
        )
        out, err = done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")
        if done.returncode != 0:
            raise CommandFailed(
                f"{' '.join(argv)} ended with {done.returncode}:\n{out[-3000:]}\n{err[-6000:]}"
            )
        return out

    def logs(self, name: str) -> str:
        """Return all that a container has said, on both of its outputs; nothing if it is gone."""
        done = subprocess.run(
            [shutil.which("docker", path=self.environment["PATH"]) or "docker", "logs", name],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=self.environment,
            timeout=60,
            check=False,
        )
        return done.stdout.decode(errors="replace")

    def inspect(self, *names: str) -> list[dict[str, Any]]:
        """Return what the engine knows of containers. Raises CommandFailed if one is gone."""
        return list(json.loads(self.docker("inspect", *names))) if names else []

    def containers(self, *filters: str) -> list[dict[str, Any]]:
        """Return the containers that match the filters, running or not, but for those that end meanwhile."""
        arguments = [word for given in filters for word in ("--filter", given)]
        names = self.docker("ps", "--all", "--quiet", "--no-trunc", *arguments).split()
        found = []
        for name in names:
            try:
                found += self.inspect(name)
            except CommandFailed:
                continue
        return found

    def volume(self, name: str) -> Path:
        """Return where a volume's content lies on this machine."""
        return self.directory / "data" / "volumes" / name / "_data"


@contextmanager
def private_engine() -> Iterator[Engine]:
    """Start an engine, and end and remove it after the block, with its containers. Raises AssertionError."""
    directory = Path(
        tempfile.mkdtemp(prefix="pitr-docker-", dir="/var/tmp")
    )  # the socket's path must be short
    log = directory / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [
                shutil.which("dockerd", path=SYSTEM_PATH) or "dockerd",
                *("--iptables=false", "--ip6tables=false", "--bridge=none", "--live-restore=false"),
                f"--storage-driver={_storage_driver(directory)}",
                *("--host", f"unix://{directory / 'docker.sock'}", "--pidfile", str(directory / "pid")),
                *("--data-root", str(directory / "data"), "--exec-root", str(directory / "exec")),
            ],
            stdout=output,
            stderr=output,
            env={"PATH": SYSTEM_PATH, "HOME": str(directory)},
            start_new_session=True,
        )
    engine = Engine(directory, process)
    try:
        _wait(engine, process, log)
        yield engine
    finally:
        _end(engine, process)


def _storage_driver(directory: Path) -> str:
    """Return overlay2 where the kernel lays one directory over another here, else vfs, which copies."""
    parts = [directory / "probe" / name for name in ("lower", "upper", "work", "merged")]
    for part in parts:
        part.mkdir(parents=True)
    lower, upper, work, merged = map(str, parts)
    options = f"lowerdir={lower},upperdir={upper},workdir={work}"
    laid = subprocess.run(
        ["mount", "-t", "overlay", "overlay", "-o", options, merged], capture_output=True, check=False
    )
    if laid.returncode == 0:
        subprocess.run(["umount", merged], check=True)
    shutil.rmtree(directory / "probe")
    return "overlay2" if laid.returncode == 0 else "vfs"


def _wait(engine: Engine, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_S
    while True:
        try:
            engine.docker("version")
            return
        except CommandFailed as error:
            if process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.2)
                continue
            raise AssertionError(f"the engine does not start: {error}\n{log.read_text()[-4000:]}") from None


def _end(engine: Engine, process: subprocess.Popen[bytes]) -> None:
    try:
        containers = engine.docker("ps", "--all", "--quiet").split()
        if containers:
            engine.docker("rm", "--force", "--volumes", *containers)
    except (CommandFailed, subprocess.TimeoutExpired):
        pass  # it is ended below, and its containers with it
    process.terminate()
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    mounts = Path("/proc/self/mounts").read_text().splitlines()
    below = [line.split()[1] for line in mounts if line.split()[1].startswith(f"{engine.directory}/")]
    for mount in sorted(below, key=len, reverse=True):
        subprocess.run(["umount", "--lazy", mount], check=False, capture_output=True)
    shutil.rmtree(engine.directory, ignore_errors=True)
