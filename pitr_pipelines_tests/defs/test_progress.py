"""Progress in the log says how far, how fast, and how long still."""

from __future__ import annotations

import logging

import pytest

from pitr_pipelines.defs.progress import LogProgress, progress_line
from pitr_pipelines.progress import Progress

MIB = 1024 * 1024


class _Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def _lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records]


def test_a_line_every_five_seconds_with_rate_and_remaining_time(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    clock = _Clock()
    report = LogProgress(logging.getLogger("pitr-test"), clock=clock)

    for second in range(11):
        clock.now = 100.0 + second
        report(Progress("copy", second * 10 * MIB, 200 * MIB))

    assert _lines(caplog) == [
        "copy: 50 MiB of 200 MiB (25 %), 10 MiB/s, 15 s left",
        "copy: 100 MiB of 200 MiB (50 %), 10 MiB/s, 10 s left",
    ]


def test_short_steps_leave_no_line_and_each_step_has_its_own_rate(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    clock = _Clock()
    report = LogProgress(logging.getLogger("pitr-test"), clock=clock)

    report(Progress("copy", 0, MIB))
    clock.now += 1
    report(Progress("copy", MIB, MIB))
    clock.now += 100
    report(Progress("replay", 0, 30, "segments"))
    clock.now += 6
    report(Progress("replay", 15, 30, "segments"))

    assert _lines(caplog) == ["replay: 15 segments of 30 segments (50 %), 2.5 segments/s, 6.0 s left"]


def test_an_unknown_total_is_not_made_up() -> None:
    assert progress_line(Progress("copy", 3 * MIB, None), 1.5 * MIB) == "copy: 3 MiB, 1.5 MiB/s"
