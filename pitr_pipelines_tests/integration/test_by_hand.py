"""The backup can be restored with tar, cp and postgres alone, as docs/by-hand.md says."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import psycopg
import pytest

import pitr_pipelines
from pitr_pipelines.catalog.layout import Layout
from pitr_pipelines.postgres.account import give
from pitr_pipelines.postgres.base_backup import take_base_backup
from pitr_pipelines.postgres.server import Cluster, free_port
from pitr_pipelines.wal.bundles import make_bundle
from pitr_pipelines.wal.hours import Hour
from pitr_pipelines_tests.integration.restoring import now
from pitr_pipelines_tests.servers import MAJORS, ServerFactory, SettingsMaker

pytestmark = pytest.mark.slow

PAGE = Path(pitr_pipelines.__file__).parent.parent / "docs/by-hand.md"


def commands_of_the_page() -> str:
    """Return the shell block of the by-hand restore."""
    found = re.search(r"<!-- by-hand -->\s*```sh\n(.*?)```", PAGE.read_text(), re.S)
    assert found is not None, "docs/by-hand.md has no by-hand restore"
    return found[1]


@pytest.mark.parametrize("major", MAJORS[:1] + MAJORS[-1:])
def test_the_commands_of_the_page_restore_a_moment(
    server_factory: ServerFactory, pitr_settings: SettingsMaker, reachable_tmp: Path, major: int
) -> None:
    server = server_factory(major=major)
    settings = pitr_settings(server, bundle={"keep_raw_hours": 0})
    layout = Layout(settings.backup_root)
    server.execute("CREATE TABLE rows (id bigint)")
    base = take_base_backup(settings, "order-db")
    server.execute("INSERT INTO rows VALUES (1)")
    moment = now()
    server.execute("INSERT INTO rows VALUES (2)")
    hour = Hour.containing(now())
    make_bundle(settings, "order-db", hour)
    server.execute("INSERT INTO rows VALUES (3)")
    server.execute("SELECT pg_switch_wal()")
    make_bundle(settings, "order-db", hour)
    server.stop()
    # Only the bundles are left of the WAL, as on the night when the archive's disk is gone.
    for path in layout.wal("order-db").iterdir():
        path.unlink()

    port = free_port()
    # Everything but these lines is the page's, to the letter.
    variables = {
        "BACKUP": str(settings.backup_root),
        "DB": "order-db",
        "DAY": base.day.isoformat(),
        "NEW": str(reachable_tmp / "by hand"),
        "TARGET": moment.isoformat(sep=" "),
        "PORT": str(port),
    }
    script = "\n".join(
        line
        for line in commands_of_the_page().splitlines()
        if not re.match(r"(BACKUP|DB|DAY|NEW|TARGET|PORT)=", line)
    )
    bin_directory = server.cluster.binaries.reachable_by(server.cluster.account).directory
    give(settings.backup_root, server.cluster.account)
    reachable_tmp.chmod(0o777)
    account = server.cluster.account
    done = subprocess.run(
        ["sh", "-euc", script],
        env={**variables, "PATH": f"{bin_directory}:/usr/bin:/bin:/usr/sbin:/sbin", "HOME": "/tmp"},
        cwd=reachable_tmp,
        capture_output=True,
        text=True,
        timeout=120,
        user=account.uid if account.switch else None,
        group=account.gid if account.switch else None,
        extra_groups=[] if account.switch else None,
    )
    cluster = Cluster(reachable_tmp / "by hand", server.cluster.binaries, account)
    try:
        assert done.returncode == 0, done.stdout + done.stderr
        address = f"host=127.0.0.1 port={port} user=postgres dbname=postgres"
        with psycopg.connect(address) as connection:
            assert connection.execute("SELECT id FROM rows").fetchall() == [(1,)]
            assert connection.execute("SHOW archive_mode").fetchone() == ("off",)
    finally:
        cluster.stop("immediate")


def test_a_bundle_is_an_ordinary_tar_gz(
    server_factory: ServerFactory, pitr_settings: SettingsMaker, tmp_path: Path
) -> None:
    server = server_factory()
    settings = pitr_settings(server)
    layout = Layout(settings.backup_root)
    server.execute("CREATE TABLE rows AS SELECT generate_series(1, 200000) AS id")
    server.execute("SELECT pg_switch_wal()")
    server.execute("INSERT INTO rows VALUES (1)")
    hour = Hour.containing(now())
    make_bundle(settings, "order-db", hour)
    bundle = layout.bundle("order-db", hour)
    tar = shutil.which("tar")
    assert tar is not None
    subprocess.run([tar, "xzf", bundle, "-C", tmp_path], check=True)
    unpacked = sorted(tmp_path.iterdir())
    assert len(unpacked) >= 2
    for path in unpacked:
        raw = layout.wal("order-db") / path.name
        assert path.read_bytes() == raw.read_bytes()
        assert path.stat().st_mtime_ns // 1000 == raw.stat().st_mtime_ns // 1000
