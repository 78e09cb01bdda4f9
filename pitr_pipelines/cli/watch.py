"""`pitr watch`: looks at everything, and tells whom it concerns; what Dagster's sensor does, without it.

Thin: what is looked at, judged and sent is in `watch/`.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from pitr_pipelines.errors import ArtifactBusy, PitrError
from pitr_pipelines.settings import Settings, load_settings
from pitr_pipelines.terminal import JSON_OPTION, print_error, print_json
from pitr_pipelines.units import show_bytes, show_duration

if TYPE_CHECKING:
    from pitr_pipelines.watch.lives import Life
    from pitr_pipelines.watch.observation import Observation
    from pitr_pipelines.watch.round import Round


@click.command()
@click.option("--once", is_flag=True, help="Look once, tell what is new, and exit: for cron.")
@click.option("--accept", metavar="DATABASE", help="Take the present settings of its server for right.")
@click.option("--test", "testing", is_flag=True, help="Send a test message to everybody, and exit.")
@JSON_OPTION
@click.pass_context
def watch(ctx: click.Context, once: bool, accept: str | None, testing: bool, as_json: bool) -> None:
    """Watch servers, archives, storage, drills and the off-site copy, and send alerts.

    Each incident is told once, again at every reminder, and when it is over. Where Dagster runs, its
    sensor `archive_health` does the same. With --once, exit 1 if an incident is open.
    """
    settings = load_settings(ctx.find_root().obj)
    if testing:
        ctx.exit(_test(settings))
    if accept is not None:
        from pitr_pipelines.watch.round import accept_settings

        accept_settings(settings, accept, now=datetime.now(UTC))
        click.echo(f"{accept}: what the server has set at the next look is taken for right")
        return
    from pitr_pipelines.watch.round import watch_once

    if once:
        now = datetime.now(UTC)
        done = watch_once(settings, now=now)
        if as_json:
            print_json(_json(done))
        else:
            for line in _lines(done, now):
                click.echo(line)
        _complain(done)
        ctx.exit(1 if done.open else 0)
    names = f"{len(settings.databases)} databases" if len(settings.databases) > 1 else "one database"
    click.echo(f"watching {names}, every {settings.alerts.interval_s} s; Ctrl-C ends it")
    while True:
        now = datetime.now(UTC)
        try:
            done = watch_once(settings, now=now)
        except ArtifactBusy as error:  # Dagster is at it
            print_error(error)
        else:
            news = [*done.opened, *done.over]
            for line in _lines(done, now) if news else []:
                click.echo(line)
            _complain(done)
        time.sleep(settings.alerts.interval_s)


def _test(settings: Settings) -> int:
    from pitr_pipelines.watch.round import send_test

    results = send_test(settings)
    if not results:
        click.echo("the settings name nobody: add `alerts: {to_env: [PITR_ALERT_URL]}`")
        return 2
    failed: list[PitrError] = []
    for name, error in results.items():
        if error is None:
            click.echo(f"{name}: sent")
        else:
            failed.append(error)
            print_error(error, label=name)
    return failed[0].exit_code if failed else 0


def _lines(done: Round, now: datetime) -> Iterable[str]:
    yield f"{now:%Y-%m-%d %H:%M:%S}+00:00"
    for seen in done.observations:
        yield f"  {seen.database}: {_seen(seen)}"
    for mark, lives in (("NEW  ", done.opened), ("open ", done.still_open), ("over ", done.over)):
        for life in sorted(lives, key=lambda one: one.incident.key):
            yield from _described(mark, life, now)
    if not done.open:
        yield "  no incident is open"
    if done.sent_to:
        yield f"  told: {', '.join(done.sent_to)}"


def _seen(seen: Observation) -> str:
    parts = []
    server = seen.server
    if isinstance(server, PitrError):
        parts.append("does not answer")
    else:
        parts.append(f"answers, timeline {server.timeline}")
        if server.ready_backlog is not None:
            parts.append(f"waiting for the archive: {server.ready_backlog} segments")
        if server.pg_wal_bytes is not None:
            parts.append(f"{show_bytes(server.pg_wal_bytes)} in pg_wal")
    if seen.lag_s is not None:
        parts.append(f"newest archived WAL {show_duration(seen.lag_s)} old")
    if seen.stored is not None:
        parts.append(f"{seen.stored.raw_files} raw files")
    if seen.space is not None:
        parts.append(f"{show_bytes(seen.space.free_bytes)} ({seen.space.free_percent:.0f} %) free")
    return ", ".join(parts)


def _described(mark: str, life: Life, now: datetime) -> Iterable[str]:
    colour = "green" if life.over_at else "red" if life.severity == "critical" else "yellow"
    since = show_duration(now - life.opened_at)
    what = " ".join(life.what.split())
    yield f"  {click.style(mark, fg=colour)} {life.incident.key}, for {since}: {what}"
    if life.over_at is None:
        yield f"         {life.remedy}"
        yield f"         {life.incident.runbook}"


def _complain(done: Round) -> None:
    for problem in done.problems:
        click.secho(f"pitr: {problem}", err=True, fg="yellow")


def _json(done: Round) -> dict[str, object]:
    def shown(lives: Iterable[Life]) -> list[dict[str, object]]:
        return [
            {"key": life.incident.key, "runbook": life.incident.runbook, **life.model_dump(mode="json")}
            for life in lives
        ]

    return {
        "databases": {seen.database: {**seen.numbers(), **seen.texts()} for seen in done.observations},
        "open": shown(done.open),
        "over": shown(done.over),
        "told": list(done.sent_to),
        "problems": list(done.problems),
    }
