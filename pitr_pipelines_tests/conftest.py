"""Fixtures for tests on real servers; what they are made of is in servers.py."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from pitr_pipelines.postgres.account import Account, server_account
from pitr_pipelines_tests.mounting import mount_namespace
from pitr_pipelines_tests.servers import (
    ServerFactory,
    SettingsMaker,
    Templates,
    make_reachable_directory,
    remove_directory,
)

__all__ = ["mount_namespace"]


def pytest_configure() -> None:
    """Hear SIGINT again where a script started us in the background: tests send it to our children."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def no_postgres_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the caller's PG* and PITR_CONFIG variables away from every test."""
    for name in list(os.environ):
        if name.startswith("PG") or name == "PITR_CONFIG":
            monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def account() -> Account:
    """Whom servers run as here: ourselves, or another user if the tests run as root."""
    return server_account(None)


@pytest.fixture(scope="session")
def templates(account: Account) -> Iterator[Templates]:
    directory = make_reachable_directory()
    yield Templates(directory, account)
    remove_directory(directory)


@pytest.fixture
def reachable_tmp() -> Iterator[Path]:
    """A directory for one test, with a short path, that the server account can enter."""
    directory = make_reachable_directory()
    yield directory
    remove_directory(directory)


@pytest.fixture
def server_factory(reachable_tmp: Path, templates: Templates) -> Iterator[ServerFactory]:
    """Makes running servers below `reachable_tmp`; they are all ended after the test."""
    factory = ServerFactory(reachable_tmp, templates)
    yield factory
    factory.stop_all()


@pytest.fixture
def pitr_settings(reachable_tmp: Path) -> SettingsMaker:
    """Makes settings for servers, with backup_root and restore_root below `reachable_tmp`."""
    return SettingsMaker(reachable_tmp)
