"""Every target and what is done there, as the restore job is asked for it, in this process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import psycopg
import pytest

from pitr_pipelines.defs.build import build_definitions
from pitr_pipelines.postgres.account import server_account
from pitr_pipelines.postgres.binaries import find_binaries
from pitr_pipelines.postgres.server import Cluster
from pitr_pipelines.restore.resume import find_standing, promote
from pitr_pipelines.wal.hours import Hour
from pitr_pipelines_tests.integration.test_targets import Written, start
from pitr_pipelines_tests.servers import ServerFactory, SettingsMaker

pytestmark = pytest.mark.slow


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as ephemeral:
        yield ephemeral


@pytest.fixture
def made(server_factory: ServerFactory, pitr_settings: SettingsMaker) -> Written:
    """Three rows, a restore point after each, in one archived segment; the source is stopped."""
    made = start(server_factory, pitr_settings, None)
    for number in (1, 2, 3):
        made.insert(number)
        made.mark(f"after {number}")
    made.connection.execute("SELECT pg_switch_wal()")
    made.connection.close()
    made.server.stop()
    return made


class Launchpad:
    """Launches the restore job for the hour in which the rows were written."""

    def __init__(self, made: Written, instance: dg.DagsterInstance) -> None:
        self.made = made
        self.hour = Hour.containing(made.times[1])
        self._job = build_definitions(made.settings).resolve_job_def("restore")
        self._instance = instance

    def launch(self, what: dict[str, Any], where: dict[str, Any], hour: Hour) -> dg.ExecuteInProcessResult:
        ops = {"plan_restore": {"config": {"database": "order-db", **what}}, "run_restore": {"config": where}}
        return self._job.execute_in_process(
            instance=self._instance,
            partition_key=str(hour),
            run_config={"ops": ops},
            raise_on_error=False,
        )

    @contextmanager
    def restored(
        self, what: dict[str, Any], where: dict[str, Any] | None = None, hour: Hour | None = None
    ) -> Iterator[dict[str, Any]]:
        """Restore; give the metadata that was reported, and end the server afterwards."""
        result = self.launch(what, where or {}, hour or self.hour)
        (event,) = [event for event in result.all_events if event.is_step_materialization]
        found = event.step_materialization_data.materialization.metadata
        metadata: dict[str, Any] = {name: value.value for name, value in found.items()}
        binaries = find_binaries(self.made.server.major, self.made.settings.binaries)
        cluster = Cluster(Path(metadata["directory"]) / "data", binaries, server_account(None))
        try:
            yield metadata
        finally:
            cluster.stop("immediate")

    def refusal(
        self, what: dict[str, Any], where: dict[str, Any] | None = None, hour: Hour | None = None
    ) -> str:
        """Return why the run was refused; nothing may have been touched."""
        result = self.launch(what, where or {}, hour or self.hour)
        (event,) = [event for event in result.all_events if event.is_step_failure]
        failure = event.step_failure_data.user_failure_data
        assert failure is not None
        assert not self.made.settings.restore_root.exists()
        return failure.description or ""


@pytest.fixture
def launchpad(made: Written, instance: dg.DagsterInstance) -> Launchpad:
    return Launchpad(made, instance)


def rows(metadata: dict[str, Any]) -> set[int]:
    address = f"host=127.0.0.1 port={metadata['port']} user=postgres dbname=postgres"
    with psycopg.connect(address) as connection:
        return {row[0] for row in connection.execute("SELECT id FROM rows")}


def test_each_setting_restores_what_it_names(made: Written, launchpad: Launchpad) -> None:
    base_hour = Hour.containing(made.base_ended_at)
    day = made.base_ended_at.date().isoformat()
    asked: list[tuple[dict[str, Any], set[int], Hour]] = [
        ({"target_time": made.times[2].isoformat()}, {0, 1, 2}, launchpad.hour),
        ({"target_time": made.times[2].isoformat(), "exclusive": True}, {0, 1}, launchpad.hour),
        ({"target_lsn": str(made.lsns[2])}, {0, 1, 2}, launchpad.hour),
        ({"target_name": "after 1"}, {0, 1}, launchpad.hour),
        ({"target_xid": made.xids[2]}, {0, 1, 2}, launchpad.hour),
        ({"target_xid": made.xids[2], "exclusive": True}, {0, 1}, launchpad.hour),
        ({"target_immediate": True}, {0}, base_hour),
        ({"target_immediate": True, "base": day}, {0}, base_hour),
    ]
    for what, expected, hour in asked:
        with launchpad.restored(what, hour=hour) as metadata:
            assert rows(metadata) == expected, what
            assert metadata["at_target"] == "promote"


def test_a_paused_restore_says_how_to_go_on_and_does(made: Written, launchpad: Launchpad) -> None:
    where = {"at_target": "pause"}
    with launchpad.restored({"target_xid": made.xids[2]}, where) as metadata:
        assert metadata["running"] is True
        assert rows(metadata) == {0, 1, 2}
        assert metadata["promote_command"] == f"pitr restore order-db --resume {metadata['directory']}"
        assert metadata["move_on_command"] == metadata["promote_command"] + " --latest"
        standing = find_standing(made.settings, "order-db", Path(metadata["directory"]))
        assert promote(made.settings, standing).running
        assert rows(metadata) == {0, 1, 2}
    with launchpad.restored({"target_name": "after 1"}, {"at_target": "shutdown"}) as metadata:
        assert metadata["running"] is False
        assert not (Path(metadata["directory"]) / "data" / "postmaster.pid").exists()


def test_requests_that_do_not_fit_are_refused_before_anything_is_touched(
    made: Written, launchpad: Launchpad
) -> None:
    said = launchpad.refusal({"target_xid": made.xids[1]}, {"at_target": "pause", "keep_running": False})
    assert "cannot be left stopped" in said
    assert "Ask for shutdown" in said
    earlier = Hour(Hour.containing(made.base_ended_at).start - timedelta(hours=2))
    said = launchpad.refusal({"target_immediate": True}, hour=earlier)
    assert "the newest base backup is not in the chosen hour" in said
    assert f"Choose the partition {Hour.containing(made.base_ended_at)}" in said
    assert "several targets" in launchpad.refusal({"target_lsn": "0/3000028", "target_immediate": True})
    assert "is not a day" in launchpad.refusal({"target_immediate": True, "base": "first"})
