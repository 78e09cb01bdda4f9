"""What a copy of the server with the same system identifier can do to its archive, and how that shows."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from pitr_pipelines.catalog.inventory import read_inventory
from pitr_pipelines.catalog.records import BundleState
from pitr_pipelines.errors import ArchiveStalled, ForeignWal
from pitr_pipelines.postgres.readiness import check
from pitr_pipelines.restore.target import LatestTarget, TimeTarget
from pitr_pipelines_tests.integration.branching import Branching, begin
from pitr_pipelines_tests.servers import MAJORS, ServerFactory, SettingsMaker, wait_for

pytestmark = pytest.mark.slow

oldest_and_newest = pytest.mark.parametrize("major", MAJORS[:1] + MAJORS[-1:])


def archiver_says(made: Branching) -> str:
    """Return what `pitr check` says of the archiver, or nothing if it is well."""
    (found,) = (found for found in check(made.server.name, made.settings) if found.subject == "archiver")
    return "" if found.ok else f"{found.detail}: {found.remedy}"


def move_away(made: Branching, names: list[str]) -> None:
    """Clean up as docs/timelines.md says."""
    aside = made.settings.backup_root / "aside"
    aside.mkdir()
    for name in names:
        shutil.move(made.server.archive / name, aside / name)
    # A new segment wakes the archiver, which else tries again once a minute.
    made.server.execute("SELECT pg_logical_emit_message(true, 'x', 'y')")
    made.server.execute("SELECT pg_switch_wal()")


@oldest_and_newest
def test_a_copy_that_took_the_next_timeline_first_holds_up_the_archiver_loudly_and_nothing_is_lost(
    server_factory: ServerFactory, pitr_settings: SettingsMaker, major: int
) -> None:
    made = begin(server_factory, pitr_settings, major, bundle={"archive_wait_s": 3})
    made.insert(1)
    made.switch()
    with made.clone(promoted=True) as copy:
        made.insert(10, copy)
        made.switch(copy)
    second = made.insert(2)
    made.promote()
    made.insert(3)
    wait_for(lambda: archiver_says(made), what="the archiver to fail")
    assert "00000002.history is there already, with other content" in archiver_says(made)
    assert "docs/timelines.md" in archiver_says(made)
    assert "refused 00000002.history" in made.server.log()
    problem = made.bundle().problem
    assert isinstance(problem, ArchiveStalled | ForeignWal), problem
    assert "timeline" in problem.remedy

    foreign = [path.name for path in made.server.archive.iterdir() if path.name.startswith("00000002")]
    move_away(made, foreign)
    wait_for(lambda: not archiver_says(made), what="the archiver to go on", timeout_s=90)
    again = made.bundle()
    assert again.problem is None, again.problem
    assert read_inventory(made.layout, made.server.name).contested == {}
    assert made.rows(LatestTarget()) == {1, 2, 3}
    assert made.rows(TimeTarget(second)) == {1, 2}


@oldest_and_newest
def test_a_clone_on_the_same_timeline_that_archives_first_is_found_out_by_the_seal(
    server_factory: ServerFactory, pitr_settings: SettingsMaker, major: int
) -> None:
    made = begin(server_factory, pitr_settings, major)
    made.insert(1)
    with made.clone() as copy:
        made.insert(10, copy)
        taken = made.switch(copy)
    second = made.insert(2)
    outcome = made.bundle()
    assert isinstance(outcome.problem, ForeignWal)
    assert taken in outcome.problem.what
    assert "Another server, a copy with the same system identifier" in outcome.problem.what
    assert outcome.record.state is BundleState.OPEN
    assert outcome.record.seal is None

    wait_for(lambda: archiver_says(made), what="the archiver to fail")
    assert f"{taken} is there already, with other content" in archiver_says(made)
    move_away(made, [taken])
    wait_for(lambda: not archiver_says(made), what="the archiver to go on", timeout_s=90)
    again = made.bundle()
    assert again.problem is None, again.problem
    made.server.stop()
    assert made.rows(TimeTarget(second)) == {1, 2}
    assert made.rows(LatestTarget()) == {1, 2}


def test_a_restored_server_without_its_history_file_in_the_archive_gives_it_when_it_is_sealed(
    server_factory: ServerFactory, pitr_settings: SettingsMaker
) -> None:
    made = begin(server_factory, pitr_settings)
    first = made.insert(1)
    made.switch()
    with made.goes_on_from(TimeTarget(first)):
        history: Path = made.server.archive / "00000002.history"
        made.insert(2)
        made.switch()
        assert not history.exists()
        assert made.bundle().problem is None
        own = made.server.cluster.data_directory / "pg_wal" / history.name
        assert history.read_bytes() == own.read_bytes()
        assert abs(history.stat().st_mtime - own.stat().st_mtime) < 1
