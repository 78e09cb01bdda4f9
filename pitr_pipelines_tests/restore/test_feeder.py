"""The feeder has ready what recovery asks for next, never more than it may, and always what it must.

What recovery does is done here by restore-wal.sh, run as PostgreSQL runs it, on segments that are made
up; test_recover.py and the integration tests have the real thing.
"""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

import pytest

import pitr_pipelines
from pitr_pipelines.catalog.layout import Layout
from pitr_pipelines.errors import ArtifactDamaged
from pitr_pipelines.postgres.account import Account
from pitr_pipelines.restore.diversion import BEGINNING_BYTES
from pitr_pipelines.restore.feeder import EXPECTED, Feeder, feed
from pitr_pipelines.restore.plan import Plan
from pitr_pipelines.restore.segment_files import SegmentFiles
from pitr_pipelines.restore.wal_source import InArchive, InBase, WalSegment
from pitr_pipelines.wal.archive import scan_archive
from pitr_pipelines.wal.lsn import Lsn, SegmentName
from pitr_pipelines.wal.timelines import Ancestor, TimelineHistory
from pitr_pipelines_tests.restore.scenes import plan_by_hand
from pitr_pipelines_tests.servers import wait_for
from pitr_pipelines_tests.wal_files import (
    DATABASE,
    SEGMENT_SIZE,
    SYSTEM_IDENTIFIER,
    at,
    put_file,
    segment,
    segment_bytes,
)

if TYPE_CHECKING:
    from pitr_pipelines.postgres.binaries import Binaries

SCRIPT = Path(pitr_pipelines.__file__).parent / "restore" / "restore-wal.sh"
FIRST = 3
COUNT = 12
WINDOW = 4
NO_BINARIES = cast("Binaries", None)
"""Nothing in these segments looks like a record that PostgreSQL would be asked about."""

OURSELVES = Account(0, 0, "us", switch=False)


@dataclass(frozen=True)
class Gated(SegmentFiles):
    """Makes each segment only once the gate is open, and remembers in which order it was asked."""

    gate: threading.Event = field(default_factory=threading.Event)
    asked: list[str] = field(default_factory=list)
    from_bases: list[tuple[str, ...]] = field(default_factory=list)

    def make(self, segment: WalSegment, path: Path) -> None:
        self.asked.append(str(segment.name))
        self.gate.wait(20)
        super().make(segment, path)

    def make_from_base(self, day, names, directory):  # type: ignore[no-untyped-def]
        self.from_bases.append(tuple(names))
        for name in names:
            self.write(directory / name, segment_bytes(SegmentName.parse(name)))

    def beginning(self, segment: WalSegment) -> bytes:
        if isinstance(segment.place, InBase):
            return segment_bytes(segment.name)[:BEGINNING_BYTES]
        return super().beginning(segment)


@pytest.fixture
def files(tmp_path: Path) -> Gated:
    """An archive of COUNT segments of 1 MB from FIRST on, and a plan that needs them all."""
    layout = Layout(tmp_path / "backup")
    wal = layout.wal(DATABASE)
    wal.mkdir(parents=True)
    names = [segment(number) for number in range(FIRST, FIRST + COUNT)]
    for name in names:
        put_file(wal, str(name), segment_bytes(name), at(14))
    raw = scan_archive(wal)
    plan = plan_by_hand()
    base = plan.base.model_copy(
        update={"wal_segment_size": SEGMENT_SIZE, "system_identifier": SYSTEM_IDENTIFIER}
    )
    segments = [WalSegment(file.segment, file.closed_at, InArchive(file)) for file in raw]
    gated = Gated(layout, replace(plan, base=base, segments=tuple(segments)), OURSELVES)
    gated.gate.set()
    return gated


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    made = tmp_path / "wal"
    made.mkdir()
    return made


@contextmanager
def feeding(files: SegmentFiles, directory: Path) -> Iterator[Feeder]:
    with feed(files, directory, NO_BINARIES, ahead_bytes=WINDOW * SEGMENT_SIZE) as feeder:
        feeder.open_up()
        yield feeder


def name(index: int) -> str:
    return str(segment(FIRST + index))


def ask(directory: Path, wanted: str) -> subprocess.CompletedProcess[str]:
    """Ask for a file as recovery does; what it gets is in `RECOVERYXLOG` beside the directory."""
    target = directory.parent / "RECOVERYXLOG"
    target.unlink(missing_ok=True)
    return subprocess.run(
        ["sh", str(SCRIPT), str(directory), wanted, str(target)], capture_output=True, text=True, check=False
    )


def get(directory: Path, wanted: str) -> bytes:
    done = ask(directory, wanted)
    assert (done.returncode, done.stderr) == (0, "")
    return (directory.parent / "RECOVERYXLOG").read_bytes()


def ready(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir() if len(path.name) == 24}


def wait_until_ready(directory: Path, names: set[str]) -> None:
    """Wait until exactly these segments are ready."""
    wait_for(lambda: ready(directory) == names, what=f"{sorted(names)} and no others")


def test_everything_comes_in_order_and_whole(files: Gated, directory: Path) -> None:
    with feeding(files, directory) as feeder:
        assert feeder.total == COUNT
        for index in range(COUNT):
            assert get(directory, name(index)) == segment_bytes(segment(FIRST + index))
        assert ask(directory, name(COUNT)).returncode == 1
        feeder.check()
    assert files.asked[:1] == [name(0)]
    assert sorted(files.asked) == [name(index) for index in range(COUNT)]


def test_no_more_is_made_ahead_than_may_be(files: Gated, directory: Path) -> None:
    most = set()
    with feeding(files, directory):
        for index in range(COUNT):
            following = {name(later) for later in range(index, min(index + WINDOW, COUNT))}
            wait_until_ready(directory, following)
            most.add(len(ready(directory)))
            get(directory, name(index))
    assert max(most) == WINDOW


def test_what_is_asked_for_before_it_is_ready_is_waited_for(files: Gated, directory: Path) -> None:
    files.gate.clear()
    with feeding(files, directory) as feeder:
        timer = threading.Timer(0.5, files.gate.set)
        timer.start()
        assert get(directory, name(0)) == segment_bytes(segment(FIRST))
        timer.join()
        assert 0.1 < feeder.waited_s < 20
        waited = feeder.waited_s
        wait_for(lambda: name(1) in ready(directory), what="the next segment")
        get(directory, name(1))
        assert feeder.waited_s == waited


def test_the_segment_in_which_recovery_ends_can_be_had_again(files: Gated, directory: Path) -> None:
    with feeding(files, directory):
        for index in range(COUNT):
            get(directory, name(index))
        for _ in range(2):
            assert get(directory, name(COUNT - 1)) == segment_bytes(segment(FIRST + COUNT - 1))


def test_a_recovery_that_begins_later_is_followed(files: Gated, directory: Path) -> None:
    with feeding(files, directory):
        wait_for(lambda: len(ready(directory)) == WINDOW, what="the first segments")
        assert get(directory, name(8)) == segment_bytes(segment(FIRST + 8))
        wait_until_ready(directory, {name(9), name(10), name(11)})
        assert get(directory, name(2)) == segment_bytes(segment(FIRST + 2))
        assert get(directory, name(3)) == segment_bytes(segment(FIRST + 3))


def test_a_segment_that_cannot_be_made_is_known_to_both_sides(files: Gated, directory: Path) -> None:
    path = files.layout.wal(DATABASE) / name(2)
    path.write_bytes(path.read_bytes()[:-1])
    with feeding(files, directory) as feeder:
        done = ask(directory, name(2))
        assert done.returncode == 200
        assert f"{path} has" in done.stderr
        with pytest.raises(ArtifactDamaged, match=name(2)):
            feeder.check()


def test_an_unforeseen_error_is_known_to_both_sides(
    files: Gated, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(Gated, "make", fail)
    with feeding(files, directory) as feeder:
        assert ask(directory, name(0)).returncode == 200
        with pytest.raises(ZeroDivisionError):
            feeder.check()


def test_history_files_are_there_from_the_beginning(files: Gated, directory: Path) -> None:
    branch = TimelineHistory(2, (Ancestor(1, Lsn.parse("0/400000")),))
    with feeding(replace(files, plan=replace(files.plan, branch=branch)), directory):
        for _ in range(2):
            assert get(directory, "00000002.history").startswith(b"1\t0/400000\t")
        assert ask(directory, "00000003.history").returncode == 1
        expected = (directory / EXPECTED).read_text().split()
        assert expected == sorted([name(index) for index in range(COUNT)] + ["00000002.history"])


def test_what_the_base_carries_is_not_served(files: Gated, directory: Path) -> None:
    """Recovery finds that in pg_wal, where the base put it."""
    own = replace(files.plan.segments[0], place=InBase(files.plan.base.day))
    plan: Plan = replace(files.plan, segments=(own, *files.plan.segments[1:]))
    with feeding(replace(files, plan=plan), directory) as feeder:
        assert feeder.total == COUNT - 1
        assert ask(directory, name(0)).returncode == 1
        assert get(directory, name(1)) == segment_bytes(segment(FIRST + 1))


def test_another_base_is_read_once_for_all_that_it_alone_has(files: Gated, directory: Path) -> None:
    other = InBase(files.plan.base.day.replace(day=28))
    carried = [replace(part, place=other) for part in files.plan.segments[1:4]]
    plan: Plan = replace(files.plan, segments=(files.plan.segments[0], *carried, *files.plan.segments[4:]))
    served = replace(files, plan=plan)
    with feeding(served, directory):
        for index in range(COUNT):
            assert get(directory, name(index)) == segment_bytes(segment(FIRST + index))
    assert served.from_bases == [(name(1), name(2), name(3))]


def test_the_feeder_ends_with_its_block_in_the_middle_of_its_work(files: Gated, directory: Path) -> None:
    files.gate.clear()
    before = threading.active_count()
    opener = threading.Timer(0.2, files.gate.set)
    with feeding(files, directory):
        opener.start()
    opener.join()
    assert threading.active_count() == before
    count = len(ready(directory))
    time.sleep(0.05)
    assert len(ready(directory)) == count <= WINDOW


def test_nothing_is_handed_out_before_it_may_be(files: Gated, directory: Path) -> None:
    with feed(files, directory, NO_BINARIES, ahead_bytes=WINDOW * SEGMENT_SIZE) as feeder:
        wait_for(lambda: len(list((directory / "made").iterdir())) == WINDOW, what="what is made ahead")
        assert not ready(directory)
        feeder.open_up()
        wait_until_ready(directory, {name(index) for index in range(WINDOW)})


def test_none_is_handed_out_before_the_one_in_front_of_it_was_looked_through(
    files: Gated, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A record that begins in one may have to be changed at its end, in the next."""
    late = threading.Event()
    make = Gated.make

    def delay(self: Gated, segment: WalSegment, path: Path) -> None:
        if str(segment.name) == name(1):
            late.wait(20)
        make(self, segment, path)

    monkeypatch.setattr(Gated, "make", delay)
    with feeding(files, directory):
        wait_until_ready(directory, {name(0), name(3)})
        assert (directory / "made" / name(2)).exists()
        late.set()
        wait_until_ready(directory, {name(index) for index in range(WINDOW)})
