"""One look into the recovered server through its private socket, before it is handed over.

That it answers, and how many databases it has, are checks; what a person must know about it, such
as an index order that this machine's libraries do not share, are notes. Its log has already proved
which moment it holds. A server that cannot be asked, because the role that is configured does not
exist in it, is no failure.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import psycopg

from pitr_pipelines.errors import ServerUnavailable
from pitr_pipelines.postgres.connection import open_connection, parse_dsn
from pitr_pipelines.restore.destination import Destination
from pitr_pipelines.settings import Settings


@dataclass(frozen=True, slots=True)
class Look:
    """What the recovered server said. `superuser` is its first role's name, which initdb gave it."""

    checks: tuple[str, ...]
    notes: tuple[str, ...]
    superuser: str | None


def look(settings: Settings, database: str, destination: Destination, sockets: Path) -> Look:
    """Ask the recovered server whose private socket is in `sockets`."""
    source = parse_dsn(settings.database(database).dsn, key=f"databases.{database}.dsn")
    problem = ""
    for user in dict.fromkeys((source.get("user", "postgres"), "postgres")):
        parameters = {
            "host": str(sockets),
            "port": str(destination.port),
            "user": user,
            "dbname": source.get("dbname", "postgres"),
            "sslmode": "disable",
        }
        try:
            with open_connection(f"the restored {database}", parameters) as connection:
                answer = connection.execute(_QUESTIONS).fetchone()
        except (ServerUnavailable, psycopg.Error) as error:
            problem = problem or str(error).partition("\n")[0]
        else:
            assert answer is not None
            return _tell(*answer)
    return Look((), (f"the recovered server could not be asked anything: {problem}",), None)


def nobody_can_look() -> Look:
    """Return what is known of a server that stands in recovery and does not open. It is no failure."""
    note = (
        "nobody can look into it here, so its server does not run: PostgreSQL opens a server in recovery "
        "only when it knows every transaction that was open, and one had more than 64 subtransactions. It "
        "can be promoted, or moved on to a later target"
    )
    return Look((), (note,), None)


def _tell(databases: int, differing: list[str], subscriptions: int, superuser: str) -> Look:
    notes = []
    if differing:
        notes.append(
            "text is sorted differently here than where the data came from (another version of the C library "
            f"or ICU; database {', '.join(differing)}): REINDEX before relying on indexes over text"
        )
    if subscriptions:
        notes.append(
            f"{subscriptions} logical subscriptions are kept from connecting, so that they take nothing away "
            "from the original (max_logical_replication_workers = 0)"
        )
    return Look((f"it answers; databases: {databases}",), tuple(notes), superuser)


_QUESTIONS = """
SELECT (SELECT count(*) FROM pg_database WHERE NOT datistemplate),
       (SELECT coalesce(array_agg(datname::text ORDER BY datname), '{}') FROM pg_database
         WHERE datcollversion <> pg_database_collation_actual_version(oid)),
       (SELECT count(oid) FROM pg_subscription),
       (SELECT rolname::text FROM pg_roles WHERE oid = 10)
"""
