"""Settings are checked when they are read, and an error names the key, never a secret."""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Any

import pytest
import yaml

from pitr_pipelines.errors import BadRequest, SettingsError
from pitr_pipelines.settings import Settings, asset_name, load_settings, parse_settings

MINIMAL: dict[str, Any] = {
    "backup_root": "/backup",
    "restore_root": "/restore",
    "databases": {"order-db": {"dsn": "host=order-db user=pitr dbname=postgres"}},
}


def parse(**values: Any) -> Settings:
    return parse_settings({**MINIMAL, **values}, source=Path("/etc/pitr/pitr.yaml"))


def parse_database(**values: Any) -> Settings:
    return parse(databases={"order-db": {**MINIMAL["databases"]["order-db"], **values}})


def write(directory: Path, content: str | bytes) -> Path:
    path = directory / "pitr.yaml"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_what_is_left_out_has_the_documented_defaults() -> None:
    settings = parse()
    assert settings.timezone == "UTC"
    assert settings.zone.key == "UTC"
    assert (settings.schedules.base_backup, settings.schedules.bundle) == ("0 3 * * *", "1 * * * *")
    assert settings.bundle.keep_raw_hours == 2
    assert settings.base_backup.compression == "auto"
    assert settings.database("order-db").archive_timeout_s == 60


def test_the_example_of_the_issue_is_read(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        """
backup_root: /backup
restore_root: /restore
timezone: Europe/Paris
first_day: 2026-01-05
databases:
  order-db:     {dsn: "host=order-db port=5432 user=pitr dbname=postgres"}
  inventory-db: {dsn: "host=inventory-db port=5432 user=pitr dbname=postgres"}
schedules: {base_backup: "0 3 * * *", bundle: "1 * * * *"}
binaries: {17: /opt/pg17/bin}
""",
    )
    settings = load_settings(path)
    assert list(settings.databases) == ["order-db", "inventory-db"]
    assert settings.first_day == date(2026, 1, 5)
    assert settings.binaries == {17: Path("/opt/pg17/bin")}


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"backup_root": None}, "backup_root"),
        ({"restore_root": 5}, "restore_root"),
        ({"timezone": "Mars/Olympus"}, "timezone"),
        ({"timezone": ""}, "timezone"),
        ({"timezone": "../../etc/passwd"}, "timezone"),
        ({"timezone": "Europe"}, "timezone"),
        ({"first_day": "soon"}, "first_day"),
        ({"databases": {}}, "databases"),
        ({"databases": None}, "databases"),
        ({"databases": {"order-db": {}}}, "databases.order-db.dsn"),
        ({"databases": {"order-db": None}}, "databases.order-db"),
        ({"databases": {"order-db": {"dsn": "host=x", "port": 1}}}, "databases.order-db.port"),
        ({"databases": {"order-db": {"dsn": "host=x", "archive_timeout_s": -1}}}, "archive_timeout_s"),
        ({"schedules": {"bundle": "hourly"}}, "schedules.bundle"),
        ({"schedules": {"base_backup": "0 3 * *"}}, "schedules.base_backup"),
        ({"schedules": {"restore": "0 3 * * *"}}, "schedules.restore"),
        ({"base_backup": {"compression": "lz4"}}, "base_backup.compression"),
        ({"base_backup": {"workers": 0}}, "base_backup.workers"),
        ({"bundle": {"workers": 65}}, "bundle.workers"),
        ({"bundle": {"keep_raw_hours": -1}}, "bundle.keep_raw_hours"),
        ({"bundle": {"archive_wait_s": 0}}, "bundle.archive_wait_s"),
        ({"binaries": {"seventeen": "/opt"}}, "binaries.seventeen"),
        ({"bakcup_root": "/backup"}, "bakcup_root"),
    ],
)
def test_a_value_that_does_not_fit_is_named_by_its_key(values: dict[str, Any], key: str) -> None:
    with pytest.raises(SettingsError, match=key.replace(".", r"\.")):
        parse(**values)


def test_every_problem_is_named_at_once() -> None:
    with pytest.raises(SettingsError) as caught:
        parse(timezone="Mars", schedules={"bundle": "x"}, surprise=1)
    for key in ("timezone", "schedules.bundle", "surprise", "/etc/pitr/pitr.yaml"):
        assert key in caught.value.what


def test_missing_keys_are_named() -> None:
    with pytest.raises(SettingsError, match=r"backup_root(.|\n)*restore_root(.|\n)*databases"):
        parse_settings({}, source=Path("pitr.yaml"))


@pytest.mark.parametrize(
    "name",
    ["Order", "1db", "-db", "_db", "", "order db", "order.db", "../x", "a/b", "a\n", "é", "a" * 41],
)
def test_names_that_cannot_be_paths_and_asset_keys_are_refused(name: str) -> None:
    with pytest.raises(SettingsError, match="a name starts with a lower-case letter"):
        parse(databases={name: {"dsn": "host=x"}})


def test_names_with_the_same_asset_key_are_refused() -> None:
    assert asset_name("order-db") == "order_db"
    with pytest.raises(SettingsError, match=r"databases\.order_db: gives the same asset key as order-db"):
        parse(databases={"order-db": {"dsn": "host=x"}, "order_db": {"dsn": "host=x"}})


SECRET = "s3cr3t-Pa55"


@pytest.mark.parametrize(
    "dsn",
    [
        f"host=x password={SECRET}",
        f"password={SECRET} host=x",
        f"host=x PASSWORD = '{SECRET}'",
        f"host='x'password={SECRET}",
        f"host=x\tpassword={SECRET}",
        f"host=x\npassword={SECRET}",
        f"host=x sslpassword={SECRET}",
        f"host=x oauth_client_secret={SECRET}",
        f"postgresql://pitr:{SECRET}@x/postgres",
        f"postgres://pitr:{SECRET}@x,y:5433/postgres",
        f"postgresql://pitr@x/postgres?password={SECRET}",
        f"postgresql://pitr@x/postgres?sslmode=require&password={SECRET}",
        f"postgresql://pitr@x/postgres?sslpassword={SECRET}",
        f"postgresql://pitr@x/postgres?pass%77ord={SECRET}",
    ],
)
def test_a_password_in_a_connection_string_is_refused_and_not_repeated(dsn: str) -> None:
    with pytest.raises(SettingsError) as caught:
        parse_database(dsn=dsn)
    text = f"{caught.value} {caught.value!r} {caught.value.__cause__} {caught.value.__suppress_context__}"
    assert "databases.order-db.dsn" in text
    assert "password_env" in text
    assert SECRET not in text
    assert caught.value.__suppress_context__


@pytest.mark.parametrize(
    "dsn",
    [
        "host=x passfile=/etc/pitr/pgpass",
        "service=order",
        "postgresql://pitr@x:5432/postgres?sslmode=verify-full",
        "postgresql://x:5432/postgres",
        "postgresql:///postgres?host=/var/run/postgresql",
        "host=x user=password_keeper application_name=passwords",
        "host=x require_auth=password",
    ],
)
def test_connection_strings_without_a_password_are_taken(dsn: str) -> None:
    assert parse_database(dsn=dsn).database("order-db").dsn == dsn


def test_relative_paths_are_taken_from_the_files_own_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "with a space").mkdir()
    path = write(
        tmp_path / "with a space",
        yaml.safe_dump(
            {**MINIMAL, "backup_root": "a/backup", "restore_root": "../b", "binaries": {15: "pg"}}
        ),
    )
    monkeypatch.chdir("/")
    settings = load_settings(path)
    assert settings.backup_root == path.parent / "a/backup"
    assert settings.restore_root == path.parent / "../b"
    assert settings.binaries == {15: path.parent / "pg"}
    monkeypatch.chdir(path.parent)
    assert load_settings("pitr.yaml") == settings
    assert load_settings() == settings
    monkeypatch.chdir("/")
    monkeypatch.setenv("PITR_CONFIG", str(path))
    assert load_settings() == settings


def test_a_missing_file_is_named_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"cannot read .*nowhere\.yaml: No such file") as caught:
        load_settings(tmp_path / "nowhere.yaml")
    assert "PITR_CONFIG" in caught.value.remedy
    with pytest.raises(SettingsError, match="Is a directory"):
        load_settings(tmp_path)


@pytest.mark.parametrize("content", ["", "[]", "just text", "- 1"])
def test_a_file_without_settings_is_named(tmp_path: Path, content: str) -> None:
    with pytest.raises(SettingsError, match=r"pitr\.yaml holds no settings"):
        load_settings(write(tmp_path, content))


@pytest.mark.parametrize("loader", ["c", "python"])
@pytest.mark.parametrize(
    "line",
    [
        f'dsn: "host=x password={SECRET}',
        f"dsn: [host=x password={SECRET}",
        f"a: b: {SECRET}",
    ],
)
def test_a_file_that_is_not_yaml_is_named_without_quoting_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, loader: str
) -> None:
    if loader == "python":
        monkeypatch.setattr(yaml, "CSafeLoader", yaml.SafeLoader, raising=False)
    with pytest.raises(SettingsError, match=r"pitr\.yaml is not YAML: .*in line \d") as caught:
        load_settings(write(tmp_path, f"backup_root: /backup\n{line}\n"))
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("content", [b"backup_root: \xff\xfe", b"\0\0", b"backup_root: /a\0b"])
def test_a_file_that_is_not_text_is_an_error_and_not_a_crash(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(SettingsError, match="is not YAML"):
        load_settings(write(tmp_path, content))


def test_the_file_is_utf_8_whatever_the_locale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LC_ALL", "C")
    path = write(tmp_path, yaml.safe_dump({**MINIMAL, "backup_root": "/sauvegardé"}, allow_unicode=True))
    assert load_settings(path).backup_root == Path("/sauvegardé")


def test_an_unknown_database_is_refused_and_the_known_ones_named() -> None:
    with pytest.raises(BadRequest, match="no database 'orders'") as caught:
        parse().database("orders")
    assert "order-db" in caught.value.remedy


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        parse().timezone = "Europe/Paris"


def test_reading_touches_nothing_but_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, yaml.safe_dump({**MINIMAL, "backup_root": "backup", "restore_root": "restore"}))
    load_settings(path)
    assert list(tmp_path.iterdir()) == [path]


def test_drills_and_their_checks_have_the_documented_defaults() -> None:
    drills = parse().drills
    assert (drills.schedule, drills.max_age_days, drills.amcheck) == ("0 5 * * 0", 8, True)
    (check,) = (
        parse_database(drill_checks=[{"query": " select count(*) > 0 from orders "}])
        .database("order-db")
        .drill_checks
    )
    assert (check.query, check.expect, check.dbname) == ("select count(*) > 0 from orders", True, None)


@pytest.mark.parametrize("expect", [True, False, 7, 0.5, "text", "true"])
def test_what_a_drill_expects_keeps_its_type(expect: object) -> None:
    settings = parse_database(drill_checks=[{"query": "select 1", "expect": expect}])
    found = settings.database("order-db").drill_checks[0].expect
    assert (type(found), found) == (type(expect), expect)


@pytest.mark.parametrize(
    ("check", "key"),
    [
        ({"query": " "}, "drill_checks.0.query"),
        ({"expect": True}, "drill_checks.0.query"),
        ({"query": "select 1", "expect": None}, "drill_checks.0.expect"),
        ({"query": "select 1", "expect": [1]}, "drill_checks.0.expect"),
        ({"query": "select 1", "dbname": ""}, "drill_checks.0.dbname"),
        ({"query": "select 1", "expects": 1}, "drill_checks.0.expects"),
    ],
)
def test_a_check_of_drills_that_makes_no_sense_is_named(check: dict[str, object], key: str) -> None:
    with pytest.raises(SettingsError, match=key):
        parse_database(drill_checks=[check])


@pytest.mark.parametrize("drills", [{"schedule": "weekly"}, {"max_age_days": 0}, {"check_timeout_s": 0}])
def test_drills_that_make_no_sense_are_refused(drills: dict[str, object]) -> None:
    with pytest.raises(SettingsError, match=f"drills.{next(iter(drills))}"):
        parse(drills=drills)
