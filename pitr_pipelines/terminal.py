"""What the `pitr` command shows a person: progress, tables, errors.

Results go to standard output; progress and errors to standard error. On a terminal progress is a
bar, elsewhere a plain line now and then. rich is imported only when something is drawn with it.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

import click

from pitr_pipelines.catalog.status import DatabaseStatus
from pitr_pipelines.errors import NotRestorable, PitrError
from pitr_pipelines.progress import Progress, Report
from pitr_pipelines.restore.target import show_moment
from pitr_pipelines.units import show_bytes, show_duration

if TYPE_CHECKING:
    from rich.progress import TaskID

JSON_OPTION = click.option("--json", "as_json", is_flag=True, help="Print JSON, for scripts.")

_LINE_EVERY_S = 5.0


def print_json(value: object) -> None:
    """Print a value for a script."""
    click.echo(json.dumps(value, indent=1, ensure_ascii=False))


@contextmanager
def progress_report(label: str) -> Iterator[Report]:
    """Give a function that shows progress of work on `label` until the block ends."""
    if sys.stderr.isatty():
        with _bars(label) as report:
            yield report
    else:
        yield _lines(label)


def print_error(error: PitrError, *, label: str | None = None) -> None:
    """Show what went wrong and what to do, the remedy on lines of its own."""
    prefix = f"pitr: {label}: " if label else "pitr: "
    click.secho(prefix + error.what, err=True, fg="red")
    for line in error.remedy.splitlines():
        click.echo(f"  {line}", err=True)


def error_json(error: PitrError) -> dict[str, object]:
    """Return an error as JSON values."""
    found: dict[str, object] = {
        "error": type(error).__name__,
        "what": error.what,
        "remedy": error.remedy,
        "exit_code": error.exit_code,
    }
    if isinstance(error, NotRestorable):
        found["nearest"] = [moment.isoformat() for moment in error.nearest]
    return found


def status_lines(statuses: Iterable[DatabaseStatus], zone: ZoneInfo, now: datetime) -> Iterator[str]:
    """Yield the statuses as lines for people, worst news last where the eye rests."""
    for status in statuses:
        yield click.style(status.database, bold=True)
        if not status.windows:
            yield click.style("  restorable   nothing yet: there is no base backup", fg="red")
        for window in status.windows:
            span = show_duration(window.end - window.start)
            yield (
                f"  restorable   {show_moment(window.start, zone)}  to  "
                f"{show_moment(window.end, zone)}  ({span})"
            )
        if status.last_base is not None and status.last_base_ended_at is not None:
            yield f"  last base    {status.last_base}, {_ago(status.last_base_ended_at, now)}"
        if status.last_bundle is not None:
            yield f"  last bundle  {status.last_bundle} ({status.last_bundle_state})"
        held = status.archive
        if held.last_segment is None or held.closed_at is None:
            yield click.style("  archive      empty: no WAL has arrived", fg="red")
        else:
            yield (
                f"  archive      up to {held.last_segment}, {_ago(held.closed_at, now)}; "
                f"{held.files} raw files, {show_bytes(held.size_bytes)}"
            )
        drills = status.drills
        if drills.last_at is not None:
            good = (
                f"passed {_ago(drills.last_good_at, now)}" if drills.last_good_at else "none has passed yet"
            )
            yield f"  last drill   {good}"
            if drills.last_at != drills.last_good_at:
                yield click.style(f"  DRILL FAILED {_ago(drills.last_at, now)}: see drills/", fg="red")
        for gap in status.gaps:
            span = str(gap.first) if gap.first == gap.last else f"{gap.first} to {gap.last}"
            yield click.style(
                f"  WAL MISSING  {span}; `pitr backup --replace {status.database}` starts anew", fg="red"
            )
        for problem in status.problems:
            yield click.style(f"  PROBLEM      {problem}", fg="red")


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """Yield a plain table that fits pipes as well as terminals."""
    body = [list(head), *[list(row) for row in rows]]
    widths = [max(len(row[column]) for row in body) for column in range(len(head))]
    for row in body:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


@contextmanager
def _bars(label: str) -> Iterator[Report]:
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[amount]}"))
    tasks: dict[str, TaskID] = {}
    with Bars(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True) as bars:

        def report(progress: Progress) -> None:
            amount = _amount(progress)
            if progress.step not in tasks:
                tasks[progress.step] = bars.add_task(f"{label}: {progress.step}", amount=amount)
            bars.update(tasks[progress.step], completed=progress.done, total=progress.total, amount=amount)

        yield report


def _lines(label: str) -> Report:
    """Write a line when a step begins, every few seconds, and when it ends."""
    step: str | None = None
    said_at = 0.0
    ended = False

    def report(progress: Progress) -> None:
        nonlocal step, said_at, ended
        finished = progress.total is not None and progress.done >= progress.total
        now = time.monotonic()
        if progress.step == step and (ended or (not finished and now - said_at < _LINE_EVERY_S)):
            return
        step, said_at, ended = progress.step, now, finished
        click.echo(f"{label}: {progress.step}: {_amount(progress)}", err=True)

    return report


def _amount(progress: Progress) -> str:
    if progress.unit != "bytes":
        total = "" if progress.total is None else f" of {progress.total}"
        return f"{progress.done}{total} {progress.unit}"
    done = show_bytes(progress.done)
    return done if progress.total is None else f"{done} of {show_bytes(progress.total)}"


def _ago(moment: datetime, now: datetime) -> str:
    return f"{show_duration(max(0.0, (now - moment).total_seconds()))} ago"
