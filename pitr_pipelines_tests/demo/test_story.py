"""The story's own facts: which rows a moment holds, what a shop does, and how an hour's end is crossed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from io import StringIO
from typing import Any, cast

import pytest

from pitr_pipelines.demo.dagster_api import FinishedRun, RunFailed
from pitr_pipelines.demo.moment import note_moment
from pitr_pipelines.demo.narrator import Narrator
from pitr_pipelines.demo.runs import Launcher
from pitr_pipelines.demo.workload import SEED_ORDERS, Workload
from pitr_pipelines_tests.servers import ServerFactory, TestServer, wait_for


@pytest.fixture
def server(server_factory: ServerFactory) -> TestServer:
    return server_factory(archiving=False, options={"track_commit_timestamp": "on"})


@pytest.fixture
def shop(server: TestServer) -> Iterator[Workload]:
    shop = Workload.open(server.connect, server.connect)
    yield shop
    shop.close()


def test_a_moment_holds_what_was_committed_by_then_and_nothing_later(
    server: TestServer, shop: Workload
) -> None:
    with server.connect() as connection:
        connection.execute("INSERT INTO orders (id, customer, item, cents) VALUES (-1, '', '', 0)")
        moment = note_moment(connection)
        connection.execute("INSERT INTO orders (id, customer, item, cents) VALUES (-2, '', '', 0)")
        numbers = {row[0] for row in moment.rows["orders"]}
        assert -1 in numbers
        assert -2 not in numbers
        rows = connection.execute("SELECT id FROM orders WHERE placed_at > %s", [moment.at])
        assert numbers.isdisjoint(number for (number,) in rows)


def test_a_moment_waits_for_transactions_that_may_still_belong_to_it(
    server: TestServer, shop: Workload
) -> None:
    shop.close()
    with server.connect() as writer, server.connect() as reader:
        writer.execute("BEGIN")
        writer.execute("INSERT INTO orders (id, customer, item, cents) VALUES (-1, '', '', 0)")
        moments = []
        thread = threading.Thread(target=lambda: moments.append(note_moment(reader)))
        thread.start()
        thread.join(0.3)
        assert thread.is_alive()
        writer.execute("COMMIT")
        thread.join(10)
    # It committed after the moment, and so does not belong to it.
    assert -1 not in {row[0] for row in moments[0].rows["orders"]}


def test_the_shop_goes_on_when_its_table_is_gone_and_counts_what_it_lost(
    server: TestServer, shop: Workload
) -> None:
    wait_for(lambda: server.execute("SELECT count(*) > %s FROM orders", SEED_ORDERS)[0][0], what="an order")
    server.execute("DROP TABLE orders")
    ((paid,),) = server.execute("SELECT count(*) FROM payments")
    wait_for(lambda: shop.refused, what="a refused order")
    wait_for(lambda: server.execute("SELECT count(*) > %s FROM payments", paid)[0][0], what="a payment")
    shop.check()


def test_the_shops_own_list_of_movements_is_what_the_table_holds(server: TestServer, shop: Workload) -> None:
    wait_for(lambda: len(shop.moved) > 5, what="movements")
    shop.close()
    held = {number for (number,) in server.execute("SELECT id FROM movements")}
    assert set(shop.moved) <= held


@dataclass
class FakeApi:
    """Fails the runs for the partitions in `failing`."""

    failing: set[str]
    launched: list[str] = field(default_factory=list)

    def launch(self, job: str, partition: str, config: Mapping[str, Any] | None = None) -> str:
        self.launched.append(partition)
        return partition

    def run_url(self, run_id: str) -> str:
        return run_id

    def wait(self, run_id: str, *, timeout_s: float, watch: Callable[[], None]) -> FinishedRun:
        if run_id in self.failing:
            raise RunFailed(f"the run {run_id} ended as FAILURE", remedy="")
        return FinishedRun(run_id, run_id, 0.0, 0.0, ())


def _launcher(api: FakeApi) -> Launcher:
    return Launcher(cast(Any, api), Narrator(StringIO()), lambda: None)


def test_a_run_whose_hour_ended_meanwhile_is_launched_for_the_next() -> None:
    api = FakeApi(failing={"2026-01-29-14"})
    hours = iter(["2026-01-29-14", "2026-01-29-15", "2026-01-29-15"])
    run = _launcher(api).run("hourly_bundles", lambda: next(hours))
    assert run.run_id == "2026-01-29-15"
    assert api.launched == ["2026-01-29-14", "2026-01-29-15"]


def test_a_run_that_fails_within_its_hour_is_not_tried_again() -> None:
    api = FakeApi(failing={"2026-01-29-14"})
    with pytest.raises(RunFailed):
        _launcher(api).run("hourly_bundles", lambda: "2026-01-29-14")
    assert api.launched == ["2026-01-29-14"]
