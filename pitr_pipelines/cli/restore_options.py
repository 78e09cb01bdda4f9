"""The words that every command which restores has in common: what to restore, and where to."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce, wraps
from pathlib import Path
from typing import Any

import click

Command = Callable[..., Any]

_TARGET = ("time", "latest", "hour", "lsn", "name", "xid", "immediate", "base", "exclusive")
_TARGET_OPTIONS = (
    click.argument("time", required=False),
    click.option("--latest", is_flag=True, help="Everything there is."),
    click.option("--hour", help="The restore point at the end of an hour (UTC): 2026-01-29-14."),
    click.option("--lsn", help="A place in the WAL, and the first record from there on: 0/3000028."),
    click.option("--name", help="A named restore point; the newest of that name."),
    click.option("--xid", help="The end of a transaction, as pg_current_xact_id() numbered it."),
    click.option("--immediate", is_flag=True, help="A base backup alone, as soon as it is consistent."),
    click.option("--base", help="With --immediate: the day of the base backup; default: the newest."),
    click.option("--exclusive", is_flag=True, help="Leave out what is exactly at TIME, --lsn or --xid."),
    click.option("--timeline", type=int, help="A branch of history other than the one the server is on."),
)
_PLACE_OPTIONS = (
    click.option("--to", type=click.Path(path_type=Path), help="A new directory; default: in restore_root."),
    click.option(
        "--port", type=click.IntRange(1, 65535), help="The restored server's port; default: a free one."
    ),
    click.option("--plan", "plan_only", is_flag=True, help="Say what would be done; change nothing."),
    click.option("--stop", "stopped", is_flag=True, help="Leave the restored server stopped."),
    click.option(
        "--tablespace",
        "tablespaces",
        multiple=True,
        metavar="OID_OR_LOCATION=DIRECTORY",
        help="A new directory for a tablespace; may be repeated. Default: below the restore's.",
    ),
    click.option(
        "--skip-page-checks", is_flag=True, help="Do not check page checksums: faster, on a slow disk."
    ),
    click.option(
        "--amcheck", is_flag=True, help="Run pg_amcheck over every database of the restored cluster."
    ),
)


def target_options(command: Command) -> Command:
    """Add TIME and the options for other targets; the command gets them as `asked`, for `parse_target`.

    `timeline` comes by itself.
    """

    @wraps(command)
    def with_target(*args: Any, **words: Any) -> Any:
        asked = {word: words.pop(word) for word in _TARGET}
        return command(*args, asked=asked, **words)

    return _with(with_target, _TARGET_OPTIONS)


def place_options(command: Command) -> Command:
    """Add the options that say where a restored cluster goes, and what is looked at in it."""
    return _with(command, _PLACE_OPTIONS)


def _with(command: Command, options: tuple[Callable[[Command], Command], ...]) -> Command:
    return reduce(lambda made, option: option(made), reversed(options), command)
