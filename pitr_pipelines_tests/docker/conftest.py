"""One engine and its images for all; one stack at a time: its volumes and networks have fixed names.

Only collected with PITR_DOCKER=1, which `make test-docker` sets: it needs root, and Debian's engine.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pitr_pipelines.offsite.keys import make_key_file
from pitr_pipelines_tests.docker.engine import Engine, private_engine
from pitr_pipelines_tests.docker.images import build_images
from pitr_pipelines_tests.docker.stack import APPLICATION_FILE, BACKUP_FILE, Stack, wait_for

collect_ignore_glob = [] if os.environ.get("PITR_DOCKER") else ["test_*.py"]

SMALL_MIB = 320
"""The archive of inventory-db is a file system of its own, of this size, to be filled."""


@pytest.fixture(scope="session")
def engine() -> Iterator[Engine]:
    assert os.geteuid() == 0, "make test-docker starts a Docker engine of its own, and needs root for that"
    standing = os.environ.get("PITR_DOCKER_ENGINE")
    if standing:  # for who works on these tests: the directory of an engine that has the images
        yield Engine(Path(standing), None)
        return
    with private_engine() as engine:
        build_images(engine, engine.directory / "work")
        yield engine


class OneStack:
    """Holds the stack that is up; asked for another, it takes that one down, with its volumes."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._stack: Stack | None = None
        self._mounted: Path | None = None
        self._failed: set[str] = set()

    def place(self) -> Path:
        """Return a new directory for a stack's files."""
        return Path(tempfile.mkdtemp(dir=self._engine.directory))

    def get(self, project: str, make: Callable[[Engine, OneStack], Stack]) -> Stack:
        assert project not in self._failed, f"the stack {project} did not come up; see the first failure"
        if self._stack is None or self._stack.project != project:
            self.end()
            self._failed.add(project)
            make(self._engine, self)
            self._failed.remove(project)
        assert self._stack is not None
        return self._stack

    def holds(self, stack: Stack) -> None:
        self._stack = stack

    def mount_small(self, volume: str) -> None:
        self._mounted = self._engine.volume(volume)
        options = f"size={SMALL_MIB}m"
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", self._mounted], check=True)

    def end(self) -> None:
        stack, self._stack = self._stack, None
        mounted, self._mounted = self._mounted, None
        try:
            if stack is not None:
                containers = self._engine.docker("ps", "--all", "--quiet").split()
                if containers:
                    self._engine.docker("rm", "--force", *containers)
        finally:
            if mounted is not None:
                subprocess.run(["umount", mounted], check=True)
        if stack is not None:
            stack.down("--volumes")


@pytest.fixture(scope="session")
def one_stack(engine: Engine) -> Iterator[OneStack]:
    one = OneStack(engine)
    yield one
    one.end()


@pytest.fixture
def alone(one_stack: OneStack) -> Stack:
    """docker-compose.backup.yml by itself, with the store, and orders in both databases."""
    return one_stack.get("alone", _bring_up_alone)


@pytest.fixture
def overlay(one_stack: OneStack) -> Stack:
    """docker-compose.backup.yml over an application that ran without it, and had written."""
    return one_stack.get("overlay", _bring_up_overlay)


def _bring_up_alone(engine: Engine, one: OneStack) -> Stack:
    data = {"ORDER_DB_DATA": "order-db-data", "INVENTORY_DB_DATA": "inventory-db-data"}
    env = {name: f"{volume}:/var/lib/postgresql/data" for name, volume in data.items()}
    stack = Stack(engine, "alone", (BACKUP_FILE,), one.place(), env)
    one.holds(stack)
    key = stack.place / "offsite.key"
    stack.write_settings(
        {
            # Every minute: so that a test can see that the schedule goes on.
            "schedules": {"bundle": "* * * * *"},
            "offsite": {
                "store": {
                    "bucket": "backups",
                    "endpoint_url": "http://store:8333",
                    "region": "us-east-1",
                    "addressing_style": "path",
                },
                "recipients": [make_key_file(key)],
            },
        }
    )
    stack.compose("up", "--detach", "--no-build", "prepare")  # with it come the volumes
    one.mount_small("pitr_wal_inventory_db")
    stack.up("store")
    # Its call is a test's own.
    stack.api.stop_sensor("offsite_copy_due")
    for service in ("order-db", "inventory-db"):
        stack.psql(service, "CREATE DATABASE shop")
        stack.psql(service, ORDERS, dbname="shop")
    return stack


def _bring_up_overlay(engine: Engine, one: OneStack) -> Stack:
    data = {"ORDER_DB_DATA": "orders", "INVENTORY_DB_DATA": "inventory"}
    env = {name: f"{volume}:/var/lib/postgresql/data" for name, volume in data.items()}
    env |= {"ORDER_DB_PASSWORD_FILE": "", "INVENTORY_DB_PASSWORD_FILE": ""}
    stack = Stack(engine, "overlay", (APPLICATION_FILE, BACKUP_FILE), one.place(), env)
    one.holds(stack)
    stack.write_settings({})
    stack.compose("up", "--detach", files=[APPLICATION_FILE])
    for service in ("order-db", "inventory-db"):
        wait_for(f"{service} answers", lambda service=service: _answers(stack, service))  # type: ignore[misc]
        stack.psql(service, ORDERS, dbname="shop")
    stack.up()
    for service in ("order-db", "inventory-db"):
        script = "/docker-entrypoint-initdb.d/pitr-role.sh"
        stack.compose("exec", "-T", "--user", "postgres", service, "sh", script)
    return stack


def _answers(stack: Stack, service: str) -> bool:
    name = stack.container(service)["Id"]
    try:
        stack.engine.docker("exec", name, "pg_isready", "--host", "127.0.0.1")
        stack.psql(service, "SELECT 1", dbname="shop")
    except AssertionError:
        return False
    return True


ORDERS = """
CREATE TABLE orders AS SELECT id, md5(id::text || random()) AS what FROM generate_series(1, 20000) AS id;
"""
