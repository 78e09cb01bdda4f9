"""The compose file by itself: what a user does with it, and what somebody finds who looks around in it."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import psycopg
import pytest

from pitr_pipelines.demo.dagster_api import DagsterUnavailable, RunFailed
from pitr_pipelines.postgres.server import free_port
from pitr_pipelines_tests.docker.stack import SECRETS, Stack, this_hour, today, wait_for


def test_what_was_backed_up_by_runs_in_containers_is_restored_and_answers(alone: Stack) -> None:
    alone.run("daily_base_backups", today())
    alone.psql("order-db", "INSERT INTO orders VALUES (-1, 'kept')", dbname="shop")
    moment = alone.psql("order-db", "SELECT clock_timestamp() AT TIME ZONE 'UTC'")
    alone.psql("order-db", "DROP TABLE orders", dbname="shop")
    try:
        bundled = alone.run("hourly_bundles", this_hour())
        assert bundled.of("order_db/wal_bundle") is not None

        what = {"database": "order-db", "target_time": f"{moment}+00:00"}
        run_id = alone.launch(
            "restore", moment[:13].replace(" ", "-"), {"ops": {"plan_restore": {"config": what}}}
        )
        container = alone.container_of(run_id)
        assert container["Config"]["Labels"]["dagster/job_name"] == "restore"
        restored = alone.finish(run_id).of("order_db/restored_cluster")
        assert restored is not None

        port = free_port()
        name = alone.serve_restored(str(restored.metadata["directory"]), port)
        try:
            rows = wait_for(
                "the restored cluster answers", lambda: _orders(port, alone.secret("order_db_password"))
            )
            assert rows == 20001
        finally:
            alone.engine.docker("rm", "--force", name)
    finally:
        alone.psql("order-db", "CREATE TABLE IF NOT EXISTS orders (id bigint, what text)", dbname="shop")


def test_the_days_call_goes_to_the_store_from_a_container(alone: Stack) -> None:
    alone.run("daily_base_backups", today())

    alone.run("daily_offsite_copy", today())

    ledger = json.loads(alone.engine.volume("pitr_backup").joinpath("offsite", f"{today()}.json").read_text())
    assert ledger["state"] == "confirmed"
    assert "order-db" in alone.pitr("status")


def test_nothing_is_lost_by_down_and_up_and_the_schedules_go_on(alone: Stack) -> None:
    alone.run("daily_base_backups", today())
    alone.psql("inventory-db", "CREATE TABLE IF NOT EXISTS kept AS SELECT 42 AS answer")
    before = _listing(alone)
    runs_before = int(alone.psql("dagster-db", "SELECT count(*) FROM runs", dbname="dagster", user="dagster"))

    alone.down()
    alone.up("store")

    assert before <= _listing(alone)
    assert alone.psql("inventory-db", "SELECT answer FROM kept") == "42"
    assert (
        int(alone.psql("dagster-db", "SELECT count(*) FROM runs", dbname="dagster", user="dagster"))
        >= runs_before
    )
    up_at = alone.newest_tick("bundle_schedule")
    wait_for("the schedule goes on", lambda: alone.newest_tick("bundle_schedule") > up_at, 240)
    assert "FAILED" not in alone.pitr("check")


def test_the_check_is_content_with_both_servers(alone: Stack) -> None:
    said = alone.pitr("check", "--json")

    found = json.loads(said)
    assert set(found) == {"order-db", "inventory-db"}
    assert not [finding for findings in found.values() for finding in findings if not finding["ok"]]


def test_no_secret_can_be_seen_but_in_the_files_that_hold_it(alone: Stack) -> None:
    run_id = alone.launch("daily_base_backups", today())
    alone.container_of(run_id)
    keys = (alone.place / "secrets" / "aws_credentials").read_text()
    secrets = {name: alone.secret(name) for name in SECRETS} | {
        "aws": keys.split("aws_secret_access_key = ")[1].strip()
    }
    found = []
    for container in alone.engine.containers():
        name = container["Name"]
        looked_at = {"inspect": json.dumps(container), "logs": alone.engine.logs(name)}
        for pid in _pids(alone, name):
            looked_at[f"command of {pid}"] = _read(Path(f"/proc/{pid}/cmdline"))
            looked_at[f"environment of {pid}"] = _read(Path(f"/proc/{pid}/environ"))
        found += [
            (secret, name, where)
            for where, text in looked_at.items()
            for secret, value in secrets.items()
            if value in text
        ]
    alone.finish(run_id)
    history = alone.engine.docker(
        "exec", alone.container("dagster-db")["Id"], "pg_dump", "--username", "dagster", "dagster"
    )

    assert "base_backup" in history
    assert not [secret for secret, value in secrets.items() if value in history]
    # That the image does this shows that whoever looks finds.
    assert [where for where in found if _is_its_own(*where)]
    assert not [where for where in found if not _is_its_own(*where)]


def test_passwords_are_kept_as_scram_verifiers(alone: Stack) -> None:
    for service in ("order-db", "inventory-db"):
        kept = alone.psql(
            service, "SELECT left(rolpassword, 14) FROM pg_authid WHERE rolname IN ('pitr', 'postgres')"
        )
        assert set(kept.split()) == {"SCRAM-SHA-256$"}


def test_only_the_pages_are_published_and_only_on_loopback(alone: Stack) -> None:
    published = {
        (container["Config"]["Labels"]["com.docker.compose.service"], bound["HostIp"], int(bound["HostPort"]))
        for container in alone.engine.containers("label=com.docker.compose.project=alone")
        for bindings in (container["NetworkSettings"]["Ports"] or {}).values()
        for bound in bindings or []
    }

    assert published == {
        ("webserver", "127.0.0.1", alone.ui_port),
        ("viewer", "127.0.0.1", alone.viewer_port),
    }
    with socket.create_connection(("127.0.0.1", alone.ui_port), timeout=10):
        pass


def test_the_viewer_shows_and_launches_nothing(alone: Stack) -> None:
    assert alone.viewer.schedules()

    with pytest.raises((RunFailed, DagsterUnavailable), match=r"(?i)unauthorized|permission|not allowed"):
        alone.viewer.launch("daily_base_backups", today())


def test_what_dagster_may_ask_of_docker_is_to_run_containers(alone: Stack) -> None:
    create = "/v1.41/containers/create"
    bind = {"Image": "pitr-pipelines:test", "HostConfig": {"Binds": ["/etc:/host"]}}
    refused = {
        "list": _ask(alone, "daemon", "GET", "/v1.41/containers/json"),
        "images": _ask(alone, "daemon", "GET", "/v1.41/images/json"),
        "exec": _ask(alone, "daemon", "POST", f"/v1.41/containers/{'0' * 64}/exec"),
        "bind": _ask(alone, "daemon", "POST", create, bind),
    }
    assert set(refused.values()) == {"403"}, refused
    assert _ask(alone, "daemon", "GET", "/version") == "200"
    for service in ("code", "viewer"):
        assert _ask(alone, service, "GET", "/version") == "unreachable"


def test_containers_have_no_capabilities_and_cannot_write_their_own_files(alone: Stack) -> None:
    run_id = alone.launch("daily_base_backups", today())
    alone.container_of(run_id)
    lax = {}
    for container in alone.engine.containers("status=running"):
        host, user = container["HostConfig"], container["Config"]["User"]
        if not (
            host["ReadonlyRootfs"]
            and host["CapDrop"] == ["ALL"]
            and not host["CapAdd"]
            and "no-new-privileges:true" in host["SecurityOpt"]
            and user.split(":")[0] not in ("", "0", "root")
            and host["Memory"]
            and host["LogConfig"]["Config"].get("max-size")
        ):
            lax[container["Name"]] = user
    alone.finish(run_id)

    assert not lax


def _orders(port: int, password: str) -> int | None:
    try:
        with psycopg.connect(
            host="127.0.0.1", port=port, user="postgres", password=password, dbname="shop", connect_timeout=5
        ) as connection:
            row = connection.execute("SELECT count(*) FROM orders").fetchone()
    except psycopg.OperationalError:
        return None
    return None if row is None else int(row[0])


def _listing(stack: Stack) -> set[str]:
    root = stack.engine.volume("pitr_backup")
    return {
        str(path.relative_to(root))
        for kind in ("base", "bundles")
        for path in (root / kind).rglob("[!.]*.json")
    }


def _is_its_own(secret: str, container: str, where: str) -> bool:
    """The stock image has its superuser's password in the environment of its own server."""
    service = secret.removesuffix("_password").replace("_", "-")
    return where.startswith("environment of") and f"_{service}_" in container


def _pids(stack: Stack, name: str) -> list[str]:
    try:
        return [line.split()[0] for line in stack.engine.docker("top", name, "-eo", "pid").splitlines()[1:]]
    except AssertionError:
        return []


def _read(path: Path) -> str:
    try:
        return path.read_bytes().decode(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return ""


_ASK = """
import json, sys, urllib.error, urllib.request
method, path, body = sys.argv[1:]
request = urllib.request.Request("http://docker-proxy:2375" + path, method=method, data=body.encode() or None,
                                 headers={"Content-Type": "application/json"})
try:
    print(urllib.request.urlopen(request, timeout=10).status)
except urllib.error.HTTPError as error:
    print(error.code)
except OSError:
    print("unreachable")
"""


def _ask(stack: Stack, service: str, method: str, path: str, body: dict[str, Any] | None = None) -> str:
    name = stack.container(service)["Id"]
    text = json.dumps(body) if body else ""
    return stack.engine.docker("exec", name, "python", "-c", _ASK, method, path, text).strip()
