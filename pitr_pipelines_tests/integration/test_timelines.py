"""After a promotion or a restore the server goes on along a new timeline; every moment stays reachable."""

from __future__ import annotations

import os

import pytest

from pitr_pipelines.errors import ForeignWal, NotRestorable
from pitr_pipelines.restore.target import LatestTarget, LsnTarget, TimeTarget
from pitr_pipelines.wal import archive
from pitr_pipelines_tests.integration.branching import begin
from pitr_pipelines_tests.servers import MAJORS, ServerFactory, SettingsMaker, wait_for

pytestmark = pytest.mark.slow

oldest_and_newest = pytest.mark.parametrize("major", MAJORS[:1] + MAJORS[-1:])


@oldest_and_newest
@pytest.mark.parametrize("crashed", [False, True], ids=["shutdown", "crash"])
def test_moments_before_at_and_after_a_promotion(
    server_factory: ServerFactory, pitr_settings: SettingsMaker, major: int, crashed: bool
) -> None:
    made = begin(server_factory, pitr_settings, major)
    first = made.insert(1)
    made.switch()
    second = made.insert(2)
    made.promote(crashed=crashed)
    third = made.insert(3)
    made.switch()
    switched = archive.read_history(made.server.archive / "00000002.history").ancestors[-1].switched_at
    written = {file.name: file.closed_at for file in archive.scan_archive(made.server.archive)}
    at_the_switch = written["00000002.history"]

    # Nothing has seen the server on timeline 2 yet, but timeline 1 has fallen silent before.
    plan = made.plan(TimeTarget(third))
    assert plan.branch.timeline == 2
    assert ["taken for the server's" in note for note in plan.notes] == [True]
    assert made.rows(TimeTarget(third)) == {1, 2, 3}
    assert made.rows(TimeTarget(second)) == {1, 2}
    assert made.rows(TimeTarget(at_the_switch)) == {1, 2}
    assert made.rows(LsnTarget(switched, inclusive=False)) == {1, 2}
    assert made.rows(TimeTarget(first)) == {1}
    with pytest.raises(NotRestorable, match="to be complete until") as refused:
        made.plan(TimeTarget(third), timeline=1)
    assert "Timeline 2 was not looked at; `--timeline 2` does that." in refused.value.remedy

    assert made.bundle().problem is None
    made.server.stop()
    made.lose_raw_wal()
    assert made.plan(TimeTarget(third)).notes == ()
    assert made.rows(TimeTarget(third)) == {1, 2, 3}
    assert made.rows(TimeTarget(second)) == {1, 2}
    assert made.rows(LatestTarget()) == {1, 2, 3}


@oldest_and_newest
def test_restored_clusters_go_on_as_the_server_and_every_branch_stays_reachable(
    server_factory: ServerFactory, pitr_settings: SettingsMaker, major: int
) -> None:
    made = begin(server_factory, pitr_settings, major)
    first = made.insert(1)
    second = made.insert(2)
    made.switch()
    third = made.insert(3)
    assert made.bundle().problem is None

    with made.goes_on_from(TimeTarget(first)):
        fourth = made.insert(4)
        made.switch()
        # Which of the two the server is on is only known when it is asked.
        unasked = made.plan(TimeTarget(second))
        assert unasked.branch.timeline == 1
        assert any("If it is the server's, use `--timeline 2`" in note for note in unasked.notes)
        asked = made.plan(TimeTarget(second), seal=True)
        assert asked.branch.timeline == 2
        assert len(asked.notes) == 1
        assert "`--timeline 1`" in asked.notes[0]
        assert made.bundle().problem is None

        assert made.rows(TimeTarget(second)) == {1}
        assert made.rows(TimeTarget(second), timeline=1) == {1, 2}
        assert made.rows(TimeTarget(third), timeline=1) == {1, 2, 3}
        assert made.rows(LatestTarget(), timeline=1) == {1, 2, 3}
        assert made.rows(TimeTarget(fourth)) == {1, 4}

        with made.goes_on_from(TimeTarget(second), timeline=1):
            fifth = made.insert(5)
            made.promote(crashed=True)
            sixth = made.insert(6)
            assert made.bundle().problem is None
            made.server.stop()
            made.lose_raw_wal()
            plan = made.plan(TimeTarget(sixth))
            assert [a.timeline for a in plan.branch.ancestors] == [1, 3], "a number was used twice"
            assert made.rows(TimeTarget(sixth)) == {1, 2, 5, 6}
            assert made.rows(TimeTarget(fifth)) == {1, 2, 5}
            assert made.rows(TimeTarget(fourth), timeline=2) == {1, 4}
            assert made.rows(TimeTarget(third), timeline=1) == {1, 2, 3}
            with pytest.raises(NotRestorable, match="there is no timeline 5 of order-db") as refused:
                made.plan(LatestTarget(), timeline=5)
            assert refused.value.remedy.count("left timeline 1 at") == 2
            assert "timeline 4, left timeline 3 at" in refused.value.remedy
            made.server.start()
        made.server.start()


def test_a_stray_copy_that_wrote_last_is_not_taken_for_the_server(
    server_factory: ServerFactory, pitr_settings: SettingsMaker
) -> None:
    made = begin(server_factory, pitr_settings)
    made.insert(1)
    made.switch()
    with made.stray() as copy:
        made.promote(copy)
        # Longer ago than clocks may be apart.
        history = made.server.archive / "00000003.history"
        wait_for(history.exists, what="the stray's history file in the archive")
        os.utime(history, (history.stat().st_mtime - 10,) * 2)
        made.insert(10, copy)
        made.switch(copy)
        second = made.insert(2)
        made.switch()
        eleventh = made.insert(11, copy)
        made.switch(copy)
        latest = made.plan(LatestTarget(), seal=True)
        assert latest.branch.timeline == 1
        assert latest.notes == ()
        made.insert(12, copy)
        made.switch(copy)
        made.server.stop()
    plan = made.plan(TimeTarget(second))
    assert plan.branch.timeline == 1
    assert any("timeline 3 was written to until" in note and "a stray copy" in note for note in plan.notes)
    assert made.rows(TimeTarget(second)) == {1, 2}
    assert made.rows(LatestTarget(), seal=True) == {1, 2}
    assert made.rows(TimeTarget(eleventh), timeline=3) == {1, 10, 11}


def test_histories_that_were_damaged_in_the_archive_are_read_from_bundles(
    server_factory: ServerFactory, pitr_settings: SettingsMaker
) -> None:
    made = begin(server_factory, pitr_settings)
    made.insert(1)
    made.promote()
    second = made.insert(2)
    assert made.bundle().problem is None
    history = made.server.archive / "00000002.history"
    history.write_bytes(history.read_bytes()[:5])
    assert made.rows(TimeTarget(second)) == {1, 2}
    # One that can be read and says something else is neither believed nor bundled.
    text = (made.server.cluster.data_directory / "pg_wal" / history.name).read_text()
    history.write_text(text.replace("0/", "1/", 1))
    assert isinstance(made.bundle().problem, ForeignWal)
    plan = made.plan(TimeTarget(second))
    assert ["two servers have used timeline 2" in note for note in plan.notes] == [True]
    assert "the former counts, which came with the server's seal" in plan.notes[0]
    assert made.rows(TimeTarget(second)) == {1, 2}
    history.unlink()
    assert made.rows(TimeTarget(second)) == {1, 2}
