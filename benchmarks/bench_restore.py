"""How long a restore takes, against `tar x` and `restore_command = 'cp …'` on the same backups.

A real server is filled with pgbench, backed up, and then written to until there are enough segments, which
are bundled. Then the same moment, the latest, is restored both ways, one after the other, in the same run:

- `pitr restore`: planning, reading every artifact against its record, unpacking, replay while the feeder
  unpacks ahead, page checks, syncing, and the restored server's start;
- by hand, as docs/by-hand.md tells it: unpack base and bundles with tar, replay with cp, and promote, with
  PostgreSQL's own defaults.

Both end when the restored server takes writes. The promise is that ours is not the slower; with --check
the exit status is 1 if it is broken. How much of the replay waited for WAL is reported too.

    python benchmarks/bench_restore.py [--megabytes 1024] [--segments 100] [--rounds 2] [--major N] [--check]
"""

from __future__ import annotations

import argparse
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg

import pitr_pipelines
from pitr_pipelines.catalog.layout import Layout
from pitr_pipelines.postgres.account import Account, give, make_owned_directory, run, server_account
from pitr_pipelines.postgres.base_backup import take_base_backup
from pitr_pipelines.postgres.binaries import Binaries, find_all_binaries
from pitr_pipelines.postgres.server import Cluster, free_port
from pitr_pipelines.restore.prepare import plan_restore
from pitr_pipelines.restore.report import RestoreReport
from pitr_pipelines.restore.restore import choose_destination, restore
from pitr_pipelines.restore.target import LatestTarget
from pitr_pipelines.settings import Settings, parse_settings
from pitr_pipelines.wal.bundles import make_bundle
from pitr_pipelines.wal.hours import Hour

DATABASE = "bench"
PGBENCH_MB_PER_SCALE = 15
SEGMENT_MB = 16
START_S = 1800.0
_SEGMENT = "SELECT (pg_current_wal_lsn() - '0/0')::bigint / (16 * 1024 * 1024)"
_CHANGE = "UPDATE pgbench_accounts SET abalance = abalance + 1 WHERE aid BETWEEN %(first)s AND %(last)s"
_STATE = "SELECT (SELECT count(*) FROM pgbench_history) + (SELECT sum(abalance) FROM pgbench_accounts)"
_SCRIPT = Path(pitr_pipelines.__file__).parent / "wal" / "wal-archive.sh"


@dataclass(frozen=True)
class Bench:
    """Where everything is, and who runs the servers."""

    root: Path
    settings: Settings
    cluster: Cluster
    port: int

    @property
    def layout(self) -> Layout:
        return Layout(self.settings.backup_root)

    @property
    def account(self) -> Account:
        return self.cluster.account

    @property
    def binaries(self) -> Binaries:
        return self.cluster.binaries


def main() -> int:
    arguments = _parser().parse_args()
    found = find_all_binaries({})
    binaries = found[arguments.major or max(found)]
    ours: list[float] = []
    by_hand: list[float] = []
    with tempfile.TemporaryDirectory(prefix="bench-restore-", dir=arguments.directory) as scratch:
        root = Path(scratch)
        root.chmod(0o755)
        with _source(root, binaries) as bench:
            _fill(bench, arguments.megabytes)
            take_base_backup(bench.settings, DATABASE)
            _write_wal(bench, arguments.segments)
            _bundle(bench)
            state = _state(bench.port)
        for number in range(arguments.rounds):
            # Each goes first as often as the other.
            for ours_first in (number % 2 == 0, number % 2 != 0):
                if ours_first:
                    seconds, report = _restore(bench, state)
                    ours.append(seconds)
                    print(f"  pitr restore   {seconds:6.1f} s  ({_phases(report)})", flush=True)
                else:
                    seconds, phases = _restore_by_hand(bench, state)
                    by_hand.append(seconds)
                    print(f"  tar and cp     {seconds:6.1f} s  ({phases})", flush=True)
    ratio = statistics.median(by_hand) / statistics.median(ours)
    kept = ratio >= 1
    print(f"tar and cp take {ratio:.2f} times as long; promised: at least 1: {'kept' if kept else 'BROKEN'}")
    return 1 if arguments.check and not kept else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Measure a restore against tar and cp.")
    parser.add_argument("--megabytes", type=int, default=1024, help="size of the database (default 1024)")
    parser.add_argument("--segments", type=int, default=100, help="how many of 16 MB (default 100)")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--major", type=int, help="PostgreSQL's major version (default: the newest)")
    parser.add_argument("--directory", type=Path, help="where to work (default: the temporary directory)")
    parser.add_argument("--check", action="store_true", help="exit 1 if the promise is broken")
    return parser


@contextmanager
def _source(root: Path, binaries: Binaries) -> Iterator[Bench]:
    """Give a running server that archives; it is ended after the block."""
    account = server_account(None)
    binaries = binaries.reachable_by(account)
    port = free_port()
    settings = parse_settings(
        {
            "backup_root": "backup",
            "restore_root": "restore",
            "databases": {DATABASE: {"dsn": f"host=127.0.0.1 port={port} user=postgres dbname=postgres"}},
            "bundle": {"keep_raw_hours": 0},
        },
        source=root / "pitr.yaml",
    )
    layout = Layout(settings.backup_root)
    for directory in (layout.root, layout.wal(DATABASE).parent):
        directory.mkdir(mode=0o755)
    make_owned_directory(layout.wal(DATABASE), account, mode=0o750)
    script = root / "wal-archive.sh"
    shutil.copyfile(_SCRIPT, script)
    script.chmod(0o755)
    sockets = make_owned_directory(root / "sockets", account)
    cluster = Cluster.create(root / "source", binaries, account, auth_host="trust", durable=False)
    options = {
        "port": str(port),
        "listen_addresses": "127.0.0.1",
        "unix_socket_directories": str(sockets),
        "fsync": "off",
        "max_wal_size": "8GB",
        "checkpoint_timeout": "1h",
        "archive_mode": "on",
        "archive_command": f'"{script}" "{layout.wal(DATABASE)}" "%p" "%f"',
    }
    cluster.start(log_file=_log(root / "source.log", account), options=options)
    try:
        yield Bench(root, settings, cluster, port)
    finally:
        cluster.stop("immediate")


def _fill(bench: Bench, megabytes: int) -> None:
    print(f"a database of {megabytes} MB ...", flush=True)
    _pgbench(bench, "--initialize", "--quiet", "--scale", str(max(1, megabytes // PGBENCH_MB_PER_SCALE)))


def _write_wal(bench: Bench, segments: int) -> None:
    """Write until there are so many segments: small transactions, then changes of many rows at once."""
    print(f"{segments} segments of WAL ...", flush=True)
    chance = random.Random(7)
    with psycopg.connect(_address(bench.port), autocommit=True) as connection:
        accounts = _one(connection, "SELECT count(*) FROM pgbench_accounts")
        first = _one(connection, _SEGMENT)
        _pgbench(bench, "--client", "4", "--transactions", "5000", "--no-vacuum")
        while _one(connection, _SEGMENT) - first < segments:
            at = chance.randrange(accounts)
            connection.execute(_CHANGE, {"first": at, "last": at + 50_000})


def _pgbench(bench: Bench, *words: str) -> None:
    argv: list[str | Path] = [bench.binaries.program("pgbench"), *words, "-h", "127.0.0.1"]
    done = run(bench.account, [*argv, "-p", str(bench.port), "-U", "postgres", "postgres"])
    if done.returncode != 0:
        raise SystemExit(done.stderr)


def _bundle(bench: Bench) -> None:
    """Bundle everything into the closed bundle of an hour of the past, and prune the raw segments."""
    hour = Hour.containing(datetime.now(UTC) - timedelta(hours=5))
    outcome = make_bundle(bench.settings, DATABASE, hour, now=hour.end + timedelta(minutes=1))
    if outcome.problem is not None:
        raise outcome.problem
    print(f"  {len(outcome.record.segments)} segments in the bundle")


def _restore(bench: Bench, state: int) -> tuple[float, RestoreReport]:
    began = time.monotonic()
    plan = plan_restore(bench.settings, DATABASE, LatestTarget(), seal=False)
    destination = choose_destination(bench.settings, plan, to=None, port=None, keep_running=True)
    report = restore(bench.settings, plan, destination)
    _wait_for_writes(report.port)
    seconds = time.monotonic() - began
    _expect(report.port, state)
    Cluster(report.data_directory, bench.binaries, bench.account).stop("immediate")
    shutil.rmtree(report.directory)
    return seconds, report


def _phases(report: RestoreReport) -> str:
    return (
        f"fetch {report.fetch_s:.1f}, replay {report.recovery_s:.1f}, of which {report.wal_wait_share:.1%} "
        f"waiting for WAL, finish {report.finish_s:.1f}"
    )


def _restore_by_hand(bench: Bench, state: int) -> tuple[float, str]:
    began = time.monotonic()
    place = bench.root / "by-hand"
    place.mkdir(mode=0o755)
    data, wal = make_owned_directory(place / "data", bench.account), place / "wal"
    wal.mkdir(mode=0o755)
    base = next(path for path in bench.layout.bases(DATABASE).iterdir() if path.name[0] != ".")
    _tar(next(base.glob("base.tar*")), data)
    _tar(next(base.glob("pg_wal.tar*")), data / "pg_wal")
    for bundle in sorted(bench.layout.bundles(DATABASE).glob("*.tar.gz")):
        _tar(bundle, wal)
    give(data, bench.account)
    give(wal, bench.account)
    (data / "recovery.signal").touch()
    give(data / "recovery.signal", bench.account)
    unpacked = time.monotonic()
    port = free_port()
    options = {
        "port": str(port),
        "listen_addresses": "127.0.0.1",
        "unix_socket_directories": str(bench.root / "sockets"),
        "archive_mode": "off",
        "restore_command": f'cp "{wal}/%f" "%p"',
    }
    cluster = Cluster(data, bench.binaries, bench.account)
    cluster.start(log_file=_log(place / "log", bench.account), options=options, timeout_s=START_S)
    try:
        _wait_for_writes(port)
        ended = time.monotonic()
        _expect(port, state)
    finally:
        cluster.stop("immediate")
    shutil.rmtree(place)
    return ended - began, f"unpack {unpacked - began:.1f}, replay {ended - unpacked:.1f}"


def _tar(file: Path, directory: Path) -> None:
    subprocess.run(["tar", "xf", str(file), "-C", str(directory)], check=True)


def _log(path: Path, account: Account) -> Path:
    path.touch()
    give(path, account)
    return path


def _wait_for_writes(port: int) -> None:
    deadline = time.monotonic() + START_S
    while True:
        try:
            with psycopg.connect(_address(port), autocommit=True) as connection:
                if not _one(connection, "SELECT pg_is_in_recovery()::int"):
                    break
        except psycopg.OperationalError:
            pass
        if time.monotonic() > deadline:
            raise SystemExit("the restored server does not come up")
        time.sleep(0.05)


def _expect(port: int, state: int) -> None:
    found = _state(port)
    if found != state:
        raise SystemExit(f"the restored server has the state {found} instead of {state}")


def _state(port: int) -> int:
    """Return a number that differs wherever a change is missing."""
    with psycopg.connect(_address(port)) as connection:
        return _one(connection, _STATE)


def _address(port: int) -> str:
    return f"host=127.0.0.1 port={port} user=postgres dbname=postgres"


def _one(connection: psycopg.Connection, question: str) -> int:
    row = connection.execute(question.encode()).fetchone()
    assert row is not None
    return int(row[0])


if __name__ == "__main__":
    sys.exit(main())
