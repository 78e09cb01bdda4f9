"""How fast retention decides: three years of hourly bundles and daily bases, of 20 databases.

Nothing was removed in those years, so there are 526,080 bundles and 21,920 bases to look at. Measured in
seconds of processor time: the decision, which is promised to take less than one; and the mapping of WAL
to bundles, which is made once for an inventory that was read, and takes a fraction of the reading. With
--check the exit status is 1 if the median breaks the promise.

    python benchmarks/bench_retention.py [--databases 20] [--days 1096] [--rounds 3] [--check]
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from datetime import UTC, datetime, timedelta

from pitr_pipelines.catalog.inventory import BundleEntry, Inventory
from pitr_pipelines.catalog.records import BaseRecord, BundleState, FileDigest, SealRecord, WalRun
from pitr_pipelines.catalog.retention import Keep, Verdict, decide, map_inventory
from pitr_pipelines.wal.hours import Hour
from pitr_pipelines.wal.lsn import Lsn, SegmentName

PROMISED_S = 1.0
SEGMENT_SIZE_BYTES = 16 * 1024 * 1024
BEGIN = datetime(2023, 1, 1, tzinfo=UTC)
KEEP = Keep(timedelta(days=7), daily=14, weekly=5, monthly=12)
SEGMENTS_AN_HOUR = 12


def make_inventory(name: str, days: int) -> Inventory:
    """Return a database with a base at three o'clock each day, and a sealed bundle each hour."""
    bases = []
    for day in range(days):
        number = (day * 24 + 3) * SEGMENTS_AN_HOUR
        ended_at = BEGIN + timedelta(days=day, hours=3, minutes=20)
        bases.append(
            BaseRecord(
                database=name,
                day=ended_at.date(),
                system_identifier="7301234567890123456",
                server_version=170006,
                timeline=1,
                start_lsn=Lsn(number * SEGMENT_SIZE_BYTES + 40),
                end_lsn=Lsn(number * SEGMENT_SIZE_BYTES + 4096),
                started_at=ended_at - timedelta(minutes=20),
                ended_at=ended_at,
                wal_segment_size=SEGMENT_SIZE_BYTES,
                data_checksums=True,
                compression="zstd",
                uncompressed_bytes=10**9,
                files=(FileDigest(name="base.tar.zst", size_bytes=10**8, sha256="0" * 64),),
            )
        )
    return Inventory(name, tuple(bases), tuple(_bundle(name, hour) for hour in range(days * 24)), (), {}, ())


def _bundle(name: str, number: int) -> BundleEntry:
    hour = Hour(BEGIN + timedelta(hours=number))
    first = SegmentName.numbered(number * SEGMENTS_AN_HOUR, 1, SEGMENT_SIZE_BYTES)
    last = SegmentName.numbered((number + 1) * SEGMENTS_AN_HOUR - 1, 1, SEGMENT_SIZE_BYTES)
    at = hour.end + timedelta(milliseconds=5)
    seal = SealRecord(
        database=name,
        hour=hour,
        segment=last,
        lsn=Lsn(last.start(SEGMENT_SIZE_BYTES) + 256),
        restore_point=f"pitr-{name}-{hour}",
        at=at,
    )
    return BundleEntry(
        hour=hour,
        state=BundleState.CLOSED,
        system_identifier="7301234567890123456",
        wal_segment_size=SEGMENT_SIZE_BYTES,
        seal=seal,
        runs=(WalRun(first=first, last=last, closed_at=at),),
        size_bytes=10**7,
        raw_bytes=SEGMENTS_AN_HOUR * SEGMENT_SIZE_BYTES,
        segments=SEGMENTS_AN_HOUR,
        histories=(),
    )


def main() -> int:
    """Measure, print, and return the exit status."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    options.add_argument("--databases", type=int, default=20)
    options.add_argument("--days", type=int, default=1096)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--check", action="store_true")
    chosen = options.parse_args()
    inventories = [make_inventory(f"db-{number}", chosen.days) for number in range(chosen.databases)]
    now = BEGIN + timedelta(days=chosen.days, minutes=5)
    bundles = sum(len(inventory.bundles) for inventory in inventories)
    took = []
    began = time.process_time()
    maps = [map_inventory(inventory) for inventory in inventories]
    mapped_s = time.process_time() - began
    for _ in range(chosen.rounds):
        began = time.process_time()
        decided = [
            decide(inventory, KEEP, now=now, wal=wal)
            for inventory, wal in zip(inventories, maps, strict=True)
        ]
        took.append(time.process_time() - began)
    kept = sum(len(one.hours(Verdict.KEEP)) for one in decided)
    bases = sum(len(one.bases(Verdict.KEEP)) for one in decided)
    median = statistics.median(took)
    print(
        f"{bundles} bundles of {chosen.databases} databases, {chosen.days} days: {kept} kept, {bases} bases"
    )
    print(f"mapped in {mapped_s:.2f} s")
    print(f"decided in {median:.2f} s (median of {chosen.rounds}; {', '.join(f'{s:.2f}' for s in took)})")
    if chosen.check and median > PROMISED_S:
        print(f"slower than the promised {PROMISED_S:g} s")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
