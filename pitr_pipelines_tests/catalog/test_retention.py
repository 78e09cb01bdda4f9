"""What each number in the settings means, and what is kept whatever the numbers say."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest

from pitr_pipelines.catalog.histories import BundledHistory
from pitr_pipelines.catalog.holds import Hold
from pitr_pipelines.catalog.inventory import BundleEntry, Inventory
from pitr_pipelines.catalog.records import SealRecord, WalRun
from pitr_pipelines.catalog.retention import Decision, Facts, Keep, Retention, Verdict, decide
from pitr_pipelines.catalog.retention_health import check_retention
from pitr_pipelines.catalog.retention_text import decision_lines
from pitr_pipelines.wal.archive import ArchivedFile
from pitr_pipelines.wal.hours import Hour
from pitr_pipelines.wal.lsn import WalFileKind
from pitr_pipelines.wal.timelines import Ancestor, TimelineHistory
from pitr_pipelines_tests.wal_files import (
    DATABASE,
    SEGMENT_SIZE,
    base_record,
    bundle_record,
    segment,
)

KEEP = Keep(timedelta(days=7), daily=14, weekly=5, monthly=12)
NOW = datetime(2026, 5, 15, 6, 5, tzinfo=UTC)
BEGIN = datetime(2025, 3, 1, tzinfo=UTC)


def bundle(hour: Hour, timeline: int = 1, first: int | None = None) -> BundleEntry:
    """Return an hour's bundle of two segments, sealed at its end."""
    number = first if first is not None else number_at(hour.start)
    at = hour.end + timedelta(milliseconds=10)
    seal = SealRecord(
        database=DATABASE,
        hour=hour,
        segment=segment(number + 1, timeline),
        lsn=segment(number + 1, timeline).start(SEGMENT_SIZE),
        restore_point=f"pitr-{DATABASE}-{hour}",
        at=at,
    )
    empty = BundleEntry.of(bundle_record(0, {}))
    run = WalRun(first=segment(number, timeline), last=segment(number + 1, timeline), closed_at=at)
    return empty.model_copy(
        update={"hour": hour, "runs": (run,), "seal": seal, "size_bytes": 1000, "wal_segment_size": 1 << 20}
    )


def number_at(moment: datetime) -> int:
    return 10 + 2 * int((moment - BEGIN) / timedelta(hours=1))


def years(begin: datetime = BEGIN, now: datetime = NOW) -> Inventory:
    """Return a base at three each day and a sealed bundle each hour, none ever removed."""
    bases, bundles = [], []
    hour = Hour(begin)
    while hour.end <= now:
        if hour.start.hour == 3:
            number = number_at(hour.start)
            bases.append(base_record(number, number, hour.start + timedelta(minutes=10)))
        bundles.append(bundle(hour))
        hour = hour.following()
    return Inventory(DATABASE, tuple(bases), tuple(bundles), (), {}, ())


def of_base(found: Retention, day: date) -> Decision:
    return next(one for one in found.decisions if one.base == day)


def of_hour(found: Retention, hour: Hour) -> Decision:
    return next(one for one in found.decisions if hour in one.hours)


def test_the_example_in_the_documentation_is_what_is_decided() -> None:
    found = decide(years(), KEEP, now=NOW)
    assert found.since is not None
    assert f"{found.since:%Y-%m-%d %H:%M}" == "2026-05-08 06:00"
    days = {date(2026, 5, day) for day in range(2, 16)} | {date(2026, 4, 26), date(2026, 4, 19)}
    ends = {date(2025 + (month > 12), (month - 1) % 12 + 1, 1) - timedelta(days=1) for month in range(7, 18)}
    assert {*found.bases(Verdict.KEEP)} == days | ends
    assert min(ends) == date(2025, 6, 30)
    kept = found.hours(Verdict.KEEP)
    assert [hour for hour in kept if hour.start >= datetime(2026, 5, 8, 3, tzinfo=UTC)] == kept[-171:]
    assert len(kept) == 171 + len(days | ends) - 8
    assert all(hour.start.hour == 3 for hour in kept[:-171])
    assert of_base(found, date(2026, 4, 26)).reason.text == "weekly 2026-W17"
    assert of_base(found, date(2026, 5, 3)).reason.text == "daily, weekly 2026-W18"
    assert (
        of_base(found, date(2026, 5, 8)).reason.text == "moments from 2026-05-08 06:00 UTC on start from it"
    )
    assert of_hour(found, kept[0]).reason.needed_by == date(2025, 6, 30)


def test_the_lines_tell_every_decision_and_hours_alike_are_one_line() -> None:
    found = decide(years(datetime(2026, 4, 1, tzinfo=UTC)), replace(KEEP, monthly=0), now=NOW)
    lines = list(decision_lines(found))
    (one,) = [line for line in lines if "… 2026-04-19-02" in line]
    assert one.startswith("  remove  435 hours 2026-04-01-00 … 2026-04-19-02: older than the last 7 days")
    assert one.endswith("no kept base backup needs it; 425 KiB")
    assert any(
        line.startswith("  keep    hour 2026-04-19-03: the base backup of 2026-04-19 needs it")
        for line in lines
    )


def test_days_without_a_base_push_nothing_out() -> None:
    inventory = years()
    failed = {date(2026, 5, 15) - timedelta(days=n) for n in range(1, 60)}
    found = decide(inventory.without(failed), Keep(timedelta(days=7), 3, 0, 0), now=NOW)
    assert found.bases(Verdict.KEEP) == [date(2026, 3, 15), date(2026, 3, 16), date(2026, 5, 15)]
    assert of_hour(found, Hour.parse("2026-03-20-10")).reason.needed_by == date(2026, 3, 16)


def test_an_unsealed_time_after_a_base_keeps_the_wal_to_the_next_base() -> None:
    inventory = years(datetime(2026, 4, 1, tzinfo=UTC))
    day = "2026-04-19"
    bundles = tuple(
        entry.model_copy(update={"seal": None}) if f"{day}-03" <= str(entry.hour) < "2026-04-20-06" else entry
        for entry in inventory.bundles
    )
    found = decide(replace(inventory, bundles=bundles), replace(KEEP, monthly=0), now=NOW)
    needed = [one for one in found.decisions if one.reason.needed_by == date(2026, 4, 19)]
    assert [(str(one.hours[0]), str(one.hours[-1])) for one in needed] == [(f"{day}-03", "2026-04-20-03")]


def test_a_gap_before_the_window_keeps_the_way_to_it() -> None:
    """No later base has passed the window's edge, so the last good one stays with all there is after it."""
    inventory = years(datetime(2026, 4, 1, tzinfo=UTC))
    lost = {Hour.parse(f"2026-05-08-0{hour}") for hour in (4, 5)}
    found = decide(inventory.without(lost), Keep(timedelta(days=7), 0, 0, 0), now=NOW)
    assert found.bases(Verdict.KEEP)[0] == date(2026, 5, 8)
    assert found.hours(Verdict.KEEP)[0] == Hour.parse("2026-05-08-03")


def test_where_backups_stop_nothing_more_expires() -> None:
    inventory = years(datetime(2026, 4, 1, tzinfo=UTC))
    then = decide(inventory, KEEP, now=NOW)
    later = decide(inventory, KEEP, now=NOW + timedelta(days=300))
    assert later.bases(Verdict.REMOVE) == then.bases(Verdict.REMOVE)
    assert later.hours(Verdict.REMOVE) == then.hours(Verdict.REMOVE)
    assert "nothing after 2026-05-15 06:00 UTC can be restored from bundles" in later.notes[0]


def test_without_a_base_that_leads_to_the_server_all_is_kept() -> None:
    inventory = replace(years(datetime(2026, 4, 1, tzinfo=UTC)), bases=())
    found = decide(inventory, KEEP, now=NOW)
    assert found.since is None
    assert not found.hours(Verdict.REMOVE)


def failed_over(days_ago: int) -> Inventory:
    """Return backups whose server went over to timeline 2 some days ago, and left an hour of WAL behind."""
    inventory = years(datetime(2026, 4, 1, tzinfo=UTC))
    switched = Hour.containing(NOW - timedelta(days=days_ago)).start
    number = number_at(switched)
    lsn = segment(number).start(SEGMENT_SIZE)
    history = TimelineHistory(2, (Ancestor(1, type(lsn)(lsn + 0x500)),))
    before = [entry for entry in inventory.bundles if entry.hour.start < switched]
    after = [bundle(entry.hour, timeline=2) for entry in inventory.bundles if entry.hour.start >= switched]
    left_hour = bundle(Hour(switched), timeline=1)
    mixed = after[0].model_copy(update={"runs": (*left_hour.runs, *after[0].runs)})
    bases = [
        base if base.ended_at < switched else base.model_copy(update={"timeline": 2})
        for base in inventory.bases
    ]
    file = ArchivedFile(Path("/00000002.history"), WalFileKind.HISTORY, 50, switched)
    return replace(
        inventory,
        bases=tuple(bases),
        bundles=(*before, mixed, *after[1:]),
        raw=(file,),
        histories={2: history},
        began={2: switched},
    )


@pytest.mark.parametrize(("days_ago", "kept"), [(3, True), (12, False)])
def test_a_branch_that_was_left_keeps_its_way_into_the_window_until_that_has_passed(
    days_ago: int, kept: bool
) -> None:
    inventory = failed_over(days_ago)
    found = decide(inventory, Keep(timedelta(days=7), 0, 0, 0), now=NOW)
    after = inventory.without({*found.bases(Verdict.REMOVE), *found.hours(Verdict.REMOVE)})
    assert bool(after.windows()[0])
    (server,) = {window.timeline for window in after.windows()[0]}
    assert server == 2
    left = after.coverage().reach(after.bases[0].first_segment, TimelineHistory(1)) if kept else None
    if left is not None:
        switched = Hour.containing(NOW - timedelta(days=days_ago)).start
        assert left.last == segment(number_at(switched) + 1)
    assert (1 in {run.timeline for entry in after.bundles for run in entry.runs}) is kept


def test_a_branch_that_a_restore_in_place_left_keeps_the_base_that_only_it_has() -> None:
    """Ten hours ago the server was put back by 35 hours; what it did in these can still be restored."""
    inventory = years(datetime(2026, 5, 1, tzinfo=UTC))
    put_back = Hour.containing(NOW - timedelta(hours=10)).start
    fork = number_at(put_back - timedelta(hours=35))
    lsn = segment(fork).start(SEGMENT_SIZE)
    history = TimelineHistory(2, (Ancestor(1, type(lsn)(lsn + 0x500)),))
    bundles = [
        bundle(entry.hour, 2, number_at(entry.hour.start) - 70) if entry.hour.start >= put_back else entry
        for entry in inventory.bundles
    ]
    bases = [base for base in inventory.bases if base.ended_at < put_back]
    inventory = replace(
        inventory, bases=tuple(bases), bundles=tuple(bundles), histories={2: history}, began={2: put_back}
    )
    found = decide(inventory, Keep(timedelta(days=1), 0, 0, 0), now=NOW)
    assert found.bases(Verdict.KEEP) == [date(2026, 5, 13), date(2026, 5, 14)]
    assert "on timeline 1, which was written to until" in of_base(found, date(2026, 5, 14)).reason.text
    after = inventory.without({*found.bases(Verdict.REMOVE), *found.hours(Verdict.REMOVE)})
    (span,), _ = after.windows(raw=False)
    assert (span.timeline, f"{span.end:%d %H}") == (2, "15 06")
    reach = after.coverage().reach(after.bases[1].first_segment, TimelineHistory(1))
    assert reach is not None
    assert reach.last == segment(number_at(put_back) - 1)


def test_a_timeline_of_unknown_origin_is_kept_with_what_may_lead_to_it() -> None:
    inventory = years(datetime(2026, 4, 1, tzinfo=UTC))
    hour = Hour.parse("2026-04-10-10")
    stray = bundle(hour, timeline=7)
    bundles = [
        entry.model_copy(update={"runs": (*entry.runs, *stray.runs)}) if entry.hour == hour else entry
        for entry in inventory.bundles
    ]
    inventory = replace(inventory, bundles=tuple(bundles))
    found = decide(inventory, Keep(timedelta(days=7), 0, 0, 0), now=NOW)
    assert date(2026, 4, 10) in found.bases(Verdict.KEEP)
    assert of_base(found, date(2026, 4, 10)).reason.text.startswith("in doubt, kept: ")
    for number in range(3, 11):
        assert of_hour(found, Hour.parse(f"2026-04-10-{number:02}")).verdict is Verdict.KEEP
    assert of_hour(found, Hour.parse("2026-04-11-10")).verdict is Verdict.REMOVE
    assert "00000007.history is missing" in found.notes[0]


def test_the_only_copy_of_a_history_stays() -> None:
    inventory = years(datetime(2026, 4, 1, tzinfo=UTC))
    copy = BundledHistory(name="00000002.history", written_at=NOW, text="1\t0/500\tx\n")
    bundles = list(inventory.bundles)
    for place in (5, 6):
        bundles[place] = bundles[place].model_copy(update={"histories": (copy,)})
    inventory = replace(inventory, bundles=tuple(bundles))
    found = decide(inventory, KEEP, now=NOW)
    assert of_hour(found, bundles[6].hour).reason.text == "holds the only copy of 00000002.history"
    assert of_hour(found, bundles[5].hour).verdict is Verdict.REMOVE
    archived = ArchivedFile(Path("/00000002.history"), WalFileKind.HISTORY, 50, NOW)
    found = decide(replace(inventory, raw=(archived,)), KEEP, now=NOW)
    assert of_hour(found, bundles[6].hour).verdict is Verdict.REMOVE


def test_a_hold_whose_base_is_gone_is_named() -> None:
    hold = Hold(date(2020, 1, 1), 1, "/restore/x stands at its target and may be moved on")
    found = decide(years(datetime(2026, 4, 1, tzinfo=UTC)), KEEP, now=NOW, facts=Facts(holds=(hold,)))
    assert found.notes == (f"{hold.reason}, but its base backup of 2020-01-01 is not there any more",)


def test_the_check_names_what_is_overdue_and_what_waits() -> None:
    inventory = years(datetime(2026, 4, 1, tzinfo=UTC))
    found = decide(inventory, KEEP, now=NOW)
    assert not list(check_retention(found, NOW - timedelta(hours=30), now=NOW))
    (overdue,) = check_retention(found, NOW - timedelta(days=3), now=NOW)
    assert "may go, and retention ran 3 d 0 h ago" in overdue.problem
    (never,) = check_retention(found, None, now=NOW)
    assert "has not run yet" in never.problem
    waiting = decide(inventory, KEEP, now=NOW, confirmed=())
    (finding,) = check_retention(waiting, NOW, now=NOW)
    assert "wait to be confirmed off-site, the oldest is from 2026-04-01" in finding.problem
