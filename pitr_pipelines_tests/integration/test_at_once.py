"""Two runs for one database's base backup, at the same moment: one base backup, and nothing half done."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from threading import Barrier

import pytest

from pitr_pipelines.catalog.layout import Layout
from pitr_pipelines.catalog.records import BaseRecord
from pitr_pipelines.errors import ArtifactBusy
from pitr_pipelines.postgres.base_backup import existing_base, take_base_backup
from pitr_pipelines_tests.servers import ServerFactory, SettingsMaker

pytestmark = pytest.mark.slow


def test_two_base_backups_of_one_database_at_once_are_one(
    server_factory: ServerFactory, pitr_settings: SettingsMaker
) -> None:
    server = server_factory()
    settings = pitr_settings(server)
    both = Barrier(2, timeout=60)

    def take() -> BaseRecord | None:
        both.wait()
        try:
            return take_base_backup(settings, "order-db")
        except ArtifactBusy:
            return None

    with ThreadPoolExecutor(2) as pool:
        runs = [pool.submit(take) for _ in range(2)]
        records = [run.result() for run in runs]

    today = datetime.now(UTC).date()
    held = existing_base(settings, "order-db", today)
    assert held is not None
    assert all(record in (held, None) for record in records)
    assert any(records)
    bases = Layout(settings.backup_root).bases("order-db")
    left = [path.name for path in bases.iterdir() if not path.name.startswith(".")]
    assert left == [today.isoformat()]
