"""`pitr report`: the page of what can be restored, in one file that opens anywhere."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import click

from pitr_pipelines.settings import load_settings


@click.command()
@click.option(
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Where to write it; default: manifests/report.html in the storage.",
)
@click.option(
    "--days", type=click.IntRange(1, 366), default=14, show_default=True, help="How many days to show."
)
@click.pass_context
def report(ctx: click.Context, output: Path | None, days: int) -> None:
    """Write one HTML page of what can be restored, how fresh it is, and what is wrong. Reads the storage
    only. The page needs no network: mail it, print it, open it on a phone."""
    from pitr_pipelines.catalog.report import first_day, write_report
    from pitr_pipelines.offsite.call_days import read_calls

    settings = load_settings(ctx.obj)
    now = datetime.now(UTC)
    calls = read_calls(settings, now=now, since=first_day(settings, now=now, days=days))
    file = write_report(settings, now=now, calls=calls, days=days, output=output)
    click.echo(file.resolve().as_uri())
