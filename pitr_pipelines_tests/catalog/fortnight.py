"""A fortnight in the life of four databases, as its records tell it, made without a server.

- order-db: a base backup a day but for one that failed; five hours of WAL that never arrived; an hour that
  stayed open; drills that passed, and a last one that failed.
- calm-db: all as it should be.
- young-db: a base backup of today, and nothing else.
- empty-db: nothing yet.

And the ledger of the off-site copy, with a day of every kind.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

from pydantic import BaseModel

from pitr_pipelines.catalog.drills import (
    DrillOutcome,
    DrillPlan,
    DrillReport,
    DrillSeconds,
    record_file,
    stamp_of,
)
from pitr_pipelines.catalog.layout import Layout
from pitr_pipelines.catalog.records import BaseRecord, BundleRecord, BundleState, to_json
from pitr_pipelines.offsite.budget import CallObject, CallState, LedgerEntry
from pitr_pipelines_tests.wal_files import (
    SEGMENT_SIZE,
    Store,
    at,
    base_record,
    bundle_record,
    make_settings,
    put_segment,
    seal_record,
    segment,
)

NOW = at(14, 20)
DATABASES = ("order-db", "calm-db", "young-db", "empty-db")
FIRST_HOUR = -13 * 24 + 3
FAILED_DAY = -6
"""Of order-db's base backup, counted from today."""
GAP_HOURS = range(-3 * 24 + 5, -3 * 24 + 10)
OPEN_HOUR = -8 * 24 + 17
_ORIGIN = 14 * 24
"""Segment numbers count hours from here, so that none is below zero."""

SAID = 'the store answered 403 AccessDenied: <script>alert("no")</script>'


def make_fortnight(root: Path, **values: object) -> Store:
    """Write all of it below `root`, and return the storage with its settings."""
    store = Store(root)
    offsite = {"store": {"bucket": "backups", "region": "eu-central-1"}, "unencrypted": True}
    store.settings = make_settings(
        root, DATABASES, **{"timezone": "Europe/Berlin", "offsite": offsite, **values}
    )
    _order_db(store)
    _calm_db(store)
    started = at(13, 30)
    _put_bases(store, [base_record(5, 5, started, database="young-db")])
    put_ledger(store.layout)
    return store


def _order_db(store: Store) -> None:
    rng = random.Random(5)
    bases = []
    for day in range(-13, 1):
        if day != FAILED_DAY:
            bases.append(_base(day, "order-db", 700_000_000 + 9_000_000 * (day + 13)))
    _put_bases(store, bases)
    bundles = []
    for hour in range(FIRST_HOUR, 15):
        if hour in GAP_HOURS:
            continue
        running = hour == 14
        state = BundleState.OPEN if running or hour == OPEN_HOUR else BundleState.CLOSED
        closed = at(hour, 15) if running else at(hour, 59, 59)
        number = _ORIGIN + hour
        record = bundle_record(
            hour,
            {segment(number): closed},
            state=state,
            seal=seal_record(hour, number, closed) if running else None,
        )
        assert record.file is not None
        size = rng.randrange(2_000_000, 30_000_000)
        file = record.file.model_copy(update={"size_bytes": size})
        bundles.append(record.model_copy(update={"file": file}))
    _put_bundles(store, bundles)
    put_segment(store.wal, segment(_ORIGIN + 15), at(14, 19))
    for day, seconds, outcome in ((-12, 95.0, "passed"), (-5, 140.0, "passed"), (-1, 60.0, "failed")):
        put_drill(store.layout, "order-db", at(24 * day + 5), seconds, DrillOutcome(outcome))


def _calm_db(store: Store) -> None:
    database = "calm-db"
    _put_bases(store, [_base(day, database, 50_000_000) for day in range(-13, 1)])
    for hour in range(FIRST_HOUR, 14):
        number = _ORIGIN + hour
        record = bundle_record(hour, {segment(number): at(hour, 59, 59)}, database=database)
        _put_bundles(store, [record])
    put_segment(store.layout.wal(database), segment(_ORIGIN + 14), at(14, 19))
    put_drill(store.layout, database, at(-3 * 24 + 5), 12.0, DrillOutcome.PASSED)


def _base(day: int, database: str, size_bytes: int) -> BaseRecord:
    number = _ORIGIN + 24 * day + 3
    record = base_record(number, number, at(24 * day + 3, 10), database=database, took=timedelta(minutes=4))
    file = record.files[0].model_copy(update={"size_bytes": size_bytes})
    return record.model_copy(update={"files": (file,), "uncompressed_bytes": 4 * size_bytes})


def _put_bases(store: Store, records: Iterable[BaseRecord]) -> None:
    for record in records:
        _put(store.layout.base_record(record.database, record.day), record)


def _put_bundles(store: Store, records: Iterable[BundleRecord]) -> None:
    for record in records:
        _put(store.layout.bundle_record(record.database, record.hour), record)


def _put(path: Path, record: BaseModel) -> None:
    """Write a record as the software does, but for its syncs: there are hundreds here."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(to_json(record.model_dump(mode="json")))


def put_drill(
    layout: Layout, database: str, started_at: datetime, recovery_s: float, outcome: DrillOutcome
) -> DrillReport:
    """Put the record of a drill."""
    failed = outcome is DrillOutcome.FAILED
    report = DrillReport(
        database=database,
        started_at=started_at,
        finished_at=started_at + timedelta(seconds=recovery_s + 30),
        outcome=outcome,
        problems=("pg_amcheck found damage in <public.orders>",) if failed else (),
        remedy="Look at the index, and REINDEX it on the server." if failed else None,
        target=started_at - timedelta(hours=7),
        seed=7,
        server_version="15.19",
        recovered_to_lsn=None,
        last_transaction_at=None,
        plan=DrillPlan(
            base_day=str((started_at - timedelta(days=1)).date()),
            timeline=1,
            segments=18,
            base_bytes=2_800_000_000,
            wal_bytes=18 * SEGMENT_SIZE,
            stop="time",
            notes=(),
        ),
        seconds=DrillSeconds(recovery_time=None if failed else recovery_s, total=recovery_s + 30),
        checks=(),
    )
    path = record_file(layout, database, stamp_of(layout, database, started_at))
    _put(path, report)
    return report


LEDGER: dict[int, CallState] = {
    -20: CallState.CONFIRMED,
    -12: CallState.CONFIRMED,
    -11: CallState.CONFIRMED,
    -10: CallState.REFUSED,
    -9: CallState.CONFIRMED,
    -7: CallState.UNKNOWN,
    -6: CallState.CONFIRMED,
    -5: CallState.CLAIMED,
    -4: CallState.CONFIRMED,
    -2: CallState.CONFIRMED,
    -1: CallState.CONFIRMED,
    0: CallState.SENT,
}
"""The days, counted from today, with what became of their calls. One more (-3) cannot be read."""


def day_at(offset: int) -> date:
    """Return a day counted from today."""
    return at(24 * offset).date()


def put_ledger(layout: Layout) -> None:
    """Put a ledger with a day of every kind."""
    layout.ledger.mkdir(parents=True)
    said = {
        CallState.CONFIRMED: 'stored, ETag "0f343b0931126a20f133d67c2b018a3b"',
        CallState.REFUSED: SAID,
        CallState.UNKNOWN: "no answer came in time after the upload had begun",
    }
    for offset, state in LEDGER.items():
        day = day_at(offset)
        begun = datetime(day.year, day.month, day.day, 4, 30, tzinfo=UTC)
        sent = state is not CallState.CLAIMED
        entry = LedgerEntry(
            day=day,
            state=state,
            claimed_at=begun,
            claimed_by="backup-1, process 77",
            object=CallObject(bucket="backups", key=f"{day}.tar", size_bytes=1_300_000_000 + offset * 10**7)
            if sent
            else None,
            sent_at=begun if sent else None,
            ended_at=begun + timedelta(minutes=6) if state in said else None,
            said=said.get(state),
        )
        _put(layout.ledger / f"{day}.json", entry)
    (layout.ledger / f"{day_at(-3)}.json").write_text('{"half')
