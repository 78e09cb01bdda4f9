"""Programs are found where they are, only if they run, and can be executed by whoever must run them."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest

from pitr_pipelines.errors import BinariesNotFound
from pitr_pipelines.postgres import binaries as module
from pitr_pipelines.postgres.account import Account, run
from pitr_pipelines.postgres.binaries import Binaries, find_all_binaries, find_binaries
from pitr_pipelines_tests.servers import configured_binaries, each_major


def install(directory: Path, version: str, *, script: str | None = None) -> Path:
    """Put a program there that only says its version, as a stand-in for an installation."""
    directory.mkdir(parents=True)
    program = directory / "postgres"
    program.write_text(script or f'#!/bin/sh\necho "postgres (PostgreSQL) {version} (Debian {version}-1)"\n')
    program.chmod(0o755)
    return directory


@pytest.fixture(autouse=True)
def nothing_installed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if "real" not in request.node.name:
        monkeypatch.setattr(module, "_SYSTEM_DIRECTORIES", (f"{tmp_path}/system/{{major}}/bin",))
        monkeypatch.setattr(sys, "prefix", str(tmp_path / "venv"))
        monkeypatch.setenv("PATH", f"{tmp_path}/path:/usr/bin:/bin")


def test_the_order_is_setting_system_path_embedded(tmp_path: Path) -> None:
    embedded = install(tmp_path / "venv/postgresql/15/bin", "15.4")
    assert find_binaries(15, {}) == Binaries(embedded, 15, "15.4")
    elsewhere = install(tmp_path / "elsewhere", "15.3")
    (tmp_path / "path").mkdir()
    (tmp_path / "path/postgres").symlink_to(elsewhere / "postgres")
    assert find_binaries(15, {}).directory == elsewhere
    system = install(tmp_path / "system/15/bin", "15.2")
    assert find_binaries(15, {}).directory == system
    configured = install(tmp_path / "configured", "15.1")
    assert find_binaries(15, {15: configured}) == Binaries(configured, 15, "15.1")


def test_a_configured_directory_that_is_unusable_is_an_error_and_no_fallback(tmp_path: Path) -> None:
    install(tmp_path / "system/15/bin", "15.2")
    with pytest.raises(BinariesNotFound, match="does not exist") as caught:
        find_binaries(15, {15: tmp_path / "gone"})
    assert str(tmp_path / "gone") in caught.value.what
    assert find_all_binaries({15: tmp_path / "gone"}) == {}


def test_every_place_is_named_with_the_reason_it_was_not_used(tmp_path: Path) -> None:
    install(tmp_path / "system/16/bin", "", script="#!/bin/sh\necho libicu.so.72: not found >&2; exit 127\n")
    install(tmp_path / "path", "14.9")
    broken = install(tmp_path / "venv/postgresql/16/bin", "16.1") / "postgres"
    broken.chmod(0o644)
    with pytest.raises(BinariesNotFound) as caught:
        find_binaries(16, {})
    what = caught.value.what
    assert "system/16/bin: postgres --version failed: libicu.so.72: not found" in what
    assert "path: is PostgreSQL 14.9" in what
    assert "venv/postgresql/16/bin: cannot be executed: Permission denied" in what
    assert "binaries: {16:" in caught.value.remedy


def test_something_else_of_that_name_is_not_taken_for_postgresql(tmp_path: Path) -> None:
    install(tmp_path / "system/17/bin", "", script="#!/bin/sh\necho 17\n")
    with pytest.raises(BinariesNotFound, match="which is no version"):
        find_binaries(17, {})


def test_pre_releases_count_for_their_major(tmp_path: Path) -> None:
    install(tmp_path / "system/18/bin", "18beta1")
    assert find_binaries(18, {}).version == "18beta1"


def test_all_are_found_by_major(tmp_path: Path) -> None:
    for major in (15, 17):
        install(tmp_path / f"system/{major}/bin", f"{major}.1")
    configured = install(tmp_path / "configured", "16.2")
    assert {m: b.version for m, b in find_all_binaries({16: configured}).items()} == {
        15: "15.1",
        16: "16.2",
        17: "17.1",
    }


def test_a_program_that_is_not_installed_is_named(tmp_path: Path) -> None:
    found = Binaries(install(tmp_path / "bin", "15.1"), 15, "15.1")
    assert found.program("postgres") == tmp_path / "bin" / "postgres"
    with pytest.raises(BinariesNotFound, match="not the program pg_waldump"):
        found.program("pg_waldump")


@each_major
def test_what_is_really_here_has_all_that_we_use(major: int) -> None:
    found = find_binaries(major, configured_binaries())
    for name in (
        "initdb",
        "postgres",
        "pg_ctl",
        "pg_controldata",
        "pg_basebackup",
        "pg_verifybackup",
        "pg_waldump",
    ):
        assert os.access(found.program(name), os.X_OK)


@each_major
def test_programs_below_a_closed_directory_are_copied_for_the_account_and_really_work(
    reachable_tmp: Path, account: Account, major: int
) -> None:
    installed = find_binaries(major, configured_binaries())
    prefix = installed.directory.parent
    if not (prefix / "share").exists():  # Debian keeps it elsewhere; its directories are never closed
        assert installed.reachable_by(account) == installed
        return
    if not account.switch:  # an ordinary user's servers run as himself
        assert installed.reachable_by(account) is installed
        return
    home = reachable_tmp / "home"
    home.mkdir(mode=0o700)
    shutil.copytree(prefix, home / "pg", symlinks=True)
    closed = Binaries(home / "pg" / "bin", installed.major, installed.version)
    cache = reachable_tmp / "cache"
    cache.mkdir()

    copy = closed.reachable_by(account, cache=cache)

    assert copy.directory.is_relative_to(cache)
    data = reachable_tmp / "account"
    data.mkdir()
    os.chown(data, account.uid, account.gid)
    done = run(account, [copy.program("initdb"), "-D", data / "d", "--no-sync", "--auth=trust"])
    assert done.returncode == 0, done.stderr
    assert closed.reachable_by(account, cache=cache) == copy
    assert len(list(cache.iterdir())) == 1
    for path in cache.rglob("*"):
        assert path.is_symlink() or (path.stat().st_uid == 0 and not path.stat().st_mode & 0o022), path


def test_a_copy_that_somebody_else_could_have_made_is_not_used(reachable_tmp: Path, account: Account) -> None:
    home = reachable_tmp / "home"
    (home / "pg" / "lib").mkdir(parents=True)
    (home / "pg" / "share").mkdir()
    (home / "pg" / "share" / "postgres.bki").touch()
    closed = Binaries(install(home / "pg" / "bin", "15.1"), 15, "15.1")
    if not account.switch:
        return
    home.chmod(0o700)
    cache = reachable_tmp / "cache"
    cache.mkdir()
    copy = closed.reachable_by(account, cache=cache).directory.parent
    os.chown(copy, account.uid, account.gid)
    with pytest.raises(BinariesNotFound, match="only root can write"):
        closed.reachable_by(account, cache=cache)


def test_programs_that_can_neither_be_reached_nor_copied_are_refused(
    reachable_tmp: Path, account: Account
) -> None:
    home = reachable_tmp / "home"
    closed = Binaries(install(home / "bin", "15.1"), 15, "15.1")
    if not account.switch:
        return
    home.chmod(0o700)
    with pytest.raises(BinariesNotFound, match=f"cannot be executed by the user {account.name}"):
        closed.reachable_by(account, cache=reachable_tmp)


def test_without_a_change_of_user_nothing_is_copied(tmp_path: Path) -> None:
    found = Binaries(install(tmp_path / "bin", "15.1"), 15, "15.1")
    ourselves = Account(os.geteuid(), os.getegid(), "me", switch=False)
    assert found.reachable_by(ourselves) is found
