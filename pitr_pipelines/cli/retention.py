"""`pitr retention`: what is kept and why, what may go; and the matching rule for the off-site store.

Thin: the decisions are `catalog.retention`'s, and `catalog.expiry` carries them out.
"""

from __future__ import annotations

from datetime import UTC, datetime

import click

from pitr_pipelines.errors import BadRequest, PitrError, storage_failed
from pitr_pipelines.settings import Settings, load_settings
from pitr_pipelines.terminal import JSON_OPTION, error_json, print_error, print_json


@click.command()
@click.argument("databases", nargs=-1, metavar="[DATABASE]...")
@click.option("--dry-run", is_flag=True, help="Explain every decision; remove nothing.")
@click.option("--lifecycle", is_flag=True, help="Print the lifecycle rule for the off-site store instead.")
@JSON_OPTION
@click.pass_context
def retention(
    ctx: click.Context, databases: tuple[str, ...], dry_run: bool, lifecycle: bool, as_json: bool
) -> None:
    """Remove the base backups and bundles of the databases (default: all) that need not be kept any more."""
    settings = load_settings(ctx.obj)
    if lifecycle:
        _lifecycle(settings, as_json=as_json)
        return
    from pitr_pipelines.catalog.retention_text import (
        decision_lines,
        expiry_json,
        expiry_lines,
        retention_json,
    )
    from pitr_pipelines.offsite.retention import carry_out_retention, propose_retention

    chosen = list(databases) or list(settings.databases)
    for name in chosen:
        settings.database(name)
    if settings.retention is None:
        if as_json:
            print_json({})
        else:
            click.echo("The settings have no `retention`, so nothing is ever removed (docs/retention.md).")
        return
    code = 0
    results: dict[str, object] = {}
    for name in chosen:
        now = datetime.now(UTC)
        try:
            if dry_run:
                found = propose_retention(settings, name, now=now)
                lines, results[name] = list(decision_lines(found)), retention_json(found)
            else:
                done = carry_out_retention(settings, name, now=now)
                lines, results[name] = list(expiry_lines(done)), expiry_json(done)
        except (PitrError, OSError) as error:
            failed = storage_failed(error) if isinstance(error, OSError) else error
            print_error(failed, label=name)
            results[name] = error_json(failed)
            code = code or failed.exit_code
            continue
        if not as_json:
            click.echo("\n".join(lines))
    if as_json:
        print_json(results)
    elif dry_run:
        click.echo("Nothing was removed: this was only what would be.")
    ctx.exit(code)


def _lifecycle(settings: Settings, *, as_json: bool) -> None:
    from pitr_pipelines.offsite.lifecycle import lifecycle_notes, lifecycle_rules

    if settings.retention is None:
        raise BadRequest(
            "the settings have no `retention`, so there is no rule that would match it",
            remedy="Say what is to be kept; docs/retention.md explains how.",
        )
    offsite = settings.offsite_copy()
    print_json(lifecycle_rules(settings.retention.keep, offsite))
    if not as_json:
        for note in lifecycle_notes(settings.retention.keep, offsite):
            click.echo(f"- {note}", err=True)
