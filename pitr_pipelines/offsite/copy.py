"""The day's call: everything that is not off-site yet, in one object, sent once.

The order is the promise. Everything that can fail without the store fails first, and costs nothing: the
settings, keys and credentials, the network, sealing and bundling, the plan and its size, a second name for
every file, and a look at each file's content. Then the day is claimed, that it is sent is put on record,
and the request leaves. What became of it is on the ledger when this returns or raises; if the process dies
instead, the next one finds out by a look at the store, and never by a second call.

From the claim on, nothing but the store and the artifacts can spoil the call: not a terminal that is gone,
nor the end of the day, at which nothing is sent.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import TypeVar

from pitr_pipelines import durable
from pitr_pipelines.catalog.layout import Layout
from pitr_pipelines.catalog.manifest import refresh_manifest
from pitr_pipelines.errors import ArtifactDamaged, BadRequest, PitrError, StorageFailed, storage_failed
from pitr_pipelines.offsite import budget
from pitr_pipelines.offsite.answers import Outcome, StoreUnavailable
from pitr_pipelines.offsite.artifacts import find_artifacts
from pitr_pipelines.offsite.budget import BudgetSpent, CallObject, CallState, LedgerEntry
from pitr_pipelines.offsite.copy_report import CallFailed, CopyReport, report_of
from pitr_pipelines.offsite.delivered import delivered, envelope_key, keep_index, read_index
from pitr_pipelines.offsite.due import look_when_due, without_base
from pitr_pipelines.offsite.encryption import Recipients, parse_recipients
from pitr_pipelines.offsite.envelope import EnvelopePlan, plan_envelope
from pitr_pipelines.offsite.envelope_index import Artifact, EnvelopeIndex, MemberKind
from pitr_pipelines.offsite.envelope_stream import EnvelopeStream
from pitr_pipelines.offsite.gather import gather
from pitr_pipelines.offsite.object_store import ObjectStore
from pitr_pipelines.offsite.parts import largest_object, open_store
from pitr_pipelines.offsite.pinned import NotAsPlanned, pinned
from pitr_pipelines.offsite.reachability import check_reachable
from pitr_pipelines.offsite.settling import call_id_of, conclude, settle
from pitr_pipelines.offsite.soundness import find_unsound
from pitr_pipelines.progress import Progress, Report, silent
from pitr_pipelines.settings import Settings
from pitr_pipelines.units import show_bytes

logger = logging.getLogger(__name__)

LOOKS_S = (0.0, 2.0, 10.0)
"""When the store is looked at after a call whose outcome is not known, in seconds one after the other."""
_SETTLED_DAYS = 60
"""How many days back what became of a call is still asked for."""
_LEDGER_ROOM_BYTES = 4 * 1024 * 1024

Clock = Callable[[], datetime]


def _utc_now() -> datetime:
    return datetime.now(UTC)


def make_copy(
    settings: Settings,
    *,
    day: date | None = None,
    wait: bool = True,
    clock: Clock = _utc_now,
    looks_s: Sequence[float] = LOOKS_S,
    report: Report = silent,
    log: Callable[[str], None] = logger.info,
) -> CopyReport:
    """Make today's call with everything that is not off-site yet; a copy that is confirmed stays as it is.

    `day` is only given to be told that another day than today cannot be called. With `wait`, it is left
    undone until every database has its base backup of the day, or the deadline has passed. `report` gets
    the steps `seal and bundle`, `check` and `envelope`; `log` a line at each turn.

    Raises BadRequest without settings for it or for another day; NotDue, SettingsError, EnvelopeTooLarge,
    StoreUnavailable, StorageFailed or ArtifactBusy, after which the day can still be called; BudgetSpent if
    the day was spent before; and CallFailed, with the report, if it was spent now in vain or its outcome
    is not known.
    """
    offsite = settings.offsite_copy()
    layout = _layout(settings)
    recipients = parse_recipients(offsite.recipients) if offsite.recipients else None
    store = open_store(offsite.store, offsite.api_calls.unit)
    report, log = _untroubled(report), _untroubled(log)
    work = _Call(settings, layout, store, recipients, clock, tuple(looks_s), report, log)
    try:
        with durable.exclusive_lock(layout.ledger / ".sending", subject="the off-site copy", wait=False):
            return work.carry_out(day, wait=wait)
    except OSError as error:
        raise storage_failed(error) from error


def settle_now(settings: Settings, *, now: datetime) -> list[LedgerEntry]:
    """Settle what can be settled, without a call. Raises as `make_copy` does before one."""
    layout = _layout(settings)
    with durable.exclusive_lock(layout.ledger / ".sending", subject="the off-site copy", wait=False):
        return settle_calls(settings, ObjectStore(settings.offsite_copy().store), now=now)


def settle_calls(settings: Settings, store: ObjectStore, *, now: datetime) -> list[LedgerEntry]:
    """Look at the store for calls whose outcome is not on the ledger yet; return those that are settled now.

    The caller holds the lock of who sends, so that none of them is under way here. A call that was claimed
    on an earlier day and never sent is put down as refused.
    """
    layout = Layout(settings.backup_root)
    today = budget.day_of(now, settings.offsite_copy().api_calls.zone)
    settled = []
    for day in budget.days(layout.ledger)[-_SETTLED_DAYS:]:
        try:
            entry = budget.read_entry(layout.ledger, day)
        except ArtifactDamaged:
            continue  # it counts as spent, and what it delivered is not known here
        if entry is None or entry.is_settled:
            continue
        if entry.state is CallState.CLAIMED:
            if day >= today:
                continue
            said = "nothing was sent: whoever claimed the day ended before"
            entry = budget.end(layout.ledger, day, CallState.REFUSED, at=now, said=said)
        else:
            entry, _ = settle(layout.ledger, day, store, at=now)
        if entry is not None and entry.is_settled:
            settled.append(entry)
    return settled


def _layout(settings: Settings) -> Layout:
    """Return where the backups lie. Raises StorageFailed, before a ledger is begun in the wrong place."""
    layout = Layout(settings.backup_root)
    if not layout.root.is_dir():
        raise StorageFailed(
            f"backup_root {layout.root} is not there", remedy="Is the volume mounted? Then ask again."
        )
    return layout


_Told = TypeVar("_Told", str, Progress)


def _untroubled(tell: Callable[[_Told], None]) -> Callable[[_Told], None]:
    """Tell as `tell` does; a terminal or a pipe that is gone must not cost the day's call."""

    def told(what: _Told) -> None:
        with suppress(OSError):
            tell(what)

    return told


@dataclass(frozen=True, slots=True)
class _Call:
    """One attempt at the day's call, under the lock of who sends."""

    settings: Settings
    layout: Layout
    store: ObjectStore
    recipients: Recipients | None
    clock: Clock
    looks_s: tuple[float, ...]
    report: Report
    log: Callable[[str], None]

    def carry_out(self, day: date | None, *, wait: bool) -> CopyReport:
        now = self.clock()
        zone = self.settings.offsite_copy().api_calls.zone
        today = budget.day_of(now, zone)
        for entry in settle_calls(self.settings, self.store, now=now):
            self.log(f"the call of {entry.day} is {entry.state}: {entry.said}")
        before = self._entry(day or today)
        if before is not None and before.is_settled:
            # Second names that a killed run left keep the room of files that were removed since.
            shutil.rmtree(self.layout.outgoing, ignore_errors=True)
        if before is not None and before.state is CallState.CONFIRMED:
            return report_of(before, read_index(self.layout, before.day))
        if day not in (None, today):
            raise BadRequest(
                f"a backup call can only be made for today, {today}, not for {day}",
                remedy="What an earlier day did not deliver goes with the next copy.",
            )
        if before is not None:
            raise budget.spent(self.layout.ledger, today)
        budget.check_free(self.layout.ledger, today, zone)
        self._check_that_there_is_something()
        if wait:
            look_when_due(self.settings, self.settings.offsite_copy(), now=now).raise_unless_go()
        self._check_that_it_was_not_called_elsewhere(today)
        check_reachable(self.store.place, self.store.endpoint_url)
        return self._send(today)

    def _entry(self, day: date) -> LedgerEntry | None:
        try:
            return budget.read_entry(self.layout.ledger, day)
        except ArtifactDamaged:
            raise budget.spent(self.layout.ledger, day) from None

    def _check_that_there_is_something(self) -> None:
        """Refuse to spend a day on an empty storage: nothing could be restored from its copy."""
        found = find_artifacts(self.layout, self.settings.databases)
        if not any(file.kind is MemberKind.BASE for file in found.artifacts):
            raise StorageFailed(
                f"there is no base backup of any database below {self.layout.root}: a copy of it would be of "
                "no use",
                remedy="Is the volume mounted? Else take them first: `pitr backup`. The day's call is not "
                "spent.",
            )

    def _send(self, day: date) -> CopyReport:
        problems = [
            f"{found.database}: {problem}"
            for found in gather(self.settings, now=self.clock(), report=self.report)
            for problem in found.problems
        ]
        try:
            refresh_manifest(self.settings)
        except (PitrError, OSError) as error:
            # It can be made again from the records, which go: what keeps it from that is named.
            failed = storage_failed(error) if isinstance(error, OSError) else error
            problems.append(f"the manifest was not made anew: {failed.what}")
        damaged: dict[str, tuple[Artifact, str]] = {}
        replaced: set[str] = set()
        while True:
            found = find_artifacts(self.layout, self.settings.databases)
            plan = self._plan(day, [file for file in found.artifacts if file.unit not in damaged])
            try:
                with pinned(plan, self.layout.root, self.layout.outgoing) as root:
                    unsound = list(find_unsound(plan, root, self.report))
                    if not unsound:
                        problems += found.problems
                        problems += [f"left out: {what}" for _, what in damaged.values()]
                        return self._call(plan, root, problems, [file for file, _ in damaged.values()])
                    damaged |= {file.unit: (file, what) for file, what in unsound}
            except NotAsPlanned as error:
                # Replaced between the look and the second name: the next look finds the new one, once.
                if error.file.unit in replaced:
                    damaged[error.file.unit] = (error.file, error.what)
                replaced.add(error.file.unit)
                self.log(f"planning again: {error.what}")

    def _plan(self, day: date, artifacts: Sequence[Artifact]) -> EnvelopePlan:
        plan = plan_envelope(
            artifacts,
            day=day,
            made_at=self.clock(),
            delivered=delivered(self.layout, self.store.place),
            recipients=self.recipients,
            limit_bytes=largest_object(self.settings.offsite_copy().api_calls.unit),
        )
        self.log(f"{len(plan.index.members)} files are to go: {show_bytes(plan.size_bytes)} in one object")
        return plan

    def _call(
        self, plan: EnvelopePlan, root: Path, problems: Sequence[str], left_out: Sequence[Artifact]
    ) -> CopyReport:
        day = plan.index.day
        offsite = self.settings.offsite_copy()
        if budget.day_of(self.clock(), offsite.api_calls.zone) != day:
            raise BadRequest(
                f"{day} ended while its off-site copy was prepared", remedy="Nothing was sent: ask again."
            )
        self._check_room(len(plan.index_text))
        claimed = budget.claim(self.layout.ledger, day, at=self.clock())
        keep_index(self.layout, plan.index, plan.index_text)
        place = self.store.place
        key = envelope_key(place, day)
        carries = CallObject(
            endpoint_url=place.endpoint_url, bucket=place.bucket, key=key, size_bytes=plan.size_bytes
        )
        sent_at = self._moment_of(plan.index)
        entry = budget.send(claimed, carries, at=sent_at, zone=offsite.api_calls.zone)
        self._moment_of(plan.index)
        self.log(f"the day is claimed; sending {key}")
        with EnvelopeStream(plan, root, report=self.report) as stream:
            outcome = self.store.put(key, stream, plan.size_bytes, call_id=call_id_of(entry), at=sent_at)
        try:
            entry = self._end(day, outcome)
        except OSError as error:
            raise StorageFailed(
                f"the call of {day} was made ({outcome.said}), and that could not be put on the ledger: "
                f"{storage_failed(error).what}",
                remedy="Put that right: the next run looks at the store, and puts down what it finds.",
            ) from error
        remedy = "" if entry.state is CallState.CONFIRMED else outcome.remedy
        done = report_of(entry, plan.index, made=True, remedy=remedy)
        missing = without_base(
            self.layout,
            self.settings.databases,
            day,
            offsite.api_calls.zone,
            but_for={(file.database, file.day) for file in left_out if file.unit.startswith("base/")},
        )
        left = sum(file.size_bytes for file in plan.left_behind)
        done = done.model_copy(update={"missing": missing, "problems": tuple(problems), "left_bytes": left})
        if entry.state is not CallState.CONFIRMED:
            raise CallFailed(done)
        return done

    def _moment_of(self, index: EnvelopeIndex) -> datetime:
        """Return what time it is, on the day that was claimed; once that is over, put it down as refused.

        What would leave after its end would be a call of the next day. Raises CallFailed.
        """
        now = self.clock()
        if budget.day_of(now, self.settings.offsite_copy().api_calls.zone) == index.day:
            return now
        said = "nothing was sent: the day ended before"
        entry = budget.end(self.layout.ledger, index.day, CallState.REFUSED, at=now, said=said)
        raise CallFailed(report_of(entry, index))

    def _end(self, day: date, outcome: Outcome) -> LedgerEntry:
        entry = conclude(self.layout.ledger, day, outcome, self.store, at=self.clock())
        for wait_s in self.looks_s:
            if entry.is_settled:
                break
            time.sleep(wait_s)
            self.log(f"what became of it is not known ({outcome.said}); looking at the store")
            entry = settle(self.layout.ledger, day, self.store, at=self.clock())[0] or entry
        return entry

    def _check_that_it_was_not_called_elsewhere(self, day: date) -> None:
        """Look for the day's object, if nothing is known here of any call: the ledger may have been lost."""
        if budget.days(self.layout.ledger):
            return
        try:
            found = self.store.head(envelope_key(self.store.place, day))
        except StoreUnavailable:
            return  # whoever may not look may still write; the write itself replaces nothing
        if found is None:
            return
        said = "nothing was sent: the store has this day's copy, from a call not on this ledger"
        budget.claim(self.layout.ledger, day, at=self.clock())
        budget.end(self.layout.ledger, day, CallState.REFUSED, at=self.clock(), said=said, reads=1)
        raise BudgetSpent(
            f"the backup call of {day} was made before this ledger began: {found.key} is there, of "
            f"{found.modified_at:%Y-%m-%d %H:%M:%S} UTC",
            remedy="There is one call a day. What it did not deliver goes with the next day's.",
        )

    def _check_room(self, index_bytes: int) -> None:
        free = shutil.disk_usage(self.layout.root).free
        if free < _LEDGER_ROOM_BYTES + index_bytes:
            raise StorageFailed(
                f"{self.layout.root} is full: there is no room for the ledger of the call",
                remedy="Make room, then ask again: the day's call is not spent.",
            )
