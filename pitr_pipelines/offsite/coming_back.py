"""Restoring one database from envelopes and from what is left here, reading only what that needs.

The source server is never contacted, so nothing is sealed. First every index is read, then the records;
then, once the plan stands, the base and the bundles it names. A damaged one gives way to its next copy, and
the plan is made anew. Nothing is ever written to `backup_root`, nor to the store.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import date
from itertools import groupby

from pitr_pipelines import durable
from pitr_pipelines.catalog.layout import Layout
from pitr_pipelines.errors import NotRestorable, PitrError, StorageFailed
from pitr_pipelines.offsite.shelf import Copy, Shelf
from pitr_pipelines.offsite.stage import AnotherCopy, Artifact, Stage
from pitr_pipelines.progress import Report, silent
from pitr_pipelines.restore.destination import make_parents
from pitr_pipelines.restore.integrity import Damage, find_damage
from pitr_pipelines.restore.plan import Plan
from pitr_pipelines.restore.prepare import plan_restore
from pitr_pipelines.restore.target import Target
from pitr_pipelines.restore.wal_source import InBase, InBundle
from pitr_pipelines.settings import Settings
from pitr_pipelines.units import show_bytes, show_duration
from pitr_pipelines.wal.hours import Hour

_STAGES = ".offsite"
_SPARE_BYTES = 64 * 1024**2


@dataclass(frozen=True, slots=True)
class Part:
    """An artifact that a plan needs and that is fetched: from which envelope, and how many bytes of it.

    `here_bytes` of them are in the stage already, from an attempt before.
    """

    artifact: Artifact
    envelope: date
    size_bytes: int
    here_bytes: int


class ComingBack:
    """One database's restore from envelopes, from its plan on. Make it with `coming_back`."""

    def __init__(self, settings: Settings, stage: Stage, target: Target, timeline: int | None) -> None:
        self.stage = stage
        self._settings = settings
        self._target = target
        self._timeline = timeline
        self._raw_damage: list[Damage] = []
        self.is_done = False
        """Set when nothing that was fetched is needed any more."""

    @property
    def layout(self) -> Layout:
        """Where the plan's artifacts lie once `fetch` is over."""
        return self.stage.layout

    def plan(self) -> Plan:
        """Return the plan. Raises NotRestorable, StoreUnavailable or BadRequest."""
        while True:
            try:
                plan = plan_restore(
                    self._settings,
                    self.stage.database,
                    self._target,
                    timeline=self._timeline,
                    seal=False,
                    check=False,
                    retrieval=self.stage,
                    passed_over=(*self.stage.damaged, *self._raw_damage),
                )
            except AnotherCopy:
                self.stage.remember_histories()
                continue
            except NotRestorable as refusal:
                refusal.remedy += "".join(f"\n{note}" for note in self._notes())
                raise
            return replace(plan, notes=(*self._notes(), *plan.notes))

    def fetch(self, plan: Plan, report: Report = silent, *, besides_bytes: int = 0) -> Plan:
        """Fetch what a plan needs, and check all of it; return the plan that stands in the end.

        It is another one if something was damaged. `besides_bytes` are to go to the same file system
        afterwards. Raises NotRestorable if the target cannot be reached
        without that, StorageFailed if there is no room, and StoreUnavailable.
        """
        while True:
            self._check_room(plan, besides_bytes)
            try:
                self.stage.provide_all(needed_by(plan), report)
                damage = list(find_damage(self.layout, plan, report))
            except AnotherCopy:
                self.stage.remember_histories()
                plan = self.plan()
                continue
            if not damage:
                return plan
            for found in damage:
                if isinstance(found.artifact, str):
                    self._raw_damage.append(found)
                else:
                    self.stage.give_up(found.artifact, found.problem)
            plan = self.plan()

    def parts(self, plan: Plan) -> list[Part]:
        """Return what of a plan is to be fetched, the base first."""
        found = []
        for artifact in needed_by(plan):
            copy = self.stage.copy_of(artifact)
            if copy is not None:
                here = sum(e.length for e in copy.payload if self.stage.is_whole(e))
                found.append(Part(artifact, copy.envelope.day, _size(copy), here))
        return found

    def _notes(self) -> list[str]:
        return [*passed_over_lines(self.stage.shelf), *self.stage.notes]

    def _check_room(self, plan: Plan, besides_bytes: int) -> None:
        needed = sum(part.size_bytes - part.here_bytes for part in self.parts(plan))
        free = shutil.disk_usage(self.layout.root).free
        if needed and free < needed + besides_bytes + _SPARE_BYTES:
            besides = f", and the restore needs {show_bytes(besides_bytes)} there" if besides_bytes else ""
            raise StorageFailed(
                f"{self.layout.root} has {show_bytes(free)} free; {show_bytes(needed)} are to be fetched"
                + besides,
                remedy="Make room there, or let restore_root be on a larger disk. What was fetched before is "
                "kept there; nothing else was touched.",
            )


@contextmanager
def coming_back(
    settings: Settings,
    shelf: Shelf,
    database: str,
    target: Target,
    *,
    timeline: int | None = None,
    report: Report = silent,
) -> Iterator[ComingBack]:
    """Give a database's restore for the length of the block, its records fetched.

    What was fetched is deleted afterwards if it `is_done`; else the next attempt goes on with it.
    Raises BadRequest if there is nothing of the database, and ArtifactBusy if somebody else is at it.
    """
    settings.database(database)
    root = settings.restore_root / _STAGES / database
    stage = Stage(shelf, database, root, Layout(settings.backup_root))
    subject = f"the fetching of {database} from off-site"
    make_parents(settings.restore_root)  # the restored server's user must be able to pass
    with durable.exclusive_lock(root.with_name(f".{database}.lock"), subject=subject, wait=False):
        work = ComingBack(settings, stage, target, timeline)
        try:
            stage.set_up(report)
            yield work
        except PitrError as error:
            if stage.holds_files():
                error.remedy += f"\nWhat was fetched is kept in {root}: the next attempt goes on with it."
            raise
        finally:
            if work.is_done or not stage.holds_files():
                stage.remove()


def passed_over_lines(shelf: Shelf) -> list[str]:
    """Name the envelopes that cannot be used, and say what it means if the newest is one of them."""
    newest = shelf.envelopes[0].day
    return [
        f"passed over: {passed}"
        + (
            f"; what came after the envelope of {newest} is MISSING off-site without it"
            if passed.day > newest
            else ""
        )
        for passed in shelf.passed_over
    ]


def needed_by(plan: Plan) -> list[Artifact]:
    """Return the bases and bundles that a plan needs, its own base first."""
    days: set[date] = {plan.base.day}
    hours: set[Hour] = set()
    for segment in plan.segments:
        match segment.place:
            case InBase(day):
                days.add(day)
            case InBundle(hour):
                hours.add(hour)
    return [plan.base.day, *sorted(days - {plan.base.day}), *sorted(hours)]


def part_lines(parts: list[Part]) -> list[str]:
    """Return what is to be fetched, in lines as those of a plan."""
    if not parts:
        return ["  download  nothing: all of it is here"]
    total = sum(part.size_bytes for part in parts)
    here = sum(part.here_bytes for part in parts)
    lines = [
        f"  download  {show_bytes(total - here)}"
        + (f", and {show_bytes(here)} are here already" if here else "")
        + ":"
    ]
    for (envelope, is_base), group in groupby(parts, key=lambda p: (p.envelope, not _is_hour(p.artifact))):
        held = list(group)
        kind = "base" if is_base else "bundle"
        what = f"{kind} {held[0].artifact}"
        if len(held) > 1:
            what = f"{len(held)} {kind}s, {held[0].artifact} to {held[-1].artifact}"
        size = show_bytes(sum(part.size_bytes for part in held))
        lines.append(f"              {what}, {size}, from the envelope of {envelope}")
    return lines


def fetched_text(size_bytes: int, took_s: float) -> str:
    """Say how much was fetched, and how fast."""
    rate = f" ({show_bytes(size_bytes / took_s)}/s)" if took_s > 0 and size_bytes else ""
    return f"fetched {show_bytes(size_bytes)} in {show_duration(took_s)}{rate}"


def _is_hour(artifact: Artifact) -> bool:
    return isinstance(artifact, Hour)


def _size(copy: Copy) -> int:
    return sum(entry.length for entry in copy.payload)
