"""Dagster for the demo: code server, webserver and daemon, on loopback, with an instance of its own.

The other two share one code server, because each import of the definitions costs seconds; and they
start after it, because processes that create the instance's database at the same time stumble over
each other's tables. Nothing of Dagster is imported here. All of it is marked as the demo's, and
ended by that mark.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import yaml

from pitr_pipelines.demo.dagster_api import LOCATION, DagsterApi, DagsterUnavailable
from pitr_pipelines.demo.processes import Process, marked_environment
from pitr_pipelines.postgres.server import free_port
from pitr_pipelines.restore.destination import port_is_free
from pitr_pipelines.settings import CONFIG_VARIABLE

USUAL_PORT = 3000
READY_S = 120.0
_DEFINITIONS = "pitr_pipelines.definitions"
_POLL_S = 0.2
_ATTEMPTS = 3

_STATE = """
{
  instance { info daemonHealth { allDaemonStatuses { daemonType required healthy } } }
  workspaceOrError {
    ... on Error { message }
    ... on Workspace { locationEntries { loadStatus locationOrLoadError {
      __typename ... on Error { message } } } }
  }
}
"""
_RELOAD = """
mutation Reload($name: String!) {
  reloadRepositoryLocation(repositoryLocationName: $name) { __typename ... on Error { message } }
}
"""


class DagsterUi:
    """A running Dagster. `api` can be used after `wait_until_ready`."""

    def __init__(self, place: Path, config: Path) -> None:
        """Write the instance's files and start the code server; returns at once.

        An instance that is there already is taken up: its dagster.yaml stays as it is.
        """
        self.home = place / "dagster"
        self._place = place
        self._socket = self.home / "code.sock"
        self._env = marked_environment(place, {"DAGSTER_HOME": str(self.home), CONFIG_VARIABLE: str(config)})
        self._workspace = self.home / "workspace.yaml"
        self.home.mkdir(mode=0o700, exist_ok=True)
        self._socket.unlink(missing_ok=True)  # of a code server that was killed
        if not (self.home / "dagster.yaml").exists():
            (self.home / "dagster.yaml").write_text(yaml.safe_dump(_INSTANCE))
        grpc = {"socket": str(self._socket), "location_name": LOCATION}
        self._workspace.write_text(yaml.safe_dump({"load_from": [{"grpc_server": grpc}]}))
        self._code_server = self._start("code-server", *_CODE_SERVER, "--socket", str(self._socket))
        self._web: Process | None = None
        self._daemon: Process | None = None
        self._port = 0

    @property
    def api(self) -> DagsterApi:
        return DagsterApi(self._port)

    @property
    def url(self) -> str:
        return self.api.url

    def go_on(self) -> None:
        """Start what can be started by now; call it while waiting for other things."""
        if self._web is None and self._socket.exists():
            self._open_web()
            where = ("--workspace", str(self._workspace))
            self._daemon = self._start("daemon", "dagster._daemon", "run", *where)

    def check(self) -> None:
        """Raise ProcessEnded if one of the processes has ended."""
        for process in (self._code_server, self._web, self._daemon):
            if process is not None:
                process.check()

    def wait_until_ready(self, timeout_s: float = READY_S) -> None:
        """Return once the pages answer, the definitions are loaded and the daemon works off the queue.

        Raises ProcessEnded with its log if a process ends, and DagsterUnavailable with the last
        obstacle after `timeout_s` seconds; a port that somebody else was quicker to take is replaced.
        """
        deadline = time.monotonic() + timeout_s
        attempts = 1
        while (obstacle := self._obstacle()) is not None:
            lost_port = self._web is not None and not self._web.lives and not port_is_free(self._port)
            if lost_port and attempts < _ATTEMPTS:
                attempts += 1
                self._open_web()
            self.check()
            if time.monotonic() > deadline:
                raise DagsterUnavailable(
                    f"Dagster was not ready within {timeout_s:.0f} s: {obstacle}",
                    remedy=f"Look into the logs in {self._place / 'logs'}.",
                )
            time.sleep(_POLL_S)

    def _obstacle(self) -> str | None:
        """Return what is still missing, if anything is."""
        self.go_on()
        if self._web is None:
            return "the code server is loading the definitions"
        try:
            state = self.api.ask(_STATE)
        except DagsterUnavailable as error:
            return error.what
        if str(self.home) not in str(state["instance"]["info"]):
            return f"another Dagster answers at {self.url}"
        entries = state["workspaceOrError"].get("locationEntries", [])
        if not entries or entries[0]["loadStatus"] != "LOADED":
            return "the definitions are being loaded"
        loaded = entries[0]["locationOrLoadError"]
        if loaded["__typename"] != "RepositoryLocation":
            # The webserver was quicker than the code server's first answer.
            self.api.ask(_RELOAD, {"name": LOCATION})
            return f"the definitions do not load: {loaded.get('message')}"
        waiting = [
            daemon["daemonType"]
            for daemon in state["instance"]["daemonHealth"]["allDaemonStatuses"]
            if daemon["required"] and not daemon["healthy"]
        ]
        return f"the daemon has not begun with {', '.join(waiting)}" if waiting else None

    def _open_web(self) -> None:
        self._port = choose_port()
        where = ("--host", "127.0.0.1", "--port", str(self._port), "--workspace", str(self._workspace))
        self._web = self._start("webserver", "dagster_webserver", *where)

    def _start(self, name: str, module: str, *arguments: str) -> Process:
        argv = [sys.executable, "-m", module, *arguments]
        return Process.start(f"Dagster's {name}", argv, self._place / "logs" / f"{name}.log", self._env)


def choose_port() -> int:
    """Return Dagster's usual port, or another that is free if that is taken."""
    return USUAL_PORT if port_is_free(USUAL_PORT) else free_port()


_CODE_SERVER = (
    *("dagster", "api", "grpc", "--module-name", _DEFINITIONS, "--location-name", LOCATION),
    "--use-python-environment-entry-point",
)
_INSTANCE = {
    "telemetry": {"enabled": False},
    "nux": {"enabled": False},
    "run_coordinator": {
        "module": "dagster.core.run_coordinator",
        "class": "QueuedRunCoordinator",
        "config": {"dequeue_interval_seconds": 1},
    },
}
