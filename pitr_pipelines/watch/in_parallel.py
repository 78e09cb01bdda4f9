"""Several things at once, with a moment at which waiting ends whatever they do.

A thread cannot be ended from outside. One that is stuck is left behind, does not keep the process
alive, and nothing more is begun for its name until it has come back: so what hangs at every look
costs one thread, not one for each look.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Generic, TypeVar

from pitr_pipelines.errors import PitrError

Result = TypeVar("Result")

AT_ONCE = 64


class Stuck(PitrError):
    """It did not end in time, or what was begun at an earlier look has not ended yet."""


class Parallel(Generic[Result]):
    """Runs named functions in threads. One object lives as long as the process, to know what is stuck."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._busy: set[str] = set()

    def run(
        self, work: Mapping[str, Callable[[], Result]], *, timeout_s: float
    ) -> dict[str, Result | PitrError]:
        """Return what each function returned, or the PitrError it raised.

        What did not end within `timeout_s` seconds, or ended in an error that nobody foresaw (whose
        traceback is on standard error), is Stuck.
        """
        done: dict[str, Result | PitrError] = {}
        ended: set[str] = set()
        changed = threading.Condition(self._lock)
        with changed:
            waiting = [name for name in work if name not in self._busy]
            self._busy.update(waiting)
            expected = len(waiting)

        def worker() -> None:
            while True:
                with changed:
                    if not waiting:
                        return
                    name = waiting.pop(0)
                try:
                    found: Result | PitrError = work[name]()
                    done[name] = found
                except PitrError as error:
                    done[name] = error
                finally:
                    with changed:
                        self._busy.discard(name)
                        ended.add(name)
                        changed.notify_all()

        for number in range(min(expected, AT_ONCE)):
            threading.Thread(target=worker, name=f"pitr-watch-{number}", daemon=True).start()
        with changed:
            changed.wait_for(lambda: len(ended) == expected, timeout=timeout_s)
            self._busy.difference_update(waiting)
            waiting.clear()
            results = dict(done)
        return {name: results.get(name, _stuck(timeout_s)) for name in work}


def _stuck(timeout_s: float) -> Stuck:
    return Stuck(
        f"no answer within {timeout_s:g} s", remedy="Does it hang, or is the network in between down?"
    )
