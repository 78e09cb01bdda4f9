"""Servers that are backed up, sent off-site on several days, and lost; and what had been in them."""

from __future__ import annotations

import random
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg

from pitr_pipelines.catalog.layout import Layout
from pitr_pipelines.catalog.records import BaseRecord, write_record
from pitr_pipelines.offsite.artifacts import find_artifacts
from pitr_pipelines.offsite.encryption import (
    Identities,
    generate_identity,
    parse_identities,
    parse_recipients,
)
from pitr_pipelines.offsite.envelope import EnvelopePlan, plan_envelope
from pitr_pipelines.offsite.envelope_stream import EnvelopeStream
from pitr_pipelines.offsite.object_store import ObjectStore
from pitr_pipelines.offsite.restoring import Asked, restore_from_offsite
from pitr_pipelines.offsite.shelf import Shelf, open_shelf
from pitr_pipelines.postgres.account import server_account
from pitr_pipelines.postgres.base_backup import take_base_backup
from pitr_pipelines.postgres.binaries import find_binaries
from pitr_pipelines.postgres.server import Cluster
from pitr_pipelines.restore.report import RestoreReport
from pitr_pipelines.restore.target import Target
from pitr_pipelines.settings import Settings
from pitr_pipelines.wal.bundles import make_bundle
from pitr_pipelines.wal.hours import Hour
from pitr_pipelines_tests.servers import ServerFactory, SettingsMaker, TestServer

CLEAR = timedelta(milliseconds=4)
"""Commit times and WAL order may differ by microseconds; targets keep this far from any commit."""
OPTIONS = {"track_commit_timestamp": "on"}


@dataclass
class Scene:
    """Some servers, their settings, and the store that their envelopes go to; `secret` opens those."""

    settings: Settings
    servers: Sequence[TestServer]
    open_store: Callable[[], ObjectStore]
    secret: str
    began: Hour = field(default_factory=lambda: Hour.containing(datetime.now(UTC)))
    sent: set[tuple[str, str]] = field(default_factory=set)
    plans: dict[date, EnvelopePlan] = field(default_factory=dict)

    @property
    def layout(self) -> Layout:
        return Layout(self.settings.backup_root)

    @property
    def identities(self) -> Identities:
        return parse_identities(self.secret)

    def base(self, database: str, day: date) -> BaseRecord:
        """Take a base, and say it is of that day: only today's can be taken, and days are what this tests."""
        made = take_base_backup(self.settings, database)
        if made.day == day:
            return made
        aged = made.model_copy(update={"day": day})
        write_record(self.layout.base_record(database, made.day), aged)
        self.layout.base(database, made.day).rename(self.layout.base(database, day))
        return aged

    def bundle(self, database: str) -> None:
        """Bundle every hour since the test began; the running one stays open."""
        for hour in self.began.until(Hour.containing(datetime.now(UTC))):
            make_bundle(self.settings, database, hour)

    def send(self, day: date) -> EnvelopePlan:
        """Send everything that was not sent before, as the envelope of a day."""
        found = find_artifacts(self.layout, [server.name for server in self.servers])
        assert not found.problems
        copy = self.settings.offsite_copy()
        plan = plan_envelope(
            found.artifacts,
            day=day,
            made_at=datetime.now(UTC),
            delivered=self.sent,
            recipients=parse_recipients(copy.recipients) if copy.recipients else None,
        )
        put(self.open_store(), plan, self.layout.root)
        self.sent |= plan.index.delivers
        self.plans[day] = plan
        return plan

    def lose_everything(self) -> None:
        """Stop the servers, and delete them and all backups that are here."""
        for server in self.servers:
            server.crash()
            shutil.rmtree(server.cluster.data_directory)
        shutil.rmtree(self.settings.backup_root)

    def shelf(self) -> Shelf:
        return open_shelf(self.open_store(), self.identities)

    @contextmanager
    def come_back(
        self, database: str, target: Target
    ) -> Iterator[tuple[dict[str, Any], RestoreReport, psycopg.Connection[Any], list[str]]]:
        """Restore from off-site and connect to the result; it is stopped afterwards, and deleted."""
        said: list[str] = []
        planned, report = restore_from_offsite(
            self.settings, self.shelf(), Asked(database, target), say=said.extend
        )
        assert report is not None
        major = int(report.server_version.split(".")[0])
        binaries = find_binaries(major, self.settings.binaries)
        cluster = Cluster(report.data_directory, binaries, server_account(None))
        try:
            address = f"host=127.0.0.1 port={report.port} user=postgres dbname=postgres"
            with psycopg.connect(address, autocommit=True) as connection:
                yield planned, report, connection, said
        finally:
            cluster.stop("immediate")
            shutil.rmtree(report.directory)

    def ids(self, database: str, target: Target) -> set[int]:
        """Restore from off-site, and return the ids in the table `rows`."""
        with self.come_back(database, target) as (_, _, connection, _):
            return {row[0] for row in connection.execute("SELECT id FROM rows")}


def make_scene(
    server_factory: ServerFactory,
    pitr_settings: SettingsMaker,
    open_store: Callable[..., ObjectStore],
    names: tuple[str, ...] = ("order-db", "users"),
    *,
    major: int | None = None,
    encrypted: bool = True,
) -> Scene:
    servers = [server_factory(name, major=major, wal_segment_size_mb=1, options=OPTIONS) for name in names]
    secret, public = generate_identity()
    offsite = offsite_settings(open_store(), public if encrypted else None)
    settings = pitr_settings(*servers, offsite=offsite, bundle={"keep_raw_hours": 0})
    for server in servers:
        create_rows(server)
    return Scene(settings, servers, open_store, secret)


def past_days(count: int) -> list[date]:
    """Return the last days, today included, oldest first."""
    today = datetime.now(UTC).date()
    return [today - timedelta(days=back) for back in reversed(range(count))]


def offsite_settings(store: ObjectStore, public: str | None) -> dict[str, Any]:
    """Return what pitr.yaml says about the off-site copy."""
    place = store.place.model_dump(mode="json", exclude_defaults=True)
    return {"store": place} | ({"recipients": [public]} if public else {"unencrypted": True})


def put(store: ObjectStore, plan: EnvelopePlan, root: Path) -> None:
    """Send an envelope under its day's key."""
    key = store.key_of(f"{plan.index.day}.tar")
    with EnvelopeStream(plan, root) as stream:
        at = datetime.now(UTC)
        outcome = store.put(key, stream, plan.size_bytes, call_id="0" * 32, at=at)
    assert outcome.etag, outcome


def put_bytes(store: ObjectStore, key: str, content: bytes) -> None:
    """Put an object, over whatever is there: what no part of this software does."""
    store._reader.put_object(Bucket=store.place.bucket, Key=key, Body=content)  # type: ignore[attr-defined]


def get_bytes(store: ObjectStore, key: str) -> bytes:
    stored = store.head(key)
    assert stored is not None
    return b"".join(store.get_range(key, 0, stored.size_bytes))


def create_rows(server: TestServer) -> None:
    server.execute("CREATE TABLE rows (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, pad text)")


@contextmanager
def writing(servers: Sequence[TestServer], seed: int) -> Iterator[None]:
    """Insert rows into every server until the block ends, two writers each; some roll back."""
    stop = threading.Event()

    def write(server: TestServer, number: int) -> None:
        pick = random.Random(seed * 100 + number)
        with server.connect() as connection:
            while not stop.is_set():
                connection.execute("INSERT INTO rows (pad) VALUES (repeat('x', 2000))")
                if pick.random() < 0.1:
                    connection.execute("BEGIN")
                    connection.execute("INSERT INTO rows (pad) VALUES ('gone')")
                    connection.execute("ROLLBACK")
                time.sleep(pick.uniform(0.005, 0.04))

    threads = [
        threading.Thread(target=write, args=(server, number)) for server in servers for number in range(2)
    ]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def committed(server: TestServer) -> dict[int, datetime]:
    """Return when PostgreSQL itself says each row was committed."""
    return dict(server.execute("SELECT id, pg_xact_commit_timestamp(xmin) FROM rows"))


def some_moment(pick: random.Random, start: datetime, end: datetime, truth: dict[int, datetime]) -> datetime:
    """Return a random moment that is not next to a commit."""
    while True:
        moment = start + (end - start) * pick.random()
        if all(abs(moment - at) > CLEAR for at in truth.values()):
            return moment


def until(truth: dict[int, datetime], moment: datetime) -> set[int]:
    return {row for row, at in truth.items() if at <= moment}
