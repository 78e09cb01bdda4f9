"""Progress in Dagster's event log: a line every few seconds, not one for every block."""

import logging
import time
from collections.abc import Callable

from pitr_pipelines.progress import Progress
from pitr_pipelines.units import show_bytes, show_duration

EVERY_S = 5.0


class LogProgress:
    """A `Report` that logs how far a step is, how fast it goes, and how long it will still take.

    A step that is over within `every_s` seconds leaves no line.
    """

    def __init__(
        self, log: logging.Logger, *, every_s: float = EVERY_S, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._log = log
        self._every_s = every_s
        self._clock = clock
        self._step: str | None = None
        self._began = self._shown = 0.0
        self._first = 0

    def __call__(self, progress: Progress) -> None:
        now = self._clock()
        if progress.step != self._step or progress.done < self._first:
            self._step, self._began, self._shown, self._first = progress.step, now, now, progress.done
        elif now - self._shown >= self._every_s:
            self._shown = now
            self._log.info(progress_line(progress, (progress.done - self._first) / (now - self._began)))


def progress_line(progress: Progress, rate: float) -> str:
    """Return one line; `rate` is in units a second."""
    show: Callable[[float], str] = show_bytes if progress.unit == "bytes" else _show_count(progress.unit)
    parts = [f"{progress.step}: {show(progress.done)}"]
    if progress.total:
        parts[0] += f" of {show(progress.total)} ({100 * progress.done // progress.total} %)"
    if rate > 0:
        parts.append(f"{show(rate)}/s")
        if progress.total and progress.total > progress.done:
            parts.append(f"{show_duration((progress.total - progress.done) / rate)} left")
    return ", ".join(parts)


def _show_count(unit: str) -> Callable[[float], str]:
    def show(number: float) -> str:
        return f"{number:.0f} {unit}" if number >= 10 or number == int(number) else f"{number:.1f} {unit}"

    return show
