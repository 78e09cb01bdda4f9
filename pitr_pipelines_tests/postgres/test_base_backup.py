"""A base backup appears whole or not at all, and a server starts from it with the right rows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest

from pitr_pipelines import durable
from pitr_pipelines.catalog.layout import BASE_RECORD, Layout
from pitr_pipelines.catalog.records import BaseRecord, read_record
from pitr_pipelines.errors import (
    ArtifactDamaged,
    BadRequest,
)
from pitr_pipelines.postgres.account import Account, make_owned_directory
from pitr_pipelines.postgres.base_backup import existing_base, take_base_backup
from pitr_pipelines.postgres.base_contents import extract_base, verify_base
from pitr_pipelines.postgres.base_wal import verify_base_contents
from pitr_pipelines.postgres.pg_basebackup import choose_compression
from pitr_pipelines.postgres.server import Cluster, free_port
from pitr_pipelines.progress import Progress
from pitr_pipelines.settings import Settings
from pitr_pipelines_tests.postgres.base_leftovers import hidden, published
from pitr_pipelines_tests.servers import (
    MAJORS,
    ServerFactory,
    SettingsMaker,
    TestServer,
    binaries_of,
    each_major,
)

each_end = pytest.mark.parametrize("major", sorted({*MAJORS[:1], *MAJORS[-1:]}))
"""Run a test on the oldest and the newest major."""


@contextmanager
def started(data_directory: Path, account: Account, major: int) -> Iterator[TestServer]:
    """Run a server on an extracted base until the block ends; it never archives."""
    cluster = Cluster(data_directory, binaries_of(major).reachable_by(account), account)
    server = TestServer("copy", cluster, free_port(), data_directory.with_name("copy.log"), data_directory)
    try:
        cluster.start(
            log_file=server.log_file,
            options={"port": str(server.port), "archive_mode": "off", "fsync": "off"},
        )
        yield server
    finally:
        cluster.stop("immediate")


def extract(settings: Settings, record: BaseRecord, account: Account) -> tuple[Path, dict[int, Path]]:
    room = settings.backup_root.parent
    data_directory = make_owned_directory(room / "copy", account)
    places = {tablespace.oid: room / f"copy \\{tablespace.oid}" for tablespace in record.tablespaces}
    directory = Layout(settings.backup_root).base(record.database, record.day)
    extract_base(directory, record, data_directory, places, account)
    return data_directory, places


@each_major
def test_a_server_starts_from_it_with_its_rows_and_tablespaces(
    major: int, server_factory: ServerFactory, pitr_settings: SettingsMaker, account: Account
) -> None:
    server = server_factory(major=major)
    place = make_owned_directory(server_factory.directory / "some where", account)
    server.execute(f"CREATE TABLESPACE other LOCATION '{place}'")
    server.execute("CREATE TABLE here AS SELECT generate_series(1, 1000) AS n")
    server.execute("CREATE TABLE there TABLESPACE other AS SELECT generate_series(1, 2000) AS n")
    settings = pitr_settings(server)
    steps: list[Progress] = []

    record = take_base_backup(settings, server.name, progress=steps.append)

    directory = Layout(settings.backup_root).base(server.name, record.day)
    assert read_record(directory / BASE_RECORD, BaseRecord) == record
    verify_base(directory, record)
    verify_base_contents(directory, record, binaries_of(major))
    assert [tablespace.location for tablespace in record.tablespaces] == [str(place)]
    assert record.major == major
    assert record.compression == choose_compression("auto", binaries_of(major))
    suffix = {"zstd": ".zst", "gzip": ".gz", "none": ""}[record.compression]
    assert f"base.tar{suffix}" in [file.name for file in record.files]
    assert record.size_bytes < record.uncompressed_bytes
    assert record.started_at < record.ended_at
    assert record.start_lsn < record.end_lsn
    assert list(dict.fromkeys(step.step for step in steps)) == ["checkpoint", "copy", "verify"]
    server.execute("DELETE FROM here")
    server.execute("DELETE FROM there")

    data_directory, places = extract(settings, record, account)
    with started(data_directory, account, major) as copy:
        assert copy.execute("SELECT count(*), sum(n) FROM here") == [(1000, 500500)]
        assert copy.execute("SELECT count(*), sum(n) FROM there") == [(2000, 2001000)]
        (location,) = copy.execute(
            "SELECT pg_tablespace_location(oid) FROM pg_tablespace WHERE spcname = 'other'"
        )
        assert [Path(path) for path in location] == list(places.values())
        copy.execute("INSERT INTO there VALUES (1)")
    assert server.execute("SELECT count(*) FROM there") == [(0,)]


@each_end
@pytest.mark.parametrize("segment_size_mb", [1, 64])
def test_other_wal_segment_sizes(
    major: int,
    segment_size_mb: int,
    server_factory: ServerFactory,
    pitr_settings: SettingsMaker,
    account: Account,
) -> None:
    server = server_factory(major=major, wal_segment_size_mb=segment_size_mb, archiving=False)
    server.execute("CREATE ROLE pitr LOGIN REPLICATION IN ROLE pg_monitor")
    server.execute("CREATE TABLE here AS SELECT generate_series(1, 50000) AS n")
    settings = pitr_settings(server)
    record = take_base_backup(settings, server.name)
    assert record.wal_segment_size == segment_size_mb * 1024 * 1024
    data_directory, _ = extract(settings, record, account)
    assert (data_directory / "pg_wal" / str(record.last_segment)).stat().st_size == record.wal_segment_size
    with started(data_directory, account, major) as copy:
        assert copy.execute("SELECT count(*) FROM here") == [(50000,)]


def test_rows_of_before_the_backup_are_in_it_while_others_go_on_writing(
    server_factory: ServerFactory, pitr_settings: SettingsMaker, account: Account
) -> None:
    server = server_factory()
    server.execute("CREATE TABLE log (n int PRIMARY KEY)")
    written = 0

    def write_on(progress: Progress) -> None:
        nonlocal written
        with server.connect() as connection:
            for _ in range(20):
                connection.execute("INSERT INTO log VALUES (%s)", [written])
                written += 1

    write_on(Progress("before", 0, None))
    settings = pitr_settings(server)
    record = take_base_backup(settings, server.name, progress=write_on)
    data_directory, _ = extract(settings, record, account)
    with started(data_directory, account, server.major) as copy:
        rows = [n for (n,) in copy.execute("SELECT n FROM log ORDER BY n")]
    assert 20 <= len(rows) <= written
    assert rows == list(range(len(rows)))


def test_files_are_closed_to_others(server_factory: ServerFactory, pitr_settings: SettingsMaker) -> None:
    server = server_factory()
    settings = pitr_settings(server)
    record = take_base_backup(settings, server.name)
    directory = Layout(settings.backup_root).base(server.name, record.day)
    assert directory.stat().st_mode & 0o777 == 0o750
    assert {path.stat().st_mode & 0o777 for path in directory.iterdir()} == {0o640}


def test_a_second_one_on_the_same_day_changes_nothing(
    server_factory: ServerFactory, pitr_settings: SettingsMaker, caplog: pytest.LogCaptureFixture
) -> None:
    server = server_factory()
    settings = pitr_settings(server)
    record = take_base_backup(settings, server.name)
    directory = Layout(settings.backup_root).base(server.name, record.day)
    before = {path: path.stat().st_mtime_ns for path in directory.iterdir()}
    server.stop()  # not even asked
    with caplog.at_level("INFO"):
        assert take_base_backup(settings, server.name, day=record.day) == record
    assert "nothing was done" in caplog.text
    assert {path: path.stat().st_mtime_ns for path in directory.iterdir()} == before


def test_only_today_can_be_taken_but_an_existing_day_is_returned(
    server_factory: ServerFactory, pitr_settings: SettingsMaker
) -> None:
    server = server_factory()
    settings = pitr_settings(server)
    today = datetime.now(UTC).date()
    with pytest.raises(
        BadRequest, match="a base backup of a past day cannot be taken from the server"
    ) as caught:
        take_base_backup(settings, server.name, day=today - timedelta(days=3))
    assert f"pitr restore {server.name}" in caught.value.remedy
    with pytest.raises(BadRequest, match="has not begun yet"):
        take_base_backup(settings, server.name, day=today + timedelta(days=3))
    with pytest.raises(BadRequest, match="no database 'other'"):
        take_base_backup(settings, "other")
    layout = Layout(settings.backup_root)
    record = take_base_backup(settings, server.name)
    past = date(2026, 1, 29)
    layout.base(server.name, record.day).rename(layout.base(server.name, past))
    assert take_base_backup(settings, server.name, day=past) == record


@pytest.mark.parametrize("problem", ["no record", "broken record", "lost file"])
def test_what_is_not_whole_is_made_again(
    problem: str, server_factory: ServerFactory, pitr_settings: SettingsMaker
) -> None:
    server = server_factory()
    settings = pitr_settings(server)
    first = take_base_backup(settings, server.name)
    directory = Layout(settings.backup_root).base(server.name, first.day)
    match problem:
        case "no record":
            (directory / BASE_RECORD).unlink()
        case "broken record":
            (directory / BASE_RECORD).write_text("{")
        case "lost file":
            (directory / "backup_manifest").unlink()
    assert existing_base(settings, server.name, first.day) is None
    second = take_base_backup(settings, server.name, day=first.day)
    assert second.start_lsn > first.start_lsn
    verify_base(directory, second)
    assert hidden(settings, server.name) == []


def test_what_does_not_arrive_whole_is_discarded(
    server_factory: ServerFactory, pitr_settings: SettingsMaker
) -> None:
    server = server_factory()
    settings = pitr_settings(server, base_backup={"compression": "none"})
    bases = Layout(settings.backup_root).bases(server.name)

    def damage_wal(progress: Progress) -> None:
        if progress.step == "verify":
            for path in bases.glob(".*.tmp/pg_wal.tar"):
                with path.open("r+b") as file:
                    file.seek(512)  # the first page of the first segment
                    file.write(bytes(64))

    with pytest.raises(ArtifactDamaged, match=r"discarded: .*pg_wal\.tar is damaged: its WAL") as caught:
        take_base_backup(settings, server.name, progress=damage_wal)
    assert "Take it again" in caught.value.remedy
    assert hidden(settings, server.name) == []
    assert published(settings, server.name) == []


def test_a_replacement_takes_the_place_of_todays_in_one_step_or_leaves_it(
    server_factory: ServerFactory, pitr_settings: SettingsMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = server_factory()
    settings = pitr_settings(server)
    first = take_base_backup(settings, server.name)
    directory = Layout(settings.backup_root).base(server.name, first.day)

    def break_off(new: Path, old: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(durable, "exchange", break_off)
        with pytest.raises(KeyboardInterrupt):
            take_base_backup(settings, server.name, replace=True)
    assert read_record(directory / BASE_RECORD, BaseRecord) == first
    verify_base(directory, first)

    second = take_base_backup(settings, server.name, replace=True)
    assert second.start_lsn > first.end_lsn
    assert read_record(directory / BASE_RECORD, BaseRecord) == second
    verify_base(directory, second)
    assert hidden(settings, server.name) == []
