"""One round of the watch: look at everything, judge, remember, and tell who does not know yet.

The order makes sure that nothing is lost: what was found is kept before anything is sent, and what
was told is kept after it was sent. A crash between may repeat one message. The clock is an argument.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

from pitr_pipelines.catalog.layout import Layout
from pitr_pipelines.errors import ArtifactDamaged, PitrError, SettingsError, StorageFailed, storage_failed
from pitr_pipelines.settings import Settings
from pitr_pipelines.watch.incidents import DAGSTER, OFFSITE, STORAGE, Findings
from pitr_pipelines.watch.judge_database import judge_database
from pitr_pipelines.watch.judge_storage import judge_offsite, judge_storage, storage_gone
from pitr_pipelines.watch.lives import Life, News, advance, after_telling, news_for
from pitr_pipelines.watch.look import (
    ask_servers,
    is_there,
    look_at_archiving,
    look_at_rights,
    look_at_space,
    look_at_stored,
    why_unreadable,
)
from pitr_pipelines.watch.memory import accept, remember, sample
from pitr_pipelines.watch.message import Message, Tone, write_message
from pitr_pipelines.watch.observation import Observation, Space, StoredState
from pitr_pipelines.watch.promises import promises_of
from pitr_pipelines.watch.recipients import Recipient, find_recipients
from pitr_pipelines.watch.send import send_all
from pitr_pipelines.watch.state import Known, State, StateFile

Send = Callable[[dict[Recipient, Message]], dict[str, PitrError | None]]
OFFSITE_EVERY = timedelta(minutes=10)
"""It reads the indexes of all copies, and changes once a day."""


@dataclass(frozen=True)
class Round:
    """What one round saw and did. `problems` are those of the watch itself, without any secret."""

    observations: tuple[Observation, ...]
    opened: tuple[Life, ...]
    still_open: tuple[Life, ...]
    over: tuple[Life, ...]
    sent_to: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()

    @property
    def open(self) -> tuple[Life, ...]:
        return (*self.opened, *self.still_open)


@dataclass
class _Seen:
    """What a look found, and the state that already knows of it."""

    state: State
    observations: list[Observation] = field(default_factory=list)
    findings: list[Findings] = field(default_factory=list)


def watch_once(
    settings: Settings,
    *,
    now: datetime,
    more: Collection[Findings] = (),
    state_file: StateFile | None = None,
    send: Send | None = None,
    look_at_root: Callable[[Path], bool] = Path.is_dir,
    look_at_space: Callable[[Path], Space] = look_at_space,
) -> Round:
    """Look at everything, and tell of what is new, of what is still so, and of what is over.

    `more` is what somebody else found, such as Dagster's failed runs. Raises ArtifactBusy if another
    watcher is at it, and StorageFailed if the state can be kept nowhere.
    """
    file = state_file or StateFile(settings.backup_root)
    absent = is_there(settings.backup_root, look=look_at_root)
    if absent is not None:
        file = file.without_storage(absent)
    with file.locked():
        before = file.read()
        seen = _look(settings, before, now, absent, look_at_space)
        lives = advance(
            before.lives,
            Findings.joined([*seen.findings, *more]),
            now=now,
            quiet=settings.alerts.quiet,
            subjects={*settings.databases, STORAGE, OFFSITE, DAGSTER},
        )
        state = seen.state.model_copy(update={"lives": lives})
        problems = [_keep(file, state, now)]
        state, sent_to, failures = _tell(settings, state, now, send or send_all)
        problems += failures
        if sent_to:
            problems.append(_keep(file, state, now))
    return Round(
        tuple(seen.observations),
        tuple(life for life in lives.values() if life.is_open and life.opened_at == now),
        tuple(life for life in lives.values() if life.is_open and life.opened_at != now),
        tuple(life for life in lives.values() if life.over_at == now),
        tuple(sent_to),
        tuple(dict.fromkeys(problem for problem in problems if problem)),
    )


def accept_settings(settings: Settings, database: str, *, now: datetime) -> None:
    """Take a server's settings as the next look finds them for right. Raises BadRequest, ArtifactBusy."""
    settings.database(database)
    file = StateFile(settings.backup_root)
    absent = is_there(settings.backup_root)
    if absent is not None:
        file = file.without_storage(absent)
    with file.locked():
        state = file.read()
        memory = state.databases.get(database)
        if memory is not None:
            databases = {**state.databases, database: accept(memory)}
            _keep(file, state.model_copy(update={"databases": databases}), now)


def send_test(settings: Settings, *, send: Send | None = None) -> dict[str, PitrError | None]:
    """Send everybody a test message; return by recipient None, or why it did not arrive.

    Raises SettingsError if somebody cannot be found.
    """
    message = Message(
        f"pitr on {socket.gethostname()}: test",
        "This is a test. When something is wrong with the backups, a message like this one says what, and "
        "what to do.",
        Tone.SUCCESS,
    )
    return (send or send_all)(dict.fromkeys(find_recipients(settings.alerts), message))


def _look(
    settings: Settings,
    before: State,
    now: datetime,
    absent: PitrError | None,
    look_at_space: Callable[[Path], Space],
) -> _Seen:
    # psycopg comes with it.
    from pitr_pipelines.postgres.prepare import expected_archive_command

    seen = _Seen(before.model_copy(deep=True))
    servers = ask_servers(settings.databases)
    stored: dict[str, StoredState] = {}
    space = None
    if absent is not None:
        seen.findings.append(storage_gone(absent))
    else:
        stored, space = _look_at_storage(settings, now, look_at_space, seen)
    memories = {}
    for name in settings.databases:
        observation = Observation(
            name,
            now,
            servers[name],
            stored.get(name),
            space,
            archiving=look_at_archiving(settings, name, servers[name]) if absent is None else None,
            rights=look_at_rights(settings, name) if absent is None else (),
        )
        memories[name] = remember(
            before.databases.get(name), observation, expected_command=expected_archive_command(name, settings)
        )
        seen.observations.append(observation)
        seen.findings.append(
            judge_database(
                observation,
                memories[name],
                alerts=settings.alerts,
                promises=promises_of(settings, name),
                drill_age=timedelta(days=settings.drills.max_age_days),
                archive=Layout(settings.backup_root).wal(name),
            )
        )
    seen.state.databases = memories
    return seen


def _look_at_storage(
    settings: Settings, now: datetime, look_at_space: Callable[[Path], Space], seen: _Seen
) -> tuple[dict[str, StoredState], Space | None]:
    root, state = settings.backup_root, seen.state
    stored: dict[str, StoredState] = {}
    unreadable: dict[str, PitrError] = {}
    for name in settings.databases:
        try:
            stored[name] = look_at_stored(settings, name, now=now)
        except OSError as error:
            unreadable[name] = why_unreadable(settings, name, error)
        except ArtifactDamaged as error:
            unreadable[name] = error
    space = None
    try:
        space = look_at_space(root)
        state.space = sample(state.space, now, space.free_bytes)
    except OSError as error:
        unreadable["all databases"] = storage_failed(error)
    last = state.offsite_looked_at
    if settings.offsite is not None and not (last and timedelta(0) <= now - last < OFFSITE_EVERY):
        from pitr_pipelines.offsite.standing import look_at_standing

        try:
            seen.findings.append(judge_offsite(look_at_standing(settings, now=now)))
            state.offsite_looked_at = now
        except OSError as error:
            unreadable["the off-site copy"] = storage_failed(error)
        except PitrError as error:
            unreadable["the off-site copy"] = error
    seen.findings.append(judge_storage(root, space, state.space, unreadable, settings.alerts, now))
    return stored, space


def _tell(settings: Settings, state: State, now: datetime, send: Send) -> tuple[State, list[str], list[str]]:
    """Send everybody his news; return the state after it, who was sent something, and what went wrong."""
    try:
        recipients = find_recipients(settings.alerts)
    except SettingsError as error:
        return state, [], [str(error)]
    messages: dict[Recipient, Message] = {}
    news: dict[str, News] = {}
    known = {recipient.name: state.recipients.get(recipient.name, Known()) for recipient in recipients}
    for recipient in recipients:
        last = known[recipient.name].last_sent_at
        # A clock that was set back must not silence anybody.
        if last is not None and timedelta(0) <= now - last < settings.alerts.gap:
            continue
        found = news_for(known[recipient.name].told, state.lives, now=now, reminder=settings.alerts.reminder)
        if found:
            news[recipient.name] = found
            messages[recipient] = write_message(found, now=now, place=socket.gethostname())
    results = send(messages) if messages else {}
    failures = [str(error) for error in results.values() if error is not None]
    sent_to = [name for name, error in results.items() if error is None]
    for name in sent_to:
        told = after_telling(known[name].told, news[name], state.lives, now=now)
        known[name] = Known(last_sent_at=now, told=told)
    return state.model_copy(update={"recipients": known}), sent_to, failures


def _keep(file: StateFile, state: State, now: datetime) -> str | None:
    try:
        problem = file.write(state, now=now)
    except OSError as error:
        failed = storage_failed(error)
        raise StorageFailed(
            f"the state of the alerts can be kept nowhere: {failed.what}", remedy=failed.remedy
        ) from None
    return f"the state of the alerts is kept in {file.fallback}, because {problem}" if problem else None
