"""The demo's settings: ports of their own, no secret where others look, schedules out of the story's way."""

from __future__ import annotations

import socket
import stat
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from pitr_pipelines.demo import dagster_ui
from pitr_pipelines.demo.dagster_ui import choose_port
from pitr_pipelines.demo.servers import DATABASES, plan_servers
from pitr_pipelines.postgres.server import free_port
from pitr_pipelines_tests.servers import binaries_of

NOON = datetime(2026, 1, 29, 12, 30, tzinfo=UTC)


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


def test_every_server_has_a_port_of_its_own(reachable_tmp: Path) -> None:
    plan = plan_servers(reachable_tmp, binaries_of(None), now=NOON)
    assert set(plan.ports) == set(plan.settings.databases) == set(DATABASES)
    assert len(set(plan.ports.values())) == len(DATABASES)


def test_passwords_are_in_a_file_that_only_we_can_read_and_nowhere_else(reachable_tmp: Path) -> None:
    plan = plan_servers(reachable_tmp, binaries_of(None), now=NOON)
    assert stat.S_IMODE(plan.password_file.stat().st_mode) == 0o600
    for password in plan.passwords.values():
        assert password in plan.password_file.read_text()
        assert password not in plan.config.read_text()
        assert password not in str(plan.settings)


@pytest.mark.parametrize(("hour", "cron"), [(12, "0 3 * * *"), (2, "0 15 * * *"), (3, "0 15 * * *")])
def test_the_schedule_does_not_take_the_base_backup_of_the_story(
    reachable_tmp: Path, hour: int, cron: str
) -> None:
    plan = plan_servers(reachable_tmp, binaries_of(None), now=NOON.replace(hour=hour))
    assert plan.settings.schedules.base_backup == cron


def test_dagster_gets_its_usual_port_if_nobody_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    usual = free_port()
    monkeypatch.setattr(dagster_ui, "USUAL_PORT", usual)
    assert choose_port() == usual


def test_dagster_gets_another_port_if_somebody_has_it(
    monkeypatch: pytest.MonkeyPatch, taken_port: int
) -> None:
    monkeypatch.setattr(dagster_ui, "USUAL_PORT", taken_port)
    assert choose_port() != taken_port
