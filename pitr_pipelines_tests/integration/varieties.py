"""A server's life with a bit of everything, and all that is in it, to be compared with a restored copy."""

from __future__ import annotations

import time
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime
from typing import Any, LiteralString

import psycopg

from pitr_pipelines.postgres.account import run
from pitr_pipelines_tests.integration.restoring import now
from pitr_pipelines_tests.servers import ServerFactory, TestServer, create_backup_role


@dataclass(frozen=True)
class Variety:
    """How a server is made."""

    major: int
    segment_mb: int
    checksums: bool
    compression: str
    wal_level: str = "replica"

    def __str__(self) -> str:
        checksums = "checksums" if self.checksums else "no-checksums"
        return f"{self.major}-{self.segment_mb}MB-{checksums}-{self.compression}-{self.wal_level}"

    def make(self, server_factory: ServerFactory) -> TestServer:
        server = server_factory(
            major=self.major,
            wal_segment_size_mb=self.segment_mb,
            start=False,
            options={
                "wal_compression": self.compression,
                "wal_level": self.wal_level,
                "max_prepared_transactions": "5",
                "log_statement": "none",
            },
        )
        if not self.checksums:
            program = server.cluster.binaries.program("pg_checksums")
            done = run(server.cluster.account, [program, "--disable", "-D", server.cluster.data_directory])
            assert done.returncode == 0, done.stderr
        server.start()
        create_backup_role(server)
        return server


Content = dict[str, Any]

_TABLES = """
SELECT c.oid::regclass::text FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace
 WHERE relkind IN ('r', 'm') AND relpersistence = 'p' AND nspname = 'public' ORDER BY 1
"""
_INDEXED: dict[str, LiteralString] = {
    "btree": "SELECT md5(string_agg(id::text, ',' ORDER BY id)) FROM things WHERE id BETWEEN 5 AND 2000",
    "hash": "SELECT array_agg(id ORDER BY id) FROM things WHERE word = 'word 17'",
    "gin": "SELECT md5(string_agg(id::text, ',' ORDER BY id)) FROM things WHERE numbers @> ARRAY[3]",
    "gist": "SELECT md5(string_agg(id::text, ',' ORDER BY id)) FROM things "
    "WHERE place <@ box '((0,0),(300,300))'",
    "brin": "SELECT count(*) FROM things WHERE made BETWEEN 100 AND 400",
}


def content_of(port: int) -> Content:
    """Return all that is in a cluster, by hashes of its rows, as its tables and as its indexes have them."""
    found: Content = {}
    for dbname in _column(port, "postgres", "SELECT datname FROM pg_database WHERE NOT datistemplate"):
        found[dbname] = None
        with closing(_connect(port, dbname)) as connection:
            for (table,) in connection.execute(_TABLES).fetchall():
                statement = (
                    f"SELECT count(*), md5(string_agg(md5(r::text), '' ORDER BY md5(r::text))) FROM {table} r"
                )
                found[f"{dbname}.{table}"] = connection.execute(statement.encode()).fetchone()
            found[f"{dbname} objects"] = connection.execute(
                "SELECT oid, md5(lo_get(oid)) FROM pg_largeobject_metadata ORDER BY oid"
            ).fetchall()
            if dbname == "postgres":
                connection.execute("SET enable_seqscan = off")
                for name, question in _INDEXED.items():
                    found[name] = connection.execute(question).fetchone()
    return found


def begin(server: TestServer) -> None:
    """What there is before the base backup."""
    with server.connect() as connection:
        for statement in _BEFORE:
            connection.execute(statement)
        if server.execute("SHOW wal_level") == [("logical",)]:
            connection.execute("SELECT pg_create_logical_replication_slot('left', 'pgoutput')")
    with server.connect(dbname="pattern") as connection:
        connection.execute("CREATE TABLE brought AS SELECT 1 AS n")


def go_on(server: TestServer) -> tuple[datetime, Content]:
    """The first part of what is only in the WAL; return a moment after it, and all there is then."""
    with server.connect() as connection:
        for statement in _BETWEEN:
            connection.execute(statement)
        with server.connect() as other:
            # Two share a row, so that its lock is a multixact; one of them then changes it.
            for sharing in (connection, other):
                sharing.execute("BEGIN")
                sharing.execute("SELECT 1 FROM things WHERE id = 3 FOR KEY SHARE")
            other.execute("UPDATE things SET word = 'shared' WHERE id = 3")
            other.execute("COMMIT")
            connection.execute("COMMIT")
    server.execute("CREATE DATABASE copied TEMPLATE pattern STRATEGY = file_copy")
    server.execute("CREATE DATABASE logged TEMPLATE pattern STRATEGY = wal_log")
    server.execute("CREATE DATABASE doomed TEMPLATE pattern STRATEGY = file_copy")
    for name in ("copied", "logged", "doomed"):
        with server.connect(dbname=name) as connection:
            connection.execute("CREATE TABLE inside AS SELECT n, md5(n::text) FROM generate_series(1, 300) n")
            connection.execute("INSERT INTO brought VALUES (2)")
    return moment_of(server)


def end(server: TestServer) -> tuple[datetime, Content]:
    """The second part: some of the first is gone again, and a transaction is left prepared."""
    with server.connect() as connection:
        connection.execute("DROP DATABASE doomed")
        connection.execute("DROP DATABASE logged")
        for statement in _AFTERWARDS:
            connection.execute(statement)
    return moment_of(server)


def go_beyond(server: TestServer) -> None:
    """What may not be in a copy of the moments before."""
    with server.connect() as connection:
        connection.execute("COMMIT PREPARED 'open'")
        connection.execute("DROP DATABASE copied")
        connection.execute("DROP TABLE things CASCADE")
        connection.execute("CREATE DATABASE late STRATEGY = file_copy")
        connection.execute("SELECT pg_switch_wal()")


def moment_of(server: TestServer) -> tuple[datetime, Content]:
    """Return a moment now, and all there is at it."""
    content = content_of(server.port)
    time.sleep(0.05)
    moment = now()
    time.sleep(0.05)
    server.execute("SELECT pg_current_xact_id()")
    return moment, content


def _connect(port: int, dbname: str) -> psycopg.Connection[Any]:
    return psycopg.connect(f"host=127.0.0.1 port={port} user=postgres dbname={dbname}", autocommit=True)


def _column(port: int, dbname: str, question: LiteralString) -> list[Any]:
    with closing(_connect(port, dbname)) as connection:
        return [row[0] for row in connection.execute(question)]


_FILL: LiteralString = """
INSERT INTO things (word, numbers, place, made)
SELECT 'word ' || n % 50, ARRAY[n % 7, n % 11], point(n % 700, n % 500), n FROM generate_series(1, 3000) n
"""

_BEFORE: tuple[LiteralString, ...] = (
    """CREATE TABLE things (id serial PRIMARY KEY, word text, numbers int[], place point, made int,
       long bytea)""",
    "ALTER TABLE things ALTER long SET STORAGE EXTERNAL",
    "CREATE INDEX ON things USING hash (word)",
    "CREATE INDEX ON things USING gin (numbers)",
    "CREATE INDEX ON things USING gist (place)",
    "CREATE INDEX ON things USING brin (made) WITH (pages_per_range = 4)",
    _FILL,
    "CREATE UNLOGGED TABLE fleeting (id serial PRIMARY KEY, word text)",
    "INSERT INTO fleeting (word) SELECT 'x' FROM generate_series(1, 500)",
    "CREATE MATERIALIZED VIEW seen AS SELECT word, count(*) FROM things GROUP BY word",
    "CREATE TABLE emptied AS SELECT n FROM generate_series(1, 5000) n",
    "CREATE TABLE shrunk AS SELECT n, repeat('y', 200) FROM generate_series(1, 3000) n",
    "CREATE SEQUENCE numbered",
    "SELECT lo_from_bytea(70001, convert_to(repeat('large', 5000), 'UTF8'))",
    "CREATE DATABASE pattern",
)
_BETWEEN: tuple[LiteralString, ...] = (
    _FILL,
    "UPDATE things SET word = 'word 17' WHERE id % 40 = 0",
    "DELETE FROM things WHERE id % 9 = 0",
    "VACUUM things",
    "TRUNCATE emptied",
    "INSERT INTO emptied VALUES (-1)",
    "DELETE FROM shrunk WHERE n % 3 = 0",
    "VACUUM FULL shrunk",
    "CLUSTER things USING things_pkey",
    "INSERT INTO fleeting (word) VALUES ('more')",
    "REFRESH MATERIALIZED VIEW seen",
    "SELECT nextval('numbered') FROM generate_series(1, 100)",
    "SELECT lo_put(70001, 12000, 'changed')",
    "SELECT lo_from_bytea(70002, '\\x0102')",
    # More subtransactions than a backend keeps at hand (64), some of them undone.
    """DO $$ BEGIN FOR n IN 1..200 LOOP
         BEGIN INSERT INTO emptied VALUES (n); IF n % 5 = 0 THEN RAISE 'undone'; END IF;
         EXCEPTION WHEN raise_exception THEN NULL; END;
       END LOOP; END $$""",
    "CREATE DATABASE brought_along",
    "ALTER DATABASE brought_along RENAME TO renamed",
)
_AFTERWARDS: tuple[LiteralString, ...] = (
    "SELECT lo_unlink(70001)",
    "CREATE INDEX ON things (word, id)",
    "REINDEX TABLE things",
    "ALTER TABLE fleeting SET LOGGED",
    "ALTER TABLE emptied SET UNLOGGED",
    "INSERT INTO emptied VALUES (-2)",
    "REFRESH MATERIALIZED VIEW seen",
    "BEGIN",
    "INSERT INTO shrunk VALUES (-7, 'prepared')",
    "UPDATE things SET word = 'prepared' WHERE id = 5",
    "PREPARE TRANSACTION 'open'",
)
