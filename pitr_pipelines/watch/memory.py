"""What a look has to know of the looks before it: since when something is so, and what it was before.

Pure. Small, and bounded: one memory for each database, and a day of samples of the free space.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta

from pydantic import BaseModel, ConfigDict

from pitr_pipelines.catalog.records import Moment
from pitr_pipelines.errors import PitrError
from pitr_pipelines.watch.observation import Observation, segment_of

_SAMPLE_EVERY = timedelta(hours=1)
_SAMPLES_KEPT = timedelta(hours=24)

COMMANDS = frozenset({"archive_command"})
NEVER_MIND = frozenset({"max_wal_senders"})
"""Settings of which more is no harm."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Memory(_Part):
    """What is remembered of one database.

    `settings` are those that are taken for right: what the first look found, or somebody accepted.
    """

    first_seen_at: Moment
    down_since: Moment | None = None
    down_looks: int = 0
    failing_since: Moment | None = None
    failed_before: int = 0
    """failed_count when the archiver began to fail."""
    backlog: int | None = None
    backlog_grew: int = 0
    """At how many looks in a row the backlog had grown."""
    archived_wal: str | None = None
    """What the server had archived last, at the look before."""
    elsewhere_since: Moment | None = None
    system_identifier: str | None = None
    timeline: int | None = None
    timeline_before: int | None = None
    timeline_changed_at: Moment | None = None
    settings: dict[str, str] = {}


class Sample(_Part):
    at: Moment
    free_bytes: int


class SpaceMemory(_Part):
    """The free space of the storage, about once an hour for a day."""

    samples: tuple[Sample, ...] = ()


def remember(before: Memory | None, seen: Observation, *, expected_command: str) -> Memory:
    """Return what is to be known at the next look."""
    memory = before or Memory(first_seen_at=seen.at)
    server = seen.server
    if isinstance(server, PitrError):
        return memory.model_copy(
            update={
                "first_seen_at": min(memory.first_seen_at, seen.at),
                "down_since": _since(memory.down_since, seen.at),
                "down_looks": memory.down_looks + 1,
            }
        )
    changed: dict[str, object] = {
        "first_seen_at": min(memory.first_seen_at, seen.at),
        "down_since": None,
        "down_looks": 0,
    }

    if not server.is_failing:
        changed |= {"failing_since": None, "failed_before": server.failed_count}
    elif memory.failing_since is None or server.failed_count < memory.failed_before:
        changed |= {"failing_since": seen.at, "failed_before": min(memory.failed_before, server.failed_count)}
    else:
        changed |= {"failing_since": _since(memory.failing_since, seen.at)}

    grew = (
        server.ready_backlog is not None
        and memory.backlog is not None
        and server.ready_backlog > memory.backlog
    )
    changed |= {"backlog": server.ready_backlog, "backlog_grew": memory.backlog_grew + 1 if grew else 0}

    missing = before is not None and arrived(seen, memory.archived_wal) is False
    changed |= {
        "archived_wal": server.last_archived_wal,
        "elsewhere_since": _since(memory.elsewhere_since, seen.at) if missing else None,
    }

    owner = seen.stored.archive_owner if seen.stored else None
    known = owner or memory.system_identifier or server.system_identifier
    changed["system_identifier"] = known
    if server.system_identifier == known and not server.in_recovery:
        if memory.timeline not in (None, server.timeline):
            changed |= {"timeline_before": memory.timeline, "timeline_changed_at": seen.at}
        changed |= {
            "timeline": server.timeline,
            "settings": _accepted(memory.settings, server.settings, expected_command),
        }
    return memory.model_copy(update=changed)


def _since(known: datetime | None, now: datetime) -> datetime:
    """Return since when something is so; a clock that was set back must not make that the future."""
    return now if known is None else min(known, now)


def arrived(seen: Observation, archived: str | None) -> bool | None:
    """Tell whether what the server says it archived is in the storage; None if nobody can tell."""
    segment = segment_of(archived)
    if segment is None or seen.stored is None or isinstance(seen.server, PitrError):
        return None
    if str(segment) in seen.stored.present:
        return True
    size = seen.server.wal_segment_size
    newest = seen.stored.newest_segment
    # What was bundled is no longer raw; the segments before it are then in the bundles, too.
    return newest is not None and newest.number(size) >= segment.number(size)


def accept(memory: Memory) -> Memory:
    """Take the settings that the next look finds for right."""
    return memory.model_copy(update={"settings": {}, "timeline_changed_at": None})


def changes(known: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Say which settings differ from those taken for right. A command's text is nobody's business."""
    present = comparable(now)
    return [
        f"{name} was changed"
        if name in COMMANDS
        else f"{name} was {was or 'empty'}, is {present.get(name) or 'empty'}"
        for name, was in sorted(known.items())
        if present.get(name, "") != was
    ]


def comparable(settings: Mapping[str, str]) -> dict[str, str]:
    """Return settings as they are kept: a command may hold a secret, so only a digest of it is."""
    return {
        name: f"sha256:{hashlib.sha256(value.encode()).hexdigest()[:16]}" if name in COMMANDS else value
        for name, value in settings.items()
    }


def sample(memory: SpaceMemory, at: datetime, free_bytes: int) -> SpaceMemory:
    """Return the memory with one more sample, if it is time for one."""
    # A clock that was set back leaves samples from a future that has not come.
    kept = tuple(one for one in memory.samples if at - _SAMPLES_KEPT - _SAMPLE_EVERY <= one.at <= at)
    if kept and at - kept[-1].at < _SAMPLE_EVERY:
        return SpaceMemory(samples=kept)
    return SpaceMemory(samples=(*kept, Sample(at=at, free_bytes=free_bytes)))


def hours_until_full(samples: Iterable[Sample], at: datetime, free_bytes: int) -> float | None:
    """Return when the storage is full if it fills as over the last day; None if it does not, or if
    that is not known yet: bases and pruning make a day's rhythm, so less than most of one says nothing."""
    oldest = min(samples, key=lambda one: one.at, default=None)
    if oldest is None or at - oldest.at < timedelta(hours=20):
        return None
    used = oldest.free_bytes - free_bytes
    if used <= 0:
        return None
    return free_bytes / used * ((at - oldest.at) / timedelta(hours=1))


def _accepted(known: Mapping[str, str], now: Mapping[str, str], expected_command: str) -> dict[str, str]:
    """Return the settings to compare with from now on: changes for the better need nobody's word."""
    present = comparable(now)
    accepted = {**present, **known}
    for name in NEVER_MIND & known.keys() & now.keys():
        if now[name].isdigit() and known[name].isdigit() and int(now[name]) > int(known[name]):
            accepted[name] = now[name]
    if now.get("archive_command") == expected_command:
        accepted["archive_command"] = present["archive_command"]
    return accepted
