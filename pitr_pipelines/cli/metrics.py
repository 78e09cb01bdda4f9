"""`pitr metrics`: what matters, in Prometheus's text format, for its textfile collector or any other."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import click

from pitr_pipelines.errors import BadRequest
from pitr_pipelines.settings import load_settings


@click.command()
@click.option(
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    help="A file to replace, as node_exporter's textfile collector reads it: its name ends in .prom. "
    "Default: standard output.",
)
@click.pass_context
def metrics(ctx: click.Context, output: Path | None) -> None:
    """Print what matters for Prometheus: windows, freshness, gaps, problems, drills, sizes, off-site copy.
    Reads the storage only; what is wrong there is told by the metrics, not by the exit code."""
    from pitr_pipelines import durable
    from pitr_pipelines.catalog.metrics import exposition, first_call_day, take_snapshot
    from pitr_pipelines.offsite.call_days import read_calls

    settings = load_settings(ctx.obj)
    now = datetime.now(UTC)
    calls, ledger_problem = None, None
    try:
        calls = read_calls(settings, now=now, since=first_call_day(now))
    except OSError as error:
        ledger_problem = error.strerror or str(error)
    text = exposition(take_snapshot(settings, now=now, calls=calls, ledger_problem=ledger_problem))
    if output is None:
        click.echo(text, nl=False)
        return
    if not output.parent.is_dir():
        raise BadRequest(
            f"there is no directory {output.parent} to write the metrics into",
            remedy="Make it; node_exporter's --collector.textfile.directory names the one that it reads.",
        )
    # Another user's node_exporter reads it.
    durable.write_whole(output, text, mode=0o644)
