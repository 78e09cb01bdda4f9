"""Each way to be unrecoverable is refused, in words that help, before anything is touched.

One history of backups has them all: what is asked of it differs. Damage is done to copies of it.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from pitr_pipelines.defs.build import build_definitions
from pitr_pipelines.errors import BinariesNotFound, DestinationInUse, NotRestorable, PitrError
from pitr_pipelines.restore.destination import DestinationUnusable
from pitr_pipelines.restore.prepare import plan_restore
from pitr_pipelines.restore.restore import choose_destination, restore
from pitr_pipelines.restore.target import (
    LatestTarget,
    Target,
    TimeTarget,
)
from pitr_pipelines.wal.hours import Hour
from pitr_pipelines_tests.integration.restoring import now
from pitr_pipelines_tests.integration.unreachable import (
    DATABASE,
    WITHOUT_BASE,
    History,
    copied,
    pitr,
    tell,
    untouched,
)
from pitr_pipelines_tests.servers import (
    ServerFactory,
    Templates,
    make_reachable_directory,
    remove_directory,
)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def history(templates: Templates) -> Iterator[History]:
    directory = make_reachable_directory()
    factory = ServerFactory(directory, templates)
    try:
        yield tell(factory, directory)
    finally:
        factory.stop_all()
        remove_directory(directory)


def refused(
    history: History, target: Target, kind: type[PitrError] = NotRestorable, **options: Any
) -> PitrError:
    """Ask for a restore as everybody does, and return the refusal."""

    def ask() -> None:
        plan = plan_restore(history.settings, DATABASE, target, **options)
        to = choose_destination(history.settings, plan, to=None, port=None, keep_running=False)
        restore(history.settings, plan, to)

    with untouched(history), pytest.raises(kind) as caught:
        ask()
    assert caught.value.remedy
    return caught.value


CASES = {
    "too early": ("is before the end of the first base backup", "What can be restored: from"),
    "too early an LSN": ("is before the end of the first base backup", "The WAL that is there goes from"),
    "in the future": ("is in the future (it is", "Nearest to what you asked for"),
    "in the gap": ("is missing, from the archive and from every bundle", "Nearest to what you asked for"),
    "not covered yet": ("could not be sealed to cover it", "ask for the latest moment"),
    "abandoned": ("is not in the WAL", "can be restored"),
    "an unknown xid": ("is not in the WAL", "It may not have ended"),
    "an unknown name": ("the restore point 'nowhere' is not in the WAL", "A name must be given exactly"),
    "an LSN beyond the end": ("holds no record at FF/0 or later", "The WAL that is there goes from"),
    "a subtransaction": ("is not in the WAL", "subtransaction: recovery stops only where a whole"),
    "another day's base": ("there is no base backup of order-db of", "There are those of"),
}
"""What is asked for, and words of what is said of it and of what to do."""


@pytest.mark.parametrize("case", CASES)
def test_what_cannot_be_reached_is_refused_and_what_is_offered_instead_can_be_had(
    history: History, case: str
) -> None:
    what, remedy = CASES[case]
    refusal = refused(history, history.target(case))
    assert refusal.exit_code == 6
    assert what in refusal.what
    assert remedy in refusal.remedy
    assert isinstance(refusal, NotRestorable)
    assert refusal.nearest
    for moment in refusal.nearest:
        with untouched(history):
            plan_restore(history.settings, DATABASE, TimeTarget(moment), seal=False)


def test_a_gap_is_named_and_both_its_sides_are_offered(history: History) -> None:
    refusal = refused(history, history.target("in the gap"))
    assert f"the WAL segment {history.missing} of {DATABASE} is missing" in refusal.what
    assert isinstance(refusal, NotRestorable)
    before, after = refusal.nearest
    assert before < history.moment("in_gap") < after


def test_what_is_on_an_abandoned_timeline_can_be_had_if_that_is_asked_for(history: History) -> None:
    plan = plan_restore(history.settings, DATABASE, history.target("abandoned"), timeline=1, seal=False)
    assert plan.branch.timeline == 1


def test_an_unknown_timeline_is_refused(history: History) -> None:
    refusal = refused(history, history.target("latest"), timeline=9)
    assert "timeline 9" in refusal.what


def test_without_a_base_backup_nothing_can_be_restored(history: History) -> None:
    with untouched(history), pytest.raises(NotRestorable, match="no base backup of inventory-db") as caught:
        plan_restore(history.settings, WITHOUT_BASE, LatestTarget())
    assert "pitr backup inventory-db" in caught.value.remedy


def flip(path: Path, at: float = 0.5) -> None:
    times = path.stat()
    content = bytearray(path.read_bytes())
    content[int(len(content) * at)] ^= 0x10
    path.write_bytes(content)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def flip_bases(history: History, which: slice) -> str:
    bases = sorted(path for path in history.layout.bases(DATABASE).iterdir() if path.name[0] == "2")
    for base in bases[which]:
        (file,) = base.glob("base.tar*")
        flip(file)
    return f"{bases[which][-1]}/base.tar"


def flip_newest_segment(history: History) -> str:
    flip(history.layout.wal(DATABASE) / history.newest, at=0.00001)
    return history.newest


def foreign_segment(history: History) -> str:
    """Put a segment of another cluster where ours was: its first page bears the identifier at byte 24."""
    flip(history.layout.wal(DATABASE) / history.newest, at=26 / (1 << 20))
    return history.newest


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        pytest.param(lambda history: flip_bases(history, slice(1, None)), "base.tar", id="every base"),
        pytest.param(flip_newest_segment, "damaged", id="a segment"),
        pytest.param(foreign_segment, "is of the cluster", id="a segment of another cluster"),
    ],
)
def test_damage_is_named_and_refused_where_there_is_no_other_way(
    history: History, damage: Callable[[History], str], says: str
) -> None:
    with copied(history) as harmed:
        file = damage(harmed)
        refusal = refused(harmed, harmed.target("late"))
        assert file in refusal.what
        assert says in refusal.what
        assert refusal.exit_code == 6
        assert isinstance(refusal, NotRestorable)
        for moment in refusal.nearest:
            plan_restore(harmed.settings, DATABASE, TimeTarget(moment), seal=False)


def test_a_damaged_base_is_passed_over_where_an_older_one_leads_there_too(history: History) -> None:
    with copied(history) as harmed:
        file = flip_bases(harmed, slice(-1, None))
        plan = plan_restore(harmed.settings, DATABASE, harmed.target("late"), seal=False)
        assert any(file in note for note in plan.notes)
        assert plan.base.day < now().date()


@contextmanager
def taken_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        yield taken.getsockname()[1]


@pytest.mark.parametrize(
    ("place", "says"),
    [
        ("restore/kept", "is not empty (it holds precious)"),
        ("backup/base/new", "lies in the backups themselves"),
        ("order-db.data/base/new", "lies in the data directory of a PostgreSQL cluster"),
        ("closed/new", "closed"),
    ],
)
def test_a_directory_that_cannot_be_is_refused_by_the_command_too(
    history: History, place: str, says: str
) -> None:
    closed = history.root / "closed"
    if place == "closed/new":
        closed.mkdir(mode=0o500 if os.geteuid() else 0o700)
    try:
        with untouched(history):
            directory = history.root / place
            there = directory.exists()
            plan = plan_restore(history.settings, DATABASE, LatestTarget(), seal=False)
            with pytest.raises((DestinationInUse, DestinationUnusable)) as caught:
                choose_destination(history.settings, plan, to=directory, port=None, keep_running=False)
            assert says in caught.value.what
            told = pitr(history, "restore", DATABASE, "--latest", "--to", str(directory))
            assert told.returncode == caught.value.exit_code == 7
            assert caught.value.what in told.stderr
            assert "Nothing was touched" in told.stderr
            assert directory.exists() == there
    finally:
        if closed.exists():
            closed.rmdir()


def test_too_little_space_is_refused(history: History) -> None:
    plan = plan_restore(history.settings, DATABASE, LatestTarget(), seal=False)
    huge = replace(plan, base=plan.base.model_copy(update={"uncompressed_bytes": 1024**5}))
    with (
        untouched(history),
        pytest.raises(DestinationUnusable, match="free, and this restore needs") as caught,
    ):
        choose_destination(history.settings, huge, to=None, port=None, keep_running=False)
    assert caught.value.exit_code == 7
    assert "Make room" in caught.value.remedy


def test_a_taken_port_is_refused(history: History) -> None:
    plan = plan_restore(history.settings, DATABASE, LatestTarget(), seal=False)
    with untouched(history), taken_port() as port:
        with pytest.raises(DestinationInUse, match=f"the port {port} of 127.0.0.1 is taken") as caught:
            choose_destination(history.settings, plan, to=None, port=port, keep_running=True)
        told = pitr(history, "restore", DATABASE, "--latest", "--port", str(port))
        assert told.returncode == 7
        assert caught.value.what in told.stderr


def test_without_the_programs_of_that_major_a_restore_is_refused(history: History) -> None:
    plan = plan_restore(history.settings, DATABASE, LatestTarget(), seal=False)
    gone = history.root / "gone"
    bare = history.settings.model_copy(update={"binaries": {plan.base.major: gone}})
    without = History(**{**vars(history), "settings": bare})
    for target in ("late", "latest"):
        refusal = refused(without, history.target(target), BinariesNotFound)
        assert str(gone) in refusal.what
        assert refusal.exit_code == 3


@pytest.mark.parametrize("case", ["in the gap", "not covered yet", "in the future"])
def test_the_command_ends_with_6_and_the_same_words(history: History, case: str) -> None:
    target = history.target(case)
    assert isinstance(target, TimeTarget)
    what, remedy = CASES[case]
    with untouched(history):
        told = pitr(history, "restore", DATABASE, target.moment.isoformat())
        assert told.returncode == 6
        assert what in told.stderr
        assert remedy in told.stderr
        answer = json.loads(pitr(history, "restore", DATABASE, target.moment.isoformat(), "--json").stdout)
    assert answer["exit_code"] == 6
    assert what in answer["what"]


@pytest.mark.parametrize(
    ("time", "says"),
    [
        ("2026-10-25 02:30:00", "show 2026-10-25 02:30:00 twice"),
        ("2026-03-29 02:30:00", "never show 2026-03-29 02:30:00"),
    ],
)
def test_a_time_that_the_clocks_show_twice_or_never_is_refused(
    history: History, time: str, says: str
) -> None:
    with untouched(history):
        told = pitr(history, "restore", DATABASE, time)
    assert told.returncode == 2
    assert says in told.stderr
    assert "'2026-10-25 02:30:00+02:00' or" in told.stderr or "'2026-03-29 02:30:00+01:00' or" in told.stderr


@pytest.mark.parametrize("case", ["in the gap", "not covered yet", "a directory"])
def test_in_dagster_the_run_fails_within_seconds_with_the_same_words(history: History, case: str) -> None:
    moment = history.moment({"in the gap": "in_gap", "not covered yet": "gone"}.get(case, "late"))
    ops: dict[str, Any] = {
        "plan_restore": {"config": {"database": DATABASE, "target_time": moment.isoformat()}}
    }
    if case == "a directory":
        ops["run_restore"] = {"config": {"directory": str(history.settings.restore_root / "kept")}}
    what = CASES[case][0] if case in CASES else "is not empty (it holds precious)"
    with untouched(history), dg.DagsterInstance.ephemeral() as instance:
        result = (
            build_definitions(history.settings)
            .resolve_job_def("restore")
            .execute_in_process(
                instance=instance,
                partition_key=str(Hour.containing(moment)),
                run_config={"ops": ops},
                raise_on_error=False,
            )
        )
    (failure,) = [event.step_failure_data for event in result.all_events if event.is_step_failure]
    assert failure.user_failure_data is not None
    assert what in str(failure.user_failure_data.description)
