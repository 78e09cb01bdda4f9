"""`pitr restore`: its words, what it shows of the plan, and of what came of it.

Thin, like the rest of the command: what is asked for is read here, and decided and done in `restore/`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

import click

from pitr_pipelines.catalog.holds import reading
from pitr_pipelines.cli.restore_options import place_options, target_options
from pitr_pipelines.errors import BadRequest, PitrError
from pitr_pipelines.restore.at_target import AtTarget, check_keeps_running
from pitr_pipelines.settings import Settings, load_settings
from pitr_pipelines.terminal import JSON_OPTION, error_json, print_json, progress_report

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pitr_pipelines.restore.plan import Plan
    from pitr_pipelines.restore.report import RestoreReport
    from pitr_pipelines.restore.target import Target
    from pitr_pipelines.restore.verification import Verification


@click.command()
@click.argument("database")
@target_options
@click.option(
    "--at-target",
    type=click.Choice([str(action) for action in AtTarget]),
    default=str(AtTarget.PROMOTE),
    show_default=True,
    help="There: make it a cluster of its own; or stay in recovery, running read-only, or stopped.",
)
@click.option(
    "--resume",
    type=click.Path(path_type=Path),
    help="Go on with a restore that is paused or shut down there: promote it, or with a target move it on.",
)
@place_options
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
    asked: dict[str, Any],
    timeline: int | None,
    at_target: str,
    resume: Path | None,
    to: Path | None,
    port: int | None,
    plan_only: bool,
    stopped: bool,
    tablespaces: tuple[str, ...],
    skip_page_checks: bool,
    amcheck: bool,
    in_place: Path | None,
    confirm: str | None,
    undoing: bool,
    as_json: bool,
) -> None:
    """Restore a database to a moment, into a new directory beside the old one, or --in-place of it.

    Give one target: TIME, --hour, --latest, --lsn, --name, --xid or --immediate.
    TIME is such as "2026-01-29 14:30:00", with an offset (+01:00, Z) or in the configured zone.
    With --resume, give the directory of a restore that stands at its target; without a target it is
    promoted, with one it goes on to there.
    """
    from pitr_pipelines.restore.plan import NotCovered
    from pitr_pipelines.restore.tablespace_places import parse_assignments
    from pitr_pipelines.restore.target import parse_target
    from pitr_pipelines.restore.verification import Verification

    settings = load_settings(ctx.obj)
    verification = Verification(pages=not skip_page_checks, amcheck=amcheck)
    if in_place is not None:
        elsewhere = to is not None or port is not None or stopped or bool(tablespaces)
        if elsewhere or resume is not None or at_target != AtTarget.PROMOTE or amcheck:
            raise BadRequest(
                "--in-place goes with none of --to, --port, --stop, --tablespace, --at-target, --resume and "
                "--amcheck",
                remedy="The restored server takes the old one's place and port, and is left stopped.",
            )
        from pitr_pipelines.cli.in_place import restore_in_place, undo_in_place

        if undoing:
            if any(asked.values()) or timeline is not None or plan_only:
                raise BadRequest(
                    "--undo takes no target", remedy=f"pitr restore {database} --in-place {in_place} --undo"
                )
            undo_in_place(settings, database, in_place, confirm=confirm, as_json=as_json)
            return
        restore_in_place(
            settings,
            database,
            parse_target(settings.zone, **asked),
            in_place,
            timeline=timeline,
            verification=verification,
            plan_only=plan_only,
            confirm=confirm,
            as_json=as_json,
        )
        return
    if undoing or confirm is not None:
        raise BadRequest(
            "--undo and --confirm are only for --in-place",
            remedy=f"pitr restore {database} --in-place DATA_DIRECTORY [--undo]",
        )
    how = _How(
        AtTarget(at_target),
        not stopped,
        parse_assignments(tablespaces),
        verification,
        plan_only,
        as_json,
    )
    try:
        check_keeps_running(how.at_target, how.keep_running)
        if resume is None:
            target = parse_target(settings.zone, **asked)
            with reading(settings, database):
                done = _restore(settings, database, target, timeline, to, port, how)
        else:
            if timeline is not None or to is not None or tablespaces:
                raise BadRequest(
                    "a restore that is resumed stays where it is, on its branch of history",
                    remedy="Leave out --to, --tablespace and --timeline, or restore anew without --resume.",
                )
            later = parse_target(settings.zone, **asked) if any(asked.values()) else None
            with reading(settings, database):
                done = _resume(settings, database, resume, later, port, how)
    except PitrError as error:
        if plan_only and isinstance(error, NotCovered):
            error.remedy += f"\nWithout --plan, {database} is sealed first if it answers: then it is covered."
        if as_json:
            print_json(error_json(error))
        raise
    if done is None:
        return
    if as_json:
        print_json(done.model_dump(mode="json"))
    else:
        click.echo("\n".join(done.lines(settings.zone)))
    done.raise_if_damaged()


@dataclass(frozen=True, slots=True)
class _How:
    """How to go about it, and how to talk about it."""

    at_target: AtTarget
    keep_running: bool
    tablespaces: Mapping[str, str]
    verification: Verification
    plan_only: bool
    as_json: bool

    def show(self, plan: Plan, zone: ZoneInfo, placed: Mapping[int, Path] | None = None) -> None:
        from pitr_pipelines.restore.plan_text import plan_json, plan_lines

        if self.as_json and self.plan_only:
            print_json(plan_json(plan, placed or {}))
        elif not self.as_json:
            click.echo("\n".join(plan_lines(plan, zone, placed or {})))
            if self.plan_only:
                click.echo("Nothing was changed: this was only the plan.")


def _restore(
    settings: Settings,
    database: str,
    target: Target,
    timeline: int | None,
    to: Path | None,
    port: int | None,
    how: _How,
) -> RestoreReport | None:
    from pitr_pipelines.restore.prepare import plan_restore
    from pitr_pipelines.restore.tablespace_places import resolve_places

    with progress_report(database) as report:
        plan = plan_restore(
            settings, database, target, timeline=timeline, seal=not how.plan_only, report=report
        )
    how.show(plan, settings.zone, resolve_places(plan.base, how.tablespaces))
    if how.plan_only:
        return None
    from pitr_pipelines.restore.restore import choose_destination, restore

    destination = choose_destination(
        settings, plan, to=to, port=port, keep_running=how.keep_running, tablespaces=how.tablespaces
    )
    with progress_report(database) as report:
        return restore(
            settings,
            plan,
            destination,
            at_target=how.at_target,
            verification=how.verification,
            report=report,
        )


def _resume(
    settings: Settings, database: str, directory: Path, target: Target | None, port: int | None, how: _How
) -> RestoreReport | None:
    from pitr_pipelines.restore.resume import find_standing, move_on, plan_resume, promote

    standing = find_standing(settings, database, directory, port=port, keep_running=how.keep_running)
    if target is None:
        if how.plan_only or how.at_target is not AtTarget.PROMOTE:
            raise BadRequest(
                f"without a target, --resume promotes what stands at {standing.report.recovered_to_lsn} in "
                f"{standing.destination.directory}: there is nothing to plan, and nothing else to do there",
                remedy="Leave out --plan and --at-target, or name a later target.",
            )
        with progress_report(database) as report:
            return promote(settings, standing, report=report)
    with progress_report(database) as report:
        plan = plan_resume(settings, standing, target, seal=not how.plan_only, report=report)
    how.show(plan, settings.zone)
    if how.plan_only:
        return None
    with progress_report(database) as report:
        return move_on(settings, standing, plan, at_target=how.at_target, report=report)
