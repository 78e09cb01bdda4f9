"""The newest hour that is over is sealed, which closes its bundle; without the server it waits."""

from __future__ import annotations

import pytest

from pitr_pipelines.catalog.layout import Layout
from pitr_pipelines.catalog.manifest import refresh_manifest
from pitr_pipelines.catalog.records import BundleState, SealRecord, read_record
from pitr_pipelines.errors import ServerUnavailable
from pitr_pipelines.wal.bundles import make_bundle
from pitr_pipelines.wal.hours import Hour
from pitr_pipelines_tests.integration.restoring import now
from pitr_pipelines_tests.servers import ServerFactory, SettingsMaker, each_major

pytestmark = pytest.mark.slow


@each_major
def test_the_hour_that_ended_is_closed_by_its_seal_although_the_database_is_idle(
    server_factory: ServerFactory, pitr_settings: SettingsMaker, major: int
) -> None:
    server = server_factory(major=major)
    settings = pitr_settings(server)
    layout = Layout(settings.backup_root)
    ended = Hour.containing(now()).preceding()
    outcome = make_bundle(settings, "order-db", ended)
    record = outcome.record
    assert outcome.problem is None
    assert record.state is BundleState.CLOSED
    assert record.seal == read_record(layout.seal_record("order-db", ended), SealRecord)
    assert record.seal.restore_point == f"pitr-order-db-{ended}"
    assert record.seal.at >= ended.end
    assert str(record.seal.segment) in {member.name for member in record.segments}

    before = server.running_segment()
    again = make_bundle(settings, "order-db", ended)
    assert (again.changed, again.record) == (False, record)
    assert server.running_segment() == before, "it was sealed again"
    assert refresh_manifest(settings).databases["order-db"].restore_points == ()  # there is no base yet


def test_without_its_server_an_hour_is_bundled_open_and_closed_when_the_server_returns(
    server_factory: ServerFactory, pitr_settings: SettingsMaker
) -> None:
    server = server_factory()
    settings = pitr_settings(server)
    server.crash()  # a shutdown would archive its last segment, which closes the hour
    ended = Hour.containing(now()).preceding()
    outcome = make_bundle(settings, "order-db", ended)
    assert isinstance(outcome.problem, ServerUnavailable)
    assert outcome.record.state is BundleState.OPEN
    server.start()
    outcome = make_bundle(settings, "order-db", ended)
    assert outcome.problem is None
    assert outcome.record.state is BundleState.CLOSED
