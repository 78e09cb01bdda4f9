"""`pitr retention`, as somebody at a terminal meets it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result

from pitr_pipelines.catalog.inventory import read_inventory
from pitr_pipelines.cli import main
from pitr_pipelines.errors import SettingsError
from pitr_pipelines.settings import load_settings
from pitr_pipelines_tests.catalog.test_expiry import DAYS, fill
from pitr_pipelines_tests.wal_files import DATABASE, Store

KEEP = {"hourly_days": 1, "daily": 3, "weekly": 0, "monthly": 0}
OFFSITE = {"store": {"bucket": "backups", "prefix": "production"}, "unencrypted": True}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path)
    fill(store)
    return store


def write_settings(store: Store, **more: object) -> Path:
    values = {
        "backup_root": "backup",
        "restore_root": "restore",
        "databases": {DATABASE: {"dsn": "host=nowhere.invalid"}},
        **more,
    }
    path = store.root / "pitr.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def pitr(settings: Path, *words: str) -> Result:
    return CliRunner().invoke(main, ["--config", str(settings), "retention", *words])


def bases(store: Store) -> int:
    return len(read_inventory(store.layout, DATABASE).bases)


def test_without_settings_it_says_that_nothing_is_ever_removed(store: Store) -> None:
    done = pitr(write_settings(store))
    assert done.exit_code == 0
    assert "nothing is ever removed" in done.output
    assert bases(store) == DAYS


def test_a_dry_run_explains_and_removes_nothing(store: Store) -> None:
    settings = write_settings(store, retention={"keep": KEEP, "require_offsite": False})
    done = pitr(settings, "--dry-run")
    assert done.exit_code == 0, done.output
    assert "  remove  base 2026-01-29: older than the last 1 d 0 h" in done.output
    assert "  keep    base 2026-02-02: " in done.output
    assert "may go: 2 bases and 11 hours" in done.output
    assert done.output.endswith("Nothing was removed: this was only what would be.\n")
    assert bases(store) == DAYS
    told = json.loads(pitr(settings, "--dry-run", "--json", DATABASE).output)[DATABASE]
    assert [one["base"] for one in told["decisions"] if one["verdict"] == "remove" and "base" in one] == [
        "2026-01-29",
        "2026-01-30",
    ]


def test_it_removes_what_it_said(store: Store) -> None:
    settings = write_settings(store, retention={"keep": KEEP, "require_offsite": False})
    done = pitr(settings)
    assert done.exit_code == 0, done.output
    assert "  removed base 2026-01-29" in done.output
    assert bases(store) == DAYS - 2
    assert "freed   0 B" in pitr(settings).output


def test_what_waits_for_the_off_site_copy_is_said(store: Store) -> None:
    settings = write_settings(store, retention={"keep": KEEP, "require_offsite": True}, offsite=OFFSITE)
    done = pitr(settings)
    assert "waits   2 bases and 11 hours" in done.output
    assert "not confirmed off-site yet" in done.output
    assert bases(store) == DAYS


def test_the_rule_for_the_store_is_json_alone_on_standard_output(store: Store) -> None:
    settings = write_settings(store, retention={"keep": KEEP, "require_offsite": True}, offsite=OFFSITE)
    done = pitr(settings, "--lifecycle")
    assert json.loads(done.stdout)["Rules"][0]["Expiration"] == {"Days": 11}
    assert "REPLACES every rule" in done.stderr
    bare = pitr(write_settings(store, retention={"keep": KEEP, "require_offsite": False}), "--lifecycle")
    assert bare.exit_code == 2


@pytest.mark.parametrize(
    ("retention", "what"),
    [
        ({"keep": KEEP}, "require_offsite"),
        ({"keep": KEEP, "require_offsite": True}, "no `offsite` settings"),
        ({"keep": {**KEEP, "hourly_days": 0}, "require_offsite": False}, "hourly_days"),
        ({"keep": {"hourly_days": 7}, "require_offsite": False}, "monthly"),
        ({"keep": KEEP, "require_offsite": "no"}, "require_offsite"),
    ],
)
def test_settings_that_do_not_say_it_clearly_are_refused(
    store: Store, retention: dict[str, object], what: str
) -> None:
    with pytest.raises(SettingsError, match=what):
        load_settings(write_settings(store, retention=retention))


def test_raw_wal_cannot_outlive_the_bundles_that_vouch_for_it(store: Store) -> None:
    with pytest.raises(SettingsError, match="keep_raw_hours"):
        load_settings(
            write_settings(
                store, retention={"keep": KEEP, "require_offsite": False}, bundle={"keep_raw_hours": 25}
            )
        )
