"""What a hundred databases cost Dagster: loading the definitions, a tick of each kind, an hourly run.

One real server with segments of 1 MB is backed up and writes two segments an hour; its base backup, its
bundles and its archive then stand under as many names, with the hours set back in time. What is measured
with that server answering is one sealed bundle, alone: `seal`. Everything else is measured with the server
gone, so the hour is closed because later WAL proves that it is over; a server that refuses is part of it.
Each part is a process of its own, as the code server and the run worker are:

- load: import of Dagster, of the definitions, all that the code server tells the others of them, memory;
- ticks: each schedule and sensor through Dagster's own API, on an instance with SQLite, twice: as after a
  restart, and as later, when the cursor has come to rest;
- run: `dagster job execute` of the hour that just ended over all databases, in one process, as a run worker
  does it; what the instance grew by.

With --check a fifth of the databases are measured too, and the exit status is 1 if one database costs half as
much again among the many as among the few.

    python benchmarks/bench_hundred.py [--databases 100] [--history-hours 48] [--profile] [--check]
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import yaml

import pitr_pipelines
from pitr_pipelines.catalog.layout import Layout
from pitr_pipelines.postgres.account import make_owned_directory, server_account
from pitr_pipelines.postgres.base_backup import take_base_backup
from pitr_pipelines.postgres.binaries import find_all_binaries
from pitr_pipelines.postgres.server import Cluster, free_port
from pitr_pipelines.settings import Settings, load_settings
from pitr_pipelines.wal.archive import scan_archive
from pitr_pipelines.wal.bundles import make_bundle
from pitr_pipelines.wal.hours import Hour

TEMPLATE = "db-000"
SEALS = 5
MOST_TICKS = 60
SEGMENTS_AN_HOUR = 2
LIMIT = 1.5
"""How many times as much one database may cost among five times as many, in processor time; what a process
costs without any is left out."""
_SCRIPT = Path(pitr_pipelines.__file__).parent / "wal" / "wal-archive.sh"
_INSTANCE = {"telemetry": {"enabled": False}}


@dataclass(frozen=True)
class Scene:
    """A storage of many databases, whose settings name a server that is gone by now."""

    root: Path
    databases: int

    @property
    def config(self) -> Path:
        return self.root / f"pitr-{self.databases}.yaml"

    @property
    def home(self) -> Path:
        return self.root / f"dagster-{self.databases}"

    @property
    def settings(self) -> Settings:
        return load_settings(self.config)

    def write(self, port: int, first_day: str) -> None:
        """Write pitr.yaml and the instance's files."""
        names = [TEMPLATE, *(f"db-{number:03}" for number in range(1, self.databases))]
        dsn = f"host=127.0.0.1 port={port} user=postgres dbname=postgres"
        values = {
            "backup_root": f"backup-{self.databases}",
            "restore_root": "restore",
            "first_day": first_day,
            "databases": {name: {"dsn": dsn, "archive_timeout_s": 0} for name in names},
            "bundle": {"keep_raw_hours": 2},
        }
        self.config.write_text(yaml.safe_dump(values))
        self.home.mkdir()
        (self.home / "dagster.yaml").write_text(yaml.safe_dump(_INSTANCE))


@dataclass(frozen=True)
class Cost:
    """What one process took."""

    said: Mapping[str, Any]
    wall_s: float
    cpu_s: float
    peak_mb: float


def main() -> int:
    arguments = _parser().parse_args()
    if arguments.part:
        print(json.dumps(_PARTS[arguments.part]()))
        return 0
    with tempfile.TemporaryDirectory(prefix="bench-hundred-", dir=arguments.directory) as scratch:
        root = Path(scratch)
        root.chmod(0o755)
        many = Scene(root, arguments.databases)
        print(f"{many.databases} databases with {arguments.history_hours} bundled hours each ...", flush=True)
        _fill(many, arguments.history_hours)
        few = replace(many, databases=max(1, arguments.databases // 5))
        costs = {}
        for scene in (few, many) if arguments.check else (many,):
            if scene is few:
                _reduce(many, few)
            costs[scene.databases] = _measure(scene, profile=arguments.profile)
    if not arguments.check:
        return 0
    return 0 if _is_flat(costs[few.databases], few.databases, costs[many.databases], many.databases) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Measure what many databases cost Dagster.")
    parser.add_argument("--databases", type=int, default=100)
    parser.add_argument("--history-hours", type=int, default=48, help="hours that are bundled already")
    parser.add_argument("--directory", type=Path, help="where to work (default: the temporary directory)")
    parser.add_argument("--profile", action="store_true", help="show where the run spends its time")
    parser.add_argument("--check", action="store_true", help="exit 1 if the cost of one database grows")
    parser.add_argument("--part", choices=sorted(_PARTS), help=argparse.SUPPRESS)
    return parser


def _measure(scene: Scene, *, profile: bool) -> dict[str, float]:
    """Measure every part, print it, and return the processor time that the databases took, in seconds."""
    print(f"{scene.databases} databases:")
    load = _process(scene, *_ourselves("load"))
    print(
        f"  load      {load.wall_s:6.2f} s ({load.cpu_s:.2f} s of processor time), {load.peak_mb:.0f} MB: "
        f"Dagster {load.said['dagster_s']:.2f}, definitions {load.said['definitions_s']:.2f}, "
        f"told to others {load.said['told_s']:.2f} s and {load.said['told_mb']:.1f} MB"
    )
    ticks = _process(scene, *_ourselves("ticks"))
    for name, (first_s, later_s) in ticks.said["took"].items():
        print(f"  tick      {later_s:6.3f} s ({first_s:.3f} s after a restart)  {name}")
    before = _size(scene.home)
    hour = str(Hour.containing(datetime.now(UTC)).preceding())
    words = ["-m", "dagster", "job", "execute", "-m", "pitr_pipelines.definitions", "-j", "hourly_bundles"]
    profiled = ["-m", "cProfile", "-o", str(scene.root / "profile")] if profile else []
    run = _process(scene, *profiled, *words, "--tags", json.dumps({"dagster/partition": hour}))
    if profile:
        import pstats

        pstats.Stats(str(scene.root / "profile")).sort_stats("cumulative").print_stats(70)
    settings = scene.settings
    layout = Layout(settings.backup_root)
    closed = sum(1 for name in settings.databases if layout.bundle(name, Hour.parse(hour)).exists())
    if closed != scene.databases:
        raise SystemExit(f"only {closed} databases have a bundle of {hour}")
    print(
        f"  run       {run.wall_s:6.2f} s ({run.cpu_s:.2f} s of processor time), {run.peak_mb:.0f} MB; "
        f"the instance grew by {(_size(scene.home) - before) / 1e6:.2f} MB",
        flush=True,
    )
    return {
        "load": load.cpu_s - load.said["dagster_cpu_s"],
        "ticks": ticks.said["cpu_s"],
        "run": run.cpu_s - load.cpu_s,
    }


def _is_flat(few: dict[str, float], fewer: int, many: dict[str, float], more: int) -> bool:
    """Compare what one database costs among few and among many, in the same run."""
    kept = True
    for name in few:
        ratio = (many[name] / more) / (few[name] / fewer)
        kept &= ratio <= LIMIT
        print(
            f"{name}: one database among {more} costs {ratio:.2f} times what it costs among {fewer}; "
            f"promised: at most {LIMIT:g}: {'kept' if ratio <= LIMIT else 'BROKEN'}"
        )
    return kept


def _ourselves(part: str) -> list[str]:
    return [__file__, "--part", part]


def _process(scene: Scene, *arguments: str) -> Cost:
    """Run Python with the scene's settings and instance; its standard output's last line may be JSON."""
    environment = {**os.environ, "PITR_CONFIG": str(scene.config), "DAGSTER_HOME": str(scene.home)}
    began = time.monotonic()
    with (scene.root / "log").open("w+") as log, (scene.root / "said").open("w+") as said:
        child = subprocess.Popen([sys.executable, *arguments], env=environment, stdout=said, stderr=log)
        _, status, used = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        wall_s = time.monotonic() - began
        log.seek(0)
        said.seek(0)
        if child.returncode != 0:
            raise SystemExit(log.read()[-4000:])
        lines = said.read().splitlines()
    found = json.loads(lines[-1]) if "--part" in arguments else {}
    return Cost(found, wall_s, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024)


def _load() -> dict[str, float]:
    """Load the definitions as the code server does, and say what it says to webserver and daemon."""
    began = time.monotonic()
    import dagster
    from dagster._core.remote_representation.external_data import RepositorySnap

    imported, imported_cpu_s = time.monotonic(), time.process_time()
    from pitr_pipelines.definitions import defs

    repository = defs.get_repository_def()
    loaded = time.monotonic()
    told = dagster.serialize_value(RepositorySnap.from_def(repository, defer_snapshots=True))
    return {
        "dagster_s": imported - began,
        "dagster_cpu_s": imported_cpu_s,
        "definitions_s": loaded - imported,
        "told_s": time.monotonic() - loaded,
        "told_mb": len(told) / 1e6,
    }


def _ticks() -> dict[str, Any]:
    """Evaluate every schedule and sensor; return how many seconds each took at first and at last."""
    import dagster as dg

    from pitr_pipelines.definitions import defs

    repository = defs.get_repository_def()
    took: dict[str, tuple[float, float]] = {}
    loaded_cpu_s = time.process_time()
    with dg.DagsterInstance.get() as instance:
        tick = datetime.now(UTC).replace(minute=1, second=0, microsecond=0)
        for schedule in repository.schedule_defs:
            times = []
            for _ in range(2):
                began = time.monotonic()
                context = dg.build_schedule_context(
                    instance=instance, scheduled_execution_time=tick, repository_def=repository
                )
                with context:
                    schedule.evaluate_tick(context)
                times.append(time.monotonic() - began)
            took[schedule.name] = (times[0], times[1])
        for sensor in repository.sensor_defs:
            times, cursor, before = [], None, ""
            # One that reports what is new takes so many records a tick.
            while len(times) < 2 or (cursor != before and len(times) < MOST_TICKS):
                before = cursor or ""
                began = time.monotonic()
                context_ = dg.build_sensor_context(
                    instance=instance, cursor=cursor, repository_def=repository, definitions=None
                )
                with context_:
                    cursor = sensor.evaluate_tick(context_).cursor
                times.append(time.monotonic() - began)
            took[sensor.name] = (times[0], times[-1])
    return {"took": took, "cpu_s": time.process_time() - loaded_cpu_s}


_PARTS = {"load": _load, "ticks": _ticks}


def _fill(scene: Scene, history_hours: int) -> None:
    """Make the storage: of one database by a real server, of the others by copying."""
    running = Hour.containing(datetime.now(UTC))
    first = Hour(running.start - timedelta(hours=history_hours + 1))
    with _server(scene, first) as (settings, server):
        base = take_base_backup(settings, TEMPLATE)
        layout = Layout(settings.backup_root)
        with psycopg.connect(settings.databases[TEMPLATE].dsn, autocommit=True) as connection:
            connection.execute("CREATE TABLE rows AS SELECT generate_series(1, 1000) AS id")
            known = len(scan_archive(layout.wal(TEMPLATE)))
            wanted = SEGMENTS_AN_HOUR * (history_hours + 2)
            for _ in range(wanted):
                connection.execute("INSERT INTO rows SELECT generate_series(1, 1000)")
                connection.execute("SELECT pg_switch_wal()")
        deadline = time.monotonic() + 120
        while len(scan_archive(layout.wal(TEMPLATE))) < known + wanted:
            if time.monotonic() > deadline:
                raise SystemExit((scene.root / "server.log").read_text()[-4000:])
            time.sleep(0.1)
        _set_back(layout, first, known)
        _set_base_back(layout, base.day.isoformat(), first)
        for hour in first.until(Hour(running.start - timedelta(hours=2))):
            outcome = make_bundle(settings, TEMPLATE, hour, seal=False)
            if outcome.problem is not None:
                raise outcome.problem
        for name in settings.databases:
            if name != TEMPLATE:
                _copy(layout, name)
        took = []
        for _ in range(SEALS):
            began = time.monotonic()
            made = make_bundle(settings, TEMPLATE, running)
            if made.problem is not None:
                raise made.problem
            took.append(time.monotonic() - began)
        print(f"  seal      {statistics.median(took):6.3f} s for one database whose server answers")
        for path in (layout.bundle(TEMPLATE, running), layout.bundle_record(TEMPLATE, running)):
            path.unlink()
        server.stop("immediate")


@contextmanager
def _server(scene: Scene, first: Hour) -> Iterator[tuple[Settings, Cluster]]:
    """Give a running server that archives as the first database; it is ended after the block."""
    account = server_account(None)
    found = find_all_binaries({})
    binaries = found[max(found)].reachable_by(account)
    port = free_port()
    scene.write(port, first.start.date().isoformat())
    settings = scene.settings
    layout = Layout(settings.backup_root)
    for directory in (layout.root, layout.wal(TEMPLATE).parent):
        directory.mkdir(mode=0o755)
    make_owned_directory(layout.wal(TEMPLATE), account, mode=0o750)
    script = scene.root / "wal-archive.sh"
    shutil.copyfile(_SCRIPT, script)
    script.chmod(0o755)
    sockets = make_owned_directory(scene.root / "sockets", account)
    cluster = Cluster.create(
        scene.root / "source", binaries, account, auth_host="trust", durable=False, wal_segment_size_mb=1
    )
    options = {
        "port": str(port),
        "listen_addresses": "127.0.0.1",
        "unix_socket_directories": str(sockets),
        "fsync": "off",
        "archive_mode": "on",
        "archive_command": f'"{script}" "{layout.wal(TEMPLATE)}" "%p" "%f"',
    }
    log = scene.root / "server.log"
    log.touch()
    account_log = make_owned_directory(scene.root / "log-of-server", account) / "server.log"
    cluster.start(log_file=account_log, options=options)
    try:
        yield settings, cluster
    finally:
        if cluster.pid() is not None:
            cluster.stop("immediate")


def _set_back(layout: Layout, first: Hour, known: int) -> None:
    """Give the archived files the times of the hours that they stand for."""
    for place, file in enumerate(scan_archive(layout.wal(TEMPLATE))):
        hours, part = divmod(max(0, place - known), SEGMENTS_AN_HOUR)
        moment = first.start + timedelta(hours=hours, minutes=10 + 20 * part, milliseconds=place)
        # What stands for the running hour is not of the future.
        seconds = min(moment.timestamp(), time.time())
        os.utime(file.path, (seconds, seconds))


def _set_base_back(layout: Layout, day: str, first: Hour) -> None:
    """Let the base backup be one of the first hour's beginning."""
    made = layout.bases(TEMPLATE) / day
    began, ended = first.start + timedelta(minutes=1), first.start + timedelta(minutes=2)
    path = made / "backup.json"
    record = json.loads(path.read_text())
    record |= {
        "day": ended.date().isoformat(),
        "started_at": began.isoformat().replace("+00:00", "Z"),
        "ended_at": ended.isoformat().replace("+00:00", "Z"),
    }
    path.write_text(json.dumps(record))
    made.rename(layout.bases(TEMPLATE) / ended.date().isoformat())


def _copy(layout: Layout, name: str) -> None:
    """Let another database have what the first one has: its files linked, its records with its own name."""
    for of in (layout.wal, layout.bases, layout.bundles):
        _copy_tree(of(TEMPLATE), of(name), lambda text: text.replace(f'"{TEMPLATE}"', f'"{name}"'))


def _copy_tree(source: Path, target: Path, change: Any) -> None:
    for path in source.rglob("*"):
        place = target / path.relative_to(source)
        if path.name.startswith("."):
            continue
        if path.is_dir():
            place.mkdir(parents=True, exist_ok=True)
            continue
        place.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".json":
            place.write_text(change(path.read_text()))
        else:
            os.link(path, place)


def _reduce(many: Scene, few: Scene) -> None:
    """Make a scene of the first few of the databases."""
    values = yaml.safe_load(many.config.read_text())
    values["backup_root"] = f"backup-{few.databases}"
    values["databases"] = dict(list(values["databases"].items())[: few.databases])
    few.config.write_text(yaml.safe_dump(values, sort_keys=False))
    few.home.mkdir()
    (few.home / "dagster.yaml").write_text(yaml.safe_dump(_INSTANCE))
    source, target = Layout(many.settings.backup_root), Layout(few.settings.backup_root)
    for name in few.settings.databases:
        for of in ("wal", "bases", "bundles"):
            _copy_tree(getattr(source, of)(name), getattr(target, of)(name), lambda text: text)


def _size(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())


if __name__ == "__main__":
    sys.exit(main())
