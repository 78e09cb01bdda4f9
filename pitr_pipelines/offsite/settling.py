"""What became of a call: found out by a look at the store, never by a write.

The decision is a pure function, and only ever says what is proved:

- confirmed: the object under the call's name carries the id of this very call, put there by its request,
  and has the size that was announced.
- refused: the store has no object of that name, or one of another call, and so much time has gone by since
  that the request cannot be under way any more. Before that, an absent object proves nothing. At once if the
  store itself said that the name is taken (412), and the object there is another call's: were it ours, then
  something on the way had sent our request twice.
- anything else decides nothing, and the entry stays as it is, but for the count of looks: an object of
  another size, a store that does not answer or does not let us look, another place in the settings than then.

A call that was answered is looked at too, once, before the ledger says confirmed (`conclude`): a success may
come from something on the way. Only where the store forbids looks (credentials that may only write) does its
word alone count.

A call that is still `sent` may be under way in another process. Nothing here ends it early: `patience` is
longer than an upload can take, and grows with its size.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Protocol

from pitr_pipelines.errors import PitrError
from pitr_pipelines.offsite.answers import NAME_TAKEN, Outcome, StoreUnavailable, Verdict
from pitr_pipelines.offsite.budget import CallState, LedgerEntry, count_reads, end, read_entry
from pitr_pipelines.offsite.object_store import CALL_KEY, SIZE_KEY, StoredObject
from pitr_pipelines.offsite_settings import Place

PATIENCE = timedelta(hours=6)

_SLOWEST_BYTES_PER_S = 250_000
"""No upload is taken to be slower than this: 5 GiB in six hours."""


@dataclass(frozen=True, slots=True)
class Decision:
    """The state that an entry goes to, or None to leave it as it is; and why."""

    state: CallState | None
    said: str


class Store(Protocol):
    """What settling needs of an object store."""

    @property
    def place(self) -> Place: ...

    @property
    def reads(self) -> int: ...

    def head(self, key: str) -> StoredObject | None: ...


class WritingStore(Store, Protocol):
    """What a call is concluded with: the store that made it."""

    @property
    def requests(self) -> Mapping[str, int]: ...


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
    size_bytes = entry.object.size_bytes
    seen = _seen(found, call_id_of(entry), size_bytes)
    if seen.state is CallState.CONFIRMED:
        return seen
    if found is not None and found.metadata.get(CALL_KEY) == call_id_of(entry):
        return Decision(None, seen.said)
    if found is not None and entry.code == NAME_TAKEN:
        return Decision(CallState.REFUSED, f"the name is taken: {seen.said}")
    last_seen = entry.ended_at or entry.sent_at
    if entry.state is CallState.SENT:
        patience = max(patience, timedelta(seconds=size_bytes / _SLOWEST_BYTES_PER_S))
    if at - max(entry.sent_at, last_seen) < patience:
        return Decision(None, f"{seen.said}, but it may still be on its way")
    return Decision(CallState.REFUSED, f"{seen.said}, long after it was sent")


def confirm(store: Store, key: str, *, call_id: str, size_bytes: int) -> Decision:
    """Look once whether the store has what a call sent, and say so.

    Confirmed, if it is there with the call's id and size; unknown, if it is not, or is something else. None
    if we may not look. Raises StoreUnavailable if the store does not answer.
    """
    try:
        found = store.head(key)
    except StoreUnavailable as error:
        if not error.forbidden:
            raise
        return Decision(None, error.what)
    return _seen(found, call_id, size_bytes)


def conclude(ledger: Path, day: date, outcome: Outcome, store: WritingStore, *, at: datetime) -> LedgerEntry:
    """Put on record what became of a day's call, from its outcome and, unless it was refused, one look.

    `store` is the one that made the call, `at` when the outcome came. Returns the entry as it then is: it may
    be better known than the outcome, or still unknown, for `settle` to find out later. Never raises for a
    store that does not answer. Raises ValueError if the call was not sent, or if its entry says otherwise.
    """
    entry = read_entry(ledger, day)
    if entry is None or entry.object is None:
        raise ValueError(f"no call of {day} that was sent is on the ledger {ledger}")
    reads = store.reads
    decision = Decision(CallState.REFUSED, outcome.said)
    if outcome.verdict is not Verdict.REFUSED:
        decision = _conclusion(entry, outcome, store, at=at)
    elif entry.state is CallState.CONFIRMED:
        # Somebody has seen it there in the meantime: a refusal that something on the way made up.
        decision = Decision(CallState.UNKNOWN, outcome.said)
    return end(
        ledger,
        day,
        decision.state or CallState.UNKNOWN,
        at=at,
        said=decision.said,
        code=outcome.code,
        reads=store.reads - reads,
        requests=store.requests,
    )


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
    place = store.place
    if (entry.object.endpoint_url, entry.object.bucket) != (place.endpoint_url, place.bucket):
        where = f"{entry.object.bucket} at {entry.object.endpoint_url or 'Amazon'}"
        return entry, f"it went to the bucket {where}, and the settings name another"
    reads = store.reads
    try:
        found = store.head(entry.object.key)
    except PitrError as error:
        return count_reads(ledger, day, store.reads - reads), error.what
    reads = store.reads - reads
    decision = decide(entry, found, at=at, patience=patience)
    if decision.state is None:
        return count_reads(ledger, day, reads), decision.said
    try:
        return end(ledger, day, decision.state, at=at, said=decision.said, reads=reads), decision.said
    except ValueError:
        # The call itself came to its end while we looked.
        entry = count_reads(ledger, day, reads)
        if not entry.is_settled:
            raise
        return entry, entry.said or decision.said


def _conclusion(entry: LedgerEntry, outcome: Outcome, store: Store, *, at: datetime) -> Decision:
    """Look once, and decide on a call that was stored, or whose outcome is unknown."""
    assert entry.object is not None
    stored = outcome.verdict is Verdict.STORED
    try:
        found = store.head(entry.object.key)
    except StoreUnavailable as error:
        state = CallState.CONFIRMED if stored and error.forbidden else CallState.UNKNOWN
        return Decision(state, f"{outcome.said}; it could not be looked at: {error.what}")
    answered = entry.model_copy(
        update={"state": CallState.UNKNOWN, "ended_at": at.astimezone(UTC), "code": outcome.code}
    )
    decision = decide(answered, found, at=at, patience=PATIENCE)
    if stored and decision.state is CallState.CONFIRMED:
        return Decision(CallState.CONFIRMED, f"{outcome.said}, and seen there")
    return Decision(decision.state or CallState.UNKNOWN, f"{outcome.said}; {decision.said}")


def _seen(found: StoredObject | None, call_id: str, size_bytes: int) -> Decision:
    """Return what a look shows by itself, whenever it was made."""
    if found is None:
        return Decision(CallState.UNKNOWN, "the store does not have it")
    if found.metadata.get(CALL_KEY) != call_id:
        return Decision(CallState.UNKNOWN, "there is an object of that name, but not from this call")
    if found.size_bytes != size_bytes or found.metadata.get(SIZE_KEY) != str(size_bytes):
        said = f"it is there with {found.size_bytes} bytes, and {size_bytes} were sent"
        return Decision(CallState.UNKNOWN, said)
    return Decision(CallState.CONFIRMED, f"the store has it, ETag {found.etag}")
