"""The second part of the story: the day's one call, and a table that comes back from it alone."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import yaml

from pitr_pipelines.catalog.layout import Layout
from pitr_pipelines.demo.moment import TABLES, Moment, all_rows
from pitr_pipelines.demo.narrator import Narrator
from pitr_pipelines.demo.offsite import OffsitePlace
from pitr_pipelines.demo.processes import marked_environment
from pitr_pipelines.demo.runs import Launcher, metadata_of
from pitr_pipelines.demo.servers import CONFIG, ORDER_DB, LiveServer, Plan
from pitr_pipelines.offsite.budget import CallState, days, read_entry
from pitr_pipelines.offsite.object_store import ObjectStore
from pitr_pipelines.postgres.server import free_port
from pitr_pipelines.settings import CONFIG_VARIABLE
from pitr_pipelines.units import show_bytes

_JOB = "daily_offsite_copy"


class OffsiteStory:
    """Told after the first restore, while everything runs."""

    def __init__(
        self, plan: Plan, place: OffsitePlace, orders: LiveServer, runs: Launcher, narrator: Narrator
    ) -> None:
        self.plan = plan
        self.place = place
        self.orders = orders
        self.runs = runs
        self.narrator = narrator

    def copy_off_site(self) -> None:
        """Make the day's call, and see that there is no second."""
        self.narrator.chapter("Everything off-site, with the day's one backup call: " + _JOB)
        report = metadata_of(self.runs.run(_JOB, _today), "offsite_copy")
        self.narrator.say(
            f"   {report['object']}: {show_bytes(report['size_bytes'])}, encrypted; {report['said']}"
        )
        objects, state = self._objects(), self._state()
        self.narrator.claim(
            "one object went, sealed up to this moment, and the ledger says confirmed",
            len(objects) == 1 and state is CallState.CONFIRMED,
            f"there are {objects}, and the ledger says {state}",
        )
        self.narrator.say("   asked again:")
        told = self._pitr(self.plan.config, "offsite", "copy")
        self.narrator.show(told.stdout.splitlines()[:2])
        self.narrator.claim(
            "there is no second call today, and nothing was replaced",
            told.returncode == 0 and "made none" in told.stdout and self._objects() == objects,
            told.stdout + told.stderr,
        )

    def come_back(self, moment: Moment) -> None:
        """Restore the moment from the bucket, with settings, credentials and key, and nothing else."""
        elsewhere = self.plan.place / "new-machine"
        self.narrator.chapter(f"All else is gone: order-db at {moment.at:%H:%M:%S} UTC, from that alone")
        config, port = self._new_machine(elsewhere), free_port()
        told = self._pitr(
            config,
            *("offsite", "restore", ORDER_DB, moment.at.isoformat(sep=" ")),
            *("--key", str(self.place.key_file), "--to", str(elsewhere / "order-db"), "--port", str(port)),
        )
        self.narrator.show(told.stdout.splitlines())
        if told.returncode != 0:
            self.narrator.claim("it is restored", False, told.stderr)
            return
        with self.orders.connect(port) as copy:
            rows = {table: all_rows(copy, table) for table in TABLES}
        self.narrator.claim(
            "from one object and the key, on a machine that had nothing: the same rows, every one",
            all(rows[table] == moment.rows[table] for table in TABLES),
            ", ".join(f"{table}: {len(rows[table] ^ moment.rows[table])} rows differ" for table in TABLES),
        )

    def _new_machine(self, directory: Path) -> Path:
        """Write settings with empty storage, and the same place off-site."""
        values = yaml.safe_load(self.plan.config.read_text())
        directory.mkdir()
        directory.chmod(0o755)
        values |= {"backup_root": str(directory / "backup"), "restore_root": str(directory / "restore")}
        (directory / "backup").mkdir()
        config = directory / CONFIG
        config.write_text(yaml.safe_dump(values, sort_keys=False))
        return config

    def _objects(self) -> Sequence[tuple[str, datetime]]:
        store = ObjectStore(self.plan.settings.offsite_copy().store)
        return [(found.key, found.modified_at) for found in store.list(store.place.prefix)]

    def _state(self) -> CallState | None:
        ledger = Layout(self.plan.settings.backup_root).ledger
        entries = [read_entry(ledger, day) for day in days(ledger)]
        return entries[0].state if len(entries) == 1 and entries[0] is not None else None

    def _pitr(self, config: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
        argv = [sys.executable, "-c", "from pitr_pipelines.cli import main; main()", *arguments]
        env = marked_environment(self.plan.place, {CONFIG_VARIABLE: str(config)})
        return subprocess.run(argv, env=env, capture_output=True, text=True, check=False)


def _today() -> str:
    return datetime.now(UTC).date().isoformat()
