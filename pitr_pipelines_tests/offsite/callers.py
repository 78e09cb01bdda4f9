"""The day's call made in processes of their own: many at once, or one that dies at a step of our choice.

One process imports everything once and forks for each call, so that a call costs no start. In a call that
is to die, every change to the disk and every use of a socket by its main thread is a step: it is numbered and
named, and the process kills itself right before or right after the one that was asked for. No cleaning up
is left to Python then, as when somebody pulls the plug on it.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

TIMEOUT_S = 120


@dataclass(frozen=True)
class Order:
    """What is to be called, and how it is to end.

    `die_at` is the number of a step; `after` it rather than before. `signal_number` is what the process gets
    there. With more than one rival, each comes to the claim, or with `locked` to the beginning, at once.
    """

    settings_file: str
    now: str
    die_at: int | None = None
    after: bool = False
    signal_number: int = signal.SIGKILL
    processes: int = 1
    threads: int = 1
    locked: bool = True


@dataclass(frozen=True)
class Ended:
    """How a call ended: `state` and `made` if it returned, `error` and `what` if it raised.

    Neither is set if its process was killed by the signal `killed_by`. `peak_bytes` is the most memory that
    it had.
    """

    state: str | None = None
    made: bool | None = None
    error: str | None = None
    what: str = ""
    steps: tuple[str, ...] = ()
    peak_bytes: int = 0
    killed_by: int | None = None


class Callers:
    """Orders calls from the process that forks; `close` ends it."""

    def __init__(self, environment: dict[str, str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def __call__(self, settings_file: Path, now: datetime, **how: Any) -> Ended:
        """Make one call, and say how it ended."""
        (ended,) = self.all_at_once(settings_file, now, **how)
        return ended

    def all_at_once(self, settings_file: Path, now: datetime, **how: Any) -> list[Ended]:
        """Let all rivals call, and say how it ended for each."""
        order = Order(str(settings_file), now.isoformat(), **how)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(asdict(order)) + "\n")
        self._process.stdin.flush()
        return [Ended(**found) for found in json.loads(self._process.stdout.readline())]

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait(timeout=TIMEOUT_S)


class _Steps:
    """Numbers and names what this process does to the disk and the network, and dies where it is told."""

    def __init__(self, order: Order, root: Path) -> None:
        self.names: list[str] = []
        self._order = order
        self._root = root

    def watch(self) -> None:
        self._wrap(
            os, "open", lambda path, flags, *_: f"create {self._name(path)}" * bool(flags & os.O_CREAT)
        )
        self._wrap(
            os, "fsync", lambda number: f"sync {self._name(Path(f'/proc/self/fd/{number}').readlink())}"
        )
        self._wrap(os, "replace", lambda _, path: f"rename to {self._name(path)}")
        self._wrap(os, "rename", lambda _, path: f"rename to {self._name(path)}")
        self._wrap(os, "link", lambda _, path: f"link {self._name(path)}")
        for name in ("mkdir", "unlink", "rmdir"):
            self._wrap(os, name, lambda path, *_, name=name: f"{name} {self._name(path)}")
        for name in ("connect", "sendall", "recv_into"):
            self._wrap(socket.socket, name, lambda *_, name=name: name)

    def _name(self, path: Any) -> str:
        text = os.fsdecode(path).removeprefix(f"{self._root}/")
        return re.sub(r"\d+-\d+\.tmp$", "tmp", text)

    def _wrap(self, owner: Any, name: str, describe: Callable[..., str]) -> None:
        real = getattr(owner, name)

        def step(*arguments: Any, **named: Any) -> Any:
            # Bundling in threads has tests of its own, and no order.
            said = describe(*arguments) if threading.current_thread() is threading.main_thread() else ""
            if not said:
                return real(*arguments, **named)
            number = len(self.names)
            self.names.append(said)
            self._die(number, after=False)
            try:
                return real(*arguments, **named)
            finally:
                self._die(number, after=True)

        setattr(owner, name, step)

    def _die(self, number: int, *, after: bool) -> None:
        if (number, after) == (self._order.die_at, self._order.after):
            os.kill(os.getpid(), self._order.signal_number)


def _call(order: Order, begin: Callable[[], object], steps: _Steps) -> dict[str, Any]:
    from pitr_pipelines.errors import PitrError
    from pitr_pipelines.offsite.copy import make_copy
    from pitr_pipelines.settings import load_settings

    settings = load_settings(Path(order.settings_file))
    start = datetime.fromisoformat(order.now)
    ticks = iter(range(10**6))
    begin()
    try:
        done = make_copy(settings, clock=lambda: start + timedelta(seconds=next(ticks)), looks_s=(0.0,))
    except PitrError as error:
        return {"error": type(error).__name__, "what": error.what, "steps": steps.names}
    except KeyboardInterrupt:
        return {"error": "KeyboardInterrupt", "steps": steps.names}
    peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"state": done.state, "made": done.made, "steps": steps.names, "peak_bytes": peak_bytes}


def _rival(order: Order, barrier: Any, answer: int) -> None:
    """Make the calls of one process, and write what came of them, a JSON list, to a descriptor."""
    from pitr_pipelines.settings import load_settings

    steps = _Steps(order, load_settings(Path(order.settings_file)).backup_root)
    ended: list[dict[str, Any]] = []
    if order.processes * order.threads == 1:
        steps.watch()
        ended.append(_call(order, lambda: None, steps))
    else:
        wait = _at_the_claim(barrier) if not order.locked else lambda: barrier.wait(TIMEOUT_S)
        rivals = [
            threading.Thread(target=lambda: ended.append(_call(order, wait, steps)))
            for _ in range(order.threads)
        ]
        for rival in rivals:
            rival.start()
        for rival in rivals:
            rival.join()
    with open(answer, "w") as file:
        json.dump(ended, file)


def _at_the_claim(barrier: Any) -> Callable[[], object]:
    """Take the lock of who sends away, so that only the ledger stands between those who come to it at once.

    As between two machines whose locks do not reach each other; what each holds on to is its own then.
    """
    from pitr_pipelines import durable
    from pitr_pipelines.catalog.layout import Layout
    from pitr_pipelines.offsite import budget, copy

    locked, claim = durable.exclusive_lock, budget.claim

    def unlocked(path: Path, **named: Any) -> AbstractContextManager[None]:
        return nullcontext() if path.name == ".sending" else locked(path, **named)

    def claim_at_once(*arguments: Any, **named: Any) -> budget.Claim:
        barrier.wait(TIMEOUT_S)
        return claim(*arguments, **named)

    def outgoing(layout: Layout) -> Path:
        return layout.ledger / f".outgoing-{os.getpid()}-{threading.get_native_id()}"

    durable.exclusive_lock = unlocked  # type: ignore[assignment]
    budget.claim = claim_at_once
    copy.gather = lambda *_, **__: []  # type: ignore[attr-defined]
    Layout.outgoing = property(outgoing)  # type: ignore[assignment, method-assign]
    return lambda: None


def _serve() -> None:
    _import_everything()
    fork = multiprocessing.get_context("fork")
    for line in sys.stdin:
        order = Order(**json.loads(line))
        barrier = fork.Barrier(order.processes * order.threads)
        children = [_fork(partial(_rival, order, barrier)) for _ in range(order.processes)]
        ended: list[dict[str, Any]] = []
        for child, answer in children:
            with open(answer) as file:
                said = file.read()
            _, status = os.waitpid(child, 0)
            if os.WIFSIGNALED(status):
                ended.append({"killed_by": os.WTERMSIG(status)})
            else:
                ended += json.loads(said)
        print(json.dumps(ended), flush=True)


def _fork(work: Callable[[int], None]) -> tuple[int, int]:
    """Return the number of a new process that does the work, and where it says what came of it."""
    reading, writing = os.pipe()
    child = os.fork()
    if child:
        os.close(writing)
        return child, reading
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.close(reading)
        work(writing)
    finally:
        # An error leaves no JSON behind, and its traceback on stderr comes from here.
        error = sys.exc_info()[1]
        if error is not None:
            sys.excepthook(type(error), error, error.__traceback__)
        sys.stderr.flush()
        os._exit(0 if error is None else 1)


def _import_everything() -> None:
    """Load once what every call needs; botocore's descriptions of services take longer than a call."""
    import boto3
    import botocore.session
    import psycopg  # noqa: F401

    from pitr_pipelines.offsite import copy, object_store, wire  # noqa: F401
    from pitr_pipelines.offsite_settings import Place

    loader = botocore.session.Session().get_component("data_loader")

    def session(place: Place) -> boto3.Session:
        core = botocore.session.Session(profile=place.profile)
        core.register_component("data_loader", loader)
        return boto3.Session(botocore_session=core, region_name=place.region)

    wire.session_of = session
    object_store.ObjectStore(Place(bucket="none", region="us-east-1"))


@contextmanager
def callers(environment: dict[str, str]) -> Iterator[Callers]:
    """Have calls made for the length of the block."""
    started = Callers(environment)
    try:
        yield started
    finally:
        started.close()


if __name__ == "__main__":
    _serve()
