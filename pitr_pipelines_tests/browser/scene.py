"""The stage for a browser: two real servers under backup, their rows, and a whole Dagster with its pages.

It is the demo's stage without the demo's story: what the story does by API calls, the tests do by clicks.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from pitr_pipelines.demo.dagster_api import FinishedRun
from pitr_pipelines.demo.dagster_ui import DagsterUi
from pitr_pipelines.demo.moment import fetch_value
from pitr_pipelines.demo.place import abandoned, remove, workplace
from pitr_pipelines.demo.processes import end_marked, end_servers
from pitr_pipelines.demo.servers import (
    ORDER_DB,
    LiveServer,
    Plan,
    choose_binaries,
    plan_servers,
    set_up_servers,
)
from pitr_pipelines.postgres.binaries import Binaries

DAYS_BEFORE = 2
"""How many days before today have partitions."""

RUN_S = 240.0
"""How long a run, or a page that waits for one, may take on a busy machine."""


@dataclass
class Scene:
    """Everything is up and there is a base backup of each database. `moments` are those after each row."""

    plan: Plan
    servers: dict[str, LiveServer]
    dagster: DagsterUi
    moments: list[datetime] = field(default_factory=list)

    @property
    def orders(self) -> LiveServer:
        return self.servers[ORDER_DB]

    def insert(self) -> datetime:
        """Commit the next row (1, 2, 3 …) in order-db; return a moment after it, and before the next."""
        with self.orders.connect() as connection:
            connection.execute("INSERT INTO rows VALUES (%s)", (len(self.moments) + 1,))
            moment: datetime = fetch_value(connection, "SELECT clock_timestamp()")
        self.moments.append(moment.astimezone(UTC))
        return self.moments[-1]

    def rows(self, port: int) -> set[int]:
        """Return the rows of order-db, or of a copy of it, on a port."""
        with self.orders.connect(port) as connection:
            return {number for (number,) in connection.execute("SELECT id FROM rows")}

    def run(self, job: str, partition: str) -> FinishedRun:
        """Run a job over GraphQL, for what a test needs but is not about."""
        api = self.dagster.api
        return api.wait(api.launch(job, partition), timeout_s=RUN_S, watch=self.dagster.check)


@contextmanager
def scene() -> Iterator[Scene]:
    """Set everything up; end and remove it afterwards, and before that what a killed one has left."""
    binaries = choose_binaries()
    for left in abandoned():
        _clear(left, binaries)
    with workplace() as place:
        try:
            begun = datetime.now(UTC) - timedelta(DAYS_BEFORE)
            yield _set_up(place, plan_servers(place, binaries, now=begun))
        finally:
            _clear(place, binaries)


def _clear(place: Path, binaries: Binaries) -> None:
    end_marked(place)
    end_servers(place, binaries)
    remove(place)


def _set_up(place: Path, plan: Plan) -> Scene:
    dagster = DagsterUi(place, plan.config)
    servers = set_up_servers(plan, dagster.go_on)
    made = Scene(plan, servers, dagster)
    with made.orders.connect() as connection:
        connection.execute("CREATE TABLE rows (id int)")
    dagster.wait_until_ready()
    made.run("daily_base_backups", datetime.now(UTC).date().isoformat())
    return made
