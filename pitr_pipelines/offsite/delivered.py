"""What is known to be off-site: the envelopes whose calls are confirmed, and what they carry.

Read from the ledger and from the indexes kept beside it, so it costs no look at the store. Only what lies
at the place that the settings name now counts: after a change of bucket, everything is to be sent again. A
call that is not known to have been stored delivered nothing, whatever it carried.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date

from pitr_pipelines import durable
from pitr_pipelines.catalog.layout import Layout
from pitr_pipelines.errors import ArtifactDamaged
from pitr_pipelines.offsite.budget import CallObject, CallState, LedgerEntry, days, read_entry
from pitr_pipelines.offsite.envelope_index import EnvelopeIndex, parse_index
from pitr_pipelines.offsite_settings import Place

_SUFFIX = ".tar"


def envelope_key(place: Place, day: date) -> str:
    """Return the key of a day's envelope in the store."""
    return f"{place.prefix}{day.isoformat()}{_SUFFIX}"


def day_of_key(place: Place, key: str) -> date | None:
    """Return the day whose envelope has this key; None if it is the key of something else."""
    if not key.startswith(place.prefix) or not key.endswith(_SUFFIX):
        return None
    try:
        return date.fromisoformat(key.removeprefix(place.prefix).removesuffix(_SUFFIX))
    except ValueError:
        return None


def is_at(call: CallObject, place: Place) -> bool:
    """Tell whether a call went to this place."""
    return (call.endpoint_url, call.bucket) == (place.endpoint_url, place.bucket) and (
        day_of_key(place, call.key) is not None
    )


def keep_index(layout: Layout, index: EnvelopeIndex, text: bytes) -> None:
    """Keep the index of an envelope beside the ledger, before it is sent: it may be encrypted in there."""
    durable.write_whole(layout.envelope_index(index.day), text)


def read_index(layout: Layout, day: date) -> EnvelopeIndex | None:
    """Return the index that was kept of a day's envelope; None if there is none that can be read."""
    path = layout.envelope_index(day)
    try:
        return parse_index(path.read_bytes(), name=str(path))
    except (ArtifactDamaged, FileNotFoundError):
        return None


def confirmed_envelopes(layout: Layout, place: Place) -> Iterator[tuple[LedgerEntry, EnvelopeIndex]]:
    """Yield every confirmed call to a place with the index of what it carried, oldest first.

    A day whose ledger file or index is gone or cannot be read is left out: what it delivered is not known
    here any more, and goes again.
    """
    for day in days(layout.ledger):
        try:
            entry = read_entry(layout.ledger, day)
            if entry is None or entry.state is not CallState.CONFIRMED or entry.object is None:
                continue
        except ArtifactDamaged:
            continue
        index = read_index(layout, day) if is_at(entry.object, place) else None
        if index is not None:
            yield entry, index


def delivered(layout: Layout, place: Place) -> frozenset[tuple[str, str]]:
    """Return the identities, path and SHA-256, of every file that is known to be off-site."""
    return frozenset(
        identity for _, index in confirmed_envelopes(layout, place) for identity in index.delivers
    )
