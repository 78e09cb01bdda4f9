"""What a drill asks a restored copy: pg_amcheck over all of it, and the user's own queries.

A check never changes data that counts: the copy is thrown away, the queries run read-only, and the
only thing added to it is the extension amcheck. What a check finds is a result, never an exception.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from pathlib import Path

import psycopg

from pitr_pipelines.catalog.drills import CheckResult
from pitr_pipelines.errors import ServerUnavailable
from pitr_pipelines.postgres.account import Account, run
from pitr_pipelines.postgres.binaries import Binaries
from pitr_pipelines.postgres.connection import open_connection
from pitr_pipelines.settings import DrillCheck

AMCHECK = "pg_amcheck"

_SHOWN_LINES = 20
# What a client asks for beats what the source's configuration, databases and roles have: a time limit
# meant for its applications, or read-only transactions, in which no extension can be created, or event
# triggers that forbid it.
UNHINDERED = (
    "-c default_transaction_read_only=off -c statement_timeout=0 -c lock_timeout=0 "
    "-c session_replication_role=replica"
)
_BOOLEAN_OID = 16
_BOOLEANS = {b"t": True, b"f": False}


@dataclass(frozen=True, slots=True)
class Copy:
    """A running restored server: its private socket, and a superuser who may enter by it."""

    database: str
    sockets: Path
    port: int
    superuser: str

    def parameters(self, dbname: str) -> dict[str, str]:
        return {
            "host": str(self.sockets),
            "port": str(self.port),
            "user": self.superuser,
            "dbname": dbname,
            "sslmode": "disable",
        }


def run_amcheck(copy: Copy, binaries: Binaries, account: Account) -> CheckResult:
    """Check every table and B-tree of every database, and that each index has what its table has.

    Source: https://www.postgresql.org/docs/current/app-pgamcheck.html
    """
    began = time.monotonic()
    argv: list[str | Path] = [binaries.program(AMCHECK), "--all", "--heapallindexed", "--install-missing"]
    argv += ["--host", copy.sockets, "--port", str(copy.port), "--username", copy.superuser, "--no-password"]
    options = UNHINDERED + (" -c transaction_timeout=0" if binaries.major >= 17 else "")
    done = run(account, argv, env={"PGOPTIONS": options})
    said = (done.stdout.strip() or done.stderr.strip()).splitlines()
    problem = None
    if done.returncode != 0:
        shown = [f"  {line}" for line in said[:_SHOWN_LINES]]
        if len(said) > _SHOWN_LINES:
            shown.append(f"  … and {len(said) - _SHOWN_LINES} lines more")
        # Source: pg_amcheck.c: 2 is corruption, everything else its own trouble.
        found = "found damage" if done.returncode == 2 else "could not check everything"
        problem = f"{AMCHECK} {found}:\n" + "\n".join(shown)
    return CheckResult(
        check=AMCHECK,
        dbname=None,
        expected="no damage",
        found="no damage" if problem is None else "\n".join(said[:_SHOWN_LINES]),
        problem=problem,
        took_s=time.monotonic() - began,
    )


def run_query(copy: Copy, check: DrillCheck, dbname: str, *, timeout_s: float) -> CheckResult:
    """Put one query to the copy and compare what it gives, as PostgreSQL prints it, with the settings."""
    began = time.monotonic()
    found, problem = _ask(copy, check, dbname, timeout_s)
    return CheckResult(
        check=check.query,
        dbname=dbname,
        expected=shown(check.expect),
        found=found,
        problem=None if problem is None else f"{check.query!r} in {dbname}: {problem}",
        took_s=time.monotonic() - began,
    )


def _ask(copy: Copy, check: DrillCheck, dbname: str, timeout_s: float) -> tuple[str | None, str | None]:
    """Return what the query gave, as text, and what is wrong with that."""
    limits = f"-c default_transaction_read_only=on -c statement_timeout={int(timeout_s * 1000)}"
    try:
        parameters = {**copy.parameters(dbname), "options": limits}
        with open_connection(f"the restored {copy.database}", parameters) as connection:
            result = connection.execute(check.query.encode()).pgresult
    except (ServerUnavailable, psycopg.Error) as error:
        return None, str(error).partition("\n")[0]
    if result is None or (result.ntuples, result.nfields) != (1, 1):
        rows, columns = (result.ntuples, result.nfields) if result else (0, 0)
        return None, f"it gave {rows} rows of {columns} columns instead of one value"
    value = result.get_value(0, 0)
    text = "NULL" if value is None else value.decode("utf-8", "replace")
    if fits(value, result.ftype(0), check.expect):
        return text, None
    return text, f"it gave {text} instead of {shown(check.expect)}"


def fits(value: bytes | None, type_oid: int, expected: bool | int | float | str) -> bool:
    """Tell whether a value as PostgreSQL prints it is the one expected; NULL is none."""
    if value is None:
        return False
    if isinstance(expected, bool):
        return type_oid == _BOOLEAN_OID and _BOOLEANS[value] is expected
    if isinstance(expected, str):
        return value.decode("utf-8", "replace") == expected
    try:
        return Decimal(value.decode("utf-8", "replace")) == Decimal(str(expected))
    except InvalidOperation:
        return False


def shown(expected: bool | int | float | str) -> str:
    """Return an expected value as the settings write it."""
    return str(expected).lower() if isinstance(expected, bool) else str(expected)
