"""`pitr restore`: its words, what it shows of the plan, and of what came of it.

Thin, like the rest of the command: what is asked for is read here, and decided and done in `restore/`.
"""

from __future__ import annotations

from pathlib import Path

import click

from pitr_pipelines.errors import BadRequest, PitrError
from pitr_pipelines.settings import load_settings
from pitr_pipelines.terminal import JSON_OPTION, error_json, print_json, progress_report


@click.command()
@click.argument("database")
@click.argument("time", required=False)
@click.option("--latest", is_flag=True, help="Everything there is.")
@click.option("--hour", help="The restore point at the end of an hour (UTC): 2026-01-29-14.")
@click.option("--lsn", help="A place in the WAL, and the first record from there on: 0/3000028.")
@click.option("--name", help="A named restore point; the newest of that name.")
@click.option("--xid", help="The end of a transaction, as pg_current_xact_id() numbered it.")
@click.option("--immediate", is_flag=True, help="A base backup alone, as soon as it is consistent.")
@click.option("--base", help="With --immediate: the day of the base backup; default: the newest.")
@click.option("--exclusive", is_flag=True, help="Leave out what is exactly at TIME, --lsn or --xid.")
@click.option("--timeline", type=int, help="A branch of history other than the one the server is on.")
@click.option("--to", type=click.Path(path_type=Path), help="A new directory; default: one in restore_root.")
@click.option(
    "--port", type=click.IntRange(1, 65535), help="The restored server's port; default: a free one."
)
@click.option("--plan", "plan_only", is_flag=True, help="Say what would be done; change nothing.")
@click.option("--stop", "stopped", is_flag=True, help="Leave the restored server stopped.")
@click.option(
    "--in-place",
    type=click.Path(path_type=Path),
    metavar="DATA_DIRECTORY",
    help="Take the place of this data directory, whose server is stopped; it is moved aside, not deleted.",
)
@click.option("--confirm", metavar="DATABASE", help="With --in-place: the name, typed again, for scripts.")
@click.option("--undo", "undoing", is_flag=True, help="With --in-place: put the old data directory back.")
@JSON_OPTION
@click.pass_context
def restore(
    ctx: click.Context,
    database: str,
    time: str | None,
    latest: bool,
    hour: str | None,
    lsn: str | None,
    name: str | None,
    xid: str | None,
    immediate: bool,
    base: str | None,
    exclusive: bool,
    timeline: int | None,
    to: Path | None,
    port: int | None,
    plan_only: bool,
    stopped: bool,
    in_place: Path | None,
    confirm: str | None,
    undoing: bool,
    as_json: bool,
) -> None:
    """Restore a database to a moment, into a new directory beside the old one, or --in-place of it.

    Give one target: TIME, --hour, --latest, --lsn, --name, --xid or --immediate.
    TIME is such as "2026-01-29 14:30:00", with an offset (+01:00, Z) or in the configured zone.
    """
    from pitr_pipelines.restore.plan import NotCovered
    from pitr_pipelines.restore.plan_text import plan_json, plan_lines
    from pitr_pipelines.restore.prepare import plan_restore
    from pitr_pipelines.restore.target import parse_target

    settings = load_settings(ctx.obj)
    if in_place is not None and (to is not None or port is not None or stopped):
        raise BadRequest(
            "--in-place goes with none of --to, --port and --stop",
            remedy="The restored server takes the old one's place and port, and is left stopped.",
        )
    if in_place is None and (undoing or confirm is not None):
        raise BadRequest(
            "--undo and --confirm are only for --in-place",
            remedy=f"pitr restore {database} --in-place DATA_DIRECTORY [--undo]",
        )
    if in_place is not None and undoing:
        if any((time, latest, hour, lsn, name, xid, immediate, base, exclusive, timeline, plan_only)):
            raise BadRequest(
                "--undo takes no target", remedy=f"pitr restore {database} --in-place {in_place} --undo"
            )
        from pitr_pipelines.cli_in_place import undo_in_place

        undo_in_place(settings, database, in_place, confirm=confirm, as_json=as_json)
        return
    target = parse_target(
        settings.zone,
        time=time,
        hour=hour,
        latest=latest,
        lsn=lsn,
        name=name,
        xid=xid,
        immediate=immediate,
        base=base,
        exclusive=exclusive,
    )
    if in_place is not None:
        from pitr_pipelines.cli_in_place import restore_in_place

        restore_in_place(
            settings,
            database,
            target,
            in_place,
            timeline=timeline,
            plan_only=plan_only,
            confirm=confirm,
            as_json=as_json,
        )
        return
    try:
        with progress_report(database) as report:
            plan = plan_restore(
                settings, database, target, timeline=timeline, seal=not plan_only, report=report
            )
        if plan_only:
            if as_json:
                print_json(plan_json(plan))
            else:
                click.echo("\n".join(plan_lines(plan, settings.zone)))
                click.echo("Nothing was changed: this was only the plan.")
            return
        if not as_json:
            click.echo("\n".join(plan_lines(plan, settings.zone)))
        from pitr_pipelines.restore.restore import choose_destination
        from pitr_pipelines.restore.restore import restore as carry_out

        destination = choose_destination(settings, plan, to=to, port=port, keep_running=not stopped)
        with progress_report(database) as report:
            done = carry_out(settings, plan, destination, report=report)
    except PitrError as error:
        if plan_only and isinstance(error, NotCovered):
            error.remedy += f"\nWithout --plan, {database} is sealed first if it answers: then it is covered."
        if as_json:
            print_json(error_json(error))
        raise
    if as_json:
        print_json(done.model_dump(mode="json"))
    else:
        click.echo("\n".join(done.lines(settings.zone)))
