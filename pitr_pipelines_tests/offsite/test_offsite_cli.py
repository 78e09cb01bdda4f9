"""`pitr offsite`, as somebody on an empty machine uses it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pitr_pipelines.errors import PitrError
from pitr_pipelines.offsite import restoring
from pitr_pipelines.postgres.account import server_account
from pitr_pipelines.postgres.binaries import find_binaries
from pitr_pipelines.postgres.server import Cluster
from pitr_pipelines.restore.target import LatestTarget
from pitr_pipelines_tests.offsite.conftest import StoreMaker
from pitr_pipelines_tests.offsite.lost_scene import Scene, committed, make_scene, past_days
from pitr_pipelines_tests.offsite.s3_server import CountingProxy
from pitr_pipelines_tests.servers import ServerFactory, SettingsMaker

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).parents[2]


def pitr(scene: Scene, *words: str, exit_code: int = 0) -> str:
    """Run one command; return what it prints, with what it says of errors if it is to fail."""
    done = subprocess.run(
        [sys.executable, "-c", "from pitr_pipelines.cli import main; main(prog_name='pitr')", *words],
        env={
            **os.environ,
            "PITR_CONFIG": str(scene.settings.backup_root.parent / "pitr.yaml"),
            "PYTHONPATH": str(REPOSITORY),
        },
        cwd=scene.settings.backup_root.parent,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == exit_code, done.stdout + done.stderr
    return done.stdout + done.stderr if exit_code else done.stdout


@pytest.fixture
def lost(server_factory: ServerFactory, pitr_settings: SettingsMaker, open_store: StoreMaker) -> Scene:
    """Two databases that are only off-site any more; each had three rows."""
    scene = make_scene(server_factory, pitr_settings, open_store)
    for server in scene.servers:
        scene.base(server.name, past_days(1)[0])
        server.execute("INSERT INTO rows (pad) VALUES ('a'), ('b'), ('c')")
        assert len(committed(server)) == 3
        scene.bundle(server.name)
    scene.send(past_days(1)[0])
    scene.lose_everything()
    return scene


def rows_of(scene: Scene, report: Any) -> int:
    """Count the rows of a restored cluster that runs, and stop it."""
    import psycopg

    binaries = find_binaries(int(report["server_version"].split(".")[0]), scene.settings.binaries)
    try:
        address = f"host=127.0.0.1 port={report['port']} user=postgres dbname=postgres"
        with psycopg.connect(address) as connection:
            (count,) = connection.execute("SELECT count(*) FROM rows").fetchone() or (0,)
            return int(count)
    finally:
        Cluster(Path(report["data_directory"]), binaries, server_account(None)).stop("immediate")


def test_an_empty_machine_with_settings_and_key_gets_everything_back(lost: Scene) -> None:
    key = lost.settings.backup_root.parent / "offsite.key"
    key.write_text(lost.secret)

    assert "--key FILE" in pitr(lost, "offsite", "list")
    assert "1 hour" in pitr(lost, "offsite", "list", "--key", str(key))
    seen = json.loads(pitr(lost, "offsite", "list", "order-db", "--json", "--key", str(key)))
    assert seen["databases"]["order-db"]["restorable"]
    refused = pitr(lost, "offsite", "restore", "order-db", "--latest", exit_code=13)
    assert "no secret key was given" in refused
    planned = pitr(lost, "offsite", "restore", "order-db", "--latest", "--plan", "--key", str(key))
    assert "from the envelope of" in planned
    assert "Nothing was changed" in planned
    report = json.loads(pitr(lost, "offsite", "restore", "order-db", "--latest", "--json", "--key", str(key)))
    assert rows_of(lost, report) == 3

    assert "to fetch into" in pitr(lost, "offsite", "fetch", "users", "--plan", "--key", str(key))
    assert not lost.settings.backup_root.exists()
    assert "are there" in pitr(lost, "offsite", "fetch", "users", "--key", str(key))
    assert "0 with problems" in pitr(lost, "verify", "users")
    assert "restorable" in pitr(lost, "status", "users")
    report = json.loads(pitr(lost, "restore", "users", "--latest", "--json"))
    assert rows_of(lost, report) == 3


def test_keygen_prints_the_public_key_and_never_replaces_a_file(lost: Scene) -> None:
    public = pitr(lost, "offsite", "keygen", "new.key").strip()
    file = lost.settings.backup_root.parent / "new.key"
    assert public.startswith("age1")
    assert public in file.read_text()
    before = file.read_bytes()

    assert "left alone" in pitr(lost, "offsite", "keygen", "new.key", exit_code=2)
    assert file.read_bytes() == before


def test_what_was_fetched_before_a_restore_failed_is_not_fetched_again(
    lost: Scene, proxy: CountingProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise PitrError("the disk is full", remedy="Make room.")

    with monkeypatch.context() as patched:
        patched.setattr(restoring, "restore", fail)
        with pytest.raises(PitrError) as failed, lost.come_back("order-db", LatestTarget()):
            pass
    assert "is kept in" in failed.value.remedy
    proxy.read_bytes = 0

    with lost.come_back("order-db", LatestTarget()) as (planned, _, connection, _):
        assert connection.execute("SELECT count(*) FROM rows").fetchone() == (3,)

    assert planned["download"]["bytes"] == 0
    assert planned["download"]["parts"][0]["here_bytes"] > 0
    assert proxy.read_bytes < 200_000
    assert not [path for path in lost.settings.restore_root.glob(".offsite/*") if path.is_dir()]
