"""Whatever has happened to the backups, what retention leaves can be restored, and no more goes."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from datetime import date, datetime
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pitr_pipelines.catalog.inventory import Inventory
from pitr_pipelines.catalog.manifest import describe
from pitr_pipelines.catalog.retention import Facts, Keep, Retention, Verdict, decide
from pitr_pipelines.wal.hours import Hour
from pitr_pipelines_tests.catalog.retention_worlds import KEEPS, World, reachable_seals, worlds

thorough = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def removed(found: Retention, verdict: Verdict = Verdict.REMOVE) -> set[date | Hour]:
    return {*found.bases(verdict), *found.hours(verdict)}


def left(inventory: Inventory, found: Retention) -> Inventory:
    return inventory.without(removed(found))


def seals_after(inventory: Inventory, since: datetime) -> set[tuple[str, int]]:
    """Return the seals from a moment on that walking from some base reaches."""
    late = {
        (entry.seal.restore_point, entry.seal.segment.timeline)
        for entry in inventory.bundles
        if entry.seal is not None and entry.seal.at >= since
    }
    return late & reachable_seals(inventory).keys()


def clipped(inventory: Inventory, since: datetime) -> list[tuple[datetime, datetime, int]]:
    spans, _ = inventory.windows(raw=False)
    return [(max(span.start, since), span.end, span.timeline) for span in spans if span.end >= since]


@thorough
@given(worlds(), KEEPS)
def test_every_moment_of_the_window_stays_restorable(world: World, keep: Keep) -> None:
    inventory = world.until(world.hours)
    found = decide(inventory, keep, now=world.now(world.hours))
    if found.since is None:
        assert not removed(found)
        return
    after = left(inventory, found)
    assert seals_after(after, found.since) == seals_after(inventory, found.since)
    assert clipped(after, found.since) == clipped(inventory, found.since)


@thorough
@given(worlds(), KEEPS)
def test_every_base_that_is_kept_leads_to_a_restore_point(world: World, keep: Keep) -> None:
    inventory = world.until(world.hours)
    after = left(inventory, decide(inventory, keep, now=world.now(world.hours)))
    before_reach, after_reach = reachable_seals(inventory), reachable_seals(after)
    led = {day for days in before_reach.values() for day in days}
    leads = {day for days in after_reach.values() for day in days}
    assert leads == {str(base.day) for base in after.bases} & led
    assert all(after_reach[seal] <= before_reach[seal] for seal in after_reach)


@thorough
@given(worlds(), KEEPS)
def test_every_restore_point_in_the_manifest_still_has_its_chain(world: World, keep: Keep) -> None:
    inventory = world.until(world.hours)
    after = left(inventory, decide(inventory, keep, now=world.now(world.hours)))
    named = {seal for seal, _ in reachable_seals(after)}
    branch = after.branch(raw=False)
    assert branch is not None or not describe(after).restore_points
    on_branch = {
        entry.seal.restore_point
        for entry in after.bundles
        if entry.seal is not None
        and branch is not None
        and branch.includes(entry.seal.segment.timeline, entry.seal.lsn)
    }
    for point in describe(after).restore_points:
        assert point.name not in on_branch or point.name in named


@thorough
@given(worlds(), KEEPS)
def test_as_many_generations_are_kept_as_were_asked_for(world: World, keep: Keep) -> None:
    inventory = world.until(world.hours)
    found = decide(inventory, keep, now=world.now(world.hours))
    if found.since is None:
        return
    after = left(inventory, found)
    for count, period in ((keep.daily, "%Y-%m-%d"), (keep.weekly, "%G-%V"), (keep.monthly, "%Y-%m")):
        newest: dict[str, date] = {}
        for base in inventory.bases:
            newest[format(base.day, period)] = base.day
        wanted = [newest[key] for key in sorted(newest)[-count:]] if count else []
        assert {*wanted} <= {base.day for base in after.bases}


@thorough
@given(worlds(), KEEPS)
def test_deciding_again_removes_nothing_more(world: World, keep: Keep) -> None:
    inventory, now = world.until(world.hours), world.now(world.hours)
    after = left(inventory, decide(inventory, keep, now=now))
    assert not removed(decide(after, keep, now=now))


@thorough
@given(worlds(), KEEPS, st.data())
def test_nothing_that_went_is_wanted_later(world: World, keep: Keep, data: st.DataObject) -> None:
    early = data.draw(st.integers(1, world.hours), label="hour of the earlier decision")
    gone = removed(decide(world.until(early), keep, now=world.now(early)))
    # What the server did afterwards may lead back to any moment; then what was kept must do.
    if any(moment > world.now(early) for moment in world.began.values()):
        return
    later = decide(world.until(world.hours), keep, now=world.now(world.hours))
    assert not gone & removed(later, Verdict.KEEP)


@settings(thorough, max_examples=10)
@given(worlds(), KEEPS)
def test_a_retention_every_day_leaves_the_window_as_if_there_had_been_none(world: World, keep: Keep) -> None:
    gone: set[date | Hour] = set()
    for hour in range(24, world.hours + 1, 24):
        if world.began and max(world.began.values()) > world.now(hour):
            continue  # a restore in place to a moment that is gone cannot be
        gone |= removed(decide(world.until(hour).without(gone), keep, now=world.now(hour)))
    full = world.until(world.hours)
    found = decide(full.without(gone), keep, now=world.now(world.hours))
    if found.since is not None:
        assert seals_after(full.without(gone), found.since) == seals_after(full, found.since)


@thorough
@given(worlds(), KEEPS, st.randoms(use_true_random=False))
def test_the_order_in_which_things_are_listed_does_not_matter(world: World, keep: Keep, random: Any) -> None:
    inventory, now = world.until(world.hours), world.now(world.hours)
    bases, bundles = list(inventory.bases), list(inventory.bundles)
    random.shuffle(bases)
    random.shuffle(bundles)
    mixed = replace(inventory, bases=tuple(bases), bundles=tuple(bundles))
    assert decide(mixed, keep, now=now) == decide(inventory, keep, now=now)


@thorough
@given(worlds(), KEEPS, st.data())
def test_what_must_be_confirmed_off_site_waits_until_it_is(
    world: World, keep: Keep, data: st.DataObject
) -> None:
    inventory, now = world.until(world.hours), world.now(world.hours)
    may_go = removed(decide(inventory, keep, now=now))
    nothing = decide(inventory, keep, now=now, confirmed=())
    assert not removed(nothing)
    assert removed(nothing, Verdict.WAIT) == may_go
    confirmed = {one for one in may_go if data.draw(st.booleans())} if len(may_go) < 20 else may_go
    assert removed(decide(inventory, keep, now=now, confirmed=confirmed)) == confirmed


@thorough
@given(worlds(), KEEPS, st.data())
def test_a_damaged_base_pushes_out_no_other_and_is_not_removed(
    world: World, keep: Keep, data: st.DataObject
) -> None:
    inventory, now = world.until(world.hours), world.now(world.hours)
    days = [base.day for base in inventory.bases]
    damaged: Collection[date] = data.draw(st.sets(st.sampled_from(days))) if days else ()
    facts = Facts(damaged_bases=dict.fromkeys(damaged, "base.tar is missing"))
    found = decide(inventory, keep, now=now, facts=facts)
    assert not {*damaged} & removed(found)
    without = decide(inventory.without(damaged), keep, now=now)
    assert removed(found) <= removed(without)


@thorough
@given(worlds(), KEEPS, st.integers(1, 20000))
def test_time_alone_removes_nothing(world: World, keep: Keep, hours: int) -> None:
    inventory = world.until(world.hours)
    now = decide(inventory, keep, now=world.now(world.hours))
    then = decide(inventory, keep, now=world.now(world.hours + hours))
    assert removed(then) == removed(now)
