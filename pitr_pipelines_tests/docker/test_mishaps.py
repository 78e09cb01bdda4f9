"""kill -9, and a full volume: afterwards everything is complete or absent, and the next try heals it."""

from __future__ import annotations

import contextlib
import json
import threading
from pathlib import Path

from pitr_pipelines_tests.docker.stack import CommandFailed, Stack, this_hour, today, wait_for

FILL = "CREATE TABLE IF NOT EXISTS filling AS SELECT 0 AS id, ''::text AS what; "
ROWS = (
    "INSERT INTO filling "
    "SELECT id, (SELECT string_agg(md5(random()::text || id || n), '') FROM generate_series(1, 8) AS n) "
)


def test_a_run_killed_in_a_base_backup_leaves_none_and_the_next_one_makes_it(alone: Stack) -> None:
    bases = alone.engine.volume("pitr_backup") / "base" / "order-db"
    alone.psql("order-db", FILL + ROWS + "FROM generate_series(1, 400000) AS id")
    before = _newest_base(bases)
    run_id = alone.launch("daily_base_backups", today(), _replace(alone, bases))

    alone.kill_when(run_id, lambda: _growing(bases))

    assert _newest_base(bases) == before
    wait_for("Dagster sees that the run is dead", lambda: alone.status(run_id) == "FAILURE", 300)
    alone.run("daily_base_backups", today(), _replace(alone, bases))
    record = _newest_base(bases)
    assert record is not None
    assert record != before
    assert not _unfinished(bases)
    assert _verified(alone)


def test_a_run_killed_in_a_bundle_leaves_none_and_the_next_one_makes_it(alone: Stack) -> None:
    bundles = alone.engine.volume("pitr_backup") / "bundles" / "order-db"
    alone.run("daily_base_backups", today())
    alone.psql("order-db", FILL + ROWS + "FROM generate_series(1, 400000) AS id")
    hour = this_hour()
    before = _content(bundles / f"{hour}.json")
    run_id = alone.launch("hourly_bundles", hour)

    alone.kill_when(run_id, lambda: bool(_unfinished(bundles)))

    assert _content(bundles / f"{hour}.json") == before
    alone.run("hourly_bundles", hour)
    assert _content(bundles / f"{hour}.json") not in (None, before)
    assert not _unfinished(bundles)
    assert _verified(alone)


def test_the_daemon_killed_is_started_again_and_takes_up_what_waits(alone: Stack) -> None:
    pid = alone.pid("daemon")
    alone.kill("daemon")
    run_id = alone.launch("hourly_bundles", this_hour())

    alone.finish(run_id)

    assert alone.pid("daemon") != pid
    alone.wait_until_ready()


def test_the_database_killed_under_load_loses_nothing_that_it_had_promised(alone: Stack) -> None:
    alone.psql("order-db", "CREATE TABLE IF NOT EXISTS promised (id bigint)")
    alone.psql("order-db", "TRUNCATE promised")
    name = alone.container("order-db")["Id"]
    promised: list[int] = []
    over = threading.Event()

    def write() -> None:
        with contextlib.suppress(CommandFailed):  # the server is killed in the middle of one
            while not over.is_set():
                number = len(promised) + 1
                statement = (
                    f"INSERT INTO promised VALUES ({number}); INSERT INTO filling SELECT 0, repeat('x', 9000)"
                )
                alone.engine.docker(
                    "exec", name, "psql", "--quiet", "--username", "postgres", "--command", statement
                )
                promised.append(number)

    alone.psql("order-db", FILL)
    writer = threading.Thread(target=write)
    writer.start()
    try:
        wait_for("there is load", lambda: len(promised) >= 10, 120)
        alone.kill("order-db")
    finally:
        over.set()
        writer.join()

    alone.wait_until_ready()
    kept = {int(line) for line in alone.psql("order-db", "SELECT id FROM promised").split()}
    assert set(promised) <= kept
    alone.run("daily_base_backups", today())
    alone.run("hourly_bundles", this_hour())
    assert _verified(alone)


def test_a_full_archive_volume_makes_the_server_keep_its_wal_until_there_is_room(alone: Stack) -> None:
    archive = alone.engine.volume("pitr_wal_inventory_db")
    alone.run("daily_base_backups", today())
    ballast = archive / ".ballast"
    with ballast.open("wb") as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(1 << 20))
    try:
        alone.psql("inventory-db", FILL + ROWS + "FROM generate_series(1, 100000) AS id")
        last = alone.psql("inventory-db", "SELECT pg_walfile_name(pg_switch_wal())")
        failed = (
            "SELECT failed_count FROM pg_stat_archiver "
            "WHERE last_failed_time > coalesce(last_archived_time, '-infinity')"
        )
        wait_for("archiving fails", lambda: int(alone.psql("inventory-db", failed) or 0) > 0, 120)
        waiting = alone.psql(
            "inventory-db", "SELECT name FROM pg_ls_archive_statusdir() WHERE name LIKE '%.ready'"
        )
        kept = alone.psql("inventory-db", "SELECT name FROM pg_ls_waldir()").split()
        assert f"{last}.ready" in waiting.split()
        assert {name.removesuffix(".ready") for name in waiting.split()} <= set(kept)
        assert not (archive / last).exists()
        said = _check(alone, "inventory-db")
        assert any(
            "archiv" in finding and "No space" in alone.compose("logs", "inventory-db") for finding in said
        )
    finally:
        ballast.unlink()

    wait_for("the server catches up", lambda: (archive / last).exists(), 180)
    bundled = alone.run("hourly_bundles", this_hour())
    assert bundled.of("inventory_db/wal_bundle") is not None
    assert _verified(alone)


def _replace(stack: Stack, bases: Path) -> dict[str, object]:
    """Return the configuration with which today's base backups are made again, if they are there."""
    if _newest_base(bases) is None:
        return {}
    steps = ("order_db__base_backup", "inventory_db__base_backup")
    return {"ops": {step: {"config": {"replace": True}} for step in steps}}


def _newest_base(bases: Path) -> str | None:
    return _content(bases / today() / "backup.json")


def _growing(bases: Path) -> bool:
    return any(
        path.stat().st_size > 1 << 20 for name in _unfinished(bases) for path in name.glob("base.tar*")
    )


def _unfinished(directory: Path) -> list[Path]:
    """Return what is being made: names that start with a dot, but for the locks."""
    if not directory.is_dir():
        return []
    return [path for path in directory.iterdir() if path.name.startswith(".") and ".tmp" in path.name]


def _content(path: Path) -> str | None:
    try:
        return path.read_text()
    except FileNotFoundError:
        return None


def _verified(stack: Stack) -> bool:
    return not json.loads(stack.pitr("verify", "--json"))["problems"]


def _check(stack: Stack, database: str) -> list[str]:
    """Return what `pitr check` finds wrong; it ends with an error then, and prints all the same."""
    try:
        said = stack.pitr("check", "--json", database)
    except CommandFailed as error:
        said = str(error)[str(error).index("{") : str(error).rindex("}") + 1]
    found = json.loads(said)[database]
    return [f"{finding['subject']}: {finding['detail']}" for finding in found if not finding["ok"]]
