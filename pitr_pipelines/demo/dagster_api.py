"""Dagster over GraphQL, as its own pages use it: launch a job for a partition, watch the run.

Needs no Dagster in this process, and speaks to loopback only, whatever proxy the environment names.
"""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pitr_pipelines.errors import PitrError

LOCATION = "pitr_pipelines"
_IN_REPOSITORY = {"repositoryLocationName": LOCATION, "repositoryName": "__repository__"}
_PARTITION_TAG = "dagster/partition"
_REQUEST_S = 30.0
_POLL_S = 0.25
_FAILURES_SHOWN = 12

_LAUNCH = """
mutation Launch($params: ExecutionParams!) {
  launchRun(executionParams: $params) {
    __typename
    ... on LaunchRunSuccess { run { runId } }
    ... on Error { message }
    ... on RunConfigValidationInvalid { errors { message } }
  }
}
"""
_RUN = """
query Run($runId: ID!) {
  runOrError(runId: $runId) {
    __typename
    ... on Error { message }
    ... on Run {
      status creationTime startTime endTime
      assetMaterializations {
        assetKey { path } partition
        metadataEntries {
          label
          ... on TextMetadataEntry { text }
          ... on PathMetadataEntry { path }
          ... on IntMetadataEntry { intValue }
          ... on FloatMetadataEntry { floatValue }
          ... on BoolMetadataEntry { boolValue }
          ... on TimestampMetadataEntry { timestamp }
        }
      }
    }
  }
}
"""
_EVENTS = """
query Events($runId: ID!) {
  logsForRun(runId: $runId) {
    ... on Error { message }
    ... on EventConnection {
      events {
        __typename
        ... on MessageEvent { message level stepKey }
        ... on ErrorEvent { error { message errorChain { error { message } } } }
      }
    }
  }
}
"""
_SCHEDULES = """
query Schedules($repository: RepositorySelector!) {
  schedulesOrError(repositorySelector: $repository) {
    ... on Error { message }
    ... on Schedules { results { name scheduleState { status } } }
  }
}
"""
_SENSOR = """
query Sensor($selector: SensorSelector!) {
  sensorOrError(sensorSelector: $selector) { ... on Error { message } ... on Sensor { sensorState { id } } }
}
"""
_STOP = """
mutation Stop($id: String!) { stopSensor(id: $id) { __typename ... on Error { message } } }
"""
_VALUES = ("text", "path", "intValue", "floatValue", "boolValue", "timestamp")


class DagsterUnavailable(PitrError):
    """Dagster's webserver does not answer, or not as it should."""

    exit_code = 3


class RunFailed(PitrError):
    """A run was refused, failed, or did not end in time."""


@dataclass(frozen=True)
class Materialization:
    """What a run reported of one asset. `metadata` has its text, numbers and moments, by label."""

    asset: str
    partition: str | None
    metadata: Mapping[str, Any]


@dataclass(frozen=True)
class FinishedRun:
    """A run that succeeded; times in seconds."""

    run_id: str
    url: str
    queued_s: float
    ran_s: float
    materializations: tuple[Materialization, ...]

    def of(self, asset: str) -> Materialization | None:
        """Return what the run reported of `asset` (`order_db/base_backup`), if it did."""
        return next((found for found in self.materializations if found.asset == asset), None)


class DagsterApi:
    """One webserver, at `http://127.0.0.1:<port>`."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def ask(self, query: str, variables: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Return the data that a GraphQL query gives. Raises DagsterUnavailable."""
        request = urllib.request.Request(  # noqa: S310 - always http, always loopback
            f"{self.url}/graphql",
            data=json.dumps({"query": query, "variables": dict(variables or {})}).encode(),
            headers={"Content-Type": "application/json"},
        )
        try:
            with self._opener.open(request, timeout=_REQUEST_S) as response:
                answer = json.load(response)
        except urllib.error.HTTPError as error:
            with error:
                said = error.read(2000).decode(errors="replace")
            raise self._unavailable(f"it answered {error.code}: {said}") from None
        except (OSError, ValueError) as error:  # refused, reset, timed out; or no JSON
            raise self._unavailable(str(error)) from None
        if not isinstance(answer, dict) or answer.get("errors") or not isinstance(answer.get("data"), dict):
            raise self._unavailable(f"it answered {json.dumps(answer)[:2000]}")
        return dict(answer["data"])

    def run_url(self, run_id: str) -> str:
        return f"{self.url}/runs/{run_id}"

    def launch(self, job: str, partition: str, config: Mapping[str, Any] | None = None) -> str:
        """Launch a job for one partition, as its launchpad does, and return the run's id.

        Raises RunFailed, with Dagster's words, if the job or the configuration is refused.
        """
        params = {
            "selector": {**_IN_REPOSITORY, "jobName": job},
            "runConfigData": dict(config or {}),
            "executionMetadata": {"tags": [{"key": _PARTITION_TAG, "value": partition}]},
        }
        result = self.ask(_LAUNCH, {"params": params})["launchRun"]
        if result["__typename"] == "LaunchRunSuccess":
            return str(result["run"]["runId"])
        said = [error["message"] for error in result.get("errors", [])] or [result.get("message", "")]
        raise RunFailed(
            f"Dagster refused to launch {job} for {partition}: {result['__typename']}\n"
            + "\n".join(f"  {line}" for line in "\n".join(said).splitlines()),
            remedy="Correct what it names.",
        )

    def schedules(self) -> dict[str, bool]:
        """Return which schedules there are, and whether each is on. Raises DagsterUnavailable."""
        answer = self.ask(_SCHEDULES, {"repository": _IN_REPOSITORY})["schedulesOrError"]
        return {
            schedule["name"]: schedule["scheduleState"]["status"] == "RUNNING"
            for schedule in answer.get("results", [])
        }

    def stop_sensor(self, name: str) -> None:
        """Turn a sensor off. Raises DagsterUnavailable if that cannot be done."""
        selector = {**_IN_REPOSITORY, "sensorName": name}
        sensor = self.ask(_SENSOR, {"selector": selector})["sensorOrError"]
        if "sensorState" not in sensor:
            raise self._unavailable(f"sensor {name}: {sensor.get('message')}")
        stopped = self.ask(_STOP, {"id": sensor["sensorState"]["id"]})["stopSensor"]
        if "Error" in stopped["__typename"]:
            raise self._unavailable(f"sensor {name}: {stopped.get('message')}")

    def wait(self, run_id: str, *, timeout_s: float, watch: Callable[[], None]) -> FinishedRun:
        """Return the run once it succeeded; `watch` is called now and then and may raise.

        Raises RunFailed, with the errors in the run's log, if it fails, is cancelled, or does not
        end within `timeout_s` seconds.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            watch()
            run = self.ask(_RUN, {"runId": run_id})["runOrError"]
            status = run.get("status", run.get("message"))
            if status == "SUCCESS":
                return self._finished(run_id, run)
            ended = status in ("FAILURE", "CANCELED") or run["__typename"] != "Run"
            if ended or time.monotonic() > deadline:
                raise RunFailed(
                    f"the run {self.run_url(run_id)} "
                    + (f"ended as {status}" if ended else f"is still {status} after {timeout_s:.0f} s")
                    + "".join(f"\n  {line}" for line in self._errors(run_id)),
                    remedy="Its log says more, in Dagster.",
                )
            time.sleep(_POLL_S)

    def _finished(self, run_id: str, run: Mapping[str, Any]) -> FinishedRun:
        found = tuple(
            Materialization(
                "/".join(event["assetKey"]["path"]),
                event["partition"],
                {entry["label"]: _value(entry) for entry in event["metadataEntries"]},
            )
            for event in run["assetMaterializations"]
            if event["assetKey"] is not None
        )
        created, started, ended = (float(run[key] or 0) for key in ("creationTime", "startTime", "endTime"))
        return FinishedRun(
            run_id, self.run_url(run_id), max(0.0, started - created), max(0.0, ended - started), found
        )

    def _errors(self, run_id: str) -> list[str]:
        """Return what the run's log says of errors, without the tracebacks."""
        events = self.ask(_EVENTS, {"runId": run_id})["logsForRun"].get("events", [])
        said: list[str] = []
        for event in events:
            if event.get("level") not in ("ERROR", "CRITICAL") and not event.get("error"):
                continue
            where = f"{event['stepKey']}: " if event.get("stepKey") else ""
            said += (where + line.rstrip() for line in event.get("message", "").splitlines() if line.strip())
            error = event.get("error") or {}
            chain = [error, *(link["error"] for link in error.get("errorChain") or [])]
            said += (line for link in chain for line in link.get("message", "").strip().splitlines() if line)
        return list(dict.fromkeys(said))[-_FAILURES_SHOWN:]

    def _unavailable(self, why: str) -> DagsterUnavailable:
        return DagsterUnavailable(
            f"Dagster at {self.url} does not answer as it should: {why}",
            remedy="Its log is in the directory logs of the demo's directory.",
        )


def _value(entry: Mapping[str, Any]) -> Any:
    return next((entry[key] for key in _VALUES if entry.get(key) is not None), None)
