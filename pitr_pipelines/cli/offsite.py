"""`pitr offsite`: what lies off-site, and coming back from it.

Thin: words are read here, and everything is decided and done in `offsite/`, which is imported only when a
command runs. Reads are no backup calls: none of these commands touches the API budget, or writes to the
store.
"""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pitr_pipelines.cli.restore_options import place_options, target_options
from pitr_pipelines.errors import BadRequest, PitrError, storage_failed
from pitr_pipelines.settings import Settings, load_settings
from pitr_pipelines.terminal import JSON_OPTION, error_json, print_error, print_json, progress_report, table

if TYPE_CHECKING:
    from pitr_pipelines.offsite.encryption import Identities
    from pitr_pipelines.offsite.object_store import ObjectStore

_KEYS = click.option(
    "--key",
    "keys",
    multiple=True,
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="A file with a secret key that opens the envelopes; may be repeated. Default: $PITR_AGE_KEY_FILE.",
)
_DATABASES = click.argument("databases", nargs=-1, metavar="[DATABASE]...")


@click.group()
def offsite() -> None:
    """The off-site copy: what is there, and coming back from it."""


@offsite.command()
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
def keygen(file: Path) -> None:
    """Make a key pair: the secret key goes to FILE, which must not exist; the public key is printed."""
    from pitr_pipelines.offsite.keys import make_key_file

    public = make_key_file(file)
    click.echo(public)
    click.secho(
        f"\nThe secret key is in {file}, and nowhere else.\n"
        "WITHOUT IT THE OFF-SITE COPY IS WORTHLESS: nobody can open it, nor make the key again.\n",
        err=True,
        fg="red",
        bold=True,
    )
    click.echo(
        "  1. Put it, off this machine, in TWO places that do not burn down together: a password manager,\n"
        "     a printed sheet in a safe.\n"
        "  2. Try it from there once: pitr offsite list --key FILE.\n"
        f"  3. Then delete {file} here: backups need only the public key.\n"
        "Into pitr.yaml goes the public key, under `offsite:`\n\n"
        f"  recipients:\n    - {public}\n\n"
        "Keep the key of every envelope that you may want to open, also after you change to another.",
        err=True,
    )


@offsite.command("list")
@_DATABASES
@_KEYS
@JSON_OPTION
@click.pass_context
def list_(ctx: click.Context, databases: tuple[str, ...], keys: tuple[Path, ...], as_json: bool) -> None:
    """Show the envelopes off-site and what they hold; of a DATABASE, also what can be restored from them.

    Without the key, an encrypted envelope shows its day and size only.
    """
    from pitr_pipelines.offsite.encryption import WrongKey
    from pitr_pipelines.offsite.overview import everything_of, look, reach_of, shelf_of
    from pitr_pipelines.offsite.overview_text import (
        contents_lines,
        envelope_rows,
        overview_json,
        problem_lines,
    )

    settings = load_settings(ctx.obj)
    store, identities = _open(settings, keys)
    with progress_report("offsite") as report:
        seen = look(store, identities, report)
    shelf = shelf_of(seen)
    names = sorted({contents.database for one in seen for contents in one.contents})
    for name in databases:
        if name not in names and shelf.envelopes:
            shelf.copies(name)  # raises, and says what there is
    reaches = {name: reach_of(shelf, name) for name in databases if name in names}
    everything = [everything_of(seen, name) for name in names if not databases or name in databases]
    if as_json:
        print_json(overview_json(store.place, seen, everything, reaches))
    elif not seen:
        click.echo(f"no envelope at {store.place.bucket}/{store.place.prefix}")
        click.echo("Are `bucket` and `prefix` those that the backups were sent to?")
    else:
        click.echo(f"{store.place.bucket}/{store.place.prefix}")
        for line in table(("day", "size", "made at", "holds"), envelope_rows(seen, settings.zone)):
            click.echo(line)
        for line in problem_lines(seen):
            click.secho(line, fg="red")
        for contents in everything:
            click.echo("\n".join(contents_lines(contents, reaches.get(contents.database), settings.zone)))
        if not databases and names:
            click.echo("`pitr offsite list DATABASE` says what of it can be restored.")
    wrong = [one.problem for one in seen if isinstance(one.problem, WrongKey)]
    if (keys or databases) and wrong and not shelf.envelopes:
        raise wrong[0]
    ctx.exit(1 if any(one.problem is not None and not one.needs_key for one in seen) else 0)


@offsite.command()
@_DATABASES
@click.option("--since", metavar="DAY", help="Only bases and hours from this day on, in UTC: 2026-01-29.")
@click.option("--until", metavar="DAY", help="Only bases and hours until this day, included.")
@click.option(
    "--to",
    type=click.Path(path_type=Path),
    help="A directory for them, laid out alike; default: backup_root.",
)
@click.option("--plan", "plan_only", is_flag=True, help="Say what would be fetched; change nothing.")
@_KEYS
@click.pass_context
def fetch(
    ctx: click.Context,
    databases: tuple[str, ...],
    since: str | None,
    until: str | None,
    to: Path | None,
    plan_only: bool,
    keys: tuple[Path, ...],
) -> None:
    """Bring base backups, bundles and records of the databases (default: all there are) back.

    What is there already and right is not fetched again; another file under its name is left alone.
    Afterwards every command works on what came back: `pitr restore` with all its options, too.
    """
    import time

    from pitr_pipelines.catalog.manifest import refresh_manifest
    from pitr_pipelines.offsite.bring import bring, choose_wanted, wanted_line
    from pitr_pipelines.offsite.coming_back import fetched_text
    from pitr_pipelines.offsite.shelf import open_shelf

    settings = load_settings(ctx.obj)
    days = {"since": _day(since), "until": _day(until)}
    store, identities = _open(settings, keys)
    with progress_report("offsite") as report:
        shelf = open_shelf(store, identities, report)
    for passed in shelf.passed_over:
        print_error(passed.error)
    root = to.absolute() if to is not None else settings.backup_root
    code = 5 if shelf.passed_over else 0
    for name in databases or shelf.databases():
        try:
            wanted = choose_wanted(shelf, name, root, **days)
            click.echo(f"{name}: {wanted_line(wanted)}")
            if plan_only:
                continue
            began = time.monotonic()
            with progress_report(name) as report:
                brought = bring(shelf, wanted, report)
            took_s = time.monotonic() - began
            fetched = fetched_text(brought.fetched_bytes, took_s)
            click.echo(f"{name}: {fetched}; {brought.artifacts} artifacts are there")
            for note in brought.notes:
                click.echo(f"  {note}")
            for problem in brought.problems:
                click.secho(f"  NOT FETCHED: {problem}", fg="red")
            code = code or (5 if brought.problems else 0)
        except (PitrError, OSError) as error:
            failed = storage_failed(error) if isinstance(error, OSError) else error
            print_error(failed, label=name)
            code = code or failed.exit_code
    if plan_only:
        click.echo("Nothing was changed: this was only the plan.")
    elif to is None:
        refresh_manifest(settings)
        unknown = sorted(set(databases or shelf.databases()) - set(settings.databases))
        if unknown:
            click.echo(f"Not in the settings, so no command knows them: {', '.join(unknown)}")
    ctx.exit(code)


@offsite.command()
@click.argument("database")
@target_options
@place_options
@_KEYS
@JSON_OPTION
@click.pass_context
def restore(
    ctx: click.Context,
    database: str,
    asked: dict[str, Any],
    timeline: int | None,
    to: Path | None,
    port: int | None,
    plan_only: bool,
    stopped: bool,
    tablespaces: tuple[str, ...],
    skip_page_checks: bool,
    amcheck: bool,
    keys: tuple[Path, ...],
    as_json: bool,
) -> None:
    """Restore a database from off-site, and from what is left here, into a new directory.

    Give one target: TIME, --hour, --latest, --lsn, --name, --xid or --immediate. Only what it needs is
    fetched. The source server is never asked for anything. For --at-target, --in-place and --resume, bring
    everything back with `pitr offsite fetch` first, and then use `pitr restore`.
    """
    from pitr_pipelines.offsite.restoring import Asked, restore_from_offsite
    from pitr_pipelines.offsite.shelf import open_shelf
    from pitr_pipelines.restore.tablespace_places import parse_assignments
    from pitr_pipelines.restore.target import parse_target
    from pitr_pipelines.restore.verification import Verification

    settings = load_settings(ctx.obj)
    try:
        settings.database(database)
        request = Asked(
            database,
            parse_target(settings.zone, **asked),
            timeline=timeline,
            to=to,
            port=port,
            keep_running=not stopped,
            tablespaces=parse_assignments(tablespaces),
            verification=Verification(pages=not skip_page_checks, amcheck=amcheck),
            plan_only=plan_only,
        )
        store, identities = _open(settings, keys)
        with progress_report(database) as report:
            shelf = open_shelf(store, identities, report)
            planned, done = restore_from_offsite(
                settings,
                shelf,
                request,
                say=lambda lines: None if as_json else click.echo("\n".join(lines)),
                report=report,
            )
    except PitrError as error:
        if as_json:
            print_json(error_json(error))
        raise
    if done is None:
        if as_json:
            print_json(planned)
        else:
            click.echo("Nothing was changed: this was only the plan.")
        return
    if as_json:
        print_json(done.model_dump(mode="json"))
    else:
        click.echo("\n".join(done.lines(settings.zone)))
    done.raise_if_damaged()


def _open(settings: Settings, keys: tuple[Path, ...]) -> tuple[ObjectStore, Identities | None]:
    """Open the store and read the keys; nothing is asked of the store yet."""
    import os

    from pitr_pipelines.offsite.keys import read_key_files
    from pitr_pipelines.offsite.object_store import ObjectStore

    place = settings.offsite_copy().store
    identities = read_key_files(keys, os.environ)
    return ObjectStore(place), identities


def _day(text: str | None) -> date | None:
    try:
        return date.fromisoformat(text.strip()) if text is not None else None
    except ValueError:
        raise BadRequest(f"{text!r} is not a day", remedy="Write it as 2026-01-29.") from None
