"""The `pitr` command: everything Dagster does, without Dagster.

Thin: each command reads its words, calls the core, and shows the outcome. Exit codes: 0 all done;
1 something is wrong (verify, check); 2 bad settings or request; 3 server or its programs out of
reach; 4 server not ready; 5 artifact damaged; 6 target not restorable; 7 directory or port taken;
8 recovery failed; 9 somebody else is at it; 10 a drill failed; 11 the day's backup call is spent; 12 the
off-site store is out of reach, refused, or cannot take it; 13 the wrong key. With several
databases the first failure counts, and the others are done all the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from pitr_pipelines import __version__
from pitr_pipelines.cli.metrics import metrics
from pitr_pipelines.cli.offsite import offsite
from pitr_pipelines.cli.offsite_copy import budget, copy
from pitr_pipelines.cli.report import report
from pitr_pipelines.cli.restore import restore
from pitr_pipelines.cli.retention import retention
from pitr_pipelines.cli.watch import watch
from pitr_pipelines.errors import BadRequest, PitrError, storage_failed
from pitr_pipelines.settings import Settings, load_settings
from pitr_pipelines.terminal import JSON_OPTION, error_json, print_error, print_json, progress_report
from pitr_pipelines.units import show_bytes, show_duration


class _Pitr(click.Group):
    """Shows our errors as what they are: a sentence, a remedy, an exit code; never a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except PitrError as error:
            print_error(error)
            ctx.exit(error.exit_code)
        except OSError as error:
            failed = storage_failed(error)
            print_error(failed)
            ctx.exit(failed.exit_code)


@click.group(cls=_Pitr, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--config",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The settings file; default: $PITR_CONFIG, else ./pitr.yaml.",
)
@click.version_option(__version__, prog_name="pitr")
@click.pass_context
def main(ctx: click.Context, config: Path | None) -> None:
    """Point-in-time recovery for PostgreSQL: back up, look, restore. Times without an offset are in
    the configured time zone; hours such as 2026-01-29-14 are in UTC."""
    ctx.obj = config


main.add_command(restore)
main.add_command(offsite)
offsite.add_command(copy)
offsite.add_command(budget)
main.add_command(retention)
main.add_command(report)
main.add_command(metrics)
main.add_command(watch)


def _settings(ctx: click.Context) -> Settings:
    return load_settings(ctx.obj)


def _chosen(settings: Settings, names: Iterable[str]) -> list[str]:
    chosen = list(names) or list(settings.databases)
    for name in chosen:
        settings.database(name)
    return chosen


def _for_each(ctx: click.Context, names: Iterable[str], work: Callable[[str], None]) -> None:
    """Do the work for each database; one that fails does not stop the others."""
    code = 0
    for name in names:
        try:
            work(name)
        except (PitrError, OSError) as error:
            failed = storage_failed(error) if isinstance(error, OSError) else error
            print_error(failed, label=name)
            code = code or failed.exit_code
    ctx.exit(code)


_DATABASES = click.argument("databases", nargs=-1, metavar="[DATABASE]...")


@main.command("init-db")
@click.argument("database")
@click.option(
    "--admin-dsn", help="A superuser's connection string (without a password); default: the configured one."
)
@click.option("--print-sql", is_flag=True, help="Only print what would be done.")
@click.option("--replace-archive-command", is_flag=True, help="Replace an archive_command that is not ours.")
@click.pass_context
def init_db(
    ctx: click.Context, database: str, admin_dsn: str | None, print_sql: bool, replace_archive_command: bool
) -> None:
    """Prepare a server: the backup role, its rights, and WAL archiving. Can be run again."""
    from pitr_pipelines.postgres.prepare import planned_sql, prepare

    settings = _settings(ctx)
    options: dict[str, Any] = {"admin_dsn": admin_dsn, "replace_archive_command": replace_archive_command}
    if print_sql:
        click.echo(planned_sql(database, settings, **options), nl=False)
        return
    for step in prepare(database, settings, **options):
        click.echo(f"{step.state:<16} {step.what}")
    click.echo(f"Now `pitr check {database}` tells what is still missing.")


@main.command()
@_DATABASES
@JSON_OPTION
@click.pass_context
def check(ctx: click.Context, databases: tuple[str, ...], as_json: bool) -> None:
    """Tell whether servers are ready to be backed up, and what is missing. Exit 1 if anything is."""
    from dataclasses import asdict

    from pitr_pipelines.postgres.readiness import check as check_server

    settings = _settings(ctx)
    findings = {name: check_server(name, settings) for name in _chosen(settings, databases)}
    if as_json:
        print_json({name: [asdict(finding) for finding in found] for name, found in findings.items()})
    else:
        for name, found in findings.items():
            click.secho(name, bold=True)
            for finding in found:
                mark = click.style("ok  ", fg="green") if finding.ok else click.style("FAIL", fg="red")
                if finding.ok and finding.remedy:
                    mark = click.style("warn", fg="yellow")
                click.echo(f"  {mark}  {finding.subject}: {finding.detail}")
                if finding.remedy:
                    click.echo(
                        "".join(f"          {line}\n" for line in finding.remedy.splitlines()), nl=False
                    )
    ctx.exit(0 if all(finding.ok for found in findings.values() for finding in found) else 1)


@main.command()
@_DATABASES
@click.option(
    "--replace", is_flag=True, help="Take a new one although today has one, as after a gap in the WAL."
)
@click.pass_context
def backup(ctx: click.Context, databases: tuple[str, ...], replace: bool) -> None:
    """Take today's base backup of the databases (default: all), and verify it."""
    from pitr_pipelines.catalog.manifest import refresh_manifest
    from pitr_pipelines.postgres.base_backup import existing_base, take_base_backup

    settings = _settings(ctx)

    def take(name: str) -> None:
        began = datetime.now(UTC)
        had = None if replace else existing_base(settings, name, began.date())
        with progress_report(name) as report:
            record = take_base_backup(settings, name, replace=replace, progress=report)
        if had is not None:
            click.echo(f"{name}: the base backup of {record.day} is there already, and intact")
            return
        took = (datetime.now(UTC) - began).total_seconds()
        click.echo(
            f"{name}: base backup of {record.day} taken and verified: "
            f"{show_bytes(record.uncompressed_bytes)} in {show_bytes(record.size_bytes)}, "
            f"{record.start_lsn} to {record.end_lsn}, {show_duration(took)}"
        )
        refresh_manifest(settings)

    _for_each(ctx, _chosen(settings, databases), take)


@main.command()
@_DATABASES
@click.option("--hour", help="The hour to bundle, in UTC: 2026-01-29-14. Default: the newest that is over.")
@click.option("--now", "running", is_flag=True, help="Bundle the running hour early: a restore point now.")
@click.pass_context
def bundle(ctx: click.Context, databases: tuple[str, ...], hour: str | None, running: bool) -> None:
    """Bundle an hour of WAL of the databases (default: all), sealing the newest."""
    from pitr_pipelines.catalog.manifest import refresh_manifest
    from pitr_pipelines.wal.bundles import make_bundle
    from pitr_pipelines.wal.hours import Hour

    settings = _settings(ctx)
    current = Hour.containing(datetime.now(UTC))
    if hour is not None and running:
        raise BadRequest("--hour and --now are both given", remedy="Give one of them.")
    try:
        wanted = Hour.parse(hour) if hour is not None else current if running else current.preceding()
    except ValueError as error:
        raise BadRequest(str(error), remedy=f"The running hour is {current}.") from None

    def make(name: str) -> None:
        with progress_report(name) as report:
            outcome = make_bundle(settings, name, wanted, report=report)
        refresh_manifest(settings)
        record = outcome.record
        size = f", {show_bytes(record.file.size_bytes)}" if record.file else ""
        click.echo(
            f"{name}: {wanted} {record.state}{'' if outcome.changed else ', unchanged'}: "
            f"{len(record.segments)} segments{size}"
            + (f", restore point {record.seal.restore_point}" if record.seal else "")
            + (f"; {outcome.pruned} raw files removed" if outcome.pruned else "")
        )
        if outcome.problem is not None:
            raise outcome.problem

    _for_each(ctx, _chosen(settings, databases), make)


@main.command()
@_DATABASES
@click.option("--at", "at", help="The moment to restore, written as for `restore`. Default: a random one.")
@click.option("--seed", type=int, help="Draw the random moment with this, as recorded by an earlier drill.")
@JSON_OPTION
@click.pass_context
def drill(
    ctx: click.Context, databases: tuple[str, ...], at: str | None, seed: int | None, as_json: bool
) -> None:
    """Prove that the databases (default: all) can be restored: restore a moment of each into scratch
    space, check and measure it, and throw it away. Exit 10 if one fails."""
    from pitr_pipelines.restore.drill import run_drill
    from pitr_pipelines.restore.target import TimeTarget, parse_moment

    settings = _settings(ctx)
    if at is not None and seed is not None:
        raise BadRequest("--at and --seed are both given", remedy="Give one of them.")
    target = TimeTarget(parse_moment(at, settings.zone)) if at is not None else None
    results: dict[str, object] = {}

    def carry_out(name: str) -> None:
        try:
            with progress_report(name) as report:
                done = run_drill(settings, name, target=target, seed=seed, report=report)
        except PitrError as error:
            results[name] = error_json(error)
            raise
        results[name] = done.model_dump(mode="json")
        if not as_json:
            click.echo("\n".join(done.lines(settings.zone)))
        done.raise_if_failed()

    try:
        _for_each(ctx, _chosen(settings, databases), carry_out)
    finally:
        if as_json:
            print_json(results)


@main.command()
@_DATABASES
@JSON_OPTION
@click.pass_context
def status(ctx: click.Context, databases: tuple[str, ...], as_json: bool) -> None:
    """Show what can be restored and how fresh it is. Reads the storage only, so it always answers."""
    from pitr_pipelines.catalog.status import read_status, status_json
    from pitr_pipelines.terminal import status_lines

    settings = _settings(ctx)
    now = datetime.now(UTC)
    statuses = read_status(settings, _chosen(settings, databases), now=now)
    if as_json:
        print_json(status_json(statuses))
    else:
        for line in status_lines(statuses, settings.zone, now):
            click.echo(line)


@main.command()
@_DATABASES
@JSON_OPTION
@click.pass_context
def verify(ctx: click.Context, databases: tuple[str, ...], as_json: bool) -> None:
    """Re-read every artifact against its record. Exit 1 if anything is wrong."""
    from dataclasses import asdict

    from pitr_pipelines.catalog.verify import verify_database, verify_manifest

    settings = _settings(ctx)
    found = []
    with progress_report("verify") as report:
        from pitr_pipelines.progress import Progress

        for name in _chosen(settings, databases):
            for verified in verify_database(settings, name):
                found.append(verified)
                report(Progress("artifacts", len(found), None, "artifacts"))
    found.append(verify_manifest(settings))
    wrong = [verified for verified in found if verified.problem is not None]
    if as_json:
        print_json({"verified": len(found), "problems": [asdict(verified) for verified in wrong]})
    else:
        for verified in wrong:
            click.secho(f"{verified.database or 'all'}: {verified.artifact}: {verified.problem}", fg="red")
            click.echo(f"  {verified.remedy}")
        click.echo(f"{len(found)} artifacts read, {len(wrong)} with problems")
    ctx.exit(1 if wrong else 0)


@main.group()
def manifest() -> None:
    """The manifest of restore points."""


@manifest.command("rebuild")
@click.pass_context
def manifest_rebuild(ctx: click.Context) -> None:
    """Make the manifest again from the records alone."""
    from pitr_pipelines.catalog.manifest import rebuild_manifest

    made = rebuild_manifest(_settings(ctx.find_root()))
    for name, entry in made.databases.items():
        click.echo(
            f"{name}: {len(entry.bases)} bases, {len(entry.restore_points)} restore points, "
            f"{len(entry.windows)} windows"
        )
        for problem in entry.problems:
            click.secho(f"  {problem}", fg="red")
    ctx.exit(1 if any(entry.problems for entry in made.databases.values()) else 0)
