"""`pitr offsite copy` and `pitr offsite budget`: the day's one call, and the ledger of all of them.

Thin, like the rest of the command: what is done is in `offsite/`.
"""

from __future__ import annotations

from datetime import UTC, datetime

import click

from pitr_pipelines.errors import ArtifactDamaged, PitrError
from pitr_pipelines.settings import load_settings
from pitr_pipelines.terminal import JSON_OPTION, error_json, print_error, print_json, progress_report, table
from pitr_pipelines.units import show_bytes


@click.command()
@click.option("--now", "at_once", is_flag=True, help="Do not wait for missing base backups of today.")
@JSON_OPTION
@click.pass_context
def copy(ctx: click.Context, at_once: bool, as_json: bool) -> None:
    """Make today's one backup call: seal every database, and send what is not off-site yet.

    It is made when every database has its base backup of the day, or the deadline has passed. Exit 4 if it
    is too early, 11 if the day's call is spent, 12 if the store does not have the copy.
    """
    from pitr_pipelines.offsite.copy import make_copy
    from pitr_pipelines.offsite.copy_report import CallFailed

    settings = load_settings(ctx.find_root().obj)
    try:
        with progress_report("off-site copy") as report:
            done = make_copy(settings, wait=not at_once, report=report)
    except PitrError as error:
        failed = error.report if isinstance(error, CallFailed) else None
        if as_json:
            more = {"report": failed.model_dump(mode="json")} if failed else {}
            print_json(error_json(error) | more)
        elif failed:
            click.echo("".join(f"{line}\n" for line in failed.troubles()), nl=False)
        raise
    if as_json:
        print_json(done.model_dump(mode="json"))
        return
    if not done.made:
        click.echo("Today's call was made before; this made none.")
    click.echo("\n".join(done.lines(settings.zone)))


@click.command()
@click.option("--days", "last", type=click.IntRange(min=1), default=14, show_default=True, help="How many.")
@click.option("--settle", "settling", is_flag=True, help="Look at the store for what became of open calls.")
@JSON_OPTION
@click.pass_context
def budget(ctx: click.Context, last: int, settling: bool, as_json: bool) -> None:
    """Show the days on which a backup call was made, and what became of it."""
    from pitr_pipelines.catalog.layout import Layout
    from pitr_pipelines.offsite.budget import CallState, days, read_entry

    settings = load_settings(ctx.find_root().obj)
    layout = Layout(settings.backup_root)
    if settling:
        from pitr_pipelines.offsite.copy import settle_now

        settle_now(settings, now=datetime.now(UTC))
    rows, values = [], []
    in_doubt = []
    for day in days(layout.ledger)[-last:]:
        try:
            entry = read_entry(layout.ledger, day)
        except ArtifactDamaged as error:
            print_error(error, label=str(day))
            continue
        if entry is not None:
            values.append(entry.model_dump(mode="json"))
            if entry.state in (CallState.SENT, CallState.UNKNOWN):
                in_doubt.append(str(day))
            size = show_bytes(entry.object.size_bytes) if entry.object else ""
            rows.append((str(day), str(entry.state), size, entry.said or f"by {entry.claimed_by}"))
    if as_json:
        print_json(values)
    elif rows:
        click.echo("\n".join(table(("day", "state", "size", ""), rows)))
        if settling and in_doubt:
            click.echo(
                f"A look at the store does not tell yet what became of {', '.join(in_doubt)}: what is not "
                "there may still be on its way, and is put down as refused some hours after it was sent."
            )
    else:
        click.echo("No backup call was made yet.")
