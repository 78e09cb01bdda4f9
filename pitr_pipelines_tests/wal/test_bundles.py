"""Every segment ends in exactly one closed bundle, in whatever order and however often hours are bundled."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pitr_pipelines.catalog.records import BundleRecord, BundleState, SealRecord, read_record
from pitr_pipelines.errors import ArtifactDamaged, BadRequest
from pitr_pipelines.wal import archive, bundle_file
from pitr_pipelines.wal.archive import scan_archive
from pitr_pipelines.wal.bundles import BundleOutcome, make_bundle
from pitr_pipelines.wal.lsn import SegmentName
from pitr_pipelines.wal.timelines import history_file_name
from pitr_pipelines_tests.wal_files import (
    DATABASE,
    Store,
    at,
    hour_of,
    make_archive,
    make_settings,
    put_file,
    put_segment,
    seal_record,
    segment,
    segment_bytes,
)

LATER = at(30)
"""A time at which every hour here is long over."""


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test here pulls the plug, and there are some thousand syncs."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


def bundle(store: Store, hour: int, now: datetime = LATER) -> BundleOutcome:
    return make_bundle(store.settings, DATABASE, hour_of(hour), now=now, seal=False)


def contents(store: Store) -> dict[str, bytes]:
    """Return the bundles and their records, by name; temporary files too, which must not be there."""
    directory = store.layout.bundles(DATABASE)
    return {path.name: path.read_bytes() for path in directory.iterdir() if path.name != ".lock"}


def held(store: Store, state: BundleState = BundleState.CLOSED) -> dict[str, list[int]]:
    """Return which hours' bundles of a state hold each file."""
    found: dict[str, list[int]] = {}
    for path in store.layout.bundles(DATABASE).glob("[0-9]*.json"):
        if not path.name.endswith(".seal.json"):
            record = read_record(path, BundleRecord)
            if record.state is state:
                for member in record.members:
                    found.setdefault(member.name, []).append(record.hour.start.hour)
    return found


def raw(store: Store) -> list[str]:
    return [file.name for file in scan_archive(store.wal)]


def archive_names(store: Store) -> list[str]:
    """Return what lies in the archive, temporary files too."""
    return sorted(path.name for path in store.wal.iterdir())


STEADY = {segment(n): at(8 + n // 3, 5 + 20 * (n % 3)) for n in range(1, 12)}
"""Eleven segments, from 08:25 to 11:45, three an hour."""


# Closing ------------------------------------------------------------------------------------------


def test_an_hour_that_the_archive_goes_past_is_closed(store: Store) -> None:
    make_archive(store.wal, STEADY)
    outcome = bundle(store, 9)
    assert outcome.changed
    assert outcome.problem is None
    assert outcome.record.state is BundleState.CLOSED
    assert [member.name for member in outcome.record.members] == [str(segment(n)) for n in (3, 4, 5)]
    assert [(str(run.first), str(run.last)) for run in outcome.record.runs] == [
        (str(segment(3)), str(segment(5)))
    ]


def test_the_newest_hour_stays_open_until_the_archive_goes_past_it(store: Store) -> None:
    make_archive(store.wal, STEADY)
    outcome = bundle(store, 11)
    assert outcome.record.state is BundleState.OPEN
    assert isinstance(outcome.problem, BadRequest)
    assert outcome.pruned == 0
    put_segment(store.wal, segment(12), at(12, 5))
    outcome = bundle(store, 11)
    assert outcome.record.state is BundleState.CLOSED
    assert outcome.problem is None
    assert raw(store) == [str(segment(n)) for n in (*range(1, 9), 12)]


def test_the_running_hour_is_open_and_made_again_when_it_closes(store: Store) -> None:
    make_archive(store.wal, {segment(n): STEADY[segment(n)] for n in range(1, 5)})
    running = bundle(store, 9, now=at(9, 40))
    assert running.record.state is BundleState.OPEN
    assert [member.name for member in running.record.members] == [str(segment(n)) for n in (3, 4)]
    make_archive(store.wal, STEADY)
    closed = bundle(store, 9)
    assert closed.record.state is BundleState.CLOSED
    assert [member.name for member in closed.record.members] == [str(segment(n)) for n in (3, 4, 5)]


def test_an_hour_without_wal_gets_a_record(store: Store) -> None:
    make_archive(store.wal, {segment(1): at(8, 5), segment(2): at(10, 5)})
    outcome = bundle(store, 9)
    assert outcome.record.state is BundleState.CLOSED
    assert (outcome.record.file, outcome.record.members, outcome.record.runs) == (None, (), ())
    assert not store.layout.bundle(DATABASE, hour_of(9)).exists()
    assert not bundle(store, 9).changed


def test_an_hour_in_a_database_without_any_wal_stays_open(store: Store) -> None:
    outcome = bundle(store, 9)
    assert outcome.record.state is BundleState.OPEN
    assert outcome.problem is not None


def test_wal_in_a_later_closed_bundle_closes_an_hour_too(store: Store) -> None:
    make_archive(store.wal, {segment(1): at(9, 5), segment(2): at(10, 5), segment(3): at(11, 5)})
    assert bundle(store, 10).record.state is BundleState.CLOSED
    store.wal.joinpath(str(segment(3))).unlink()
    assert bundle(store, 9).record.state is BundleState.CLOSED


def test_a_sealed_hour_is_closed_and_takes_in_everything_up_to_its_seal(store: Store) -> None:
    make_archive(store.wal, {segment(1): at(9, 5), segment(2): at(10, 0, 3), segment(3): at(10, 1)})
    seal = seal_record(9, 3, at(10, 1))
    store.add_seals([seal])
    outcome = bundle(store, 9)
    assert outcome.record.state is BundleState.CLOSED
    assert outcome.record.seal == seal
    assert len(outcome.record.members) == 3


def test_an_hour_that_has_not_begun_is_refused(store: Store) -> None:
    with pytest.raises(BadRequest, match="2026-01-29-12 has not begun"):
        bundle(store, 12, now=at(11, 59, 59))


# Any order, any number of times -------------------------------------------------------------------

moments = st.integers(0, 4 * 60 - 1).map(lambda minute: at(8, minute))
HOURS = range(8, 13)


def reference(root: Path, closed_at: Mapping[SegmentName, datetime], seals: Iterable[SealRecord]) -> Store:
    """Return a store in which the hours were bundled in order, once, with nothing removed between."""
    store = Store(root)
    store.settings = make_settings(root, bundle={"workers": 1, "keep_raw_hours": 1000})
    make_archive(store.wal, closed_at)
    store.add_seals(seals)
    for hour in HOURS:
        bundle(store, hour)
    return store


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    closed=st.lists(moments, min_size=1, max_size=7),
    sealed=st.sets(st.integers(8, 11), max_size=2),
    order=st.lists(st.sampled_from(HOURS), max_size=8),
    steady=st.booleans(),
)
def test_any_order_and_number_of_bundlings_gives_the_same_bytes(
    tmp_path_factory: pytest.TempPathFactory,
    closed: list[datetime],
    sealed: set[int],
    order: list[int],
    steady: bool,
) -> None:
    if steady:
        closed.sort()
    closed_at = {segment(number): moment for number, moment in enumerate(closed, 1)}
    closed_at[segment(len(closed) + 1)] = at(14)  # which closes all the hours
    seals = []
    for hour in sorted(sealed):
        before = [name for name, moment in closed_at.items() if moment < at(hour + 1)]
        if before:
            number = max(before).number(1 << 20)
            seals.append(seal_record(hour, number, at(hour + 1, 1)))
    expected = reference(tmp_path_factory.mktemp("in-order"), closed_at, seals)
    store = Store(tmp_path_factory.mktemp("any-order"))
    make_archive(store.wal, closed_at)
    store.add_seals(seals)
    for hour in [*order, *random.Random(len(order)).sample(HOURS, len(HOURS))]:
        bundle(store, hour)
    assert contents(store) == contents(expected)
    assert all(len(hours) == 1 for hours in held(store).values())
    assert sorted([*held(store), *raw(store)]) == sorted(str(name) for name in closed_at)


def test_bundling_while_wal_arrives_gives_the_same_as_bundling_once_at_the_end(tmp_path: Path) -> None:
    closed_at = {**STEADY, segment(12): at(12, 5), segment(13): at(14)}
    expected = reference(tmp_path / "once", closed_at, [])
    store = Store(tmp_path / "live")
    for name, moment in sorted(closed_at.items()):
        put_segment(store.wal, name, moment)
        hour = moment.hour
        for due in (hour - 1, hour):  # the hour before, and the running one early
            if due in HOURS:
                bundle(store, due, now=moment)
    for hour in HOURS:
        bundle(store, hour)
    assert contents(store) == contents(expected)


def test_a_point_made_early_leaves_no_trace_in_the_closed_bundle(tmp_path: Path) -> None:
    """A running hour is sealed for its early restore point; that is not the hour's own seal."""
    store = Store(tmp_path)
    make_archive(store.wal, {segment(n): STEADY[segment(n)] for n in (3, 4)})
    record = bundle(store, 9, now=at(9, 30)).record
    early = seal_record(9, 4, at(9, 30)).model_copy(update={"restore_point": "pitr-order-db-early"})
    store.add_bundles([record.model_copy(update={"seal": early})])
    assert bundle(store, 9, now=at(9, 31)).record.seal == early  # while the hour runs, it is on offer
    make_archive(store.wal, {segment(n): STEADY[segment(n)] for n in (5, 6)})
    record = bundle(store, 9).record
    assert record.state is BundleState.CLOSED
    assert record.seal is None


def test_a_segment_bundled_early_that_a_late_seal_gives_to_the_hour_before_is_given_up(store: Store) -> None:
    make_archive(store.wal, {segment(1): at(9, 30), segment(2): at(10, 10), segment(3): at(10, 20)})
    early = bundle(store, 10, now=at(10, 30))
    assert len(early.record.members) == 2
    # The server was away at ten, and hour 9 is sealed only at half past.
    put_segment(store.wal, segment(4), at(10, 31))
    store.add_seals([seal_record(9, 4, at(10, 31))])
    assert len(bundle(store, 9, now=at(10, 31)).record.members) == 4
    put_file(store.wal, "noise", b"", at(10))
    put_segment(store.wal, segment(5), at(11, 5))
    for name in (1, 2, 3, 4):
        store.wal.joinpath(str(segment(name))).unlink(missing_ok=True)  # pruned
    late = bundle(store, 10, now=at(11, 6))
    assert late.record.state is BundleState.CLOSED
    assert late.record.members == ()
    assert not store.layout.bundle(DATABASE, hour_of(10)).exists()
    assert held(store) == {str(segment(n)): [9] for n in (1, 2, 3, 4)}


def test_a_stray_timeline_does_not_move_the_main_ones_segments(tmp_path: Path) -> None:
    stray = {segment(n, 2): at(8, 1 + n) for n in range(4, 9)}
    plain = reference(tmp_path / "plain", {**STEADY, segment(12): at(14)}, [])
    with_stray = reference(tmp_path / "stray", {**STEADY, segment(12): at(14), **stray}, [])
    main = {name: hours for name, hours in held(with_stray).items() if name.startswith("00000001")}
    assert main == held(plain)
    assert held(with_stray)[str(segment(4, 2))] == [8]


# Closed bundles stay -----------------------------------------------------------------------------


def test_a_closed_intact_bundle_is_not_touched(store: Store) -> None:
    make_archive(store.wal, STEADY)
    bundle(store, 9)
    directory = store.layout.bundles(DATABASE)
    before = {
        path.name: (path.read_bytes(), path.stat().st_mtime_ns, path.stat().st_ino)
        for path in directory.iterdir()
    }
    outcome = bundle(store, 9)
    assert not outcome.changed
    after = {
        path.name: (path.read_bytes(), path.stat().st_mtime_ns, path.stat().st_ino)
        for path in directory.iterdir()
    }
    assert after == before


@pytest.mark.parametrize("pruned", [True, False])
def test_a_segment_that_arrives_late_joins_its_hour(tmp_path: Path, pruned: bool) -> None:
    expected = reference(tmp_path / "expected", STEADY, [])
    store = Store(tmp_path / "late")
    if not pruned:
        store.settings = make_settings(store.root, bundle={"workers": 1, "keep_raw_hours": 1000})
    make_archive(store.wal, {name: moment for name, moment in STEADY.items() if name != segment(4)})
    first = bundle(store, 9)
    assert len(first.record.runs) == 2
    put_segment(store.wal, segment(4), STEADY[segment(4)])
    outcome = bundle(store, 9)
    assert outcome.changed
    assert len(outcome.record.runs) == 1
    assert {n: b for n, b in contents(expected).items() if "29-09" in n} == contents(store)


def test_a_damaged_closed_bundle_is_made_again_from_the_raw_segments(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.settings = make_settings(store.root, bundle={"workers": 1, "keep_raw_hours": 1000})
    make_archive(store.wal, STEADY)
    bundle(store, 9)
    good = contents(store)
    path = store.layout.bundle(DATABASE, hour_of(9))
    path.write_bytes(path.read_bytes()[:-100])
    assert bundle(store, 9).changed
    assert contents(store) == good
    path.unlink()
    assert bundle(store, 9).changed
    assert contents(store) == good


def test_a_damaged_closed_bundle_whose_raw_segments_are_gone_is_named(store: Store) -> None:
    make_archive(store.wal, STEADY)
    bundle(store, 9)
    path = store.layout.bundle(DATABASE, hour_of(9))
    path.write_bytes(path.read_bytes()[:-100])
    left = contents(store)
    with pytest.raises(ArtifactDamaged, match=str(path)):
        bundle(store, 9)
    assert contents(store) == left


def test_a_record_that_cannot_be_read_is_made_again_from_its_bundle_and_holds_up_no_other_hour(
    store: Store,
) -> None:
    make_archive(store.wal, STEADY)
    for hour in (8, 9):
        bundle(store, hour)
    good = contents(store)
    record = store.layout.bundle_record(DATABASE, hour_of(9))
    record.write_text("{")
    bundle(store, 10)
    bundle(store, 9)
    after = contents(store)
    assert {name: after[name] for name in good} == good
    assert after[".2026-01-29-09.json.unreadable"] == b"{"


def test_what_another_process_left_when_it_was_killed_is_removed(store: Store) -> None:
    make_archive(store.wal, STEADY)
    store.layout.bundles(DATABASE).mkdir(parents=True)
    (store.layout.bundles(DATABASE) / ".2026-01-29-09.tar.gz.999999.tmp").write_bytes(b"half")
    bundle(store, 10)
    assert sorted(contents(store)) == ["2026-01-29-10.json", "2026-01-29-10.tar.gz"]


# What may be in the archive -------------------------------------------------------------------------


def test_history_backup_and_partial_files_ride_along(store: Store) -> None:
    make_archive(store.wal, {segment(1): at(9, 5), segment(2, 2): at(9, 20), segment(3, 2): at(10, 5)})
    put_file(store.wal, history_file_name(2), b"1\t0/200000\tno recovery target specified\n", at(9, 10))
    put_file(store.wal, f"{segment(2)}.partial", segment_bytes(segment(2)), at(9, 10))
    put_file(store.wal, f"{segment(1)}.00000028.backup", b"START WAL LOCATION", at(9, 6))
    names = [member.name for member in bundle(store, 9).record.members]
    assert names == sorted(
        [
            str(segment(1)),
            f"{segment(1)}.00000028.backup",
            f"{segment(2)}.partial",
            str(segment(2, 2)),
            history_file_name(2),
        ]
    )
    assert raw(store) == [history_file_name(2), str(segment(3, 2))]


def test_a_backup_file_that_arrives_after_its_hour_was_closed_joins_it(store: Store) -> None:
    make_archive(store.wal, {segment(1): at(9, 59), segment(2): at(10, 5)})
    bundle(store, 9)
    put_file(store.wal, f"{segment(1)}.00000028.backup", b"START WAL LOCATION", at(9, 59, 59))
    assert bundle(store, 9).changed
    assert raw(store) == [str(segment(2))]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (segment_bytes(segment(4))[:-512], "bytes where its header says"),
        (segment_bytes(segment(4))[:20], "does not begin like a WAL segment"),
        (b"", "does not begin like a WAL segment"),
        (segment_bytes(segment(7)), "holds the WAL from"),
        (segment_bytes(segment(4), system_identifier="42"), "is of the cluster 42"),
    ],
    ids=["truncated", "headless", "empty", "misnamed", "foreign"],
)
def test_a_segment_that_is_not_what_it_should_be_is_refused_by_name(
    store: Store, content: bytes, problem: str
) -> None:
    make_archive(store.wal, STEADY)
    put_file(store.wal, str(segment(4)), content, STEADY[segment(4)])
    with pytest.raises(ArtifactDamaged, match=f"{segment(4)} .*{problem}"):
        bundle(store, 9)
    assert contents(store) == {}
    assert len(raw(store)) == len(STEADY)
    assert bundle(store, 8).record.state is BundleState.CLOSED  # the other hours go on


def test_a_foreign_segment_is_the_one_that_is_named_even_if_it_is_the_first(store: Store) -> None:
    put_file(store.wal, archive.IDENTITY_FILE, b"7301234567890123456\n", at(8))
    make_archive(store.wal, STEADY)
    put_segment(store.wal, segment(1), STEADY[segment(1)], system_identifier="42")
    assert bundle(store, 9).record.state is BundleState.CLOSED
    with pytest.raises(ArtifactDamaged, match=f"{segment(1)} is of the cluster 42"):
        bundle(store, 8)


def test_a_link_in_the_archive_is_not_bundled_and_not_removed(store: Store) -> None:
    make_archive(store.wal, STEADY)
    target = put_segment(store.root / "elsewhere", segment(4), STEADY[segment(4)])
    store.wal.joinpath(str(segment(4))).unlink()
    store.wal.joinpath(str(segment(4))).symlink_to(target)
    assert [member.name for member in bundle(store, 9).record.members] == [str(segment(n)) for n in (3, 5)]
    assert store.wal.joinpath(str(segment(4))).is_symlink()
    assert target.exists()


# Killed at any step ---------------------------------------------------------------------------------


class Killed(BaseException):
    """The process ended here."""


@dataclass
class Killer:
    """Counts what changes the disk, and ends the process before or after one such call.

    Whatever the dead process would do later does not happen either: clean-up included.
    """

    at_call: int
    after: bool
    calls: int = 0
    dead: bool = False

    def wrap(self, function: Callable[..., object]) -> Callable[..., object]:
        def wrapped(*args: object, **kwargs: object) -> object:
            if self.dead:
                raise Killed
            self.calls += 1
            now = self.calls == self.at_call
            if now and not self.after:
                self.dead = True
                raise Killed
            try:
                return function(*args, **kwargs)
            finally:
                if now:
                    self.dead = True
                    raise Killed

        return wrapped


def run_killed(monkeypatch: pytest.MonkeyPatch, killer: Killer, work: Callable[[], object]) -> None:
    with monkeypatch.context() as patched:
        for name in ("replace", "unlink", "fsync", "utime", "rename", "link", "mkdir"):
            patched.setattr(os, name, killer.wrap(getattr(os, name)))
        try:
            work()
        except Killed:
            assert killer.dead


def new_hour(store: Store) -> None:
    make_archive(store.wal, {segment(n): STEADY[segment(n)] for n in range(1, 7)})


def late_segment(store: Store) -> None:
    """A closed bundle whose raw files are gone is about to take in one more."""
    make_archive(store.wal, {segment(n): STEADY[segment(n)] for n in (1, 2, 3, 5, 6)})
    bundle(store, 9)
    put_segment(store.wal, segment(4), STEADY[segment(4)])


def closing_hour(store: Store) -> None:
    """An open bundle is about to be closed."""
    make_archive(store.wal, {segment(n): STEADY[segment(n)] for n in (3, 4)})
    bundle(store, 9, now=at(9, 50))
    make_archive(store.wal, {segment(n): STEADY[segment(n)] for n in (5, 6)})


def emptied_hour(store: Store) -> None:
    """An open bundle is about to lose all it has to the hour before."""
    make_archive(store.wal, {segment(3): at(9, 10)})
    bundle(store, 9, now=at(9, 50))
    store.add_seals([seal_record(8, 3, at(9, 51))])
    bundle(store, 8, now=at(9, 52))
    make_archive(store.wal, {segment(4): at(10, 1)})


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("prepare", [new_hour, late_segment, closing_hour, emptied_hour])
def test_killed_at_any_step_and_run_again_it_is_as_if_it_had_not_been(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prepare: Callable[[Store], None], after: bool
) -> None:
    whole = Store(tmp_path / "whole")
    prepare(whole)
    counter = Killer(-1, after)
    run_killed(monkeypatch, counter, lambda: bundle(whole, 9))
    assert counter.calls > 4
    for call in range(1, counter.calls + 1):
        store = Store(tmp_path / f"killed-{call}")
        prepare(store)
        killer = Killer(call, after)
        run_killed(monkeypatch, killer, lambda store=store: bundle(store, 9))  # type: ignore[misc]
        assert killer.dead
        bundle(store, 9)
        assert contents(store) == contents(whole), f"after call {call}"
        assert sorted(path.name for path in store.wal.iterdir()) == sorted(
            p.name for p in whole.wal.iterdir()
        )


def test_killed_while_it_takes_up_after_a_kill_it_still_ends_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worst case: raw files gone, the new file in place, its record not yet written."""
    whole = Store(tmp_path / "whole")
    late_segment(whole)
    bundle(whole, 9)

    def without_record(root: Path) -> Store:
        store = Store(root)
        late_segment(store)
        bundle(store, 9)
        store.layout.bundle_record(DATABASE, hour_of(9)).unlink()
        return store

    counter = Killer(-1, after=False)
    store = without_record(tmp_path / "count")
    run_killed(monkeypatch, counter, lambda: bundle(store, 9))
    for call in range(1, counter.calls + 1):
        again = without_record(tmp_path / f"killed-{call}")
        killer = Killer(call, after=False)
        run_killed(monkeypatch, killer, lambda again=again: bundle(again, 9))  # type: ignore[misc]
        bundle(again, 9)
        assert contents(again) == contents(whole), f"after call {call}"
        assert sorted(path.name for path in again.wal.iterdir()) == sorted(
            p.name for p in whole.wal.iterdir()
        )


def test_what_was_not_read_back_as_it_was_written_is_not_published(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_archive(store.wal, STEADY)
    write = bundle_file.write_bundle

    def write_on_a_bad_disk(path: Path, *args: Any, **kwargs: Any) -> object:
        result = write(path, *args, **kwargs)
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
        return result

    monkeypatch.setattr(bundle_file, "write_bundle", write_on_a_bad_disk)
    with pytest.raises(ArtifactDamaged):
        bundle(store, 9)
    assert contents(store) == {}
    assert len(raw(store)) == len(STEADY)
