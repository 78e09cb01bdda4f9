"""The ledger of backup calls, day by day, for those who show it. Reads only; makes no call of any kind.

A ledger file that cannot be read is a day like the others: it is shown as unreadable, and its day counts
as spent.
"""

from __future__ import annotations

from datetime import date, datetime, timedelta

from pitr_pipelines.catalog.calls import CallDay, CallOutcome, Calls
from pitr_pipelines.catalog.layout import Layout
from pitr_pipelines.errors import ArtifactDamaged
from pitr_pipelines.offsite.budget import CallState, day_of, days, read_entry
from pitr_pipelines.offsite.envelope_index import EnvelopeIndex, parse_index
from pitr_pipelines.settings import Settings

_LOOK_BACK = timedelta(days=366)
"""How far back the last confirmed call is looked for beyond the days that are shown."""


def read_calls(settings: Settings, *, now: datetime, since: date) -> Calls | None:
    """Return the calls from `since` to today, and the last one confirmed before, if that is later.

    None if the settings name no off-site copy. Raises OSError if the ledger cannot be read.
    """
    if settings.offsite is None:
        return None
    layout = Layout(settings.backup_root)
    today = day_of(now, settings.offsite.api_calls.zone)
    found: list[CallDay] = []
    confirmed = False
    for day in reversed(days(layout.ledger)):
        if day < since and (confirmed or day < today - _LOOK_BACK):
            break
        call = _read(layout, day)
        if day >= since or call.outcome is CallOutcome.CONFIRMED:
            found.append(call)
        confirmed = confirmed or call.outcome is CallOutcome.CONFIRMED
    return Calls.on(today, settings.offsite.api_calls.day_in, found)


def _read(layout: Layout, day: date) -> CallDay:
    try:
        entry = read_entry(layout.ledger, day)
    except ArtifactDamaged as error:
        return CallDay(day, CallOutcome.UNREADABLE, said=error.what)
    except OSError as error:
        return CallDay(day, CallOutcome.UNREADABLE, said=f"the ledger file cannot be read: {error.strerror}")
    if entry is None:
        return CallDay(day, CallOutcome.NONE)
    index = _index(layout, day) if entry.state is CallState.CONFIRMED else None
    databases = (member.artifact.database for member in index.members) if index else ()
    return CallDay(
        day,
        CallOutcome(entry.state.value),
        at=entry.ended_at or entry.sent_at or entry.claimed_at,
        size_bytes=entry.object.size_bytes if entry.object else None,
        said=entry.said,
        databases=frozenset(name for name in databases if name is not None) if index else None,
    )


def _index(layout: Layout, day: date) -> EnvelopeIndex | None:
    path = layout.envelope_index(day)
    try:
        return parse_index(path.read_bytes(), name=str(path))
    except (ArtifactDamaged, OSError):
        return None
