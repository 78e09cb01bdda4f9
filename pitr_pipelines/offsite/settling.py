"""What became of a call whose answer did not come: found out by a look at the store, never by a write.

The decision is a pure function, and only ever says what is proved:

- confirmed: the object under the call's name carries the id of this very call, put there by its request,
  and has the size that was announced.
- refused: the store has no object of that name, and so much time has gone by since that the request cannot
  be under way any more. Before that, an absent object proves nothing.
- anything else decides nothing, and the entry stays as it is: an object of another call, one of another
  size, a store that does not answer or does not let us look, another bucket in the settings than then.

A call that is still `sent` may be under way in another process. Nothing here ends it early: `patience` must
be longer than an upload can take.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Protocol

from pitr_pipelines.errors import PitrError
from pitr_pipelines.offsite.budget import CallState, LedgerEntry, end, read_entry
from pitr_pipelines.offsite.object_store import CALL_KEY, SIZE_KEY, StoredObject
from pitr_pipelines.offsite_settings import Place

PATIENCE = timedelta(hours=6)


@dataclass(frozen=True, slots=True)
class Decision:
    """The state that an entry goes to, or None to leave it as it is; and why."""

    state: CallState | None
    said: str


class Store(Protocol):
    """What settling needs of an object store."""

    @property
    def place(self) -> Place: ...

    def head(self, key: str) -> StoredObject | None: ...


def call_id_of(entry: LedgerEntry) -> str:
    """Return the id that a call's object carries: the same for every state of the entry, and no other call's.

    It is made of who claimed which day at what microsecond, so it needs no place of its own in the ledger.
    """
    made_of = f"{entry.day}\n{entry.claimed_at.isoformat()}\n{entry.claimed_by}"
    return hashlib.sha256(made_of.encode()).hexdigest()[:32]


def decide(entry: LedgerEntry, found: StoredObject | None, *, at: datetime, patience: timedelta) -> Decision:
    """Decide on an entry that is sent or unknown, from what the store has under its name at `at`.

    `found` is None if the store says that there is no such object.
    """
    if (
        entry.state not in (CallState.SENT, CallState.UNKNOWN)
        or entry.object is None
        or entry.sent_at is None
    ):
        return Decision(None, f"there is nothing to settle: the call of {entry.day} is {entry.state}")
    if found is None:
        last_seen = max(entry.sent_at, entry.ended_at or entry.sent_at)
        if at - last_seen < patience:
            return Decision(None, "the store does not have it, but it may still be at it")
        return Decision(CallState.REFUSED, "the store does not have it, long after it was sent")
    if found.metadata.get(CALL_KEY) != call_id_of(entry):
        return Decision(None, "there is an object of that name, but not from this call")
    size_bytes = entry.object.size_bytes
    if found.size_bytes != size_bytes or found.metadata.get(SIZE_KEY) != str(size_bytes):
        return Decision(None, f"it is there with {found.size_bytes} bytes, and {size_bytes} were sent")
    return Decision(CallState.CONFIRMED, f"the store has it, ETag {found.etag}")


def settle(
    ledger: Path, day: date, store: Store, *, at: datetime, patience: timedelta = PATIENCE
) -> tuple[LedgerEntry | None, str]:
    """Look once at the store, and put on record what became of a day's call if that is proved now.

    `at` is now. Returns the entry as it then is, and what was found; None if the day was never claimed. A
    settled entry costs no look. Never raises for a store that does not answer: that decides nothing.
    """
    entry = read_entry(ledger, day)
    if entry is None:
        return None, f"no call was made on {day}"
    if entry.state not in (CallState.SENT, CallState.UNKNOWN) or entry.object is None:
        return entry, entry.said or f"the call of {day} is {entry.state}"
    if entry.object.bucket != store.place.bucket:
        return entry, f"it went to the bucket {entry.object.bucket}, and the settings name another"
    try:
        found = store.head(entry.object.key)
    except PitrError as error:
        return entry, error.what
    decision = decide(entry, found, at=at, patience=patience)
    if decision.state is None:
        return entry, decision.said
    try:
        return end(ledger, day, decision.state, at=at, said=decision.said, reads=1), decision.said
    except ValueError:
        # Somebody else has settled it, or the call itself came to its end, while we looked.
        entry = read_entry(ledger, day)
        if entry is None or not entry.is_settled:
            raise
        return entry, entry.said or decision.said
