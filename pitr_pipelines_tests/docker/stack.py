"""A stack of containers, as its user has it: up by docker-compose, used through the pages' own API."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import yaml

from pitr_pipelines.demo.dagster_api import DagsterApi, DagsterUnavailable, FinishedRun
from pitr_pipelines.postgres.server import free_port
from pitr_pipelines_tests.docker.engine import CommandFailed, Engine
from pitr_pipelines_tests.docker.images import IMAGES, REPOSITORY

READY_S = 300.0
RUN_S = 600.0
BACKUP_FILE = REPOSITORY / "docker-compose.backup.yml"
APPLICATION_FILE = REPOSITORY / "deploy" / "example-application.yml"
SECRETS = ("pitr_password", "order_db_password", "inventory_db_password", "dagster_db_password")

_STATE = """
{
  instance { daemonHealth { allDaemonStatuses { daemonType required healthy } } }
  workspaceOrError { ... on Error { message } ... on Workspace { locationEntries { loadStatus
    locationOrLoadError { __typename ... on Error { message } } } } }
}
"""
_TICKS = """
query Ticks($selector: ScheduleSelector!) {
  scheduleOrError(scheduleSelector: $selector) {
    ... on Error { message } ... on Schedule { scheduleState { ticks(limit: 5) { timestamp status } } }
  }
}
"""
_STATUS = "query Run($id: ID!) { runOrError(runId: $id) { ... on Error { message } ... on Run { status } } }"
_REPOSITORY = {"repositoryLocationName": "pitr_pipelines", "repositoryName": "__repository__"}
_Found = TypeVar("_Found")


def wait_for(what: str, look: Callable[[], _Found | None], timeout_s: float = READY_S) -> _Found:
    """Return the first thing that `look` finds. Raises AssertionError."""
    deadline = time.monotonic() + timeout_s
    while True:
        found = look()
        if found:
            return found
        assert time.monotonic() < deadline, f"{what}: not within {timeout_s:.0f} s"
        time.sleep(0.2)


@dataclass
class Stack:
    """One compose project. `place` has its .env, its secrets and its settings."""

    engine: Engine
    project: str
    files: tuple[Path, ...]
    place: Path
    env: dict[str, str]
    ui_port: int = field(default_factory=free_port)
    viewer_port: int = field(default_factory=free_port)

    def __post_init__(self) -> None:
        self.place.mkdir(parents=True, exist_ok=True)
        subprocess.run(["sh", REPOSITORY / "deploy" / "make-secrets.sh", self.place / "secrets"], check=True)
        self.write_env()

    def write_env(self) -> None:
        variables = {
            **IMAGES,
            "DOCKER_GID": str(self.engine.socket.stat().st_gid),
            "DOCKER_SOCKET": str(self.engine.socket),
            "PITR_HOME": str(REPOSITORY),
            "PITR_SETTINGS": str(self.place / "pitr.yaml"),
            "PITR_SECRETS": str(self.place / "secrets"),
            "PITR_UI_PORT": str(self.ui_port),
            "PITR_VIEWER_PORT": str(self.viewer_port),
            **self.env,
        }
        (self.place / ".env").write_text("".join(f"{name}={value}\n" for name, value in variables.items()))

    def write_settings(self, changes: Mapping[str, Any]) -> None:
        """Write pitr.yaml: the one for containers, and what the test changes in it."""
        settings = yaml.safe_load((REPOSITORY / "deploy" / "pitr.yaml").read_text())
        (self.place / "pitr.yaml").write_text(yaml.safe_dump({**settings, **changes}))

    def secret(self, name: str) -> str:
        return (self.place / "secrets" / name).read_text().strip()

    def compose(self, *arguments: str, files: Sequence[Path] | None = None, timeout_s: float = 900.0) -> str:
        chosen = [word for file in files or self.files for word in ("--file", str(file))]
        fixed = ("--project-name", self.project, "--env-file", str(self.place / ".env"))
        return self.engine.run(("docker-compose", *fixed, *chosen, *arguments), timeout_s=timeout_s)

    def up(self, *profiles: str) -> None:
        """Bring everything up, and return once Dagster is ready."""
        chosen = [word for name in profiles for word in ("--profile", name)]
        self.compose(*chosen, "up", "--detach", "--no-build")
        self.wait_until_ready()

    def down(self, *options: str) -> None:
        # Runs are no part of the project; their networks can only go when they have ended.
        wait_for("every run has ended", lambda: not self.run_containers(), RUN_S)
        self.compose("--profile", "store", "--profile", "command", "down", "--timeout", "60", *options)

    def container(self, service: str) -> dict[str, Any]:
        [found] = self.engine.containers(
            f"label=com.docker.compose.project={self.project}",
            f"label=com.docker.compose.service={service}",
            "label=com.docker.compose.oneoff=False",
        )
        return found

    def pid(self, service: str) -> int:
        """Return the number, on this machine, of the first process of a service's container."""
        return int(self.container(service)["State"]["Pid"])

    def kill(self, service: str) -> None:
        """Kill a container's processes as the kernel would; the engine starts it again."""
        os.kill(self.pid(service), signal.SIGKILL)

    def health(self) -> dict[str, str]:
        """Return how each service of the project is: healthy, exited 0, running ..."""
        states = {}
        for container in self.engine.containers(f"label=com.docker.compose.project={self.project}"):
            state = container["State"]
            name = container["Config"]["Labels"]["com.docker.compose.service"]
            says = state.get("Health", {}).get("Status")
            states[name] = says or (
                f"exited {state['ExitCode']}" if state["Status"] == "exited" else state["Status"]
            )
        return states

    def run_containers(self) -> list[dict[str, Any]]:
        return self.engine.containers("label=pitr.run=true")

    def psql(self, service: str, statement: str, *, dbname: str = "postgres", user: str = "postgres") -> str:
        """Run SQL by the server's own socket, in its container."""
        name = self.container(service)["Id"]
        options = ("--no-psqlrc", "--tuples-only", "--no-align", "--quiet", "--set", "ON_ERROR_STOP=1")
        who = ("--username", user, "--dbname", dbname)
        return self.engine.docker("exec", name, "psql", *options, *who, "--command", statement).strip()

    def pitr(self, *arguments: str) -> str:
        return self.compose("run", "--rm", "-T", "pitr", *arguments)

    @property
    def api(self) -> DagsterApi:
        return DagsterApi(self.ui_port)

    @property
    def viewer(self) -> DagsterApi:
        return DagsterApi(self.viewer_port)

    def wait_until_ready(self) -> None:
        """Return once every service is healthy, the definitions are loaded, and the daemon is at work."""
        obstacle: list[str] = []

        def look() -> bool:
            obstacle[:] = [self._obstacle() or ""]
            return not obstacle[0]

        try:
            wait_for("the stack is ready", look)
        except AssertionError as error:
            raise AssertionError(
                f"{error}: {obstacle}\n{self.compose('logs', '--tail', '20')[-8000:]}"
            ) from None

    def _obstacle(self) -> str | None:
        bad = {name: how for name, how in self.health().items() if how not in ("healthy", "exited 0")}
        if bad.pop("shop", "running") != "running" or bad:
            return f"not healthy: {bad}"
        for api in (self.api, self.viewer):
            try:
                state = api.ask(_STATE)
            except DagsterUnavailable as error:
                return error.what
            entries = state["workspaceOrError"].get("locationEntries", [])
            if not entries or entries[0]["loadStatus"] != "LOADED":
                return "the definitions are being loaded"
            if entries[0]["locationOrLoadError"]["__typename"] != "RepositoryLocation":
                return str(entries[0]["locationOrLoadError"])
            daemons = state["instance"]["daemonHealth"]["allDaemonStatuses"]
            waiting = [found["daemonType"] for found in daemons if found["required"] and not found["healthy"]]
            if waiting:
                return f"not begun: {waiting}"
        return None

    def launch(self, job: str, partition: str, config: Mapping[str, Any] | None = None) -> str:
        """Launch as a click would; again if Dagster's own connections were cut in the meantime."""
        for _ in range(5):
            try:
                return self.api.launch(job, partition, config)
            except DagsterUnavailable:
                time.sleep(2)
        return self.api.launch(job, partition, config)

    def finish(self, run_id: str) -> FinishedRun:
        return self.api.wait(run_id, timeout_s=RUN_S, watch=lambda: None)

    def run(self, job: str, partition: str, config: Mapping[str, Any] | None = None) -> FinishedRun:
        return self.finish(self.launch(job, partition, config))

    def status(self, run_id: str) -> str:
        answer = self.api.ask(_STATUS, {"id": run_id})["runOrError"]
        return str(answer.get("status", answer))

    def container_of(self, run_id: str) -> dict[str, Any]:
        """Return the container of a run, once it runs."""

        def look() -> dict[str, Any] | None:
            found = self.engine.containers(
                "label=pitr.run=true", f"label=dagster/run_id={run_id}", "status=running"
            )
            return found[0] if found and found[0]["State"]["Pid"] else None

        return wait_for(f"run {run_id} has a container", look)

    def kill_when(self, run_id: str, sight: Callable[[], bool]) -> None:
        """Kill a run's container at the moment at which something can be seen."""
        pid = int(self.container_of(run_id)["State"]["Pid"])
        deadline = time.monotonic() + RUN_S
        while not sight():
            assert time.monotonic() < deadline, "what was waited for did not come"
            assert Path(f"/proc/{pid}").exists(), "the run ended before it was killed"
        os.kill(pid, signal.SIGKILL)
        wait_for(
            "its container is gone", lambda: not self.engine.containers(f"label=dagster/run_id={run_id}")
        )

    def newest_tick(self, schedule: str) -> float:
        """Return when a schedule fired last, in seconds since 1970; 0 if it never did."""
        answer = self.api.ask(_TICKS, {"selector": {**_REPOSITORY, "scheduleName": schedule}})[
            "scheduleOrError"
        ]
        ticks = answer.get("scheduleState", {}).get("ticks", [])
        return max((float(tick["timestamp"]) for tick in ticks), default=0.0)

    def serve_restored(self, directory: str, port: int) -> str:
        """Serve a restored cluster on a port, as docs/containers.md says, and return its container's name."""
        name = f"restored-{port}"
        self.compose(
            *(
                "run",
                "--detach",
                "--rm",
                "--name",
                name,
                "--publish",
                f"127.0.0.1:{port}:5432",
                "restored",
                directory,
            )
        )
        return name


def today() -> str:
    return datetime.now(UTC).date().isoformat()


def this_hour() -> str:
    return f"{datetime.now(UTC):%Y-%m-%d-%H}"


__all__ = ["APPLICATION_FILE", "BACKUP_FILE", "CommandFailed", "Stack", "this_hour", "today", "wait_for"]
