"""What is said of a database is what its storage shows, and how bad that is."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pitr_pipelines.catalog.coverage import Window
from pitr_pipelines.catalog.drills import DrillOutcome
from pitr_pipelines.catalog.inventory import BundleEntry, Inventory
from pitr_pipelines.catalog.records import BundleState
from pitr_pipelines.catalog.report_facts import DatabaseFacts, HourState, Level, describe, read_facts
from pitr_pipelines.catalog.report_page import Page, render
from pitr_pipelines.catalog.report_text import headline, show_moment, show_start
from pitr_pipelines.catalog.status import read_status
from pitr_pipelines_tests.catalog.fortnight import NOW, make_fortnight, put_drill
from pitr_pipelines_tests.html_pages import parse_page
from pitr_pipelines_tests.wal_files import (
    DATABASE,
    Store,
    at,
    base_record,
    bundle_record,
    hour_of,
    make_settings,
    put_segment,
    segment,
)

UTC_ZONE = ZoneInfo("UTC")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A base at 3:00, and bundles of 3 to 5."""
    store = Store(tmp_path)
    store.add_bases([base_record(1, 1, at(3))])
    store.add_bundles([bundle_record(h, {segment(h - 2): at(h, 59, 59)}) for h in (3, 4, 5)])
    return store


def facts(store: Store, hour: float, minute: float = 0) -> DatabaseFacts:
    return read_facts(store.settings, DATABASE, now=at(hour, minute), since=at(-24))


def levels(held: DatabaseFacts) -> list[str]:
    return [f"{problem.level}: {problem.what}" for problem in held.problems]


def test_all_is_well_when_it_is(store: Store) -> None:
    put_drill(store.layout, DATABASE, at(4), 10, DrillOutcome.PASSED)
    held = facts(store, 6, 30)
    assert levels(held) == []
    assert held.level is Level.GOOD
    assert headline(held, UTC_ZONE) == (
        "order-db can be restored to any moment from 2026-01-29 03:00:00+00:00 to 2026-01-29 05:59:58+00:00, "
        "which is 30 min 2 s ago; nothing is wrong."
    )


def test_an_hour_counts_as_missing_only_when_it_had_its_time(store: Store) -> None:
    states = {str(cell.hour): cell.state for cell in facts(store, 7, 59).hours}
    assert states["2026-01-29-06"] is states["2026-01-29-07"] is HourState.DUE
    states = {str(cell.hour): cell.state for cell in facts(store, 9).hours}
    assert states["2026-01-29-06"] is HourState.MISSING
    assert min(states) == "2026-01-29-03"


def test_a_server_that_went_silent_is_a_hole_up_to_now_and_something_to_look_at(store: Store) -> None:
    held = facts(store, 9)
    assert [(hole.start, hole.end) for hole in held.holes] == [(at(5, 59, 58), at(9))]
    assert held.level is Level.LOOK
    assert any("nothing was archived since" in line for line in levels(held))


def test_a_gap_that_no_base_follows_is_to_be_acted_on_at_once(store: Store) -> None:
    put_segment(store.wal, segment(6), at(6, 30))
    held = facts(store, 6, 31)
    assert held.level is Level.ACT
    (lost,) = held.lost
    assert (lost.gap.first, lost.since, lost.until) == (segment(4), at(5, 59, 58), None)
    store.add_bases([base_record(7, 7, at(30), day=at(30).date())])
    held = facts(store, 30, 1)
    assert [gap.until for gap in held.lost] == [at(30)]
    assert held.level is Level.LOOK


def test_the_newest_drill_counts_and_an_old_one_that_passed_is_remembered(store: Store) -> None:
    put_drill(store.layout, DATABASE, at(-24 * 30), 10, DrillOutcome.PASSED)
    assert any(
        line.startswith("look: the last drill of order-db that passed") for line in levels(facts(store, 6))
    )
    for day in range(-29, -9):
        put_drill(store.layout, DATABASE, at(24 * day), 10, DrillOutcome.FAILED)
    held = facts(store, 6)
    assert held.problems[0].what.startswith("the last drill of order-db failed: pg_amcheck found")
    assert held.problems[0].remedy.startswith("Look at the index")
    assert len(held.drills) == 12
    assert held.last_good_drill is not None


def test_an_open_bundle_of_the_running_hour_is_no_problem(store: Store) -> None:
    early = bundle_record(6, {segment(4): at(6, 10)}, state=BundleState.OPEN)
    store.add_bundles([early])
    assert not [line for line in levels(facts(store, 6, 30)) if "still open" in line]
    assert [line for line in levels(facts(store, 9)) if "still open: 2026-01-29-06" in line]


def test_an_old_base_is_something_to_look_at(store: Store) -> None:
    assert any(
        "the newest base backup of order-db is of 2026-01-29" in line for line in levels(facts(store, 40))
    )


def test_what_cannot_be_read_at_all_is_said_and_raises_nothing(store: Store) -> None:
    bundles = store.layout.bundles(DATABASE)
    bundles.rename(bundles.with_name("elsewhere"))
    bundles.write_text("no directory")
    held = facts(store, 6)
    assert not held.readable
    assert held.level is Level.ACT
    assert held.problems[0].remedy
    assert headline(held, UTC_ZONE).endswith("it is not known what can be restored.")


def test_it_agrees_with_the_status(tmp_path: Path) -> None:
    """The same windows and gaps, whoever asks."""
    store = make_fortnight(tmp_path)
    names = list(store.settings.databases)
    for status in read_status(store.settings, names, now=NOW):
        held = read_facts(store.settings, status.database, now=NOW, since=at(0))
        assert [(w.start, w.end) for w in held.windows] == [(w.start, w.end) for w in status.windows]
        assert [(lost.gap.first, lost.gap.last) for lost in held.lost] == [
            (gap.first, gap.last) for gap in status.gaps
        ]
        assert held.archived_at == status.archive.closed_at


def test_growth_adds_up_to_what_is_there(tmp_path: Path) -> None:
    store = make_fortnight(tmp_path)
    held = read_facts(store.settings, "order-db", now=NOW, since=at(-20 * 24))
    assert sum(day.base_bytes or 0 for day in held.growth) == held.totals.bases
    assert sum(day.bundle_bytes for day in held.growth) == held.totals.bundles
    assert sum(day.hours for day in held.growth) == len(held.bundles)
    assert held.growth[-1].day == hour_of(14).start.date()


@st.composite
def inventories(draw: st.DrawFn) -> Inventory:
    """Bases and bundles of three days, any of them missing, some bundles open."""
    days = draw(st.sets(st.integers(0, 2)))
    hours = draw(st.sets(st.integers(0, 71)))
    still_open = draw(st.sets(st.sampled_from(sorted(hours)))) if hours else set()
    bases = [base_record(1 + 24 * day, 1 + 24 * day, at(24 * day, 30)) for day in sorted(days)]
    bundles = [
        BundleEntry.of(
            bundle_record(
                hour,
                {segment(1 + hour): at(hour, 59, 59)},
                state=BundleState.OPEN if hour in still_open else BundleState.CLOSED,
            )
        )
        for hour in sorted(hours)
    ]
    return Inventory(DATABASE, tuple(bases), tuple(bundles), (), {}, ())


@settings(deadline=None)
@given(inventories(), st.integers(-24, 24 * 30), st.sampled_from(["UTC", "Asia/Kolkata", "America/Santiago"]))
def test_whatever_is_missing_the_page_tells_every_hour_once_and_no_moment_twice(
    inventory: Inventory, hour: int, zone: str
) -> None:
    """Also with a clock that stands before everything that was made."""
    now = at(hour, 20)
    configured = make_settings(Path("/nowhere"), timezone=zone)
    held = describe(configured, inventory, [], now=now, since=now - timedelta(days=4))
    hours = [cell.hour for cell in held.hours]
    assert hours == sorted(set(hours))
    made = {entry.hour for entry in inventory.bundles if entry.hour.end > now - timedelta(days=4)}
    assert {c.hour for c in held.hours if c.state in (HourState.CLOSED, HourState.OPEN)} == made
    for hole in held.holes:
        assert hole.start < hole.end
        assert not [w for w in held.windows if w.start < hole.end and hole.start < w.end]
    assert bool(held.windows) == bool(inventory.bases)
    assert (held.level is Level.ACT) or held.windows
    assert all(problem.what and problem.remedy for problem in held.problems)
    document = parse_page(render(Page([held], None, None, ZoneInfo(zone), now, 5)))
    assert headline(held, ZoneInfo(zone)).split(";")[0] in document.text


@given(
    st.integers(0, 10**6), st.integers(0, 10**6), st.sampled_from(["UTC", "Asia/Kolkata", "Europe/Berlin"])
)
def test_the_edges_of_a_window_as_shown_lie_within_it(start: int, length: int, zone: str) -> None:
    window = Window(
        at(0, 0, 0) + timedelta(microseconds=start), at(1) + timedelta(microseconds=start + length), 1
    )
    begins = datetime.fromisoformat(show_start(window.start, ZoneInfo(zone)))
    ends = datetime.fromisoformat(show_moment(window.end, ZoneInfo(zone)))
    assert window.start <= begins < window.start + timedelta(seconds=1)
    assert window.end - timedelta(seconds=1) < ends <= window.end
