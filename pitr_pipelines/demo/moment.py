"""A moment of order-db, and exactly the rows that were committed by then, as the server itself knows.

The server keeps each transaction's commit time (track_commit_timestamp), which is also what recovery
compares its target with. So nothing here depends on the workload's own bookkeeping.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, LiteralString

import psycopg

Row = tuple[Any, ...]

_POLL_S = 0.02
_STILL_OPEN: LiteralString = """
SELECT count(*) FROM pg_stat_activity
 WHERE xact_start <= %s AND pid <> pg_backend_pid() AND backend_type = 'client backend'
"""
_COMMITTED: Mapping[str, LiteralString] = {
    "orders": "SELECT * FROM orders WHERE pg_xact_commit_timestamp(xmin) <= %s",
    "payments": "SELECT * FROM payments WHERE pg_xact_commit_timestamp(xmin) <= %s",
}
_ALL: Mapping[str, LiteralString] = {
    "orders": "SELECT * FROM orders",
    "payments": "SELECT * FROM payments",
}

TABLES = tuple(_ALL)


@dataclass(frozen=True)
class Moment:
    """A moment (in UTC, by the server's clock), and the rows of each table at it."""

    at: datetime
    rows: Mapping[str, frozenset[Row]]


def note_moment(connection: psycopg.Connection[Any]) -> Moment:
    """Pick this moment and return what was committed by it.

    A transaction that began before it may have committed before it without being visible yet, so
    this waits until all of those have ended. `connection` is in autocommit mode.
    """
    at: datetime = fetch_value(connection, "SELECT clock_timestamp()")
    while fetch_value(connection, _STILL_OPEN, at):
        time.sleep(_POLL_S)
    rows = {
        table: frozenset(connection.execute(query, [at]).fetchall()) for table, query in _COMMITTED.items()
    }
    return Moment(at.astimezone(UTC), rows)


def all_rows(connection: psycopg.Connection[Any], table: str) -> frozenset[Row]:
    """Return every row of one of TABLES."""
    return frozenset(connection.execute(_ALL[table]).fetchall())


def count_rows(connection: psycopg.Connection[Any], table: str) -> int | None:
    """Return how many rows one of TABLES has, or None if there is no such table."""
    if fetch_value(connection, "SELECT to_regclass(%s) IS NULL", table):
        return None
    return connection.execute(_ALL[table]).rowcount


def fetch_value(connection: psycopg.Connection[Any], query: LiteralString, *values: Any) -> Any:
    """Return the one value that a query gives."""
    row = connection.execute(query, values or None).fetchone()
    assert row is not None
    return row[0]
