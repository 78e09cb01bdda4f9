"""Where a timeline came from is known as long as one good copy of its history is left, and never guessed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pytest

from pitr_pipelines.catalog.inventory import RecordCache, read_inventory, take_inventory, write_cache
from pitr_pipelines.catalog.records import SealRecord
from pitr_pipelines.catalog.status import describe
from pitr_pipelines.restore.prepare import plan_restore
from pitr_pipelines.restore.target import LatestTarget
from pitr_pipelines.wal.bundles import make_bundle
from pitr_pipelines.wal.lsn import Lsn
from pitr_pipelines.wal.timelines import TimelineHistory
from pitr_pipelines_tests.wal_files import (
    DATABASE,
    SEGMENT_SIZE,
    Store,
    at,
    base_record,
    hour_of,
    put_file,
    put_segment,
    seal_record,
    segment,
)

LATER = at(30)


def history(number: int) -> bytes:
    """The history of timeline 2, which left timeline 1 in the segment with this number."""
    return f"1\t{Lsn(number * SEGMENT_SIZE + 0x500)}\tno recovery target specified\n".encode()


def left_at(number: int) -> TimelineHistory:
    return TimelineHistory.parse(2, history(number).decode())


def bundle(store: Store, hour: int) -> None:
    assert make_bundle(store.settings, DATABASE, hour_of(hour), now=LATER, seal=False).problem is None


def switch_archived_and_bundled(store: Store) -> Path:
    """Timeline 1 until 8 o'clock, timeline 2 from then on, an hour a segment; return the history file."""
    store.add_bases([base_record(1, 1, at(3))])
    for number, timeline in ((1, 1), (2, 1), (3, 2), (4, 2), (5, 2)):
        put_segment(store.wal, segment(number, timeline), at(5 + number, 30))
    path = put_file(store.wal, "00000002.history", history(3), at(8))
    for hour in (6, 7, 8, 9):
        bundle(store, hour)
    return path


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


@pytest.mark.parametrize("damage", [None, b"", b"1\t0/3000", b"\0" * 40, b"1\tnowhere\n"])
def test_a_history_that_the_archive_lost_is_read_from_a_bundle(store: Store, damage: bytes | None) -> None:
    path = switch_archived_and_bundled(store)
    path.unlink()
    if damage is not None:
        put_file(store.wal, path.name, damage, at(12))
    found = read_inventory(store.layout, DATABASE)
    assert found.histories == {2: left_at(3)}
    assert found.began == {2: at(8)}
    assert [str(path) in problem for problem in found.problems] == [True] * (damage is not None)
    assert found.unexplained() == []
    assert [window.timeline for window in found.windows()[0]] == [2]


def test_bundles_are_read_once_for_it_and_a_cache_from_before_is_of_no_use(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    switch_archived_and_bundled(store)
    found, cache = take_inventory(store.layout, DATABASE, RecordCache())
    store.layout.manifest.parent.mkdir(parents=True)
    write_cache(store.layout, DATABASE, cache)
    cache_file = next(store.layout.manifest.parent.iterdir())
    with monkeypatch.context() as patched:
        patched.setattr("pitr_pipelines.wal.bundle_file.read_member", _no_reading)
        assert read_inventory(store.layout, DATABASE) == found
    old = cache_file.read_text().replace('"histories":', '"from_an_older_release":')
    assert old != cache_file.read_text()
    cache_file.write_text(old)
    assert read_inventory(store.layout, DATABASE) == found


def _no_reading(*_arguments: object) -> bytes:
    raise AssertionError("read again")


def test_a_bundle_that_cannot_be_read_now_is_looked_at_again(store: Store) -> None:
    path = switch_archived_and_bundled(store)
    path.unlink()
    aside = []
    for hour in (8, 9):
        bundled = store.layout.bundle(DATABASE, hour_of(hour))
        aside.append((bundled, bundled.read_bytes()))
        bundled.unlink()
    found, cache = take_inventory(store.layout, DATABASE, RecordCache())
    assert found.histories == {}
    (problem,) = found.unexplained()
    assert "00000002.history of order-db is neither in the archive nor" in problem
    assert problem in describe(found, now=LATER).problems
    for bundled, content in aside:
        bundled.write_bytes(content)
    assert take_inventory(store.layout, DATABASE, cache)[0].histories == {2: left_at(3)}


def test_a_descendants_history_tells_of_its_ancestors(store: Store) -> None:
    switch_archived_and_bundled(store).unlink()
    for hour in (8, 9):
        store.layout.bundle(DATABASE, hour_of(hour)).unlink()
    text = history(3) + f"2\t{Lsn(6 * SEGMENT_SIZE)}\tx\n".encode()
    put_file(store.wal, "00000003.history", text, at(14))
    assert read_inventory(store.layout, DATABASE).histories[2] == left_at(3)


def two_servers(store: Store, *, sealed: bool) -> None:
    """A stray made a timeline 2 at half past six and was bundled; the server made its own at eight."""
    store.add_bases([base_record(1, 1, at(3))])
    for number in (1, 2):
        put_segment(store.wal, segment(number), at(5 + number, 30))
    put_segment(store.wal, segment(2, 2), at(7, 40))
    put_file(store.wal, "00000002.history", history(2), at(6, 30))
    put_segment(store.wal, segment(3), at(8, 10))
    for hour in (6, 7):
        bundle(store, hour)
    put_file(store.wal, "00000002.history", history(4), at(8, 30))
    for number, timeline in ((4, 2), (5, 2)):
        put_segment(store.wal, segment(number, timeline), at(5 + number, 10))
    seals: Sequence[SealRecord] = [seal_record(9, 4, at(9, 5), timeline=2)] if sealed else []
    store.add_seals(seals)
    for hour in (8, 9):
        bundle(store, hour)


@pytest.mark.parametrize("sealed", [True, False])
def test_of_two_timelines_with_one_number_the_servers_counts_and_it_is_said(
    store: Store, sealed: bool
) -> None:
    two_servers(store, sealed=sealed)
    if sealed:
        # Even if the archive has the stray's file again.
        put_file(store.wal, "00000002.history", history(2), at(6, 30))
    found = read_inventory(store.layout, DATABASE)
    assert found.histories[2] == left_at(4)
    (problem,) = found.problems
    assert "two servers have used timeline 2" in problem
    assert ("which came with the server's seal" in problem) == sealed
    assert segment(2, 2) not in [run.first for entry in found.bundles for run in entry.runs]
    assert segment(4, 2) in [run.first for entry in found.bundles for run in entry.runs]
    plan = plan_restore(store.settings, DATABASE, LatestTarget(), timeline=2, seal=False, check=False)
    assert [str(one.name) for one in plan.segments] == [
        *(str(segment(n)) for n in (1, 2, 3)),
        *(str(segment(n, 2)) for n in (4, 5)),
    ]
    assert problem in plan.notes


def test_seals_say_where_the_server_was_even_if_their_bundles_are_left_out(store: Store) -> None:
    two_servers(store, sealed=True)
    found = read_inventory(store.layout, DATABASE)
    standing = found.standing()
    assert standing is not None
    assert standing.seen is not None
    moment: datetime = standing.seen.at
    assert (standing.timeline, moment) == (2, at(9, 5))
    left = found.without({hour_of(9)}).standing()
    assert left is not None
    assert left.seen == standing.seen
    assert replace(found, seen=None) == found
