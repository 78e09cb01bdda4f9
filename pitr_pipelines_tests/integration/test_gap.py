"""A gap in the WAL of a real server: Dagster asks for the cure, and later moments can be restored again."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta

import dagster as dg
import pytest

from pitr_pipelines.catalog.gap_cure import Cure, cure_of
from pitr_pipelines.catalog.inventory import read_inventory
from pitr_pipelines.catalog.layout import BASE_RECORD, Layout
from pitr_pipelines.catalog.records import BaseRecord, read_record, write_record
from pitr_pipelines.defs.build import build_definitions
from pitr_pipelines.defs.gap_bases import ask_after_gaps
from pitr_pipelines.postgres.base_backup import take_base_backup
from pitr_pipelines.settings import Settings
from pitr_pipelines_tests.servers import ServerFactory, SettingsMaker, TestServer

pytestmark = pytest.mark.slow


@pytest.fixture
def server(server_factory: ServerFactory) -> TestServer:
    return server_factory()


@pytest.fixture
def settings(server: TestServer, pitr_settings: SettingsMaker) -> Settings:
    return pitr_settings(server)


def _today() -> date:
    return datetime.now(UTC).date()


def _lose_a_segment(server: TestServer) -> None:
    server.archive_wal()
    (server.archive / server.archive_wal()).unlink()
    server.archive_wal()


def _make_older(layout: Layout, day: date) -> None:
    """Let today's base backup be one of an earlier day."""
    layout.base("order-db", _today()).rename(layout.base("order-db", day))
    path = layout.base("order-db", day) / BASE_RECORD
    record = read_record(path, BaseRecord)
    write_record(path, record.model_copy(update={"day": day}))


def _ask(settings: Settings, instance: dg.DagsterInstance) -> dg.SensorResult:
    now = datetime.now(UTC)
    first = ask_after_gaps(settings, instance, now, None)
    return ask_after_gaps(settings, instance, now + timedelta(minutes=1), first.cursor)


def test_todays_base_backup_is_replaced_and_nothing_is_lost(server: TestServer, settings: Settings) -> None:
    layout = Layout(settings.backup_root)
    start = take_base_backup(settings, "order-db").ended_at
    _make_older(layout, _today() - timedelta(days=1))
    before = take_base_backup(settings, "order-db")
    _lose_a_segment(server)
    gaps = read_inventory(layout, "order-db").gaps()

    with dg.DagsterInstance.ephemeral() as instance:
        (request,) = _ask(settings, instance).run_requests or ()
        job = build_definitions(settings).resolve_job_def("daily_base_backups")
        assert job.execute_in_process(
            instance=instance,
            partition_key=request.partition_key,
            asset_selection=list(request.asset_selection or ()),
            run_config=dict(request.run_config),
            tags=dict(request.tags),
        ).success
        assert not _ask(settings, instance).run_requests

    after = read_inventory(layout, "order-db")
    assert after.bases[-1].start_lsn > before.start_lsn
    assert after.gaps()[0] == gaps[0]
    kept, cured = after.windows()[0]
    assert kept.start == start
    assert cured.start == after.bases[-1].ended_at
    assert cure_of(after, _today()).cure is Cure.NOTHING


def test_the_only_base_backup_is_left_alone(server: TestServer, settings: Settings) -> None:
    layout = Layout(settings.backup_root)
    before = take_base_backup(settings, "order-db")
    _lose_a_segment(server)

    with dg.DagsterInstance.ephemeral() as instance:
        said = _ask(settings, instance)
        assert not said.run_requests
        assert "pitr backup --replace order-db" in str(said.skip_reason)
        # Asked for all the same, the step does not replace it either.
        job = build_definitions(settings).resolve_job_def("daily_base_backups")
        job.execute_in_process(
            instance=instance,
            partition_key=_today().isoformat(),
            run_config={"ops": {"order_db__base_backup": {"config": {"after_gap": True}}}},
        )

    assert read_record(layout.base_record("order-db", _today()), BaseRecord) == before
