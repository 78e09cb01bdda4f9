"""Connections to a database under backup: ours by psycopg, and those of PostgreSQL's own programs.

A password is only ever in memory, or in a temporary file that nobody else can read, for as long as
a child program needs it. It is never in an argument, an environment variable we set, or an error.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import psycopg
from psycopg import conninfo as libpq
from psycopg.rows import class_row

from pitr_pipelines.errors import ServerUnavailable, SettingsError
from pitr_pipelines.postgres.password import password_of
from pitr_pipelines.settings import DatabaseSettings

APPLICATION_NAME = "pitr"
ROLE = "pitr"
DBNAME = "postgres"
"""Whom and where to connect if the settings do not say."""

# A network that swallows packets must not hold a backup for the two hours of the kernel's default.
_DEFAULTS = {"keepalives_idle": "30", "keepalives_interval": "10", "tcp_user_timeout": "60000"}

# libpq gives no codes for failed connections, so its English words (and the server's, which may be
# in another language: then the last remedy serves) tell what kind of failure it was.
_REMEDIES = (
    (("refused", "no such file or directory"), "Is the server running, and is this its address and port?"),
    (
        ("no pg_hba.conf entry", "pg_hba.conf rejects"),
        "Add a line for this role and this client's address to the server's pg_hba.conf and reload it; "
        "`pitr check {name}` prints the lines that are needed.",
    ),
    (
        ("password authentication failed", "no password supplied", "scram", "sasl"),
        "Give the role's password by PGPASSFILE, a service file, or in the settings by password_file (a "
        "file that holds it) or password_env (the name of an environment variable that does).",
    ),
    (
        ("failed to resolve", "could not translate host name", "name or service not known"),
        "Correct the host in the settings (databases.{name}.dsn), or the name service of this machine.",
    ),
    (
        ("timeout", "timed out", "no route", "unreachable"),
        "Is the host up, and does a firewall let this machine reach that port?",
    ),
    (
        ("starting up", "shutting down", "not yet accepting", "recovery mode"),
        "Wait until it is up, then ask again.",
    ),
    (
        ("does not exist",),
        "Correct the dsn, or let `pitr init-db {name}` create the role and prepare the server.",
    ),
    (
        ("peer authentication", "ident authentication"),
        "Use a host in the dsn, or a user map in pg_ident.conf.",
    ),
    (("too many", "remaining connection slots"), "Raise max_connections, or end connections nobody needs."),
    (("certificate", "ssl"), "Compare sslmode and sslrootcert in the dsn with what the server offers."),
)


@dataclass(frozen=True, slots=True)
class ServerIdentity:
    """Which cluster answers, and its clock: `now` is the server's, not this machine's.

    `timeline` is the one it writes to, or, `in_recovery`, that of its last restartpoint.
    `server_version` is as in server_version_num: 150019; `wal_segment_size` is in bytes.
    """

    system_identifier: str
    server_version: int
    timeline: int
    wal_segment_size: int
    data_checksums: bool
    in_recovery: bool
    now: datetime

    @property
    def major(self) -> int:
        return self.server_version // 10000


def connect(name: str, database: DatabaseSettings, *, timeout_s: float = 5.0) -> psycopg.Connection[Any]:
    """Connect to a database as its settings say, in autocommit mode.

    `timeout_s` is per host. Raises ServerUnavailable with the address, libpq's own words and what to
    do; SettingsError if the dsn cannot be parsed, or the password that the settings name cannot be had.
    """
    password = password_of(name, database)
    return open_connection(name, parameters_of(name, database), password=password, timeout_s=timeout_s)


def open_connection(
    name: str, parameters: Mapping[str, Any], *, password: str | None = None, timeout_s: float = 5.0
) -> psycopg.Connection[Any]:
    """Connect with libpq's `parameters`, in autocommit mode; `name` is for errors only.

    A `password` given here beats one in the parameters. Raises ServerUnavailable.
    """
    complete = {
        **_DEFAULTS,
        "connect_timeout": str(max(2, math.ceil(timeout_s))),
        "application_name": APPLICATION_NAME,
        **parameters,
    }
    if password is not None:
        complete["password"] = password
    try:
        return psycopg.connect(**complete, autocommit=True)
    except psycopg.OperationalError as error:
        said = without_secret(str(error).strip(), complete.get("password"))
        raise ServerUnavailable(
            f"{name} does not accept our connection to {address_of(parameters)}: {said}",
            remedy=_remedy(name, said),
        ) from None


@contextmanager
def child_connection(name: str, database: DatabaseSettings) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield a connection string without a password, and an environment, for a PostgreSQL program.

    When the settings name a password, the environment names a password file that exists, for our user
    alone, until the block ends. Otherwise PGPASSFILE, PGPASSWORD and service files of our own
    environment apply. Messages are in English. Raises SettingsError like `connect`.
    """
    password = password_of(name, database)
    parameters = {
        **_DEFAULTS,
        "application_name": APPLICATION_NAME,
        **parameters_of(name, database),
    }
    env = {**os.environ, "LC_ALL": "C"}
    if password is None:
        yield libpq.make_conninfo("", **parameters), env
        return
    # Whatever else could give a password would win over the file.
    parameters.pop("passfile", None)
    for variable in ("PGPASSWORD", database.password_env):
        if variable is not None:
            env.pop(variable, None)
    escaped = password.replace("\\", r"\\").replace(":", r"\:")
    with tempfile.NamedTemporaryFile("w", prefix="pitr-pgpass-") as file:  # created with mode 0600
        file.write(f"*:*:*:*:{escaped}\n")
        file.flush()
        yield libpq.make_conninfo("", **parameters), {**env, "PGPASSFILE": file.name}


def identify(connection: psycopg.Connection[Any]) -> ServerIdentity:
    """Return which cluster answers. Needs no right beyond connecting."""
    with connection.cursor(row_factory=class_row(ServerIdentity)) as cursor:
        identity = cursor.execute(_IDENTIFY).fetchone()
    assert identity is not None
    return replace(identity, now=identity.now.astimezone(UTC))


# The control file's timeline is that of the last checkpoint, which lags after a promotion; the name
# of the segment that is being written does not, but a standby cannot tell it.
_IDENTIFY = """
SELECT s.system_identifier::text AS system_identifier,
       current_setting('server_version_num')::int AS server_version,
       CASE WHEN pg_is_in_recovery() THEN c.timeline_id
            ELSE ('x' || left(pg_walfile_name(pg_current_wal_insert_lsn()), 8))::bit(32)::int
       END AS timeline,
       i.bytes_per_wal_segment AS wal_segment_size,
       i.data_page_checksum_version > 0 AS data_checksums,
       pg_is_in_recovery() AS in_recovery,
       clock_timestamp() AS now
  FROM pg_control_system() s, pg_control_checkpoint() c, pg_control_init() i
"""


def parse_dsn(dsn: str, *, key: str) -> dict[str, Any]:
    """Return the parameters in a connection string or URI. Raises SettingsError that names `key`."""
    try:
        return libpq.conninfo_to_dict(dsn)
    except psycopg.ProgrammingError as error:
        raise SettingsError(
            f"{key} is no connection string: {str(error).strip()}",
            remedy="Write it as: host=db.example.org port=5432 user=pitr dbname=postgres",
        ) from None


def parameters_of(name: str, database: DatabaseSettings) -> dict[str, Any]:
    """Return the parameters in a database's dsn, completed with `user=pitr dbname=postgres`.

    A service file or an environment variable that gives them counts, too. Raises SettingsError.
    """
    parameters = parse_dsn(database.dsn, key=f"databases.{name}.dsn")
    if "service" not in parameters and "PGSERVICE" not in os.environ:
        for key, variable, default in (("user", "PGUSER", ROLE), ("dbname", "PGDATABASE", DBNAME)):
            parameters.setdefault(key, os.environ.get(variable) or default)
    return parameters


def address_of(parameters: Mapping[str, Any]) -> str:
    """Return where the parameters lead to, for people: `host:port`, with the environment's defaults."""
    service = parameters.get("service") or os.environ.get("PGSERVICE")
    host = parameters.get("host") or parameters.get("hostaddr") or os.environ.get("PGHOST")
    if host is None and service is not None:
        return f"service {service}"
    port = parameters.get("port") or os.environ.get("PGPORT") or "5432"
    return f"{host or 'the local socket'}:{port}"


def without_secret(text: str, secret: object) -> str:
    """Return `text` with `secret` blotted out, should somebody else's message quote it."""
    return text.replace(str(secret), "********") if secret else text


def server_address(connection: psycopg.Connection[Any]) -> str:
    """Return the address that an open connection leads to, for people."""
    return f"{connection.info.host or 'the local socket'}:{connection.info.port}"


def _remedy(name: str, said: str) -> str:
    words = said.lower()
    for signs, remedy in _REMEDIES:
        if any(sign in words for sign in signs):
            return remedy.format(name=name)
    return f"Check databases.{name}.dsn in the settings, and the server's log."
