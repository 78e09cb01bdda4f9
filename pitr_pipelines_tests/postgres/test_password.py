"""A password from a mounted file: read anew each time, and named but never shown when it cannot be had."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from pitr_pipelines.cli import main
from pitr_pipelines.errors import ServerUnavailable, SettingsError
from pitr_pipelines.postgres.base_backup import take_base_backup
from pitr_pipelines.postgres.connection import child_connection, connect
from pitr_pipelines.postgres.password import password_of
from pitr_pipelines.postgres.prepare import prepare
from pitr_pipelines.postgres.readiness import check
from pitr_pipelines.settings import DatabaseSettings, load_settings
from pitr_pipelines_tests.servers import ServerFactory, SettingsMaker

SECRET = "s3cr3t 'quoted': \\ and é"


def held_in(file: Path) -> DatabaseSettings:
    return DatabaseSettings(dsn="host=127.0.0.1 user=pitr", password_file=file)


def written(directory: Path, content: str | bytes, mode: int = 0o640) -> Path:
    file = directory / "order_db_password"
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    file.chmod(mode)
    return file


@pytest.mark.parametrize("end", ["", "\n", "\r\n", "\n\n"])
def test_a_line_break_at_the_end_is_no_part_of_the_password(tmp_path: Path, end: str) -> None:
    assert password_of("order-db", held_in(written(tmp_path, f" {SECRET} {end}"))) == f" {SECRET} "


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "is empty"),
        ("\n", "is empty"),
        ("hush\nhush\n", "holds several lines"),
        ("hush\rhush", "holds several lines"),
        ("hush\0hush", "holds a NUL byte"),
        (b"hush\xff", "is not UTF-8 text"),
    ],
)
def test_a_file_that_holds_no_password_is_named_and_not_quoted(
    tmp_path: Path, content: str | bytes, said: str
) -> None:
    file = written(tmp_path, content)
    with pytest.raises(SettingsError, match=said) as caught:
        password_of("order-db", held_in(file))
    assert f"{file}, which databases.order-db.password_file names" in caught.value.what
    assert "hush" not in f"{caught.value} {caught.value!r}"
    assert caught.value.__context__ is None or caught.value.__suppress_context__


def test_a_file_that_is_not_there_or_no_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="No such file or directory") as caught:
        password_of("order-db", held_in(tmp_path / "absent"))
    assert "order-db" in caught.value.what
    assert str(tmp_path) in caught.value.remedy
    with pytest.raises(SettingsError, match="Is a directory"):
        password_of("order-db", held_in(tmp_path))


def test_a_file_that_our_user_may_not_read_is_named_with_our_numbers(reachable_tmp: Path) -> None:
    file = written(reachable_tmp, SECRET, mode=0o000)
    program = (
        "import sys; from pathlib import Path\n"
        "from pitr_pipelines.errors import SettingsError\n"
        "from pitr_pipelines.postgres.password import password_of\n"
        "from pitr_pipelines.settings import DatabaseSettings\n"
        "import os\n"
        "if os.geteuid() == 0: os.setgroups([]); os.setgid(12345); os.setuid(12345)\n"
        "try: password_of('order-db', DatabaseSettings(dsn='host=x', password_file=Path(sys.argv[1])))\n"
        "except SettingsError as error: print(os.geteuid(), error.what, error.remedy, sep='|')\n"
    )
    done = subprocess.run([sys.executable, "-c", program, file], capture_output=True, text=True, check=True)
    uid, what, remedy = done.stdout.split("|")
    assert "Permission denied" in what
    assert f"uid {uid}," in remedy
    assert "fsGroup" in remedy


def test_both_ways_at_once_are_refused(tmp_path: Path) -> None:
    (tmp_path / "pitr.yaml").write_text(
        "backup_root: b\nrestore_root: r\ndatabases:\n"
        "  order-db: {dsn: host=x, password_env: ORDER_PW, password_file: secret}\n"
    )
    with pytest.raises(SettingsError, match=r"databases\.order-db: names a password_env and a password_file"):
        load_settings(tmp_path / "pitr.yaml")


def test_a_relative_path_is_taken_from_the_directory_of_the_settings(tmp_path: Path) -> None:
    (tmp_path / "pitr.yaml").write_text(
        "backup_root: b\nrestore_root: r\n"
        "databases: {order-db: {dsn: host=x, password_file: secrets/order}}\n"
    )
    settings = load_settings(tmp_path / "pitr.yaml")
    assert settings.database("order-db").password_file == tmp_path / "secrets/order"


def test_a_rotated_secret_serves_the_next_connection_and_a_base_backup(
    server_factory: ServerFactory, pitr_settings: SettingsMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = server_factory(archiving=False, options={"archive_mode": "on"})
    file = written(server_factory.directory, f"{SECRET}\n")
    settings = pitr_settings(
        server, databases={server.name: {**server.settings_entry, "password_file": str(file)}}
    )
    monkeypatch.setenv("PGPASSWORD", "a wrong one that would win")
    prepare(server.name, settings, admin_dsn=server.admin_dsn)
    server.write_hba(
        "host all postgres 127.0.0.1/32 trust", "host all,replication pitr 127.0.0.1/32 scram-sha-256"
    )
    database = settings.database(server.name)
    connect(server.name, database).close()

    written(server_factory.directory, "another one\n")
    with pytest.raises(ServerUnavailable, match="password authentication failed") as caught:
        connect(server.name, database)
    assert "another one" not in str(caught.value)
    prepare(server.name, settings, admin_dsn=server.admin_dsn)

    connect(server.name, database).close()
    with child_connection(server.name, database) as (conninfo, env):
        assert "another" not in conninfo + "".join(env.values())
        assert Path(env["PGPASSFILE"]).stat().st_mode & 0o777 == 0o600
    assert take_base_backup(settings, server.name).database == server.name
    assert [finding for finding in check(server.name, settings) if not finding.ok] == []
    assert "another one" not in server.log()


def test_check_warns_of_a_file_that_everybody_can_read_and_does_not_fail_for_it(
    server_factory: ServerFactory, pitr_settings: SettingsMaker
) -> None:
    server = server_factory(archiving=False, options={"archive_mode": "on"})
    file = written(server_factory.directory, f"{SECRET}\n", mode=0o644)
    settings = pitr_settings(
        server, databases={server.name: {**server.settings_entry, "password_file": str(file)}}
    )
    prepare(server.name, settings, admin_dsn=server.admin_dsn)
    result = CliRunner().invoke(main, ["--config", str(pitr_settings.file), "check", server.name])
    assert result.exit_code == 0, result.output
    warning = next(line for line in result.output.splitlines() if "warn" in line)
    assert str(file) in warning
    assert f"chmod 640 '{file}'" in result.output
    assert SECRET not in result.output


def test_a_missing_secret_of_one_database_hides_no_other(
    server_factory: ServerFactory, pitr_settings: SettingsMaker
) -> None:
    server, other = server_factory(), server_factory("inventory-db")
    absent = server_factory.directory / "absent"
    databases = {
        server.name: {**server.settings_entry, "password_file": str(absent)},
        other.name: other.settings_entry,
    }
    pitr_settings(server, databases=databases)
    result = CliRunner().invoke(main, ["--config", str(pitr_settings.file), "check", "--json"])
    assert result.exit_code == 1
    found = json.loads(result.output)
    password = next(one for one in found[server.name] if one["subject"] == "password")
    assert str(absent) in password["detail"]
    assert {"archive", "space"} <= {one["subject"] for one in found[server.name]}
    assert next(one for one in found[other.name] if one["subject"] == "connection")["ok"]
    assert os.environ.get("PGPASSWORD") is None
