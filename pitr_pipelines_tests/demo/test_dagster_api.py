"""Dagster over GraphQL, against a webserver that answers what each test wants."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from pitr_pipelines.demo.dagster_api import DagsterApi, DagsterUnavailable, RunFailed
from pitr_pipelines.errors import PitrError
from pitr_pipelines.postgres.server import free_port

Answer = dict[str, Any] | tuple[int, str]


class FakeDagster:
    """Answers queries by their name; `asked` keeps what each was asked with."""

    def __init__(self) -> None:
        self.answers: dict[str, list[Answer]] = {}
        self.asked: list[tuple[str, dict[str, Any]]] = []
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                name = asked["query"].split()[1].partition("(")[0]
                fake.asked.append((name, asked["variables"]))
                answers = fake.answers[name]
                answer = answers.pop(0) if len(answers) > 1 else answers[0]
                status, text = answer if isinstance(answer, tuple) else (200, json.dumps({"data": answer}))
                self.send_response(status)
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.api = DagsterApi(self.server.server_address[1])


@pytest.fixture
def dagster() -> Iterator[FakeDagster]:
    fake = FakeDagster()
    thread = threading.Thread(target=fake.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield fake
    fake.server.shutdown()
    fake.server.server_close()
    thread.join()


def _run(status: str, **more: Any) -> dict[str, Any]:
    run = {
        "__typename": "Run",
        "status": status,
        "creationTime": 100.0,
        "startTime": 103.5,
        "endTime": 105.0,
        "assetMaterializations": [],
        **more,
    }
    return {"runOrError": run}


def test_a_job_is_launched_for_a_partition_as_its_page_does(dagster: FakeDagster) -> None:
    dagster.answers["Launch"] = [
        {"launchRun": {"__typename": "LaunchRunSuccess", "run": {"runId": "abc"}}},
    ]
    assert dagster.api.launch("restore", "2026-01-29-14", {"ops": {}}) == "abc"
    ((_, variables),) = dagster.asked
    params = variables["params"]
    assert params["selector"]["jobName"] == "restore"
    assert params["executionMetadata"]["tags"] == [{"key": "dagster/partition", "value": "2026-01-29-14"}]
    assert params["runConfigData"] == {"ops": {}}


def test_a_refused_configuration_is_shown_with_dagsters_words(dagster: FakeDagster) -> None:
    errors = [{"message": "Missing required config entry"}]
    dagster.answers["Launch"] = [
        {"launchRun": {"__typename": "RunConfigValidationInvalid", "errors": errors}},
    ]
    with pytest.raises(RunFailed, match="Missing required config entry"):
        dagster.api.launch("restore", "2026-01-29-14")


def test_a_run_is_awaited_and_its_reports_are_read(dagster: FakeDagster) -> None:
    entries = [
        {"label": "port", "intValue": 0},
        {"label": "fetch_s", "floatValue": 0.25},
        {"label": "directory", "path": "/restore/x"},
        {"label": "running", "boolValue": False},
        {"label": "checks"},
    ]
    event = {"assetKey": {"path": ["order_db", "base_backup"]}, "partition": "p", "metadataEntries": entries}
    dagster.answers["Run"] = [
        _run("QUEUED"),
        _run("STARTED"),
        _run("SUCCESS", assetMaterializations=[event]),
    ]
    watched: list[int] = []
    run = dagster.api.wait("abc", timeout_s=30, watch=lambda: watched.append(1))
    report = run.of("order_db/base_backup")
    assert report is not None
    assert report.metadata == {
        "port": 0,
        "fetch_s": 0.25,
        "directory": "/restore/x",
        "running": False,
        "checks": None,
    }
    assert (run.queued_s, run.ran_s) == (3.5, 1.5)
    assert run.url == f"{dagster.api.url}/runs/abc"
    assert run.of("inventory_db/base_backup") is None
    assert len(watched) == 3


def test_a_failed_run_shows_the_errors_in_its_log_once(dagster: FakeDagster) -> None:
    cause = {"message": "order-db does not accept our connection\nIs the server running?"}
    error = {"message": "dagster._core.errors.Failure\n", "errorChain": [{"error": cause}]}
    dagster.answers["Run"] = [_run("FAILURE")]
    events = [
        {"__typename": "LogMessageEvent", "message": "all is well", "level": "INFO"},
        {
            "__typename": "ExecutionStepFailureEvent",
            "message": "step failed",
            "level": "ERROR",
            "error": error,
        },
        {"__typename": "RunFailureEvent", "message": "step failed", "level": "ERROR", "error": None},
    ]
    dagster.answers["Events"] = [{"logsForRun": {"events": events}}]
    with pytest.raises(RunFailed) as failed:
        dagster.api.wait("abc", timeout_s=30, watch=lambda: None)
    assert "ended as FAILURE" in failed.value.what
    assert "Is the server running?" in failed.value.what
    assert failed.value.what.count("step failed") == 1
    assert "all is well" not in failed.value.what


def test_a_run_that_does_not_end_is_given_up(dagster: FakeDagster) -> None:
    dagster.answers["Run"] = [_run("QUEUED")]
    dagster.answers["Events"] = [{"logsForRun": {"events": []}}]
    with pytest.raises(RunFailed, match="still QUEUED after 0 s"):
        dagster.api.wait("abc", timeout_s=0.0, watch=lambda: None)


def test_whoever_watches_can_end_the_wait(dagster: FakeDagster) -> None:
    dagster.answers["Run"] = [_run("QUEUED")]

    def watch() -> None:
        raise PitrError("the daemon has ended", remedy="")

    with pytest.raises(PitrError, match="the daemon has ended"):
        dagster.api.wait("abc", timeout_s=30, watch=watch)


@pytest.mark.parametrize(
    "answer", [(500, "broken"), (200, "no JSON"), (200, '{"errors": ["no such field"]}')]
)
def test_an_answer_that_is_none_is_an_error_that_quotes_it(dagster: FakeDagster, answer: Answer) -> None:
    dagster.answers["Run"] = [answer]
    with pytest.raises(DagsterUnavailable):
        dagster.api.wait("abc", timeout_s=30, watch=lambda: None)


def test_a_closed_port_is_an_error_and_a_proxy_is_never_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://192.0.2.1:9")
    with pytest.raises(DagsterUnavailable, match="refused"):
        DagsterApi(free_port()).schedules()


def test_schedules_are_on_or_off(dagster: FakeDagster) -> None:
    results = [
        {"name": "bundle_schedule", "scheduleState": {"status": "RUNNING"}},
        {"name": "base_backup_schedule", "scheduleState": {"status": "STOPPED"}},
    ]
    dagster.answers["Schedules"] = [{"schedulesOrError": {"results": results}}]
    assert dagster.api.schedules() == {"bundle_schedule": True, "base_backup_schedule": False}
