"""The story: two shops' databases backed up by Dagster, a table dropped by mistake, and it is back.

Everything is done by runs in Dagster, launched as a click would launch them. Partitions are worked
out when they are used, so that the story may cross an hour's or a day's end; and what it claims is
checked against the servers and the storage themselves, not against what a run says of itself.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pitr_pipelines.catalog.status import read_status
from pitr_pipelines.catalog.verify import verify_database
from pitr_pipelines.demo.dagster_ui import DagsterUi
from pitr_pipelines.demo.moment import TABLES, Moment, all_rows, count_rows, fetch_value, note_moment
from pitr_pipelines.demo.narrator import Narrator
from pitr_pipelines.demo.offsite import OffsitePlace
from pitr_pipelines.demo.offsite_story import OffsiteStory
from pitr_pipelines.demo.processes import marked_environment
from pitr_pipelines.demo.runs import Launcher, metadata_of
from pitr_pipelines.demo.servers import DATABASES, INVENTORY_DB, ORDER_DB, LiveServer, Plan
from pitr_pipelines.demo.workload import SEED_ORDERS, Workload
from pitr_pipelines.errors import PitrError
from pitr_pipelines.postgres.readiness import check
from pitr_pipelines.settings import CONFIG_VARIABLE, asset_name
from pitr_pipelines.units import show_bytes, show_duration
from pitr_pipelines.wal.hours import Hour

_BEFORE_S = 1.0
_AFTER_S = 2.0


@dataclass(frozen=True)
class Restored:
    """The cluster that the restore left, and what its run reported."""

    port: int
    directory: Path
    report: Mapping[str, Any]


def introduce(plan: Plan, servers: Mapping[str, LiveServer], narrator: Narrator) -> None:
    """Show the servers, and check that `pitr check` is content with them."""
    for name, server in servers.items():
        narrator.say(f"   {name} on port {server.port}: {server.preparation}")
    wrong = [
        f"{name}: {finding.subject}: {finding.detail}"
        for name in servers
        for finding in check(name, plan.settings)
        if not finding.ok
    ]
    narrator.claim("`pitr check` finds nothing missing on either", not wrong, "; ".join(wrong))


class Story:
    """The stage is set, with Dagster ready and the shop open; `tell` plays it."""

    def __init__(
        self,
        plan: Plan,
        servers: Mapping[str, LiveServer],
        dagster: DagsterUi,
        shop: Workload,
        offsite: OffsitePlace,
        narrator: Narrator,
    ) -> None:
        self.plan = plan
        self.servers = servers
        self.orders = servers[ORDER_DB]
        self.inventory = servers[INVENTORY_DB]
        self.dagster = dagster
        self.shop = shop
        self.narrator = narrator
        self.offsite = offsite
        self.runs = Launcher(dagster.api, narrator, self.watch)
        self._postmasters = {name: server.cluster.pid() for name, server in servers.items()}

    def tell(self) -> Restored:
        """Play all of it and return what was restored. Raises PitrError if it cannot go on."""
        schedules = self.dagster.api.schedules()
        on = [name for name, runs in schedules.items() if runs]
        self.narrator.claim(
            f"its schedules are on: {', '.join(on)}", len(on) == len(schedules) > 0, f"there are {schedules}"
        )
        # It would make the day's call as soon as the base backups are there; here it is a chapter.
        self.dagster.api.stop_sensor("offsite_copy_due")
        self._take_base_backups()
        self._make_restore_points()
        moment = self._lose_the_table()
        restored = self._restore(moment)
        self._compare(moment, restored)
        second = OffsiteStory(self.plan, self.offsite, self.orders, self.runs, self.narrator)
        second.copy_off_site()
        second.come_back(moment)
        self._show_status()
        return restored

    def watch(self) -> None:
        """Raise if anything that should be up is not: Dagster, the workload, a server."""
        self.dagster.check()
        self.offsite.process.check()
        self.shop.check()
        for name, pid in self._postmasters.items():
            if self.servers[name].cluster.pid() != pid:
                raise PitrError(
                    f"the server of {name} has ended by itself",
                    remedy=f"Its log is {self.plan.place / 'logs' / f'{name}.log'}.",
                )

    def _take_base_backups(self) -> None:
        self.narrator.chapter("Base backups of both databases, in one Dagster run: daily_base_backups")
        run = self.runs.run("daily_base_backups", lambda: datetime.now(UTC).date().isoformat())
        for name in DATABASES:
            report = metadata_of(run, f"{asset_name(name)}/base_backup")
            self.narrator.say(
                f"   {name}: {show_bytes(report['uncompressed_bytes'])}, copied in "
                f"{show_duration(report['copy_s'])}, from {report['start_lsn']} to {report['end_lsn']}"
            )
        statuses = read_status(self.plan.settings, DATABASES, now=datetime.now(UTC))
        lacking = [found.database for found in statuses if found.last_base is None or found.problems]
        self.narrator.claim("both are in storage", not lacking, f"not those of {lacking}")

    def _make_restore_points(self) -> None:
        self.narrator.chapter("A restore point now, of the hour that is still running: hourly_bundles")
        time.sleep(_AFTER_S)
        run = self.runs.run("hourly_bundles", _this_hour)
        for name in DATABASES:
            report = metadata_of(run, f"{asset_name(name)}/wal_bundle")
            self.narrator.say(
                f"   {name}: {report['segments']} WAL segments, {show_bytes(report['raw_bytes'])} in "
                f"{show_bytes(report['size_bytes'])}; restore point {report['restore_point']}"
            )
        now = datetime.now(UTC)
        lacking = [f.database for f in read_status(self.plan.settings, DATABASES, now=now) if not f.windows]
        self.narrator.claim("both databases have a recovery window", not lacking, f"not {lacking}")
        verified = [found for name in DATABASES for found in verify_database(self.plan.settings, name)]
        wrong = [f"{found.database}: {found.problem}" for found in verified if found.problem is not None]
        self.narrator.claim(
            f"`pitr verify` reads all {len(verified)} artifacts again and finds nothing wrong",
            bool(verified) and not wrong,
            "; ".join(wrong),
        )

    def _lose_the_table(self) -> Moment:
        self.narrator.chapter("The mistake")
        with self.orders.connect() as connection:
            moment = note_moment(connection)
        count = len(moment.rows["orders"])
        self.narrator.say(f"   {_clock(moment.at)}  all is well: {count} orders, and new ones all the time")
        self.narrator.claim(
            f"{count - SEED_ORDERS} orders came in while all of this went on", count > SEED_ORDERS
        )
        time.sleep(_BEFORE_S)
        with self.orders.connect() as connection:
            connection.execute("DROP TABLE orders")
            dropped_at: datetime = fetch_value(connection, "SELECT clock_timestamp()")
            self.narrator.say(f"   {_clock(dropped_at)}  order-db=# DROP TABLE orders;")
            time.sleep(_AFTER_S)
            gone = fetch_value(connection, "SELECT to_regclass('orders') IS NULL")
            later = connection.execute(
                "SELECT count(*) FROM payments WHERE pg_xact_commit_timestamp(xmin) > %s", [dropped_at]
            ).fetchone()
        self.shop.check()
        refused, committed = len(self.shop.refused), later[0] if later else 0
        self.narrator.claim(
            f"the table is gone: {refused} orders were refused, and {committed} payments committed since",
            gone and refused > 0 and committed > 0,
        )
        return moment

    def _restore(self, moment: Moment) -> Restored:
        self.narrator.chapter(f"order-db as it was at {_clock(moment.at)}, in a cluster beside it: restore")
        config = {
            "ops": {
                "plan_restore": {
                    "config": {"database": ORDER_DB, "target_time": moment.at.isoformat(sep=" ")}
                }
            }
        }
        run = self.runs.run("restore", lambda: str(Hour.containing(moment.at)), config)
        report = metadata_of(run, f"{asset_name(ORDER_DB)}/restored_cluster")
        for phase, key in (("fetch", "fetch_s"), ("replay", "recovery_s"), ("sync, start", "finish_s")):
            self.runs.add_phase(phase, float(report[key]))
        restored = Restored(int(report["port"]), Path(report["directory"]), report)
        self.narrator.say(
            f"   {report['segments']} WAL segments replayed to {report['recovered_to_lsn']}; timeline "
            f"{report['timeline']}, port {restored.port}"
        )
        return restored

    def _compare(self, moment: Moment, restored: Restored) -> None:
        self.narrator.chapter("Side by side")
        with self.orders.connect() as live, self.orders.connect(restored.port) as copy:
            found = {table: all_rows(copy, table) for table in TABLES}
            now = {table: count_rows(live, table) for table in TABLES}
            archives: str = fetch_value(copy, "SELECT current_setting('archive_mode')")
            accepts: bool = fetch_value(copy, "SELECT NOT pg_is_in_recovery()")
            last: dict[str, datetime | None] = {
                "live": fetch_value(live, "SELECT max(paid_at) FROM payments"),
                "copy": fetch_value(copy, "SELECT max(paid_at) FROM payments"),
            }
        head = ("", f"{ORDER_DB}, port {self.orders.port}", f"restored, port {restored.port}")
        rows = [
            (table, "gone" if now[table] is None else f"{now[table]} rows", f"{len(found[table])} rows")
            for table in TABLES
        ]
        self.narrator.table(head, [*rows, ("last payment", _clock(last["live"]), _clock(last["copy"]))])
        for table in TABLES:
            expected = moment.rows[table]
            missing, extra = len(expected - found[table]), len(found[table] - expected)
            self.narrator.claim(
                f"the restored {table} are exactly the {len(expected)} rows that were committed by then",
                found[table] == expected,
                f"{missing} are missing and {extra} should not be there",
            )
        self.narrator.claim(
            "the restored server takes writes and archives nothing", accepts and archives == "off"
        )
        self.narrator.claim("the live server still lacks the table", now["orders"] is None)
        self._inventory_is_untouched()
        self.narrator.say("   how long it took:")
        self.narrator.table(("", "all", "of it Dagster's queue and start of the run"), self.runs.timings)

    def _inventory_is_untouched(self) -> None:
        """Both live servers ran on, and inventory-db lost none of its movements."""
        self.watch()
        committed = set(self.shop.moved)
        with self.inventory.connect() as connection:
            present = {number for (number,) in connection.execute("SELECT id FROM movements")}
        self.narrator.claim(
            f"inventory-db ran on undisturbed and has all of its {len(present)} movements",
            committed <= present,
        )

    def _show_status(self) -> None:
        self.narrator.chapter("The same at the terminal: pitr status")
        argv = [sys.executable, "-c", "from pitr_pipelines.cli import main; main()", "status"]
        env = marked_environment(self.plan.place, {CONFIG_VARIABLE: str(self.plan.config)})
        done = subprocess.run(argv, env=env, capture_output=True, text=True, check=False)
        self.narrator.show((done.stdout + done.stderr).splitlines())
        self.narrator.claim(
            "it needs neither Dagster nor a server",
            done.returncode == 0 and all(name in done.stdout for name in DATABASES),
            f"it ended with {done.returncode}",
        )


def _this_hour() -> str:
    return str(Hour.containing(datetime.now(UTC)))


def _clock(moment: datetime | None) -> str:
    return moment.astimezone(UTC).strftime("%H:%M:%S.%f UTC") if moment else "never"
