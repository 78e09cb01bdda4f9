"""A bundling that is killed anywhere, and run again, leaves what an undisturbed one leaves."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pitr_pipelines.catalog.layout import Layout
from pitr_pipelines.catalog.records import BundleRecord, read_record
from pitr_pipelines.catalog.verify import verify_database
from pitr_pipelines.postgres.base_backup import take_base_backup
from pitr_pipelines.wal.bundle_file import verify_members
from pitr_pipelines.wal.bundles import make_bundle
from pitr_pipelines.wal.hours import Hour
from pitr_pipelines_tests.integration.restoring import now
from pitr_pipelines_tests.servers import ServerFactory, SettingsMaker

pytestmark = pytest.mark.slow

BUNDLE = """
import sys
from pitr_pipelines.settings import load_settings
from pitr_pipelines.wal.bundles import make_bundle
from pitr_pipelines.wal.hours import Hour
import pitr_pipelines.postgres.connection
print("ready", flush=True)
make_bundle(load_settings(sys.argv[1]), "order-db", Hour.parse(sys.argv[2]))
"""


def test_a_killed_bundling_is_taken_up_again(
    server_factory: ServerFactory, pitr_settings: SettingsMaker
) -> None:
    server = server_factory()
    settings = pitr_settings(server, bundle={"keep_raw_hours": 0})
    layout = Layout(settings.backup_root)
    take_base_backup(settings, "order-db")
    server.execute("CREATE TABLE rows AS SELECT generate_series(1, 300000) AS id")
    hour = Hour.containing(now())
    pick = random.Random(20260129)
    file = Path(settings.backup_root).parent / "pitr.yaml"
    for _ in range(12):
        server.execute("INSERT INTO rows SELECT generate_series(1, 20000)")
        process = subprocess.Popen(
            [sys.executable, "-c", BUNDLE, str(file), str(hour)],
            stdout=subprocess.PIPE,
            cwd=Path(__file__).parents[2],
        )
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(pick.uniform(0.0, 0.35))
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()
    made = make_bundle(settings, "order-db", hour)
    record = read_record(layout.bundle_record("order-db", hour), BundleRecord)
    assert record == made.record
    verify_members(layout.bundle("order-db", hour), record)
    assert len(record.runs) == 1, "a segment is missing from the bundle"
    assert [v.problem for v in verify_database(settings, "order-db") if v.problem] == []
    left = {path.name for path in layout.bundles("order-db").iterdir()}
    assert left == {".lock", f"{hour}.tar.gz", f"{hour}.json"} or Hour.containing(now()) != hour
