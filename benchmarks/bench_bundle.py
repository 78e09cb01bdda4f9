"""How fast WAL is bundled, against `tar | gzip -1` on the same segments in the same run.

What is measured is the whole of `make_bundle`: reading, checking headers, packing, unpacking again,
SHA-256, writing, syncing, and reading the bundle back from disk. The promise is 300 MB/s of raw WAL
per core, that is, per second of processor time; with --check the exit status is 1 if it is broken.

Without --segments-from, segments are made up: pages of rows like a small table's, with some random
bytes, that compress about as well as pgbench's WAL (9 to 10 times).

    python benchmarks/bench_bundle.py [--segments-from DIR] [--count 48] [--workers N] [--rounds 3] [--check]
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import shutil
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from pitr_pipelines.catalog.layout import Layout
from pitr_pipelines.settings import Settings, parse_settings
from pitr_pipelines.wal.archive import scan_archive
from pitr_pipelines.wal.bundles import make_bundle
from pitr_pipelines.wal.hours import Hour
from pitr_pipelines.wal.lsn import SegmentName, WalFileKind

PROMISED_MB_PER_CPU_S = 300
SEGMENT_SIZE_BYTES = 16 * 1024 * 1024
PAGE_SIZE_BYTES = 8192
SYSTEM_IDENTIFIER = 7_301_234_567_890_123_456
HOUR = Hour.parse("2026-01-29-14")
DATABASE = "bench"
MB = 1e6


@dataclass(frozen=True)
class Measured:
    """One run: how much WAL, how long on the clock, how long on processors, and what came out."""

    raw_bytes: int
    packed_bytes: int
    wall_s: float
    cpu_s: float

    @property
    def per_wall_s(self) -> float:
        return self.raw_bytes / MB / self.wall_s

    @property
    def per_cpu_s(self) -> float:
        return self.raw_bytes / MB / self.cpu_s


def main() -> int:
    arguments = _parser().parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-bundle-", dir=arguments.directory) as scratch:
        settings = _settings(Path(scratch), arguments.workers)
        wal = Layout(settings.backup_root).wal(DATABASE)
        wal.mkdir(parents=True)
        if arguments.segments_from is None:
            _make_segments(wal, arguments.count)
        else:
            _copy_segments(arguments.segments_from, wal, arguments.count)
        runs: dict[str, list[Measured]] = {"make_bundle": [], "tar | gzip -1": []}
        for _ in range(arguments.rounds):
            runs["make_bundle"].append(_measure(wal, lambda: _bundle(settings)))
            runs["tar | gzip -1"].append(_measure(wal, lambda: _tar_and_gzip(wal, Path(scratch))))
        best = {name: max(found, key=lambda run: run.per_cpu_s) for name, found in runs.items()}
        count = len(list(wal.iterdir()))
        size = best["make_bundle"].raw_bytes / MB
        print(
            f"{count} segments, {size:.0f} MB of WAL, on {os.cpu_count()} cores; best of {arguments.rounds}:"
        )
        for name, run in best.items():
            median = statistics.median(one.per_cpu_s for one in runs[name])
            print(
                f"  {name:14} {run.per_cpu_s:6.0f} MB/s of raw WAL per core (median {median:.0f}), "
                f"{run.per_wall_s:6.0f} MB/s on the clock, "
                f"compressed {run.raw_bytes / run.packed_bytes:.1f} times"
            )
    kept = best["make_bundle"].per_cpu_s >= PROMISED_MB_PER_CPU_S
    print(f"promised: {PROMISED_MB_PER_CPU_S} MB/s per core: {'kept' if kept else 'BROKEN'}")
    return 1 if arguments.check and not kept else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Measure how fast WAL is bundled.")
    parser.add_argument("--segments-from", type=Path, help="a directory of real WAL segments")
    parser.add_argument("--count", type=int, default=48, help="how many segments (default 48)")
    parser.add_argument("--workers", type=int, help="threads (default: one a core)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--directory", type=Path, help="where to work (default: the temporary directory)")
    parser.add_argument("--check", action="store_true", help="exit 1 if the promise is broken")
    return parser


def _settings(root: Path, workers: int | None) -> Settings:
    return parse_settings(
        {
            "backup_root": "backup",
            "restore_root": "restore",
            "databases": {DATABASE: {"dsn": "host=nowhere.invalid"}},
            "bundle": {"workers": workers, "keep_raw_hours": 1000},
        },
        source=root / "pitr.yaml",
    )


def _measure(wal: Path, work: Callable[[], Path]) -> Measured:
    """Run `work`, which returns the file it made, and remove that."""
    raw_bytes = sum(path.stat().st_size for path in wal.iterdir())
    os.sync()
    cpu_s, wall_s = _cpu_s(), time.monotonic()
    made = work()
    wall_s, cpu_s = time.monotonic() - wall_s, _cpu_s() - cpu_s
    measured = Measured(raw_bytes, made.stat().st_size, wall_s, cpu_s)
    for path in made.parent.glob(f"{made.name.split('.')[0]}.*"):
        path.unlink()
    return measured


def _cpu_s() -> float:
    """Return the processor time, of the user and of the kernel for us, of this process and its children."""
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def _bundle(settings: Settings) -> Path:
    outcome = make_bundle(settings, DATABASE, HOUR, now=HOUR.end + timedelta(minutes=1), seal=False)
    assert outcome.record.file is not None
    return Layout(settings.backup_root).bundle(DATABASE, HOUR)


def _tar_and_gzip(wal: Path, scratch: Path) -> Path:
    made = scratch / "baseline.tar.gz"
    with made.open("wb") as file:
        tar = subprocess.Popen(["tar", "c", "-C", str(wal), "."], stdout=subprocess.PIPE)
        subprocess.run(["gzip", "-1"], stdin=tar.stdout, stdout=file, check=True)
        assert tar.stdout is not None
        tar.stdout.close()
        if tar.wait() != 0:
            raise RuntimeError("tar failed")
        os.fsync(file.fileno())
    return made


def _copy_segments(source: Path, wal: Path, count: int) -> None:
    found = [file for file in scan_archive(source) if file.kind is WalFileKind.SEGMENT][:count]
    if not found:
        raise SystemExit(f"there are no WAL segments in {source}")
    for file in found:
        copy = Path(shutil.copyfile(file.path, wal / file.name))
        _date(copy)


def _make_segments(wal: Path, count: int) -> None:
    chance = random.Random(7)
    for number in range(1, count + 1):
        name = SegmentName.numbered(number, 1, SEGMENT_SIZE_BYTES)
        pages = [_page(chance) for _ in range(64)]
        content = bytearray()
        while len(content) < SEGMENT_SIZE_BYTES:
            page = bytearray(chance.choice(pages))
            for _ in range(5):  # what differs between two changes of a row
                place = chance.randrange(64, PAGE_SIZE_BYTES - 16)
                page[place : place + 8] = chance.randbytes(8)
            content += page
        struct.pack_into(
            "=HHIQI4xQII",
            content,
            0,
            0xD110,
            2,
            1,
            int(name.start(SEGMENT_SIZE_BYTES)),
            0,
            SYSTEM_IDENTIFIER,
            SEGMENT_SIZE_BYTES,
            PAGE_SIZE_BYTES,
        )
        path = wal / str(name)
        path.write_bytes(content)
        _date(path)


def _page(chance: random.Random) -> bytes:
    """Return a page of WAL records: short headers, keys that count up, a little text, much padding."""
    page = bytearray()
    key = chance.randrange(10**6)
    while len(page) < PAGE_SIZE_BYTES:
        key += 1
        page += struct.pack("<IIQBBHI", 79, key % 7919, key * 104, 0, 10, 0, chance.getrandbits(32))
        page += struct.pack("<HIIi", 1663, 16384, 16397, key) + b"a row of text".ljust(84)
    return bytes(page[:PAGE_SIZE_BYTES])


def _date(path: Path) -> None:
    moment = HOUR.start + timedelta(minutes=1)
    nanoseconds = (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1) * 1000
    os.utime(path, ns=(nanoseconds, nanoseconds))


if __name__ == "__main__":
    sys.exit(main())
