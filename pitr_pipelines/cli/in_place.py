"""`pitr restore … --in-place`: what is shown, what must be typed again, and what came of it."""

from __future__ import annotations

import sys
from pathlib import Path
from zoneinfo import ZoneInfo

import click

from pitr_pipelines.catalog.holds import reading
from pitr_pipelines.errors import BadRequest, PitrError
from pitr_pipelines.restore.in_place_record import InPlaceRecord, State
from pitr_pipelines.restore.plan import NotCovered
from pitr_pipelines.restore.target import Target
from pitr_pipelines.restore.verification import Verification
from pitr_pipelines.settings import Settings
from pitr_pipelines.terminal import error_json, print_json, progress_report

_UNTOUCHED = "Nothing was touched."


def restore_in_place(
    settings: Settings,
    database: str,
    target: Target,
    directory: Path,
    *,
    timeline: int | None,
    verification: Verification,
    plan_only: bool,
    confirm: str | None,
    as_json: bool,
) -> None:
    """Restore into the place of a data directory, when the database's name was typed again."""
    from pitr_pipelines.restore import in_place
    from pitr_pipelines.restore.in_place_checks import examine
    from pitr_pipelines.restore.in_place_text import prepared_lines
    from pitr_pipelines.restore.plan_text import plan_json, plan_lines
    from pitr_pipelines.restore.prepare import plan_restore

    try:
        settings.database(database)
        with in_place.alone(directory), reading(settings, database):
            if plan_only:
                in_place.check_settled(directory)
            elif _settled(in_place.settle(directory), settings.zone, as_json=as_json):
                return
            original = examine(settings, database, directory)
            with progress_report(database) as report:
                plan = plan_restore(settings, database, target, timeline=timeline, seal=False, report=report)
            wanted = in_place.prepare(settings, plan, original)
            lines = [*plan_lines(plan, settings.zone), *prepared_lines(wanted)]
            if plan_only:
                if as_json:
                    print_json(
                        {**plan_json(plan), "in_place": lines[lines.index(f"in place of {original.path}") :]}
                    )
                else:
                    click.echo("\n".join([*lines, "Nothing was changed: this was only the plan."]))
                return
            click.echo("\n".join(lines), err=as_json)
            _require_name(database, confirm)
            with progress_report(database) as report:
                record = in_place.carry_out(settings, wanted, verification=verification, report=report)
    except PitrError as error:
        if isinstance(error, NotCovered):
            error.remedy += (
                f"\nWAL that {database} has not archived yet is in its data directory only: start it once, "
                f"let it archive (`pitr bundle {database} --now`), stop it, and ask again."
            )
        if as_json:
            print_json(error_json(error))
        raise
    _show(record, settings.zone, as_json=as_json)


def undo_in_place(
    settings: Settings, database: str, directory: Path, *, confirm: str | None, as_json: bool
) -> None:
    """Put the data directory back that a restore in place moved aside."""
    from pitr_pipelines.restore import in_place
    from pitr_pipelines.restore.in_place_text import undo_lines

    try:
        settings.database(database)
        with in_place.alone(directory):
            settled = in_place.settle(directory)
            if settled is not None and settled.state is State.UNDONE:
                record = settled
            else:
                record = in_place.undoable(database, directory)
                in_place.check_undo(settings, record)
                click.echo("\n".join(undo_lines(record)), err=as_json)
                _require_name(database, confirm)
                record = in_place.undo(settings, record)
    except PitrError as error:
        if as_json:
            print_json(error_json(error))
        raise
    _show(record, settings.zone, as_json=as_json)


def _settled(record: InPlaceRecord | None, zone: ZoneInfo, *, as_json: bool) -> bool:
    """Say what an interrupted call has come to; return whether that is all for now."""
    if record is None:
        return False
    if record.state is State.GIVEN_UP:
        _show(record, zone, as_json=False, err=True)
        return False
    click.echo(
        "An earlier call was interrupted; what it had begun to move is now where it belongs.", err=True
    )
    _show(record, zone, as_json=as_json)
    click.echo("This call did nothing more. Ask again if you want another restore.", err=True)
    return True


def _show(record: InPlaceRecord, zone: ZoneInfo, *, as_json: bool, err: bool = False) -> None:
    from pitr_pipelines.restore.in_place_text import record_lines

    if as_json:
        print_json(record.model_dump(mode="json"))
    else:
        click.echo("\n".join(record_lines(record, zone)), err=err)


def _require_name(database: str, confirm: str | None) -> None:
    """Have the name of the database typed again. Raises BadRequest if it is not."""
    if confirm is None:
        if not sys.stdin.isatty():
            raise BadRequest(
                "the name of the database must be typed again, and there is no terminal",
                remedy=f"In a script, give --confirm {database}. {_UNTOUCHED}",
            )
        question = "To go on, type the name of the database again"
        confirm = click.prompt(question, default="", show_default=False, err=True)
    if confirm.strip() != database:
        raise BadRequest(
            f"{confirm.strip()!r} is not the name of the database",
            remedy=f"Ask again when you are sure. {_UNTOUCHED}",
        )
