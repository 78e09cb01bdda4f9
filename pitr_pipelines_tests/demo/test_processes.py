"""Everything that the demo started is found and ended, and nothing else is."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pitr_pipelines.demo.processes import (
    MARK,
    Process,
    ProcessEnded,
    end_marked,
    end_servers,
    marked_environment,
    marked_processes,
)
from pitr_pipelines_tests.servers import ServerFactory, wait_for

_SLEEP = "import time; time.sleep(600)"
_WITH_A_CHILD_ELSEWHERE = f"""
import subprocess, sys, time
subprocess.Popen([sys.executable, "-c", {_SLEEP!r}], start_new_session=True)
time.sleep(600)
"""
_STUBBORN = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("ready", flush=True)
time.sleep(600)
"""


def _start(place: Path, program: str) -> Process:
    argv = [sys.executable, "-c", program]
    return Process.start("the program", argv, place / "log", marked_environment(place, {}))


def wait_until_dead(process: Process) -> None:
    """A process that is ending has no environment any more, and is not dead yet."""
    wait_for(lambda: not process.lives, what="its end")


def test_children_in_sessions_of_their_own_end_too(tmp_path: Path) -> None:
    process = _start(tmp_path, _WITH_A_CHILD_ELSEWHERE)
    wait_for(lambda: len(list(marked_processes(tmp_path))) == 2, what="the child")
    end_marked(tmp_path)
    wait_until_dead(process)
    assert list(marked_processes(tmp_path)) == []


def test_processes_of_another_demo_go_on(tmp_path: Path) -> None:
    ours, other = tmp_path / "pitr-demo-1", tmp_path / "pitr-demo-12"
    for place in (ours, other):
        place.mkdir()
    first, second = _start(ours, _SLEEP), _start(other, _SLEEP)
    end_marked(ours)
    wait_until_dead(first)
    assert second.lives
    end_marked(other)
    wait_until_dead(second)


def test_a_process_that_does_not_listen_is_killed(tmp_path: Path) -> None:
    process = _start(tmp_path, _STUBBORN)
    wait_for(lambda: "ready" in process.log_file.read_text(), what="the program")
    end_marked(tmp_path, grace_s=0.2)
    wait_until_dead(process)


def test_we_are_not_ended_ourselves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = "\n".join(
        (
            "from pathlib import Path; import sys",
            "from pitr_pipelines.demo.processes import end_marked",
            "end_marked(Path(sys.argv[1]), 0.1); print('lives')",
        )
    )
    env = {**os.environ, MARK: str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", program, tmp_path], env=env, capture_output=True, text=True, check=False
    )
    assert done.stdout == "lives\n", done.stderr


def test_a_process_that_ended_is_reported_with_its_last_words(tmp_path: Path) -> None:
    process = _start(tmp_path, "raise SystemExit('no such module')")
    process.popen.wait()
    with pytest.raises(ProcessEnded, match="no such module"):
        process.check()


def test_the_environment_leads_nowhere_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PGPASSWORD", "DAGSTER_HOME", "PITR_CONFIG", "HARMLESS"):
        monkeypatch.setenv(name, "elsewhere")
    env = marked_environment(tmp_path, {"DAGSTER_HOME": "here"})
    assert {name: env.get(name) for name in ("PGPASSWORD", "DAGSTER_HOME", "PITR_CONFIG", "HARMLESS")} == {
        "PGPASSWORD": None,
        "DAGSTER_HOME": "here",
        "PITR_CONFIG": None,
        "HARMLESS": "elsewhere",
    }


def test_servers_below_the_directory_end_and_others_go_on(
    server_factory: ServerFactory, reachable_tmp: Path
) -> None:
    server = server_factory("order-db", archiving=False)
    end_servers(reachable_tmp / "elsewhere", server.cluster.binaries)
    assert server.cluster.pid() is not None
    end_servers(reachable_tmp, server.cluster.binaries)
    assert server.cluster.pid() is None
