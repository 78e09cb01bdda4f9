"""What wal-archive.sh costs for each segment, against the plainest durable copy in shell.

Both archive the same segments, turn by turn in one run, and are started as PostgreSQL starts an
archive_command: through `sh -c`. The baseline does what every safe archive_command must do (copy,
sync, rename, sync the directory) and checks nothing. The promise is a ratio of the medians of at most
1.25; with --check the exit status is 1 if it is broken.

    python benchmarks/bench_wal_archive.py [--segments 60] [--directory DIR] [--check]
"""

from __future__ import annotations

import argparse
import os
import random
import shlex
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

WAL_ARCHIVE = Path(__file__).resolve().parent.parent / "pitr_pipelines" / "wal" / "wal-archive.sh"
BASELINE = 'cp "$1" "$2/.tmp" && sync "$2/.tmp" && mv "$2/.tmp" "$2/$3" && sync "$2"'
RATIO_PROMISED = 1.25
SEGMENT_SIZE_BYTES = 16 * 1024 * 1024
PAGE_SIZE_BYTES = 8192
SYSTEM_IDENTIFIER = 7_301_234_567_890_123_456
DIFFERENT_SEGMENTS = 4
WARM_UP_TURNS = 4
ATTEMPTS = 3
"""How often --check measures before it believes that the promise is broken: other work disturbs a disk."""


def segment_content(number: int) -> bytes:
    """Make a segment whose pages are filled to differing degrees, as those of a busy server are."""
    chance = random.Random(number)
    pages = bytearray()
    for page in range(SEGMENT_SIZE_BYTES // PAGE_SIZE_BYTES):
        address = number * SEGMENT_SIZE_BYTES + page * PAGE_SIZE_BYTES
        if page == 0:
            header = struct.pack(
                "=HHIQIIQII",
                0xD110,
                2,
                1,
                address,
                0,
                0,
                SYSTEM_IDENTIFIER,
                SEGMENT_SIZE_BYTES,
                PAGE_SIZE_BYTES,
            )
        else:
            header = struct.pack("=HHIQII", 0xD110, 0, 1, address, 0, 0)
        records = chance.randbytes(chance.randrange(PAGE_SIZE_BYTES // 2, PAGE_SIZE_BYTES - len(header)))
        pages += (header + records).ljust(PAGE_SIZE_BYTES, b"\0")
    return bytes(pages)


def milliseconds(command: str) -> float:
    """Run one archive_command and return how long it took; a failure ends the benchmark."""
    start = time.perf_counter()
    subprocess.run(["sh", "-c", command], check=True)
    return (time.perf_counter() - start) * 1000


def measure(segments: int, work: Path) -> tuple[list[float], list[float]]:
    """Archive as many segments both ways, by turns; return the times of ours and the baseline in ms."""
    ours_archive, baseline_archive = work / "ours", work / "baseline"
    ours_archive.mkdir()
    baseline_archive.mkdir()
    (ours_archive / "system_identifier").write_text(f"{SYSTEM_IDENTIFIER}\n")
    sources = [work / f"source-{number}" for number in range(DIFFERENT_SEGMENTS)]
    for number, source in enumerate(sources):
        source.write_bytes(segment_content(number))
        with source.open("rb") as file:
            os.fsync(file.fileno())  # as the server's own WAL is, before it is archived
    ours: list[float] = []
    baseline: list[float] = []
    for turn in range(segments + WARM_UP_TURNS):
        name = f"{1:08X}{0:08X}{turn:08X}"
        path = shlex.quote(str(sources[turn % DIFFERENT_SEGMENTS]))
        commands = [
            (ours, f"{shlex.quote(str(WAL_ARCHIVE))} {shlex.quote(str(ours_archive))} {path} {name}"),
            (baseline, f"set -- {path} {shlex.quote(str(baseline_archive))} {name}; {BASELINE}"),
        ]
        for times, command in commands if turn % 2 else reversed(commands):
            elapsed_ms = milliseconds(command)
            if turn >= WARM_UP_TURNS:
                times.append(elapsed_ms)
    return ours, baseline


def main() -> int:
    parser = argparse.ArgumentParser(description="Time wal-archive.sh against copy + sync + rename in shell.")
    parser.add_argument("--segments", type=int, default=60, help="how many 16 MB segments (default 60)")
    parser.add_argument("--directory", type=Path, help="where to archive to: put it on the disk that matters")
    parser.add_argument("--check", action="store_true", help=f"exit 1 if the ratio exceeds {RATIO_PROMISED}")
    options = parser.parse_args()
    for _ in range(ATTEMPTS if options.check else 1):
        ratio = compare(options.segments, options.directory)
        if ratio <= RATIO_PROMISED:
            return 0
    return 1 if options.check else 0


def compare(segments: int, directory: Path | None) -> float:
    """Measure once, print the figures, and return the ratio of the medians."""
    with tempfile.TemporaryDirectory(prefix="bench-wal-archive-", dir=directory) as work:
        ours, baseline = measure(segments, Path(work))
    ratio = statistics.median(ours) / statistics.median(baseline)
    for label, times in (("wal-archive.sh", ours), ("cp + sync + mv + sync", baseline)):
        median_ms, fastest_ms = statistics.median(times), min(times)
        print(f"{label:22} median {median_ms:6.1f} ms  fastest {fastest_ms:6.1f} ms  n={len(times)}")
    print(f"{'ratio of medians':22} {ratio:.2f}  (promised: at most {RATIO_PROMISED})")
    by_turn = statistics.median(one / other for one, other in zip(ours, baseline, strict=True))
    print(f"{'median ratio by turn':22} {by_turn:.2f}  (far from the other: the disk was too busy to tell)")
    return ratio


if __name__ == "__main__":
    sys.exit(main())
