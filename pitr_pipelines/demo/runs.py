"""The story's runs: launched as a click would launch them, awaited, timed."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from pitr_pipelines.demo.dagster_api import DagsterApi, FinishedRun, RunFailed
from pitr_pipelines.demo.narrator import Narrator
from pitr_pipelines.units import show_duration

RUN_S = 240.0
"""How long one run may take before the demo gives up on it."""


class Launcher:
    """Launches runs one after the other; `timings` are rows of text: what, all of it, Dagster's part.

    `watch` is called while a run is awaited, and raises if there is nothing to wait for any more.
    """

    def __init__(self, api: DagsterApi, narrator: Narrator, watch: Callable[[], None]) -> None:
        self.timings: list[tuple[str, str, str]] = []
        self._api = api
        self._narrator = narrator
        self._watch = watch

    def run(
        self, job: str, partition: Callable[[], str], config: Mapping[str, Any] | None = None
    ) -> FinishedRun:
        """Launch a job for the partition of this moment, and return the run once it succeeded.

        A run that fails is launched once more if its hour or day ended meanwhile: today's base
        backup, say, is refused when today is yesterday. Raises RunFailed.
        """
        began = time.monotonic()
        while True:
            chosen = partition()
            run_id = self._api.launch(job, chosen, config)
            self._narrator.say(f"   {job}, partition {chosen}: {self._api.run_url(run_id)}")
            try:
                run = self._api.wait(run_id, timeout_s=RUN_S, watch=self._watch)
                break
            except RunFailed as error:
                if partition() == chosen:
                    raise
                self._narrator.say(f"   {error.what.splitlines()[0]}: {chosen} is over; once more")
        took_s = time.monotonic() - began
        self.timings.append((job, show_duration(took_s), show_duration(max(0.0, took_s - run.ran_s))))
        return run

    def add_phase(self, name: str, duration_s: float) -> None:
        """Note a part of the last run."""
        self.timings.append((f"  {name}", show_duration(duration_s), ""))


def metadata_of(run: FinishedRun, asset: str) -> Mapping[str, Any]:
    """Return what a run reported of an asset. Raises RunFailed if it reported nothing of it."""
    found = run.of(asset)
    if found is None:
        raise RunFailed(
            f"the run {run.url} succeeded but reported no {asset}",
            remedy="Look at what it did in Dagster.",
        )
    return found.metadata
