"""What is wrong with owners and modes is said precisely, and the commands that are named mend it.

Servers really run as the users of the official images, and pitr as a user without a name; as an
ordinary user, both are oneself and modes do the rest.
"""

from __future__ import annotations

import os
import stat
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import pytest

from pitr_pipelines.catalog.inventory import read_inventory
from pitr_pipelines.catalog.layout import Layout
from pitr_pipelines.postgres import archiver
from pitr_pipelines.postgres.base_backup import take_base_backup
from pitr_pipelines.postgres.prepare import prepare
from pitr_pipelines.postgres.prepare_plan import State
from pitr_pipelines.postgres.readiness import Finding, check
from pitr_pipelines.settings import Settings
from pitr_pipelines.wal.bundles import make_bundle
from pitr_pipelines.wal.hours import Hour
from pitr_pipelines_tests.other_users import IS_ROOT, USERS, Users, give, mend, run_as, server_as
from pitr_pipelines_tests.servers import ServerFactory, SettingsMaker, TestServer, wait_for

pytestmark = pytest.mark.slow

each_pair = pytest.mark.parametrize("users", USERS, ids=str)


def settings_of(server: TestServer, pitr_settings: SettingsMaker, users: Users) -> Settings:
    """Settings with everything in order: our directories ours, the archive shared with our group."""
    settings = pitr_settings(server, binaries={server.major: str(server.cluster.binaries.directory)})
    root = settings.backup_root
    if IS_ROOT:
        os.chown(root, users.ours, users.ours)
        os.chown(server.archive, users.server, users.ours)
    server.archive.chmod(0o2770)
    return settings


def wrong(server: TestServer, settings: Settings, users: Users) -> dict[str, Finding]:
    found = run_as(
        users.ours, lambda: [finding for finding in check(server.name, settings) if not finding.ok]
    )
    # Tests let servers archive by a command of their own.
    return {one.subject: one for one in found if one.subject != "archive_command"}


def switch(server: TestServer) -> str:
    server.execute("SELECT pg_logical_emit_message(true, 'test', 'something')")
    return str(server.execute("SELECT pg_walfile_name(pg_switch_wal())")[0][0])


def archive_one(server: TestServer) -> Path:
    name = switch(server)
    # The file is there before the archiver's own word for it: what a test then takes away, it still needs.
    said = "SELECT last_archived_wal FROM pg_stat_archiver"
    wait_for(lambda: server.execute(said)[0][0] == name, timeout_s=90, what="the archiver")
    return server.archive / name


def archiver_fails(server: TestServer) -> bool:
    return bool(
        server.execute(
            "SELECT last_failed_time > coalesce(last_archived_time, '-infinity') FROM pg_stat_archiver"
        )[0][0]
    )


@each_pair
def test_an_archive_that_the_servers_user_cannot_write_to(
    server_factory: ServerFactory, pitr_settings: SettingsMaker, users: Users
) -> None:
    server = server_as(server_factory, users.server)
    settings = settings_of(server, pitr_settings, users)
    assert wrong(server, settings, users) == {}
    if IS_ROOT:
        os.chown(server.archive, 0, users.ours)
    server.archive.chmod(0o2570 if not IS_ROOT else 0o2770)
    switch(server)
    wait_for(lambda: archiver_fails(server), timeout_s=60, what="a failure")

    found = wrong(server, settings, users)
    trouble = found["server's rights"]
    assert f"uid {users.server}" in trouble.detail
    assert f"cannot write to {server.archive}, which belongs to uid {server.archive.stat().st_uid}" in (
        trouble.detail
    )
    assert f"uid {users.server}, groups" in server.log()  # wal-archive.sh says it, too

    ran = mend(trouble.remedy)
    assert f"chown -R {users.server}:" in ran
    server.restart()  # the archiver pauses for a minute after three failures
    archived = archive_one(server)
    assert wrong(server, settings, users) == {}
    assert archived.stat().st_mode & 0o777 == 0o640
    if IS_ROOT:
        assert archived.stat().st_gid == users.ours


@each_pair
def test_segments_that_we_cannot_read(
    server_factory: ServerFactory, pitr_settings: SettingsMaker, users: Users
) -> None:
    server = server_as(server_factory, users.server)
    settings = settings_of(server, pitr_settings, users)
    segment = archive_one(server)
    assert wrong(server, settings, users) == {}
    if IS_ROOT:
        os.chown(segment, users.server, users.server)
        segment.chmod(0o600)  # as `umask 077; cp` makes it
    else:
        segment.chmod(0o000)

    trouble = wrong(server, settings, users)["archive"]
    assert f"we run as uid {users.ours}" in trouble.detail
    assert f"cannot read {segment}, which belongs to uid {users.server}" in trouble.detail
    assert "so another program wrote it" in trouble.detail
    mend(trouble.remedy)
    assert wrong(server, settings, users) == {}


@each_pair
def test_an_archive_to_which_we_cannot_even_pass(
    server_factory: ServerFactory, pitr_settings: SettingsMaker, users: Users
) -> None:
    server = server_as(server_factory, users.server)
    settings = settings_of(server, pitr_settings, users)
    archive_one(server)
    above = server.archive.parent
    above.chmod(0o700 if IS_ROOT else 0o600)
    trouble = wrong(server, settings, users)["archive"]
    assert f"cannot pass through {above}, which belongs to uid {above.stat().st_uid}" in trouble.detail
    if not IS_ROOT:
        above.chmod(0o700)
    mend(trouble.remedy)
    above.chmod(above.stat().st_mode | 0o001)  # the server's user passes, too
    assert wrong(server, settings, users) == {}


@each_pair
def test_an_archive_that_hands_new_files_to_the_wrong_group(
    server_factory: ServerFactory, pitr_settings: SettingsMaker, users: Users
) -> None:
    server = server_as(server_factory, users.server)
    settings = settings_of(server, pitr_settings, users)
    server.archive.chmod(0o770)
    if not IS_ROOT:  # one user for both needs no such bit
        archive_one(server)
        assert wrong(server, settings, users) == {}
        return
    before = wrong(server, settings, users)["archive"]
    assert f"{server.archive} has no set-gid bit" in before.detail
    segment = archive_one(server)
    assert segment.stat().st_gid == users.server
    after = wrong(server, settings, users)["archive"]
    assert str(segment) in after.detail or "system_identifier" in after.detail
    assert "its directory has no set-gid bit" in after.detail

    mend(after.remedy)
    assert wrong(server, settings, users) == {}
    assert archive_one(server).stat().st_gid == users.ours
    assert wrong(server, settings, users) == {}


@each_pair
def test_an_archive_from_which_we_cannot_remove_what_is_bundled(
    server_factory: ServerFactory, pitr_settings: SettingsMaker, users: Users
) -> None:
    server = server_as(server_factory, users.server)
    settings = settings_of(server, pitr_settings, users)
    archive_one(server)
    server.archive.chmod(0o2750 if IS_ROOT else 0o2550)
    trouble = wrong(server, settings, users)["archive"]
    assert "cannot remove WAL that is bundled" in trouble.detail
    if IS_ROOT:
        mend(trouble.remedy)
        server.archive.chmod(0o3770)  # sticky: only owners may remove
        assert "cannot remove" in wrong(server, settings, users)["archive"].detail
    mend(wrong(server, settings, users)["archive"].remedy)
    assert stat.S_IMODE(server.archive.stat().st_mode) == 0o2770
    assert wrong(server, settings, users) == {}


@each_pair
def test_directories_and_locks_that_somebody_else_left_us(
    server_factory: ServerFactory, pitr_settings: SettingsMaker, users: Users
) -> None:
    server = server_as(server_factory, users.server)
    settings = settings_of(server, pitr_settings, users)
    layout = Layout(settings.backup_root)
    lock = layout.bundle_lock(server.name)
    for directory in (lock.parent, layout.bases(server.name)):
        directory.mkdir(parents=True)
    lock.touch()
    if IS_ROOT:
        for path in (lock.parent.parent, layout.bases(server.name)):
            give(path, users.ours)
        lock.chmod(0o640)
        os.chown(lock, 0, 0)  # somebody ran pitr as root once
        os.chown(layout.bases(server.name), 0, 0)
    else:
        lock.chmod(0o000)
        layout.bases(server.name).chmod(0o500)
    owner = server.archive.stat().st_uid

    trouble = wrong(server, settings, users)["our rights"]
    assert f"{lock} belongs to uid" in trouble.detail
    assert f"{layout.bases(server.name)} belongs to uid" in trouble.detail
    mend(trouble.remedy)
    assert wrong(server, settings, users) == {}
    assert server.archive.stat().st_uid == owner


@each_pair
def test_a_root_that_is_not_ours_is_given_to_us_without_the_archives(
    server_factory: ServerFactory, pitr_settings: SettingsMaker, users: Users
) -> None:
    server = server_as(server_factory, users.server)
    settings = settings_of(server, pitr_settings, users)
    if IS_ROOT:
        os.chown(settings.backup_root, 0, 0)
    else:
        settings.backup_root.chmod(0o555)
    trouble = wrong(server, settings, users)["our rights"]
    assert " -R " not in mend(trouble.remedy)
    assert server.archive.stat().st_uid == users.server
    assert wrong(server, settings, users) == {}


@each_pair
def test_a_script_that_the_server_cannot_run_or_that_others_can_change(
    server_factory: ServerFactory, pitr_settings: SettingsMaker, users: Users
) -> None:
    server = server_as(server_factory, users.server)
    settings = settings_of(server, pitr_settings, users)
    script = Layout(settings.backup_root).archive_script
    script.chmod(0o700 if IS_ROOT else 0o600)
    assert f"cannot execute {script}" in wrong(server, settings, users)["server's rights"].detail
    script.chmod(0o775)
    assert f"can change {script}" in wrong(server, settings, users)["archive script"].detail
    script.chmod(0o755)
    script.parent.chmod(0o777)
    trouble = wrong(server, settings, users)["archive script"]
    assert f"everybody can change {script.parent}" in trouble.detail
    assert f"chmod go-w {script.parent}" in str(trouble.remedy)
    script.parent.chmod(0o755)
    assert wrong(server, settings, users) == {}


@each_pair
def test_a_user_without_a_name_makes_backups_of_a_server_of_another_user(
    server_factory: ServerFactory, pitr_settings: SettingsMaker, users: Users
) -> None:
    server = server_as(server_factory, users.server)
    settings = settings_of(server, pitr_settings, users)
    raw = archive_one(server)

    def make(settings: Settings, name: str) -> int:
        assert take_base_backup(settings, name).database == name
        outcome = make_bundle(settings, name, Hour.containing(datetime.now(UTC)))
        assert outcome.record.members
        return len(read_inventory(Layout(settings.backup_root), name).bases)

    def make_as_told() -> int:
        os.umask(0o077)
        bases = make(settings, server.name)
        raw.unlink()  # as pruning does
        return bases

    # Such a user may not be able to read our Python: so all that is imported late is imported now.
    other = server_as(server_factory, users.server, "inventory-db")
    archive_one(other)
    make(pitr_settings(other), other.name)
    for place in ("base", "bundles"):
        give(settings.backup_root / place, users.ours)

    assert run_as(users.ours, make_as_told) == 1
    made = [
        path
        for place in ("base", "bundles")
        for path in (settings.backup_root / place / server.name).rglob("*")
    ]
    assert {path.stat().st_uid for path in made} == {users.ours}
    assert not [path for path in made if path.stat().st_mode & 0o027]


@each_pair
def test_init_db_by_an_ordinary_user_names_the_commands_and_is_content_once_they_ran(
    server_factory: ServerFactory, pitr_settings: SettingsMaker, users: Users
) -> None:
    server = server_as(server_factory, users.server)
    settings = settings_of(server, pitr_settings, users)
    entry = server.settings.model_copy(update={"archive_script": "/scripts/wal-archive.sh"})
    settings = settings.model_copy(update={"databases": {server.name: entry}})
    give(settings.backup_root, users.ours)
    server.archive.chmod(0o755)

    def steps() -> list[tuple[str, str]]:
        made = prepare(server.name, settings, admin_dsn=server.admin_dsn, replace_archive_command=True)
        return [(step.what, step.state) for step in made if str(server.archive) in step.what]

    asked = [what for what, state in run_as(users.ours, steps) if state == State.BY_HAND]
    if users.server == users.ours:
        assert asked == []
        return
    (what,) = [what for what in asked if "as root, run " in what]
    command = what.partition("as root, run ")[2]
    assert command == f"chown {users.server}:{users.ours} {server.archive} && chmod 2770 {server.archive}"
    subprocess.run(["sh", "-euc", command], check=True)
    assert [state for what, state in run_as(users.ours, steps) if state == State.BY_HAND] == []


def test_root_who_prepares_a_server_leaves_the_group_that_shares_its_archive(
    server_factory: ServerFactory, pitr_settings: SettingsMaker
) -> None:
    server = server_factory()
    server.archive.chmod(0o2770)
    group = server.archive.stat().st_gid
    if IS_ROOT:
        group = 12345
        os.chown(server.archive, 0, group)
        server.archive.chmod(0o2770)
    settings = pitr_settings(server)
    prepare(server.name, settings, admin_dsn=server.admin_dsn, replace_archive_command=True)
    status = server.archive.stat()
    assert (status.st_uid, status.st_gid) == (server.cluster.account.uid, group)
    assert stat.S_IMODE(status.st_mode) == 0o2770


@each_pair
def test_a_server_elsewhere_whose_groups_are_not_known_is_not_accused_before_it_failed(
    server_factory: ServerFactory, pitr_settings: SettingsMaker, users: Users, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In compose the server is in our group; all we see of it from here is its version."""
    monkeypatch.setattr(archiver, "_runs_as", lambda connection, system_identifier: None)
    server = server_as(server_factory, users.server)
    settings = settings_of(server, pitr_settings, users)
    if IS_ROOT:
        os.chown(server.archive, users.ours, users.ours)
    server.archive.chmod(0o2770)
    assert "server's rights" not in wrong(server, settings, users)

    server.archive.chmod(0o2700 if IS_ROOT else 0o2570)
    if IS_ROOT:
        trouble = wrong(server, settings, users)["server's rights"]
        assert "uid 999" in trouble.detail
        assert "Debian's images run as 999, Alpine's as 70" in str(trouble.remedy)
    switch(server)
    wait_for(lambda: archiver_fails(server), timeout_s=60, what="a failure")
    assert "archiver" in wrong(server, settings, users)
