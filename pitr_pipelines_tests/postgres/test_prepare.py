"""Preparing a server makes it ready, changes nothing twice, and refuses before it harms anything."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from pitr_pipelines.catalog.layout import Layout
from pitr_pipelines.errors import ServerNotReady, ServerUnavailable, SettingsError
from pitr_pipelines.postgres.connection import connect
from pitr_pipelines.postgres.prepare import planned_sql, prepare, verifies
from pitr_pipelines.postgres.prepare_plan import (
    Facts,
    RoleFacts,
    SettingFacts,
    State,
    Wanted,
    archive_command,
    plan,
)
from pitr_pipelines.postgres.readiness import check
from pitr_pipelines.postgres.seal import seal, wait_until_archived
from pitr_pipelines_tests.servers import ServerFactory, SettingsMaker, each_major

WANTED = Wanted("order-db", "pitr", "postgres", "script /archive", 60)
READY = {
    "wal_level": SettingFacts("replica", None, "default"),
    "max_wal_senders": SettingFacts("10", None, "default"),
    "archive_mode": SettingFacts("on", "on", "configuration file"),
    "archive_library": SettingFacts("", None, "default"),
    "archive_command": SettingFacts("script /archive", "script /archive", "configuration file"),
    "archive_timeout": SettingFacts("60", "60", "configuration file"),
}
ROLE = RoleFacts(login=True, replication=True, monitor=True)
IN_ORDER = Facts(ROLE, True, (), READY)


@each_major
def test_a_bare_server_is_made_ready_for_everything_a_backup_needs(
    server_factory: ServerFactory, pitr_settings: SettingsMaker, major: int
) -> None:
    server = server_factory(major=major, archiving=False)
    settings = pitr_settings(server)

    steps = prepare(server.name, settings, admin_dsn=server.admin_dsn)
    restart = [step.what for step in steps if step.state is State.NEEDS_RESTART]
    assert restart == ["archive_mode = on (was off)"]
    server.restart()

    assert [finding for finding in check(server.name, settings) if not finding.ok] == []
    with connect(server.name, server.settings) as connection:
        made = seal(connection, "prepared")
        wait_until_archived(connection, server.archive, made.segment, timeout_s=20)
    again = prepare(server.name, settings, admin_dsn=server.admin_dsn)
    assert {step.state for step in again} == {State.ALREADY}, again
    log = server.log()
    again = prepare(server.name, settings, admin_dsn=server.admin_dsn)
    assert "ALTER" not in server.log()[len(log) :]


def test_what_waits_for_a_restart_is_not_done_twice(
    server_factory: ServerFactory, pitr_settings: SettingsMaker
) -> None:
    server = server_factory(archiving=False, options={"wal_level": "minimal", "max_wal_senders": "0"})
    settings = pitr_settings(server)
    for _ in range(2):
        steps = prepare(server.name, settings, admin_dsn=server.admin_dsn)
        waiting = {step.what.split(" ")[0] for step in steps if step.state is State.NEEDS_RESTART}
        assert waiting == {"wal_level", "max_wal_senders", "archive_mode"}
    assert [step for step in steps if step.state in (State.DONE, State.TO_DO)] == []
    assert not next(found for found in check(server.name, settings) if found.subject == "restart").ok
    server.restart()
    assert [finding for finding in check(server.name, settings) if not finding.ok] == []


def test_a_password_reaches_the_server_as_a_verifier_only(
    server_factory: ServerFactory, pitr_settings: SettingsMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = server_factory(
        archiving=False, options={"log_statement": "all", "log_min_duration_statement": "0"}
    )
    settings = pitr_settings(server, databases={server.name: {"dsn": server.dsn, "password_env": "ORDER_PW"}})
    monkeypatch.setenv("ORDER_PW", "s3cret'\\:x")
    printed = planned_sql(server.name, settings, admin_dsn=server.admin_dsn)
    steps = prepare(server.name, settings, admin_dsn=server.admin_dsn)
    server.write_hba(
        "host all postgres 127.0.0.1/32 trust", "host all,replication pitr 127.0.0.1/32 scram-sha-256"
    )

    with connect(server.name, settings.database(server.name)) as connection:
        assert connection.info.user == "pitr"
    for text in (server.log(), printed, repr(steps)):
        assert "s3cret" not in text
        assert "SCRAM-SHA-256$" not in text
    assert '\\password "pitr"' in printed
    again = prepare(server.name, settings, admin_dsn=server.admin_dsn)
    assert State.DONE not in {step.state for step in again}

    monkeypatch.setenv("ORDER_PW", "another")
    with pytest.raises(ServerUnavailable, match="password authentication failed") as caught:
        connect(server.name, settings.database(server.name))
    assert "another" not in str(caught.value)
    prepare(server.name, settings, admin_dsn=server.admin_dsn)
    connect(server.name, settings.database(server.name)).close()


def test_the_printed_sql_prepares_a_server_and_printing_changes_nothing(
    server_factory: ServerFactory, pitr_settings: SettingsMaker, reachable_tmp: Path
) -> None:
    server = server_factory(archiving=False)
    settings = pitr_settings(server)
    script = planned_sql(server.name, settings, admin_dsn=server.admin_dsn)
    assert not settings.backup_root.exists()
    assert server.execute("SELECT 1 FROM pg_roles WHERE rolname = 'pitr'") == []
    # Without a superuser the script is the same, except that it cannot know what is there already.
    blind = planned_sql(server.name, settings)
    assert "assumes a new server" in blind
    for line in ("CREATE ROLE", "ALTER SYSTEM SET archive_command"):
        assert line in script
        assert line in blind

    psql = server.cluster.binaries.program("psql")
    subprocess.run(
        [psql, "-X", "-v", "ON_ERROR_STOP=1", "-d", server.admin_dsn], input=script, text=True, check=True
    )
    steps = prepare(server.name, settings, admin_dsn=server.admin_dsn)
    here = ("directory", "archive script", "others may", f"{server.archive}/system_identifier")
    assert [s.what for s in steps if s.state is State.DONE and not s.what.startswith(here)] == []


def test_another_archive_command_is_not_replaced_unless_asked_for(
    server_factory: ServerFactory, pitr_settings: SettingsMaker
) -> None:
    server = server_factory(
        archiving=False,
        options={"archive_mode": "on", "archive_command": "test ! -f /mnt/%f && cp %p /mnt/%f"},
    )
    settings = pitr_settings(server)
    with pytest.raises(ServerNotReady, match="cp %p /mnt/%f") as caught:
        prepare(server.name, settings, admin_dsn=server.admin_dsn)
    assert "--replace-archive-command" in caught.value.remedy
    assert server.execute("SELECT 1 FROM pg_roles WHERE rolname = 'pitr'") == [], "it had begun already"
    assert not settings.backup_root.exists()
    assert not next(f for f in check(server.name, settings) if f.subject == "connection").ok

    prepare(server.name, settings, admin_dsn=server.admin_dsn, replace_archive_command=True)
    assert [finding for finding in check(server.name, settings) if not finding.ok] == []


def test_an_archive_library_is_a_conflict_too(
    server_factory: ServerFactory, pitr_settings: SettingsMaker
) -> None:
    server = server_factory(archiving=False, options={"archive_library": "basic_archive"})
    with pytest.raises(ServerNotReady, match="archive_library = basic_archive"):
        prepare(server.name, pitr_settings(server), admin_dsn=server.admin_dsn)


def test_paths_with_spaces_quotes_and_percent_signs_work(
    server_factory: ServerFactory, pitr_settings: SettingsMaker
) -> None:
    server = server_factory(archiving=False, options={"archive_mode": "on"})
    root = server_factory.directory / "it's 100% odd $HOME"
    settings = pitr_settings(server, backup_root=str(root))
    prepare(server.name, settings, admin_dsn=server.admin_dsn)
    with connect(server.name, server.settings) as connection:
        made = seal(connection, "odd")
        wait_until_archived(connection, Layout(root).wal(server.name), made.segment, timeout_s=20)
    assert [finding for finding in check(server.name, settings) if not finding.ok] == []


def test_the_archive_of_another_cluster_is_never_taken_over(
    server_factory: ServerFactory, pitr_settings: SettingsMaker
) -> None:
    first = server_factory(archiving=False)
    settings = pitr_settings(first)
    prepare(first.name, settings, admin_dsn=first.admin_dsn)
    second = server_factory("second", archiving=False)
    settings = pitr_settings(first, databases={first.name: {"dsn": second.dsn}})
    with pytest.raises(ServerNotReady, match="belongs to the cluster with system identifier"):
        prepare(first.name, settings, admin_dsn=second.admin_dsn)
    assert second.execute("SELECT 1 FROM pg_roles WHERE rolname = 'pitr'") == []


def test_the_server_can_write_to_its_archive_and_others_cannot_list_it(
    server_factory: ServerFactory, pitr_settings: SettingsMaker
) -> None:
    server = server_factory(archiving=False)
    settings = pitr_settings(server)
    old_umask = os.umask(0o077)
    try:
        prepare(server.name, settings, admin_dsn=server.admin_dsn)
    finally:
        os.umask(old_umask)
    status = server.archive.stat()
    assert status.st_uid == server.cluster.account.uid
    assert status.st_mode & 0o777 == 0o750
    script = Layout(settings.backup_root).archive_script
    assert script.stat().st_mode & 0o777 == 0o755
    assert script.stat().st_uid == os.geteuid()
    assert not list(settings.backup_root.rglob(".*"))


def test_the_right_to_seal_is_granted_in_the_database_of_the_dsn(
    server_factory: ServerFactory, pitr_settings: SettingsMaker
) -> None:
    server = server_factory(archiving=False)
    server.execute("CREATE DATABASE shop")
    server.execute("REVOKE CONNECT ON DATABASE shop FROM PUBLIC")
    dsn = server.dsn.replace("dbname=postgres", "dbname=shop").replace("user=pitr", "user=backup")
    settings = pitr_settings(server, databases={server.name: {"dsn": dsn}})
    prepare(server.name, settings, admin_dsn=server.admin_dsn)
    with connect(server.name, settings.database(server.name)) as connection:
        assert connection.info.dbname == "shop"
        seal(connection, "there")


def test_somebody_who_is_no_superuser_is_told_so(
    server_factory: ServerFactory, pitr_settings: SettingsMaker
) -> None:
    server = server_factory()
    with pytest.raises(ServerNotReady, match="pitr is not a superuser of order-db"):
        prepare(server.name, pitr_settings(server))
    with pytest.raises(SettingsError, match="--admin-dsn is no connection string"):
        prepare(server.name, pitr_settings(server), admin_dsn="not one")


def test_the_first_connection_may_be_the_superusers_own(
    server_factory: ServerFactory, pitr_settings: SettingsMaker
) -> None:
    server = server_factory(archiving=False)
    settings = pitr_settings(server, databases={server.name: {"dsn": server.admin_dsn}})
    steps = prepare(server.name, settings)
    assert "role postgres with LOGIN and REPLICATION" in {s.what for s in steps if s.state is State.ALREADY}


def test_a_prepared_server_needs_no_statement() -> None:
    assert {step.state for step in plan(IN_ORDER, WANTED)} == {State.ALREADY}


def test_a_longer_archive_timeout_is_shortened_and_a_shorter_one_kept() -> None:
    def statements(seconds: str, wanted_s: int = 60) -> list[str | None]:
        settings = {**READY, "archive_timeout": SettingFacts(seconds, None, "default")}
        wanted = Wanted("order-db", "pitr", "postgres", "script /archive", wanted_s)
        return [s.statement for s in plan(Facts(ROLE, True, (), settings), wanted) if s.statement]

    assert statements("0") == statements("300") == ["ALTER SYSTEM SET archive_timeout = '60'"]
    assert statements("30") == statements("60") == statements("0", wanted_s=0) == []


def test_a_setting_from_the_command_line_is_not_changed_in_vain() -> None:
    settings = {**READY, "archive_mode": SettingFacts("off", None, "command line")}
    with pytest.raises(ServerNotReady, match="archive_mode=off on its command line"):
        plan(Facts(ROLE, True, (), settings), WANTED)


def test_without_facts_the_plan_is_that_for_a_new_server() -> None:
    statements = [step.statement for step in plan(Facts(), WANTED) if step.statement]
    assert statements[0] == 'CREATE ROLE "pitr" LOGIN REPLICATION'
    assert "ALTER SYSTEM SET archive_command = 'script /archive'" in statements


def test_names_are_quoted_in_every_statement() -> None:
    wanted = Wanted("order-db", 'o"dd', "my db", "it's", 60)
    facts = Facts(may_connect=False)
    statements = "\n".join(step.statement or "" for step in plan(facts, wanted))
    assert 'CREATE ROLE "o""dd"' in statements
    assert 'GRANT CONNECT ON DATABASE "my db" TO "o""dd"' in statements
    assert "archive_command = 'it''s'" in statements


def test_the_archive_command_is_safe_for_the_shell_and_for_percent_signs() -> None:
    assert archive_command("/b/wal-archive.sh", "/b/wal/x") == '/b/wal-archive.sh /b/wal/x "%p" "%f"'
    odd = archive_command("/a b/s.sh", "/it's/100%f")
    expanded = odd.replace("%%", "\0").replace("%p", "P").replace("%f", "F").replace("\0", "%")
    words = subprocess.run(
        ["sh", "-c", f"printf '%s|' {expanded}"], capture_output=True, text=True, check=True
    )
    assert words.stdout == "/a b/s.sh|/it's/100%f|P|F|"


def test_a_verifier_is_recognized_by_its_password_alone() -> None:
    assert not verifies("x", None)
    assert not verifies("x", "md5abc")
    # RFC 7677's example: user `user`, password `pencil`.
    example = (
        "SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==$"
        "WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=:wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU="
    )
    assert verifies("pencil", example)
    assert not verifies("Pencil", example)
