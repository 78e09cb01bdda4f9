"""Drills on real servers: one that passes, and each kind of fault that one must find."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from pitr_pipelines.catalog.drills import DrillOutcome, DrillReport, drill_history, last_good_drill
from pitr_pipelines.catalog.layout import Layout
from pitr_pipelines.catalog.status import read_status
from pitr_pipelines.defs.build import build_definitions
from pitr_pipelines.defs.partitions import Partitions
from pitr_pipelines.errors import ArtifactBusy, DrillFailed, NotRestorable
from pitr_pipelines.postgres.account import run
from pitr_pipelines.postgres.base_backup import take_base_backup
from pitr_pipelines.restore.drill import run_drill
from pitr_pipelines.restore.target import TimeTarget
from pitr_pipelines.settings import Settings
from pitr_pipelines.wal.bundles import make_bundle
from pitr_pipelines.wal.hours import Hour
from pitr_pipelines_tests.integration.restoring import now
from pitr_pipelines_tests.servers import (
    ServerFactory,
    SettingsMaker,
    TestServer,
    create_backup_role,
    each_major,
    wait_for,
)

pytestmark = pytest.mark.slow

ORDERS = "SELECT count(*) > 0 FROM orders"


def settings_for(pitr_settings: SettingsMaker, server: TestServer, *checks: dict[str, Any]) -> Settings:
    entry = {**server.settings_entry, "drill_checks": list(checks)}
    return pitr_settings(server, databases={server.name: entry})


def back_up(server: TestServer, settings: Settings) -> datetime:
    """Take a base, go on writing, seal; return a moment that needs the WAL after the base."""
    take_base_backup(settings, "order-db")
    for number in range(3):
        server.execute(f"INSERT INTO orders SELECT g, g FROM generate_series(1, 10) g /* {number} */")
        server.execute("SELECT pg_switch_wal()")
    moment = now()
    server.execute("INSERT INTO orders VALUES (0, 0)")
    make_bundle(settings, "order-db", Hour.containing(now()))
    return moment


@pytest.fixture
def server(server_factory: ServerFactory) -> TestServer:
    server = server_factory()
    make_orders(server)
    return server


def make_orders(server: TestServer) -> None:
    server.execute("CREATE TABLE orders (id int, amount int)")
    server.execute("CREATE INDEX ON orders (amount)")
    server.execute("INSERT INTO orders SELECT g, g FROM generate_series(1, 1000) g")


@pytest.fixture(autouse=True)
def nothing_is_left(reachable_tmp: Path) -> Iterator[None]:
    """After every drill here: no scratch directory, and no process that works in one."""
    yield
    assert scratch_left(reachable_tmp / "restore") == []
    assert servers_below(reachable_tmp / "restore") == []


def scratch_left(restore_root: Path) -> list[Path]:
    return list(restore_root.iterdir()) if restore_root.exists() else []


def servers_below(directory: Path) -> list[int]:
    """Return the processes that work below a directory, removed or not."""
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            try:
                works_in = (process / "cwd").readlink()
            except OSError:
                continue
            if works_in.is_relative_to(directory):
                found.append(int(process.name))
    return found


def recorded(settings: Settings) -> list[DrillReport]:
    return list(drill_history(Layout(settings.backup_root), "order-db"))


def failing(settings: Settings, **options: Any) -> DrillReport:
    """Run a drill that must fail, and return what is on record of it."""
    report = run_drill(settings, "order-db", **options)
    assert report.outcome is DrillOutcome.FAILED
    assert recorded(settings)[0] == report
    assert last_good_drill(Layout(settings.backup_root), "order-db") is None
    with pytest.raises(DrillFailed) as failed:
        report.raise_if_failed()
    assert failed.value.exit_code == 10
    assert report.problems[0] in failed.value.what
    return report


@each_major
def test_a_drill_of_good_backups_passes_and_goes_on_record_with_its_times(
    server_factory: ServerFactory, pitr_settings: SettingsMaker, major: int
) -> None:
    server = server_factory(major=major)
    make_orders(server)
    count = {"query": "SELECT count(*) FROM orders WHERE amount <= 10", "expect": 10}
    settings = settings_for(pitr_settings, server, {"query": ORDERS}, {**count, "dbname": "postgres"})
    take_base_backup(settings, "order-db")
    server.execute("CREATE TABLE later ()")
    make_bundle(settings, "order-db", Hour.containing(now()))
    # A seal would end the segment; what the server notes by itself every quarter of a minute does not.
    segment = "SELECT pg_walfile_name(pg_current_wal_insert_lsn())"
    before = server.execute(segment)

    report = run_drill(settings, "order-db", seed=7)

    assert report.problems == ()
    assert report.outcome is DrillOutcome.PASSED
    assert [(check.check, check.problem) for check in report.checks] == [
        ("pg_checksums", None),
        ("pg_amcheck", None),
        (ORDERS, None),
        (count["query"], None),
    ]
    assert [check.found for check in report.checks][1:] == ["no damage", "t", "10"]
    took = report.seconds
    assert None not in (
        took.plan,
        took.fetch,
        took.replay,
        took.pages,
        took.finish,
        took.start,
        took.amcheck,
        took.checks,
    )
    assert took.recovery_time is not None
    assert 0 < took.recovery_time < took.total
    (window,) = read_status(settings, ["order-db"], now=now())[0].windows
    assert report.target is not None
    assert window.start <= report.target <= window.end
    assert recorded(settings) == [report]
    assert last_good_drill(Layout(settings.backup_root), "order-db") == report
    assert server.execute(segment) == before, "the source was written to"
    assert run_drill(settings, "order-db", seed=7).target == report.target
    assert len(recorded(settings)) == 2
    assert read_status(settings, ["order-db"], now=now())[0].drills.last_good_at is not None


@pytest.mark.parametrize(
    ("check", "says"),
    [
        ({"query": "SELECT count(*) > 5000 FROM orders"}, "it gave f instead of true"),
        ({"query": "SELECT count(*) FROM orders", "expect": 7}, "instead of 7"),
        ({"query": "SELECT * FROM orders"}, "instead of one value"),
        ({"query": "SELECT count(*) > 0 FROM nonsense"}, 'relation "nonsense" does not exist'),
        ({"query": "DELETE FROM orders"}, "read-only transaction"),
    ],
)
def test_a_query_that_does_not_give_what_it_should_fails_the_drill(
    server: TestServer, pitr_settings: SettingsMaker, check: dict[str, Any], says: str
) -> None:
    settings = settings_for(pitr_settings, server, check, {"query": ORDERS})
    moment = back_up(server, settings)
    report = failing(settings, target=TimeTarget(moment))
    (problem,) = report.problems
    assert says in problem
    assert check["query"] in problem
    assert [result.problem is None for result in report.checks] == [True, True, False, True]


def test_a_query_that_takes_too_long_fails_the_drill(
    server: TestServer, pitr_settings: SettingsMaker
) -> None:
    entry = {**server.settings_entry, "drill_checks": [{"query": "SELECT pg_sleep(60)"}]}
    settings = pitr_settings(
        server, databases={"order-db": entry}, drills={"check_timeout_s": 0.2, "amcheck": False}
    )
    report = failing(settings, target=TimeTarget(back_up(server, settings)))
    assert "statement timeout" in report.problems[0]


def test_a_missing_segment_fails_the_drill_and_is_named(
    server: TestServer, pitr_settings: SettingsMaker
) -> None:
    settings = settings_for(pitr_settings, server)
    moment = back_up(server, settings)
    layout = Layout(settings.backup_root)
    for path in layout.bundles("order-db").glob("2*"):
        path.unlink()
    segments = sorted(path for path in layout.wal("order-db").iterdir() if len(path.name) == 24)
    hole = segments[-2]
    hole.unlink()

    asked = failing(settings, target=TimeTarget(moment))
    drawn = failing(settings, seed=1)

    assert asked.seed is None
    for report in (asked, drawn):
        assert hole.name in report.problems[0]
        assert report.remedy is not None
        assert "pitr backup --replace order-db" in report.remedy


def test_a_damaged_bundle_fails_the_drill_and_is_named(
    server: TestServer, pitr_settings: SettingsMaker
) -> None:
    settings = settings_for(pitr_settings, server)
    moment = back_up(server, settings)
    layout = Layout(settings.backup_root)
    (bundle,) = layout.bundles("order-db").glob("*.tar.gz")
    content = bytearray(bundle.read_bytes())
    content[len(content) // 2] ^= 0x10
    bundle.write_bytes(content)
    for raw in layout.wal("order-db").iterdir():
        if len(raw.name) == 24:
            raw.unlink()
    report = failing(settings, target=TimeTarget(moment))
    assert str(bundle) in report.problems[0]
    assert report.plan is None


def test_a_corrupt_page_that_nothing_else_notices_is_found(
    server_factory: ServerFactory, pitr_settings: SettingsMaker
) -> None:
    """Without checksums a flipped bit on the source's disk goes into every copy, manifests and all."""
    server = server_factory(start=False)
    program = server.cluster.binaries.program("pg_checksums")
    done = run(server.cluster.account, [program, "--disable", "-D", server.cluster.data_directory])
    assert done.returncode == 0, done.stderr
    server.start()
    create_backup_role(server)
    make_orders(server)
    server.execute("CHECKPOINT")
    ((table,),) = server.execute("SELECT pg_relation_filepath('orders')")
    server.stop()
    flip_in_last_tuple(server.cluster.data_directory / table)
    server.start()
    settings = settings_for(pitr_settings, server, {"query": ORDERS})
    moment = back_up(server, settings)

    report = failing(settings, target=TimeTarget(moment))

    (problem,) = report.problems
    assert "pg_amcheck found damage" in problem
    assert "orders" in problem
    assert [result.problem is None for result in report.checks] == [False, True]
    without = settings.model_copy(update={"drills": settings.drills.model_copy(update={"amcheck": False})})
    assert run_drill(without, "order-db", target=TimeTarget(moment)).outcome is DrillOutcome.PASSED


def flip_in_last_tuple(path: Path) -> None:
    """Flip a bit of `amount` in the first row of a table's second page; the index keeps the true value."""
    content = bytearray(path.read_bytes())
    page = 8192
    pointer = int.from_bytes(content[page + 24 : page + 28], "little")
    offset, length = pointer & 0x7FFF, pointer >> 17
    content[page + offset + length - 4] ^= 0x40
    path.write_bytes(content)


def test_limits_that_the_source_sets_for_its_applications_do_not_hinder_a_drill(
    server: TestServer, pitr_settings: SettingsMaker
) -> None:
    settings = settings_for(pitr_settings, server, {"query": "SELECT count(pg_sleep(0.1)) > 0"})
    with server.connect() as connection:
        connection.execute("ALTER ROLE postgres SET default_transaction_read_only = on")
        connection.execute("ALTER ROLE postgres SET statement_timeout = '1ms'")
    take_base_backup(settings, "order-db")
    make_bundle(settings, "order-db", Hour.containing(now()))
    assert run_drill(settings, "order-db").problems == ()


def test_without_a_base_backup_a_drill_fails(server: TestServer, pitr_settings: SettingsMaker) -> None:
    report = failing(settings_for(pitr_settings, server))
    assert "nothing of order-db can be restored" in report.problems[0]
    assert report.target is None


def test_a_moment_that_cannot_be_expected_is_refused_and_leaves_no_record(
    server: TestServer, pitr_settings: SettingsMaker
) -> None:
    settings = settings_for(pitr_settings, server)
    back_up(server, settings)
    for moment in (datetime(2020, 1, 1, tzinfo=UTC), datetime(2999, 1, 1, tzinfo=UTC)):
        with pytest.raises(NotRestorable):
            run_drill(settings, "order-db", target=TimeTarget(moment))
    assert recorded(settings) == []


def test_in_dagster_a_drill_shows_its_recovery_time_and_one_that_fails_says_why(
    server: TestServer, pitr_settings: SettingsMaker
) -> None:
    settings = settings_for(pitr_settings, server, {"query": ORDERS})
    back_up(server, settings)
    week = Partitions.week_of(now())
    with dg.DagsterInstance.ephemeral() as instance:
        drills = build_definitions(settings).resolve_job_def("weekly_drills")
        assert drills.execute_in_process(instance=instance, partition_key=week).success
        event = instance.get_latest_materialization_event(dg.AssetKey(["order_db", "restore_drill"]))
        assert event is not None
        assert event.asset_materialization is not None
        assert event.asset_materialization.partition == week
        metadata = event.asset_materialization.metadata
        (report,) = recorded(settings)
        assert metadata["recovery_time_s"].value == report.seconds.recovery_time
        ages = build_definitions(settings).resolve_job_def("drill_ages").execute_in_process(instance=instance)
        assert [check.passed for check in ages.get_asset_check_evaluations()] == [True]

        settings = settings_for(pitr_settings, server, {"query": "SELECT false"})
        drills = build_definitions(settings).resolve_job_def("weekly_drills")
        failed = drills.execute_in_process(instance=instance, partition_key=week, raise_on_error=False)
        assert not failed.success
        (failure,) = [event.step_failure_data for event in failed.all_events if event.is_step_failure]
        assert failure.user_failure_data is not None
        assert "it gave f instead of true" in str(failure.user_failure_data.description)
        assert failure.user_failure_data.metadata["outcome"].value == "failed"
        assert [drill.outcome for drill in recorded(settings)] == [DrillOutcome.FAILED, DrillOutcome.PASSED]


class Terminal:
    """Runs `pitr` as somebody at a terminal does."""

    def __init__(self, pitr_settings: SettingsMaker) -> None:
        self.file = pitr_settings.file

    def start(self, *words: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", "from pitr_pipelines.cli import main; main(prog_name='pitr')", *words],
            env={**os.environ, "PITR_CONFIG": str(self.file), "PYTHONPATH": str(Path(__file__).parents[2])},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *words: str, exit_code: int = 0) -> str:
        process = self.start(*words)
        output, errors = process.communicate(timeout=120)
        assert process.returncode == exit_code, output + errors
        return output


def test_the_command_says_what_came_of_it_by_words_json_and_exit_code(
    server: TestServer, pitr_settings: SettingsMaker
) -> None:
    settings = settings_for(pitr_settings, server, {"query": ORDERS})
    back_up(server, settings)
    terminal = Terminal(pitr_settings)
    told = terminal.run("drill", "--seed", "3")
    assert "drill of order-db passed" in told
    assert "recovered in" in told
    assert "last drill   passed" in terminal.run("status")

    settings_for(pitr_settings, server, {"query": "SELECT false"})
    answer = json.loads(terminal.run("drill", "order-db", "--json", exit_code=10))
    assert answer["order-db"]["outcome"] == "failed"
    assert DrillReport.model_validate(answer["order-db"]) == recorded(settings)[0]
    assert "DRILL FAILED" in terminal.run("status")
    terminal.run("drill", "--at", "2020-01-01", exit_code=6)
    terminal.run("drill", "--at", "2020-01-01", "--seed", "1", exit_code=2)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_drill_that_is_interrupted_leaves_nothing_or_the_next_one_removes_it(
    server: TestServer, pitr_settings: SettingsMaker, reachable_tmp: Path, number: signal.Signals
) -> None:
    settings = settings_for(pitr_settings, server, {"query": "SELECT pg_sleep(60) IS NULL"})
    moment = back_up(server, settings)
    root = reachable_tmp / "restore"
    process = Terminal(pitr_settings).start("drill", "--at", moment.isoformat())
    wait_for(lambda: server_is_asked(server, root), timeout_s=60, what="the query in the copy")
    with pytest.raises(ArtifactBusy):
        run_drill(settings, "order-db")
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode != 0
    assert recorded(settings) == []
    if number is signal.SIGKILL:
        assert scratch_left(root)
        assert servers_below(root)
        settings = settings_for(pitr_settings, server)
        assert run_drill(settings, "order-db", seed=1).outcome is DrillOutcome.PASSED


def server_is_asked(server: TestServer, root: Path) -> bool:
    """Is a backend of the drill's own copy, no longer that of the recovery, at work on a query?"""
    for pid in servers_below(root):
        try:
            title = (Path("/proc") / str(pid) / "cmdline").read_bytes()
        except OSError:
            continue
        if b"order-db drill" in title and b"SELECT" in title:
            time.sleep(0.2)
            return True
    return False
