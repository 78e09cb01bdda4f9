"""What a broken-in database server can put into its own archive holds up nobody and is followed nowhere.

Its user owns that directory. A link there would let us read, and a pipe would let us wait for ever.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from pitr_pipelines import durable
from pitr_pipelines.catalog.inventory import read_bundle_record, read_inventory
from pitr_pipelines.catalog.records import BundleRecord, read_record
from pitr_pipelines.errors import ArtifactDamaged, PitrError
from pitr_pipelines.postgres.account import Account, make_owned_directory
from pitr_pipelines.postgres.archive_place import archive_owner
from pitr_pipelines.restore.segment_files import SegmentFiles
from pitr_pipelines.restore.target import LatestTarget
from pitr_pipelines.restore.wal_source import InArchive
from pitr_pipelines.wal.archive import IDENTITY_FILE, owner, read_header, read_history, scan_archive
from pitr_pipelines.wal.bundles import make_bundle
from pitr_pipelines.wal.salvage import return_to_archive
from pitr_pipelines.watch.round import watch_once
from pitr_pipelines_tests.restore.scenes import Scene, make_scene
from pitr_pipelines_tests.servers import ServerFactory, SettingsMaker
from pitr_pipelines_tests.wal_files import (
    DATABASE,
    Store,
    at,
    hour_of,
    make_archive,
    segment,
    segment_bytes,
)


def within_a_minute(function: Callable[[], Any]) -> Any:
    """Return what a function returns, or the error that it raises; fail if it waits for ever."""
    found: list[Any] = []

    def call() -> None:
        try:
            found.append(function())
        except PitrError as error:
            found.append(error)

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(timeout=60)
    assert not thread.is_alive(), "it waits for ever"
    assert found, "it raised something that is no error of ours"
    return found[0]


def pipe(path: Path, secret: Path) -> None:
    os.mkfifo(path)


def link(path: Path, secret: Path) -> None:
    path.symlink_to(secret)


def endless(path: Path, secret: Path) -> None:
    path.symlink_to("/dev/zero")


TRAPS = [pipe, link, endless]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path)
    make_archive(store.wal, {segment(n): at(9, n) for n in range(1, 5)} | {segment(5): at(10, 5)})
    return store


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    file = tmp_path / "secret"
    file.write_bytes(b"7301234567890123456 secret")
    return file


@pytest.mark.parametrize("trap", TRAPS)
def test_the_identity_of_an_archive_is_a_file_or_nothing(
    store: Store, secret: Path, trap: Callable[[Path, Path], None]
) -> None:
    (store.wal / IDENTITY_FILE).unlink(missing_ok=True)
    trap(store.wal / IDENTITY_FILE, secret)
    for read in (
        lambda: owner(store.wal, scan_archive(store.wal)),
        lambda: archive_owner(store.wal),
        lambda: make_bundle(store.settings, DATABASE, hour_of(9), now=at(12), seal=False),
    ):
        error = within_a_minute(read)
        assert isinstance(error, ArtifactDamaged)
        assert f"{store.wal / IDENTITY_FILE} is no regular file" in error.what
        assert "secret" not in str(error).replace(str(store.wal), "")


@pytest.mark.parametrize("trap", TRAPS)
def test_the_watch_tells_of_a_trap_and_goes_on(
    store: Store, secret: Path, trap: Callable[[Path, Path], None]
) -> None:
    trap(store.wal / IDENTITY_FILE, secret)
    done = within_a_minute(lambda: watch_once(store.settings, now=datetime.now(UTC)))
    texts = {life.incident.key: life.what for life in done.open}
    assert "is no regular file" in texts["storage/storage-unreadable"]


@pytest.mark.parametrize("trap", TRAPS)
def test_what_only_has_a_segments_or_a_historys_name_is_not_read(
    store: Store, secret: Path, trap: Callable[[Path, Path], None]
) -> None:
    odd, history = store.wal / str(segment(3)), store.wal / "00000002.history"
    odd.unlink()
    for path in (odd, history):
        trap(path, secret)
    assert isinstance(within_a_minute(lambda: read_header(odd)), ArtifactDamaged)
    assert isinstance(within_a_minute(lambda: read_history(history)), ArtifactDamaged)
    outcome = within_a_minute(
        lambda: make_bundle(store.settings, DATABASE, hour_of(9), now=at(12), seal=False)
    )
    assert {member.name for member in outcome.record.members} == {str(segment(n)) for n in (1, 2, 4)}
    within_a_minute(lambda: read_inventory(store.layout, DATABASE))
    assert secret.read_bytes() == b"7301234567890123456 secret"


def test_salvage_writes_through_no_link_that_was_put_in_its_way(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_bundle(store.settings, DATABASE, hour_of(9), now=at(12), seal=False)
    store.layout.bundle_record(DATABASE, hour_of(9)).unlink()
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    named = durable.temporary_name

    def guessed(path: Path) -> Path:
        temporary = named(path)
        if path.parent == store.wal:
            temporary.symlink_to(victim)  # a process number is no secret
        return temporary

    monkeypatch.setattr(durable, "temporary_name", guessed)
    old_umask = os.umask(0)
    try:
        assert return_to_archive(store.layout, DATABASE, hour_of(9)) == 4
    finally:
        os.umask(old_umask)
    assert victim.read_bytes() == b"precious"
    back = store.wal / str(segment(2))
    assert back.read_bytes() == segment_bytes(segment(2))
    assert not back.is_symlink()
    assert back.stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize(
    ("where", "value"),
    [
        (("members", 0, "name"), "../../../etc/cron.d/evil"),
        (("members", 0, "name"), "/etc/passwd"),
        (("members", 0, "name"), "a/b"),
        (("members", 0, "name"), "a\nb"),
        (("members", 0, "name"), "ab\n"),
        (("members", 0, "name"), ".."),
        (("members", 0, "name"), "\x1b[2J"),
        (("file", "name"), "../2026-01-29-09.tar.gz"),
        (("file", "name"), "other\0name"),
        (("database",), "../../elsewhere"),
        (("database",), "order-db/../x"),
        (("database",), "order-db\n"),
        (("database",), ".hidden"),
    ],
)
def test_no_name_in_a_record_leads_out_of_its_directory(
    store: Store, where: tuple[str | int, ...], value: str
) -> None:
    make_bundle(store.settings, DATABASE, hour_of(9), now=at(12), seal=False)
    path = store.layout.bundle_record(DATABASE, hour_of(9))
    document = json.loads(path.read_text())
    place = document
    for part in where[:-1]:
        place = place[part]
    place[where[-1]] = value
    path.write_text(json.dumps(document))
    for read in (lambda path: read_record(path, BundleRecord), read_bundle_record):
        with pytest.raises(ArtifactDamaged, match=f"the record {path} cannot be used") as caught:
            read(path)
        assert "\x1b" not in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize("trap", TRAPS)
def test_a_segment_that_is_exchanged_once_the_restore_was_planned_is_refused(
    server_factory: ServerFactory,
    pitr_settings: SettingsMaker,
    account: Account,
    reachable_tmp: Path,
    trap: Callable[[Path, Path], None],
) -> None:
    scene: Scene = make_scene(server_factory, pitr_settings)
    for number in (1, 2):
        scene.insert(number)
        scene.switch()
    plan = scene.plan(LatestTarget())
    into = make_owned_directory(reachable_tmp / "made", account)
    secret = reachable_tmp / "secret"
    wanted = [s for s in plan.segments if isinstance(s.place, InArchive)]
    secret.write_bytes((scene.layout.wal(scene.server.name) / str(wanted[0].name)).read_bytes())
    scene.server.stop()
    for one in wanted:
        path = scene.layout.wal(scene.server.name) / str(one.name)
        path.unlink()
        trap(path, secret)
    files = SegmentFiles(scene.layout, plan, account)
    for one in wanted:
        for read in (
            lambda one=one: files.make(one, into / str(one.name)),
            lambda one=one: files.content(one),
            lambda one=one: files.beginning(one),
        ):
            assert isinstance(within_a_minute(read), ArtifactDamaged)
    assert list(into.iterdir()) == []
