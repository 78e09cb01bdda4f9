"""The databases of one run, worked on side by side in threads of its process.

A run that executes in one process takes its steps one after the other, and most of a bundling is waiting:
for a server that does not answer, for an archive that stands still. So the first step of a run begins with
all of its databases, and each step takes its own result when it is there: one that hangs holds up no other
by more than its own time. What was logged is told by the step that it belongs to.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import dagster as dg

from pitr_pipelines.defs.names import asset_key
from pitr_pipelines.settings import Settings, asset_name

AT_ONCE = 8
"""How many databases a run works on at the same time."""

_IN_ONE_PROCESS = ("in_process", "execute_in_process_executor")

Result = TypeVar("Result")
Work = Callable[[str, logging.Logger], Result]


@dataclass
class _Round(Generic[Result]):
    """One run's databases at work."""

    pool: ThreadPoolExecutor
    futures: dict[str, Future[Result]] = field(default_factory=dict)
    lines: dict[str, list[logging.LogRecord]] = field(default_factory=dict)

    def begin(self, database: str, work: Work[Result]) -> None:
        lines = self.lines[database] = []
        logger = logging.Logger(f"pitr.{database}", logging.INFO)
        logger.addHandler(_Keep(lines))
        self.futures[database] = self.pool.submit(work, database, logger)


class _Keep(logging.Handler):
    def __init__(self, lines: list[logging.LogRecord]) -> None:
        super().__init__()
        self._lines = lines

    def emit(self, record: logging.LogRecord) -> None:
        self._lines.append(record)


_rounds: dict[str, _Round[object]] = {}


def result_for(
    context: dg.AssetExecutionContext, settings: Settings, database: str, asset: str, work: Work[Result]
) -> Result:
    """Return what `work` comes to for one step's database, and begin with those of the run's other steps.

    `work` gets a database and a logger. Raises what it raises.
    """
    run_id = context.run.run_id
    if run_id not in _rounds:
        databases = _databases_of(context, settings, asset)
        if database not in databases or len(databases) == 1:
            return work(database, context.log)
        begun: _Round[object] = _Round(ThreadPoolExecutor(AT_ONCE, thread_name_prefix="pitr"))
        _rounds[run_id] = begun
        for name in databases:
            begun.begin(name, work)
    round_ = _rounds[run_id]
    future = round_.futures.pop(database)
    try:
        wait([future])
    except BaseException:
        # Somebody ends the run: what has not begun is left.
        del _rounds[run_id]
        round_.pool.shutdown(wait=False, cancel_futures=True)
        raise
    if not round_.futures:
        del _rounds[run_id]
        round_.pool.shutdown()
    for record in round_.lines.pop(database):
        context.log.log(record.levelno, record.getMessage())
    return future.result()  # type: ignore[return-value]


def others_follow(context: dg.AssetExecutionContext) -> bool:
    """Tell whether other steps of this run are still to take their results in this process."""
    return context.run.run_id in _rounds


def _databases_of(context: dg.AssetExecutionContext, settings: Settings, asset: str) -> Sequence[str]:
    """Return the databases whose steps this very process will come to; none if it has but one step."""
    run = context.run
    if context.op_execution_context.job_def.executor_def.name not in _IN_ONE_PROCESS:
        return ()
    return [
        name
        for name in settings.databases
        if (not run.asset_selection or asset_key(name, asset) in run.asset_selection)
        and (run.step_keys_to_execute is None or f"{asset_name(name)}__{asset}" in run.step_keys_to_execute)
    ]
