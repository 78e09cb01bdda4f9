"""A restore that stays at its target shows exactly that, whatever is done to its server."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from pitr_pipelines.errors import NotRestorable
from pitr_pipelines.restore.at_target import AtTarget
from pitr_pipelines.restore.resume import NotResumable
from pitr_pipelines.restore.target import (
    ImmediateTarget,
    LatestTarget,
    LsnTarget,
    NameTarget,
    Target,
    TimeTarget,
    XidTarget,
)
from pitr_pipelines.settings import Settings
from pitr_pipelines_tests.integration.restoring import now
from pitr_pipelines_tests.integration.standing import stood
from pitr_pipelines_tests.integration.test_targets import Written, start
from pitr_pipelines_tests.servers import MAJORS, ServerFactory, SettingsMaker

pytestmark = pytest.mark.slow

IN_RECOVERY = "in archive recovery"
SHUT_DOWN = "shut down in recovery"


def hide(settings: Settings) -> Path:
    """Take all backups away; return where they are."""
    return settings.backup_root.rename(settings.backup_root.with_name("hidden"))


@pytest.mark.parametrize("major", MAJORS[:1] + MAJORS[-1:])
def test_paused_at_any_target_it_shows_that_state_and_is_promoted_to_it_without_any_backup(
    server_factory: ServerFactory, pitr_settings: SettingsMaker, major: int
) -> None:
    made = start(server_factory, pitr_settings, major)
    made.insert(1)
    made.mark("one")
    made.insert(2)
    made.connection.execute("CHECKPOINT")
    made.insert(3)
    time.sleep(0.01)
    idle = now()
    time.sleep(1.5)  # what closes the segment must be later than clocks and file systems may err
    made.connection.execute("SELECT pg_logical_emit_message(false, 'idle', 'no commit')")
    made.connection.execute("SELECT pg_switch_wal()")
    made.connection.close()
    made.server.stop()
    targets: dict[Target, set[int]] = {
        TimeTarget(made.times[2]): {0, 1, 2},
        TimeTarget(made.times[2], inclusive=False): {0, 1},
        LsnTarget(made.lsns[1]): {0, 1},
        XidTarget(made.xids[2]): {0, 1, 2},
        NameTarget("one"): {0, 1},
        ImmediateTarget(): {0},
        LatestTarget(): {0, 1, 2, 3},
        TimeTarget(idle): {0, 1, 2, 3},
    }
    for target, expected in targets.items():
        with stood(made.settings, target) as stand:
            assert stand.report.running
            assert not (stand.directory / "INCOMPLETE").exists()
            for restart in (None, "immediate"):
                if restart:
                    stand.restart(restart)
                assert stand.rows() == expected, target
                assert stand.is_read_only(), target
                assert stand.replayed_to() == str(stand.report.recovered_to_lsn), target
                assert stand.state == IN_RECOVERY
            hidden = hide(made.settings)
            stand.promote()
            hidden.rename(made.settings.backup_root)
            assert stand.rows() == expected, target
            assert not stand.is_read_only(), target
            assert stand.report.timeline == 2
            stand.restart()
            assert stand.rows() == {*expected, 99}
            with stand.connect() as connection:
                kept = connection.execute("SELECT current_setting('wal_retrieve_retry_interval')").fetchone()
                assert kept == ("5s",), "what held it in recovery is undone"


def test_shut_down_at_the_target_it_is_stopped_and_started_it_is_as_if_it_had_paused(
    server_factory: ServerFactory, pitr_settings: SettingsMaker
) -> None:
    made = written(server_factory, pitr_settings)
    with stood(made.settings, XidTarget(made.xids[2]), AtTarget.SHUTDOWN) as stand:
        assert not stand.report.running
        assert stand.cluster.pid() is None
        assert stand.state == SHUT_DOWN
        stand.start()
        assert stand.rows() == {0, 1, 2}
        assert stand.is_read_only()
        stand.cluster.stop()
        assert stand.state == SHUT_DOWN
        stand.promote()
        assert stand.rows() == {0, 1, 2}


def test_postgresqls_own_promotion_gives_the_same_state(
    server_factory: ServerFactory, pitr_settings: SettingsMaker
) -> None:
    made = written(server_factory, pitr_settings)
    with stood(made.settings, TimeTarget(made.times[1])) as stand:
        with stand.connect() as connection:
            connection.execute("SELECT pg_promote()")
        assert stand.rows() == {0, 1}
        assert not stand.is_read_only()
        with pytest.raises(NotResumable, match="is promoted already"):
            stand.promote()


def test_it_moves_on_from_target_to_target_and_is_promoted_at_the_last(
    server_factory: ServerFactory, pitr_settings: SettingsMaker
) -> None:
    made = written(server_factory, pitr_settings, rows=7)
    with stood(made.settings, ImmediateTarget()) as stand:
        assert stand.rows() == {0}
        stand.move_on(TimeTarget(made.times[1]), AtTarget.PAUSE)
        assert stand.rows() == {0, 1}
        stand.move_on(XidTarget(made.xids[3], inclusive=False), AtTarget.SHUTDOWN)
        assert stand.cluster.pid() is None
        stand.move_on(XidTarget(made.xids[3]), AtTarget.PAUSE)
        assert stand.rows() == {0, 1, 2, 3}
        stand.restart("immediate")
        assert stand.rows() == {0, 1, 2, 3}
        stand.move_on(LsnTarget(made.lsns[5], inclusive=False), AtTarget.PAUSE)
        assert stand.rows() == {0, 1, 2, 3, 4, 5}
        stand.move_on(LatestTarget(), AtTarget.PAUSE)
        assert stand.rows() == set(range(8))
        assert stand.is_read_only()
        stand.promote()
        assert stand.rows() == set(range(8))
        assert not stand.is_read_only()
    with stood(made.settings, TimeTarget(made.times[1])) as stand:
        with pytest.raises(NotRestorable, match="the next one ended at") as refused:
            stand.move_on(TimeTarget(made.times[1]))
        assert made.times[2].isoformat(sep=" ") in refused.value.what
        assert stand.rows() == {0, 1}
        stand.move_on(TimeTarget(made.times[4]))
        assert stand.rows() == {0, 1, 2, 3, 4}
        assert not stand.is_read_only()
        assert stand.report.at_target is AtTarget.PROMOTE


def test_where_nobody_could_connect_it_neither_promotes_nor_fails(
    server_factory: ServerFactory, pitr_settings: SettingsMaker
) -> None:
    """PostgreSQL's own pause promotes there: more than 64 subtransactions hide the snapshot from standbys."""
    made = start(server_factory, pitr_settings, None)
    made.insert(1)
    with made.server.connect() as other:
        other.execute("BEGIN")
        for number in range(70):
            other.execute("SAVEPOINT one_more")
            other.execute("INSERT INTO rows VALUES (%s)", [1000 + number])
        made.connection.execute("CHECKPOINT")
        made.insert(2)
        made.insert(3)
        other.execute("COMMIT")
    made.connection.execute("SELECT pg_switch_wal()")
    made.connection.close()
    made.server.stop()
    with stood(made.settings, TimeTarget(made.times[2])) as stand:
        assert not stand.report.running
        assert stand.state == SHUT_DOWN
        assert any("more than 64 subtransactions" in note for note in stand.report.notes)
        stand.move_on(TimeTarget(made.times[3]), AtTarget.SHUTDOWN)
        stand.promote()
        assert stand.rows() == {0, 1, 2, 3}


def written(server_factory: ServerFactory, pitr_settings: SettingsMaker, rows: int = 3) -> Written:
    """Write rows over several segments, with a checkpoint in between, and stop the source."""
    made = start(server_factory, pitr_settings, None)
    for number in range(1, rows + 1):
        made.insert(number)
        if number % 3 == 2:
            made.connection.execute("CHECKPOINT")
            made.connection.execute("SELECT pg_switch_wal()")
    made.connection.execute("SELECT pg_switch_wal()")
    made.connection.close()
    made.server.stop()
    return made
