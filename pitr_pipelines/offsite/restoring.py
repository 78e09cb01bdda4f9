"""`pitr offsite restore`, from what was asked to the restored server.

The order is what matters: the plan first, which says what is fetched; then whether the restore can go where
it should; only then the gigabytes; and when all of it was checked, the restore, as any other.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pitr_pipelines.catalog.holds import reading
from pitr_pipelines.offsite.coming_back import ComingBack, coming_back, fetched_text, part_lines
from pitr_pipelines.offsite.shelf import Shelf
from pitr_pipelines.progress import Report, silent
from pitr_pipelines.restore.destination import space_needed
from pitr_pipelines.restore.plan import Plan
from pitr_pipelines.restore.plan_text import plan_json, plan_lines
from pitr_pipelines.restore.report import RestoreReport
from pitr_pipelines.restore.restore import DEFAULT_VERIFICATION, Destination, choose_destination, restore
from pitr_pipelines.restore.tablespace_places import resolve_places
from pitr_pipelines.restore.target import Target
from pitr_pipelines.restore.verification import Verification
from pitr_pipelines.settings import Settings


@dataclass(frozen=True)
class Asked:
    """What was asked for."""

    database: str
    target: Target
    timeline: int | None = None
    to: Path | None = None
    port: int | None = None
    keep_running: bool = True
    tablespaces: Mapping[str, str] | None = None
    verification: Verification = DEFAULT_VERIFICATION
    plan_only: bool = False


def restore_from_offsite(
    settings: Settings,
    shelf: Shelf,
    asked: Asked,
    *,
    say: Callable[[list[str]], None],
    report: Report = silent,
) -> tuple[dict[str, Any], RestoreReport | None]:
    """Plan, fetch and restore; return the plan as JSON values, and what came of it (None: only planned).

    `say` gets the plan in lines before anything large is fetched. Raises as `plan_restore`,
    `choose_destination` and `restore` do, and StoreUnavailable.
    """
    with (
        reading(settings, asked.database),  # what is left here is linked to, and must not go meanwhile
        coming_back(
            settings, shelf, asked.database, asked.target, timeline=asked.timeline, report=report
        ) as work,
    ):
        plan = work.plan()
        placed = resolve_places(plan.base, asked.tablespaces or {})
        say(plan_lines(plan, settings.zone, placed) + part_lines(work.parts(plan)))
        planned = plan_json(plan, placed) | {"download": _parts_json(work, plan)}
        if asked.plan_only:
            return planned, None
        besides = 0
        if not placed:
            # Before gigabytes are fetched; the sizes of tablespaces are known only after.
            destination = _choose(settings, work, plan, asked)
            if _device(destination.directory) == _device(work.layout.root):
                besides = space_needed(plan)
        before = work.stage.fetched_bytes
        began = time.monotonic()
        fetched = work.fetch(plan, report, besides_bytes=besides)
        say([fetched_text(work.stage.fetched_bytes - before, time.monotonic() - began)])
        if fetched != plan:
            say(["planned anew without what was damaged:", *plan_lines(fetched, settings.zone, placed)])
        done = restore(
            settings,
            fetched,
            _choose(settings, work, fetched, asked),
            verification=asked.verification,
            report=report,
            layout=work.layout,
        )
        work.is_done = True
        return planned, done


def _choose(settings: Settings, work: ComingBack, plan: Plan, asked: Asked) -> Destination:
    return choose_destination(
        settings,
        plan,
        to=asked.to,
        port=asked.port,
        keep_running=asked.keep_running,
        tablespaces=asked.tablespaces,
        layout=work.layout,
    )


def _device(path: Path) -> int:
    """Return the device of a path, or of what it will be made in."""
    return next(place for place in (path, *path.parents) if place.exists()).stat().st_dev


def _parts_json(work: ComingBack, plan: Plan) -> dict[str, Any]:
    parts = work.parts(plan)
    return {
        "bytes": sum(part.size_bytes - part.here_bytes for part in parts),
        "parts": [
            {
                "artifact": str(part.artifact),
                "envelope": part.envelope.isoformat(),
                "bytes": part.size_bytes,
                "here_bytes": part.here_bytes,
            }
            for part in parts
        ],
    }
