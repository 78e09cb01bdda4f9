"""A scratch installation for tests: two real servers, sixty hours of WAL nobody bundled, Dagster in full.

The hours pass in a shortened form: each server writes its segments in seconds, and the archived files get
the times at which a server under light load would have closed them. The schedules tick every minute.
"""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg

import pitr_pipelines
from pitr_pipelines.catalog.layout import Layout
from pitr_pipelines.defs.names import BASE_BACKUP, WAL_BUNDLE, asset_key
from pitr_pipelines.demo.dagster_ui import DagsterUi
from pitr_pipelines.demo.processes import marked_processes
from pitr_pipelines.settings import Settings
from pitr_pipelines.wal.archive import scan_archive
from pitr_pipelines.wal.hours import Hour
from pitr_pipelines_tests.servers import TestServer, wait_for

HOURS = 60
"""As many as the look back asks for at one tick, in five runs: with the ended hour's they fill every slot."""
IDLE = frozenset({7, 8, 30})
"""Hours of these in which nothing was written."""

_DOCS = Path(pitr_pipelines.__file__).parents[1] / "docs" / "dagster.md"


def documented_instance() -> str:
    """Return the dagster.yaml that the docs give to an installation."""
    found = re.search(r"<!-- dagster-yaml -->\n```yaml\n(.*?)```", _DOCS.read_text(), re.DOTALL)
    assert found is not None
    return found[1]


def write_past_hours(server: TestServer) -> Hour:
    """Let a server archive a segment for each of the past hours that is not idle; return the first hour."""
    first = Hour(Hour.containing(datetime.now(UTC)).start - timedelta(hours=HOURS + 1))
    written = [number for number in range(HOURS + 1) if number not in IDLE]
    server.execute("CREATE TABLE rows (id int)")
    with server.connect() as connection:
        for number in written:
            connection.execute("INSERT INTO rows VALUES (%s)", [number])
            connection.execute("SELECT pg_switch_wal()")
    wait_for(lambda: len(scan_archive(server.archive)) >= len(written), timeout_s=120, what="the archive")
    files = scan_archive(server.archive)
    # What came before the first row is of the first hour.
    numbers = [written[0]] * (len(files) - len(written)) + written
    for place, (file, number) in enumerate(zip(files, numbers, strict=True)):
        moment = (first.start + timedelta(hours=number, minutes=20, milliseconds=place)).timestamp()
        os.utime(file.path, (moment, moment))
    return first


@dataclass
class Installation:
    """The scratch installation. `first` is the oldest hour that has WAL."""

    place: Path
    settings: Settings
    config: Path
    first: Hour

    @property
    def layout(self) -> Layout:
        return Layout(self.settings.backup_root)

    def start(self) -> DagsterUi:
        """Start code server, webserver and daemon, on the instance as it was left."""
        home = self.place / "dagster"
        home.mkdir(mode=0o700, exist_ok=True)
        (self.place / "logs").mkdir(exist_ok=True)
        (home / "dagster.yaml").write_text(documented_instance())
        ui = DagsterUi(self.place, self.config)
        ui.wait_until_ready(timeout_s=240)
        return ui

    def instance(self) -> dg.DagsterInstance:
        return dg.DagsterInstance.from_config(str(self.place / "dagster"))

    def kill_everything(self) -> None:
        """End all of Dagster at one stroke, workers and what they started included."""
        killed: set[int] = set()
        while left := set(marked_processes(self.place)):
            for pid in left - killed:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            killed |= left

    def processes(self) -> list[str]:
        """Return what runs for this installation, the servers aside."""
        return [*map(str, marked_processes(self.place)), *_clients_of(self.place)]

    def ended_hours(self) -> list[str]:
        """Return the hours that are over and can have a bundle, by the clock as it is now."""
        last = Hour.containing(datetime.now(UTC)).preceding()
        return [str(hour) for hour in self.first.until(last)]

    def seen_by_dagster(self) -> Mapping[str, dict[str, set[str]]]:
        """Return which partitions are materialized, as Dagster has it, by database and asset."""
        with self.instance() as instance:
            return {
                name: {
                    asset: instance.get_materialized_partitions(asset_key(name, asset))
                    for asset in (WAL_BUNDLE, BASE_BACKUP)
                }
                for name in self.settings.databases
            }


def _clients_of(place: Path) -> Iterator[str]:
    """Yield the command lines of PostgreSQL's own clients that work for a place."""
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if str(place) in line and ("pg_basebackup" in line or "pg_verifybackup" in line):
                yield line
