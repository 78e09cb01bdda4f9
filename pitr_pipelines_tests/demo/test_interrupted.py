"""`python -m pitr_pipelines.demo`, interrupted: nothing that it started is left, and no directory."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pitr_pipelines.demo.processes import marked_processes
from pitr_pipelines_tests.servers import binaries_of, wait_for


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_demo_that_is_interrupted_leaves_nothing(number: signal.Signals, tmp_path: Path) -> None:
    binaries_of(None)
    output = tmp_path / "output"
    with output.open("wb") as out:
        demo = subprocess.Popen(
            [sys.executable, "-m", "pitr_pipelines.demo", "--once"],
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        wait_for(lambda: "init-db order-db" in output.read_text(), timeout_s=90, what="the servers")
        place = next(Path(word.rstrip(";")) for word in output.read_text().split() if "/pitr-demo-" in word)
        assert list(marked_processes(place))
        demo.send_signal(number)
        # Whoever is impatient presses it twice; that must not cut the clearing short.
        demo.send_signal(number)
        assert demo.wait(60) == 128 + number
    finally:
        if demo.poll() is None:
            os.kill(demo.pid, signal.SIGTERM)
            demo.wait(60)
    assert not place.exists()
    assert list(marked_processes(place)) == []
    assert "every process has ended" in output.read_text()
