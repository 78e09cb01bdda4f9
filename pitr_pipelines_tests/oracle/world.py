"""The workload: what is committed while a story is told, and what a server needs for it to be known.

Several writers change rows and append what they changed to a log, in the same transaction. Each row
of the log bears the number of its transaction, also where a subtransaction wrote it.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, LiteralString

import psycopg

from pitr_pipelines_tests.oracle.wal_truth import EXTENSION
from pitr_pipelines_tests.servers import TestServer

OPTIONS = {"track_commit_timestamp": "on", "max_prepared_transactions": "50", "wal_keep_size": "4GB"}
"""What a server needs for its commits to be known; it keeps its WAL only for us to look at."""

_TABLES: tuple[LiteralString, ...] = (
    EXTENSION,
    "CREATE TABLE log (n bigserial PRIMARY KEY, writer int NOT NULL, thing bigint NOT NULL, value text, "
    "xid xid8 NOT NULL DEFAULT pg_current_xact_id())",
    "CREATE TABLE things (thing bigint PRIMARY KEY, value text NOT NULL)",
    "CREATE TABLE ballast (filling text)",
)
_INSERT: LiteralString = """
WITH change AS (INSERT INTO things VALUES (%(thing)s, %(value)s) RETURNING thing, value)
INSERT INTO log (writer, thing, value) SELECT %(writer)s, thing, value FROM change
"""
_UPDATE: LiteralString = """
WITH change AS (UPDATE things SET value = %(value)s WHERE thing = %(thing)s RETURNING thing, value)
INSERT INTO log (writer, thing, value) SELECT %(writer)s, thing, value FROM change
"""
_DELETE: LiteralString = """
WITH change AS (DELETE FROM things WHERE thing = %(thing)s RETURNING thing)
INSERT INTO log (writer, thing, value) SELECT %(writer)s, thing, NULL FROM change
"""
# Lines below two kilobytes are not compressed: each fills that much WAL.
_FILL: LiteralString = "INSERT INTO ballast SELECT repeat('-', 1000) FROM generate_series(1, %(kilobytes)s)"


class World:
    """Several writers on one server. They outlive its restarts and crashes, and stop when asked to."""

    def __init__(self, server: TestServer, seed: int, writers: int = 4) -> None:
        self.server = server
        self._stop = threading.Event()
        self._resting = threading.Event()
        self._busy = [threading.Lock() for _ in range(writers)]
        self._problems: list[BaseException] = []
        for statement in _TABLES:
            server.execute(statement)
        self._threads = [
            threading.Thread(target=self._write, args=(number, random.Random(f"{seed}/{number}")))
            for number in range(writers)
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def rest(self) -> None:
        """Return when no writer is at work, and none begins until `go_on`."""
        self._resting.set()
        for lock in self._busy:
            with lock:
                pass
        self.check()

    def go_on(self) -> None:
        self._resting.clear()

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            if thread.ident is not None:
                thread.join()

    def check(self) -> None:
        """Raise what a writer stumbled over, other than its server being away."""
        if self._problems:
            raise self._problems[0]

    def fill(self, kilobytes: int) -> None:
        """Commit one transaction that writes this much WAL."""
        self.server.execute(_FILL.replace("%(kilobytes)s", str(kilobytes)))

    def _write(self, number: int, pick: random.Random) -> None:
        writer = _Writer(number, pick)
        connection: psycopg.Connection[Any] | None = None
        while not self._stop.is_set():
            time.sleep(pick.uniform(0.03, 0.2))
            with self._busy[number]:
                if self._resting.is_set() or self._stop.is_set():
                    continue
                try:
                    if connection is None or connection.closed:
                        connection = self.server.connect(connect_timeout=5)
                    writer.act(connection)
                except (psycopg.OperationalError, psycopg.errors.ReadOnlySqlTransaction):
                    # The server is away, or not promoted yet: it knows what it committed, we ask it later.
                    if connection is not None:
                        connection.close()
                except BaseException as error:
                    self._problems.append(error)
                    raise
        if connection is not None:
            connection.close()


class _Writer:
    """One writer's transactions, of every kind. It alone changes its things, so nobody waits for long."""

    def __init__(self, number: int, pick: random.Random) -> None:
        self.number = number
        self.pick = pick
        self.things: list[int] = []
        self.prepared: list[str] = []
        self.made = 0

    def act(self, connection: psycopg.Connection[Any]) -> None:
        kinds: dict[Callable[[psycopg.Connection[Any]], None], int] = {
            self.insert: 8,
            self.change: 8,
            self.abort: 2,
            self.nest: 3,
            self.be_large: 1,
            self.prepare: 2,
            self.finish: 2,
        }
        (kind,) = self.pick.choices(list(kinds), list(kinds.values()))
        kind(connection)

    def insert(self, connection: psycopg.Connection[Any]) -> None:
        thing = self._new()
        self._run(connection, _INSERT, thing)
        self.things.append(thing)

    def change(self, connection: psycopg.Connection[Any]) -> None:
        if not self.things:
            return
        with connection.transaction():
            for thing in self.pick.sample(self.things, min(len(self.things), self.pick.randint(1, 3))):
                self._run(connection, self.pick.choice((_UPDATE, _UPDATE, _DELETE)), thing)

    def abort(self, connection: psycopg.Connection[Any]) -> None:
        with connection.transaction(force_rollback=True):
            self._run(connection, _INSERT, self._new())

    def nest(self, connection: psycopg.Connection[Any]) -> None:
        kept = []
        with connection.transaction():
            for _ in range(self.pick.randint(2, 5)):
                thing, undone = self._new(), self.pick.random() < 0.4
                with connection.transaction(force_rollback=undone):
                    self._run(connection, _INSERT, thing)
                if not undone:
                    kept.append(thing)
        self.things += kept

    def be_large(self, connection: psycopg.Connection[Any]) -> None:
        thing = self._new()
        with connection.transaction():
            self._run(connection, _INSERT, thing)
            connection.execute(_FILL, {"kilobytes": self.pick.choice((200, 1500, 3500))})
        self.things.append(thing)

    def prepare(self, connection: psycopg.Connection[Any]) -> None:
        thing = self._new()
        name = f"oracle-{thing}"
        connection.execute("BEGIN")
        self._run(connection, _INSERT, thing)
        with connection.transaction():
            self._run(connection, _INSERT, self._new())
        connection.execute(f"PREPARE TRANSACTION '{name}'".encode())
        self.prepared.append(name)

    def finish(self, connection: psycopg.Connection[Any]) -> None:
        if self.prepared:
            name = self.prepared.pop(self.pick.randrange(len(self.prepared)))
            how = self.pick.choice(("COMMIT", "COMMIT", "ROLLBACK"))
            with suppress(psycopg.errors.UndefinedObject):
                connection.execute(f"{how} PREPARED '{name}'".encode())

    def _new(self) -> int:
        self.made += 1
        return self.made * 100 + self.number

    def _run(self, connection: psycopg.Connection[Any], statement: LiteralString, thing: int) -> None:
        value = f"{self.number}-{self.pick.getrandbits(64):x}"
        connection.execute(statement, {"thing": thing, "value": value, "writer": self.number})
