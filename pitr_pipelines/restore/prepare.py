"""From a request to a plan that is known to be good: the part of a restore that changes nothing.

What this may do to the source server, if it answers, is seal it, so that its last minutes can be
restored; with `seal` false it does not even that.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime

from pitr_pipelines import durable
from pitr_pipelines.catalog.inventory import Inventory, read_inventory
from pitr_pipelines.catalog.layout import Layout
from pitr_pipelines.catalog.lineage import Sighting
from pitr_pipelines.errors import NotRestorable, PitrError
from pitr_pipelines.postgres.binaries import Binaries, find_binaries
from pitr_pipelines.progress import Report, silent
from pitr_pipelines.restore.integrity import Damage, UnreadableSource, find_damage
from pitr_pipelines.restore.plan import NotCovered, Plan, make_plan
from pitr_pipelines.restore.probe import waldump_probe
from pitr_pipelines.restore.retrieval import Retrieval
from pitr_pipelines.restore.target import LatestTarget, Target
from pitr_pipelines.restore.wal_source import WalIndex
from pitr_pipelines.settings import Settings
from pitr_pipelines.wal.sealing import seal_now


def plan_restore(
    settings: Settings,
    database: str,
    target: Target,
    *,
    timeline: int | None = None,
    base: date | None = None,
    seal: bool = True,
    check: bool = True,
    now: datetime | None = None,
    report: Report = silent,
    retrieval: Retrieval | None = None,
    passed_over: Sequence[Damage] = (),
) -> Plan:
    """Plan a restore and check everything it needs, touching nothing.

    When the archive does not cover a recent target yet, or the latest moment is asked for, the
    source is sealed first, if `seal` and if it answers. With `check`, every artifact of the plan is
    read and compared with its record; a damaged one is passed over if the target can be reached
    without it, and the plan's notes say so. `base` is the day of the
    only base backup to use. `now` is injected by tests. With `retrieval`, artifacts lie in its layout,
    and it brings what planning looks into; `passed_over` is what is known to be damaged already. Raises
    NotRestorable, which says what is missing or damaged and what can be restored, or BadRequest.
    """
    settings.database(database)
    layout = Layout(settings.backup_root) if retrieval is None else retrieval.layout
    asked_at = now or datetime.now(UTC)
    unsealed: PitrError | None = None
    inventory = read_inventory(layout, database)
    if seal and (isinstance(target, LatestTarget) or (timeline is None and _is_in_doubt(inventory))):
        inventory, unsealed = _try_to_seal(settings, layout, database)
    passing_over = _PassingOver(inventory, base, retrieval).also(passed_over)
    try:
        plan, passing_over = passing_over.plan(settings, layout, target, asked_at, timeline)
    except NotCovered as refusal:
        if not seal:
            raise
        inventory, unsealed = _try_to_seal(settings, layout, database)
        if unsealed is not None:
            raise _with_reason(refusal, unsealed) from None
        passing_over = _PassingOver(inventory, base, retrieval).also(passed_over)
        plan, passing_over = passing_over.plan(settings, layout, target, asked_at, timeline)
    while check and (damage := list(find_damage(layout, plan, report))):
        passing_over = passing_over.also(damage)
        plan, passing_over = passing_over.plan(settings, layout, target, asked_at, timeline)
    notes = [] if unsealed is None else [f"the source could not be sealed first: {unsealed.what}"]
    notes += [f"passed over, because damaged: {problem}" for problem in passing_over.problems]
    return replace(plan, notes=(*notes, *plan.notes))


@dataclass(frozen=True, slots=True)
class _PassingOver:
    """An inventory without what was found damaged, and what was found."""

    inventory: Inventory
    base: date | None
    retrieval: Retrieval | None = None
    problems: tuple[str, ...] = ()

    def also(self, damage: Iterable[Damage]) -> _PassingOver:
        found = list(damage)
        if not found:
            return self
        return _PassingOver(
            self.inventory.without({part.artifact for part in found}),
            self.base,
            self.retrieval,
            self.problems + tuple(part.problem for part in found),
        )

    def plan(
        self, settings: Settings, layout: Layout, target: Target, now: datetime, timeline: int | None
    ) -> tuple[Plan, _PassingOver]:
        """Plan with what is left; return what was passed over meanwhile too.

        A refusal names the damage, because without it there might be a plan.
        """
        try:
            return self._plan(settings, layout, target, now, timeline), self
        except UnreadableSource as error:
            return self.also([error.damage]).plan(settings, layout, target, now, timeline)
        except NotRestorable as refusal:
            if not self.problems:
                raise
            raise NotRestorable(
                f"{target} cannot be reached, because what the restore needs is damaged:\n  "
                + "\n  ".join(self.problems),
                remedy=refusal.remedy,
                nearest=refusal.nearest,
            ) from None

    def _plan(
        self, settings: Settings, layout: Layout, target: Target, now: datetime, timeline: int | None
    ) -> Plan:
        inventory, retrieval = self.inventory, self.retrieval

        def binaries() -> Binaries:
            return find_binaries(inventory.bases[-1].major, settings.binaries)

        index = WalIndex(layout, inventory, retrieval.envelope_of if retrieval is not None else None)
        size = inventory.segment_size or 1
        with waldump_probe(layout, inventory.database, size, binaries, retrieval) as probe:
            return make_plan(
                inventory,
                index,
                target,
                probe,
                now=now,
                zone=settings.zone,
                timeline=timeline,
                base=self.base,
            )


def _is_in_doubt(inventory: Inventory) -> bool:
    """Tell whether only the server itself can say on which timeline it is."""
    standing = inventory.standing()
    return standing is not None and (
        bool(standing.rivals) or standing.seen is None or standing.seen.timeline != standing.timeline
    )


def _try_to_seal(settings: Settings, layout: Layout, database: str) -> tuple[Inventory, PitrError | None]:
    """Seal the database now; return what exists then, and why it could not be sealed if so.

    Where the seal was written is where the server is, whatever else may archive here.
    """
    try:
        with durable.exclusive_lock(layout.bundle_lock(database), subject=f"{database}'s bundles", wait=True):
            made = seal_now(settings, layout, database, datetime.now(UTC))
    except PitrError as error:
        return read_inventory(layout, database), error
    except OSError as error:
        problem = PitrError(f"cannot write to {layout.root}: {error.strerror}", remedy="Check the volume.")
        return read_inventory(layout, database), problem
    return replace(read_inventory(layout, database), seen=Sighting.in_seal(made)), None


def _with_reason(refusal: NotCovered, unsealed: PitrError) -> NotRestorable:
    return NotCovered(
        f"{refusal.what}, and the database could not be sealed to cover it: {unsealed.what}",
        remedy=refusal.remedy,
        nearest=refusal.nearest,
    )
