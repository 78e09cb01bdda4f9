"""Fixtures for the definitions."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest

from pitr_pipelines.catalog.layout import Layout
from pitr_pipelines.settings import Settings
from pitr_pipelines_tests.defs.storage import make_settings


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Two databases, order-db and inventory-db, with an empty storage and no servers."""
    return make_settings(tmp_path)


@pytest.fixture
def layout(settings: Settings) -> Layout:
    return Layout(settings.backup_root)


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as ephemeral:
        yield ephemeral


@pytest.fixture
def lasting_instance(tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    """An instance on disk, which is what a schedule's context can lead to."""
    home = tmp_path / "dagster"
    home.mkdir()
    with dg.DagsterInstance.local_temp(str(home)) as lasting:
        yield lasting
