"""The API budget: at most one backup call a day, for all databases together.

The invariant: for every day there is at most one ledger file, and a call may only be made by the
process that created it, once. Creating a file exclusively is atomic on every file system we support,
so crashes, retries and rival processes cannot spend a day twice; they can only waste it. That a call is
about to be made is on disk before its first byte leaves.

What became of it is written by whoever made the call; what he could not tell, because he died or was
never answered, is settled later by a look at the store, never by a second call.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from datetime import UTC, date, datetime
from enum import StrEnum
from pathlib import Path
from typing import Literal
from zoneinfo import ZoneInfo

from pydantic import BaseModel, ConfigDict, ValidationError

from pitr_pipelines import durable
from pitr_pipelines.catalog.records import Moment, Sha256, to_json
from pitr_pipelines.errors import ArtifactDamaged, PitrError

LOOK_AGAIN = (
    "Nothing need be done: the next copy looks for it first, and carries what it did not deliver. "
    "`pitr offsite budget --settle` looks now."
)
"""What to do about a call of which it is not known what became of it."""

_SUFFIX = ".json"
_NEIGHBOURS = 3
"""How many days on the ledger are looked at for one that is the same day in another zone."""


class CallState(StrEnum):
    """How far a day's call has come."""

    CLAIMED = "claimed"
    """The day is taken. Nothing was sent."""
    SENT = "sent"
    """The call is under way, or whoever made it has died in the middle."""
    CONFIRMED = "confirmed"
    """The store said that it has the object."""
    REFUSED = "refused"
    """The store does not have the object, and never will from this call."""
    UNKNOWN = "unknown"
    """No answer came, or none that tells."""


_STEPS: dict[CallState, frozenset[CallState]] = {
    CallState.CLAIMED: frozenset({CallState.SENT, CallState.REFUSED}),
    CallState.SENT: frozenset({CallState.CONFIRMED, CallState.REFUSED, CallState.UNKNOWN}),
    CallState.UNKNOWN: frozenset({CallState.CONFIRMED, CallState.REFUSED}),
    CallState.CONFIRMED: frozenset(),
    CallState.REFUSED: frozenset(),
}
"""What may follow on what. None leads back: a day is never returned."""


class BudgetSpent(PitrError):
    """The day's one call is taken, by whom and with what outcome it says. Nothing was sent."""

    exit_code = 11


class CallObject(BaseModel):
    """What a call carries: the object's place in the store, and its size in bytes.

    `sha256` is of it all; None where that is only known when all of it was sent, because it is encrypted
    on the way. `endpoint_url` is None for Amazon's own.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    endpoint_url: str | None = None
    bucket: str
    key: str
    size_bytes: int
    sha256: Sha256 | None = None


class LedgerEntry(BaseModel):
    """One day of the ledger.

    `claimed_by` is a host and a process number; `said` is what the store answered, or why it is not
    known what it did; `code` is S3's word for it, if it was an error. `requests` counts, by S3's name for
    them, the requests that left for it: one PutObject, or those of one upload in parts; None if that is not
    known. `reads` counts those that left for looks at what became of it: they are no backup calls.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    kind: Literal["api_call"] = "api_call"
    day: date
    state: CallState
    claimed_at: Moment
    claimed_by: str
    object: CallObject | None = None
    sent_at: Moment | None = None
    ended_at: Moment | None = None
    said: str | None = None
    code: str | None = None
    requests: dict[str, int] | None = None
    reads: int = 0

    @property
    def request_count(self) -> int | None:
        """How many requests left for it; None if that is not known, as when its maker died."""
        return None if self.requests is None else sum(self.requests.values())

    @property
    def is_settled(self) -> bool:
        """Is it known for good what became of the call?"""
        return not _STEPS[self.state]

    def says_already(self, state: CallState) -> bool:
        """Tell whether it is on record already that a call ended so, or better known than that."""
        if state is CallState.UNKNOWN:
            return self.is_settled or self.state is CallState.UNKNOWN
        return self.is_settled and self.state is state

    def then(
        self, state: CallState, *, at: datetime, said: str | None = None, carries: CallObject | None = None
    ) -> LedgerEntry:
        """Return the entry one step on. Raises ValueError for a step that there is not."""
        if state not in _STEPS[self.state]:
            raise ValueError(f"the call of {self.day} cannot go from {self.state} to {state}")
        changes: dict[str, object] = {"state": state, "said": said}
        if state is CallState.SENT:
            if carries is None:
                raise ValueError(f"the call of {self.day} is sent with nothing in it")
            changes |= {"object": carries, "sent_at": at.astimezone(UTC)}
        else:
            changes |= {"ended_at": at.astimezone(UTC)}
        return self.model_copy(update=changes)


@dataclass(frozen=True, slots=True)
class Claim:
    """The right to make one day's call. Spent or lost, it is never returned."""

    day: date
    ledger_file: Path


def day_of(moment: datetime, zone: ZoneInfo) -> date:
    """Return the calendar day of a moment as the provider of the store counts days."""
    return moment.astimezone(zone).date()


def claim(ledger: Path, day: date, *, at: datetime) -> Claim:
    """Take the day's one call, durably.

    `ledger` is the directory with a file for each day. Raises BudgetSpent, with who took it and how it
    ended, if the day is already claimed, or if a later one is: then a clock was wrong.
    """
    durable.make_directory(ledger)
    _check_that_none_is_later(ledger, day)
    file = _file(ledger, day)
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, durable.FILE_MODE)
    except FileExistsError:
        raise spent(ledger, day) from None
    # From here on the day is taken, whatever happens: an empty file is one that nothing was sent for.
    entry = LedgerEntry(
        day=day,
        state=CallState.CLAIMED,
        claimed_at=at.astimezone(UTC),
        claimed_by=f"{socket.gethostname()}, process {os.getpid()}",
    )
    with open(descriptor, "wb") as opened:
        opened.write(_bytes_of(entry))
        opened.flush()
        os.fsync(opened.fileno())
    durable.fsync_directory(ledger)
    return Claim(day, file)


def check_free(ledger: Path, day: date, zone: ZoneInfo) -> None:
    """Raise BudgetSpent if no call may be made on a day of `zone` for what was called around it.

    That is, if a later day is on the ledger, or if the call of an earlier one was sent on this day: it was
    counted in another zone then.
    """
    _check_that_none_is_later(ledger, day)
    for other in days(ledger)[-_NEIGHBOURS:]:
        with suppress(ArtifactDamaged):
            entry = read_entry(ledger, other)
            if entry is not None and entry.sent_at is not None and day_of(entry.sent_at, zone) == day:
                raise BudgetSpent(
                    f"the backup call of {other} was sent at {entry.sent_at:%Y-%m-%d %H:%M:%S} UTC, which is "
                    f"on {day} in {zone.key}",
                    remedy="There is one call a day. If `day_in` was changed, wait until this day is over.",
                )


def send(claimed: Claim, carries: CallObject, *, at: datetime, zone: ZoneInfo | None = None) -> LedgerEntry:
    """Put on record, durably, that the call is being made. Only then may its first byte leave.

    With `zone`, in which the provider counts days, only while the claim's day is not over: else the call
    would be the next day's first, and that day's own its second. Raises BudgetSpent then, and ValueError if
    this claim was used before.
    """
    if zone is not None and day_of(at, zone) != claimed.day:
        raise BudgetSpent(
            f"the backup call of {claimed.day} was not sent before that day was over",
            remedy="What it would have delivered goes with the next day's call. Make the call earlier in the "
            "day, or look why it took so long.",
        )
    ledger = claimed.ledger_file.parent
    with _locked(ledger):
        entry = read_entry(ledger, claimed.day)
        if entry is None:
            raise ValueError(f"the ledger file {claimed.ledger_file} of a claimed day is gone")
        entry = entry.then(CallState.SENT, at=at, carries=carries)
        _write(claimed.ledger_file, entry)
    return entry


def end(
    ledger: Path,
    day: date,
    state: CallState,
    *,
    at: datetime,
    said: str,
    code: str | None = None,
    reads: int = 0,
    requests: Mapping[str, int] | None = None,
) -> LedgerEntry:
    """Put on record what became of a day's call, as its answer or a look at the store has shown.

    `reads` is how many looks it took, `requests` how many requests left for the call, by kind, if that is
    known here. Where another has put the same on record before, or more than unknown, his word stays, and
    only the counts are added. Raises ValueError if the state is not what can follow.
    """
    with _locked(ledger):
        entry = _entry_to_change(ledger, day)
        if not entry.says_already(state):
            entry = entry.then(state, at=at, said=said).model_copy(update={"code": code or entry.code})
        counts: dict[str, object] = {"reads": entry.reads + reads}
        if requests is not None:
            counts["requests"] = dict(requests)
        entry = entry.model_copy(update=counts)
        _write(_file(ledger, day), entry)
    return entry


def count_reads(ledger: Path, day: date, reads: int) -> LedgerEntry:
    """Put on record that looks were made at what became of a day's call, which decided nothing.

    Raises ValueError if the day was never claimed.
    """
    with _locked(ledger):
        entry = _entry_to_change(ledger, day)
        if reads:
            entry = entry.model_copy(update={"reads": entry.reads + reads})
            _write(_file(ledger, day), entry)
    return entry


def read_entry(ledger: Path, day: date) -> LedgerEntry | None:
    """Return what is on record of a day's call; None if the day is free.

    Raises ArtifactDamaged if the file cannot be read; such a day is taken all the same.
    """
    file = _file(ledger, day)
    try:
        content = file.read_bytes()
        claimed_at = datetime.fromtimestamp(file.stat().st_mtime, UTC)
    except FileNotFoundError:
        return None
    if not content:
        # Whoever claimed it died between two steps; he had not said that he would send.
        return LedgerEntry(day=day, state=CallState.CLAIMED, claimed_at=claimed_at, claimed_by="not known")
    try:
        entry = LedgerEntry.model_validate_json(content)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]["msg"]
        raise ArtifactDamaged(
            f"the ledger file {file} cannot be used: {problem}",
            remedy="The day counts as spent. Leave the file: what was not delivered goes with the next call.",
        ) from None
    if entry.day != day:
        raise ArtifactDamaged(
            f"the ledger file {file} is about {entry.day}",
            remedy="The day counts as spent. Rename it back to the day that it is about.",
        )
    return entry


def spent(ledger: Path, day: date) -> BudgetSpent:
    """Return the error that says who took a day's call, and how it ended."""
    try:
        entry = read_entry(ledger, day)
    except ArtifactDamaged as error:
        return BudgetSpent(f"the backup call of {day} is taken: {error.what}", remedy=error.remedy)
    by = "by a file that has gone away since"
    if entry is not None:
        by = f"at {entry.claimed_at:%H:%M:%S} UTC by {entry.claimed_by}, and is {entry.state}"
        by += f": {entry.said}" if entry.said else ""
    remedy = "There is one call a day. What it did not deliver goes with the next day's."
    if entry is not None and entry.state in (CallState.SENT, CallState.UNKNOWN):
        remedy = f"There is one call a day. {LOOK_AGAIN}"
    return BudgetSpent(f"the backup call of {day} is taken, {by}", remedy=remedy)


def days(ledger: Path) -> list[date]:
    """Return every day that is on the ledger, oldest first."""
    found = []
    try:
        names = [path.name for path in ledger.iterdir()]
    except FileNotFoundError:
        return []
    for name in names:
        if name.endswith(_SUFFIX) and not name.startswith("."):
            try:
                found.append(date.fromisoformat(name.removesuffix(_SUFFIX)))
            except ValueError:
                continue
    return sorted(found)


def _entry_to_change(ledger: Path, day: date) -> LedgerEntry:
    entry = read_entry(ledger, day)
    if entry is None:
        raise ValueError(f"no call of {day} is on the ledger {ledger}")
    return entry


def _check_that_none_is_later(ledger: Path, day: date) -> None:
    later = [other for other in days(ledger) if other > day]
    if later:
        raise BudgetSpent(
            f"the backup call of {later[-1]} is already on the ledger {ledger}, so that of {day} is too late",
            remedy="Is the clock of this machine right? If the later day was claimed by a clock that was "
            "wrong, wait until that day is over.",
        )


def _locked(ledger: Path) -> AbstractContextManager[None]:
    return durable.exclusive_lock(ledger / ".lock", subject="the ledger of backup calls", wait=True)


def _file(ledger: Path, day: date) -> Path:
    return ledger / f"{day.isoformat()}{_SUFFIX}"


def _write(file: Path, entry: LedgerEntry) -> None:
    durable.write_whole(file, _bytes_of(entry))


def _bytes_of(entry: LedgerEntry) -> bytes:
    return to_json(entry.model_dump(mode="json")).encode()
