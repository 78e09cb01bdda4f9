"""The shop whose databases the demo backs up: customers order and pay, goods go in and out.

Every row is numbered and is a transaction of its own, from several connections at a time. An error
that was not expected ends a writer, and `check` raises it.
"""

from __future__ import annotations

import itertools
import random
import threading
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
from psycopg import errors as sql_errors

from pitr_pipelines.errors import PitrError

SEED_ORDERS = 20_000
SEED_MOVEMENTS = 5_000
_PAUSE_S = 0.02
_GOODS = ("apples", "bread", "cheese", "dates", "eggs", "figs")

ORDERS = f"""
CREATE TABLE orders (
    id bigint PRIMARY KEY, customer text NOT NULL, item text NOT NULL, cents int NOT NULL,
    placed_at timestamptz NOT NULL DEFAULT clock_timestamp());
CREATE TABLE payments (
    id bigint PRIMARY KEY, cents int NOT NULL, paid_at timestamptz NOT NULL DEFAULT clock_timestamp());
INSERT INTO orders (id, customer, item, cents)
    SELECT n, md5(n::text), 'apples', n % 9000 + 100 FROM generate_series(1, {SEED_ORDERS}) n;
"""  # noqa: S608 - a number of ours
MOVEMENTS = f"""
CREATE TABLE movements (
    id bigint PRIMARY KEY, item text NOT NULL, quantity int NOT NULL,
    moved_at timestamptz NOT NULL DEFAULT clock_timestamp());
INSERT INTO movements (id, item, quantity)
    SELECT n, 'apples', n % 100 FROM generate_series(1, {SEED_MOVEMENTS}) n;
"""  # noqa: S608 - a number of ours

_ORDER = "INSERT INTO orders (id, customer, item, cents) VALUES (%s, %s, %s, %s)"

Connect = Callable[[], psycopg.Connection[Any]]


class WorkloadEnded(PitrError):
    """A writer met an error that nobody expected."""


class Workload:
    """A running shop. `refused` are the orders that found no table, `moved` the movements committed."""

    def __init__(self, order_db: Connect, inventory_db: Connect) -> None:
        self.refused: list[int] = []
        self.moved: list[int] = []
        self._end = threading.Event()
        self._error: psycopg.Error | None = None
        orders, payments = itertools.count(SEED_ORDERS + 1), itertools.count(1)
        movements = itertools.count(SEED_MOVEMENTS + 1)
        writers: list[tuple[Connect, Callable[[psycopg.Connection[Any]], None]]] = [
            (order_db, lambda connection: self._order(connection, orders, payments)),
            (order_db, lambda connection: self._order(connection, orders, payments)),
            (inventory_db, lambda connection: self._move(connection, movements)),
        ]
        # Daemons: a server that hangs must not keep the demo from ending.
        self._threads = [
            threading.Thread(target=self._run, args=writer, name=f"shop-{number}", daemon=True)
            for number, writer in enumerate(writers)
        ]

    @classmethod
    def open(cls, order_db: Connect, inventory_db: Connect) -> Workload:
        """Create the tables with what was there before, and start the writers."""
        for connect, statements in ((order_db, ORDERS), (inventory_db, MOVEMENTS)):
            with connect() as connection:
                connection.execute(statements.encode())
        shop = cls(order_db, inventory_db)
        for thread in shop._threads:
            thread.start()
        return shop

    def check(self) -> None:
        """Raise what ended a writer, if one has ended."""
        if self._error is not None:
            raise WorkloadEnded(
                f"the demo's workload met an error: {str(self._error).strip()}",
                remedy="Is the server still up? Its log is in the demo's directory.",
            ) from self._error

    def close(self, patience_s: float = 5.0) -> None:
        """Let every writer finish its transaction, and stop."""
        self._end.set()
        for thread in self._threads:
            if thread.is_alive():
                thread.join(patience_s)

    def _run(self, connect: Connect, act: Callable[[psycopg.Connection[Any]], None]) -> None:
        try:
            with connect() as connection:
                while not self._end.is_set():
                    act(connection)
                    self._end.wait(random.uniform(0.5, 1.5) * _PAUSE_S)  # noqa: S311
        except psycopg.Error as error:
            if not self._end.is_set():
                self._error = error

    def _order(
        self, connection: psycopg.Connection[Any], orders: Iterator[int], payments: Iterator[int]
    ) -> None:
        number, cents = next(orders), random.randint(100, 9_000)  # noqa: S311
        values = (number, f"customer {number % 997}", random.choice(_GOODS), cents)  # noqa: S311
        try:
            connection.execute(
                "INSERT INTO orders (id, customer, item, cents) VALUES (%s, %s, %s, %s)", values
            )
        except sql_errors.UndefinedTable:
            self.refused.append(number)
        # Somebody always pays for something: the server goes on committing when orders is gone.
        connection.execute("INSERT INTO payments (id, cents) VALUES (%s, %s)", (next(payments), cents))

    def _move(self, connection: psycopg.Connection[Any], movements: Iterator[int]) -> None:
        number = next(movements)
        connection.execute(
            "INSERT INTO movements (id, item, quantity) VALUES (%s, %s, %s)",
            (number, random.choice(_GOODS), random.randint(-50, 50)),  # noqa: S311
        )
        self.moved.append(number)
