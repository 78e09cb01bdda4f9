"""Servers never run as root, and their programs get nothing of our environment."""

from __future__ import annotations

import os
import pwd
import subprocess
from pathlib import Path

import pytest

from pitr_pipelines.errors import SettingsError
from pitr_pipelines.postgres.account import Account, give, make_owned_directory, run, server_account


def pretend_users(monkeypatch: pytest.MonkeyPatch, euid: int, users: dict[str, int]) -> None:
    def by_name(name: str) -> pwd.struct_passwd:
        return pwd.struct_passwd((name, "x", users[name], users[name], "", "/home", "/bin/sh"))

    def by_uid(uid: int) -> pwd.struct_passwd:
        return by_name({number: name for name, number in users.items()}[uid])

    monkeypatch.setattr(os, "geteuid", lambda: euid)
    monkeypatch.setattr(os, "getegid", lambda: euid)
    monkeypatch.setattr(pwd, "getpwnam", by_name)
    monkeypatch.setattr(pwd, "getpwuid", by_uid)


def test_root_runs_servers_as_the_configured_user_else_postgres_else_nobody(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pretend_users(monkeypatch, 0, {"root": 0, "postgres": 26, "nobody": 99, "pg": 1234})
    assert server_account("pg") == Account(1234, 1234, "pg", switch=True)
    assert server_account(None).name == "postgres"
    pretend_users(monkeypatch, 0, {"root": 0, "nobody": 99})
    assert server_account(None).name == "nobody"
    pretend_users(monkeypatch, 0, {"root": 0})
    with pytest.raises(SettingsError, match="no user postgres nor nobody"):
        server_account(None)
    with pytest.raises(SettingsError, match="no user pg"):
        server_account("pg")
    with pytest.raises(SettingsError, match="'root' is root"):
        server_account("root")


def test_an_ordinary_user_runs_servers_as_himself_and_nobody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_users(monkeypatch, 1000, {"root": 0, "postgres": 26, "me": 1000})
    assert server_account(None) == server_account("me") == Account(1000, 1000, "me", switch=False)
    with pytest.raises(SettingsError, match="cannot run as 'postgres'"):
        server_account("postgres")


def test_a_user_without_a_name_works(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_users(monkeypatch, 4711, {"root": 0})
    assert server_account(None).name == "4711"


def test_programs_run_as_the_account_in_a_clean_environment(
    account: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGPASSWORD", "hunter2")
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    done = run(account, ["/bin/sh", "-c", "id -u; id -G; pwd; env"], env={"EXTRA": "1"})
    uid, groups, directory, *environment = done.stdout.splitlines()
    assert int(uid) == account.uid
    assert directory == "/"
    if account.switch:
        assert groups == str(account.gid), "root's other groups went along"
    assert "EXTRA=1" in environment
    assert "LC_ALL=C" in environment
    assert "hunter2" not in done.stdout


def test_a_failure_is_returned_and_a_hang_is_ended(account: Account) -> None:
    done = run(account, ["/bin/sh", "-c", "echo no >&2; exit 3"])
    assert (done.returncode, done.stderr) == (3, "no\n")
    with pytest.raises(subprocess.TimeoutExpired):
        run(account, ["/bin/sleep", "30"], timeout_s=0.2)
    with pytest.raises(FileNotFoundError):
        run(account, ["/no/such/program"])


def test_a_tree_is_given_away_but_not_what_links_point_to(reachable_tmp: Path, account: Account) -> None:
    outside = reachable_tmp / "outside"
    outside.touch()
    tree = reachable_tmp / "tree"
    (tree / "sub").mkdir(parents=True)
    (tree / "sub" / "file").touch()
    (tree / "link").symlink_to(outside)
    give(tree, account)
    for path in (tree, tree / "sub", tree / "sub" / "file"):
        assert path.stat().st_uid == account.uid
    assert (tree / "link").lstat().st_uid == account.uid
    assert outside.stat().st_uid == os.geteuid()


def test_an_owned_directory_is_the_accounts_alone(reachable_tmp: Path, account: Account) -> None:
    made = make_owned_directory(reachable_tmp / "own", account)
    assert (made.stat().st_uid, made.stat().st_mode & 0o777) == (account.uid, 0o700)
    with pytest.raises(FileExistsError):
        make_owned_directory(made, account)
