"""Whatever the umask, backups are for their owner and his group alone, and a restored copy for its owner."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from pitr_pipelines_tests.integration.test_cli import Terminal
from pitr_pipelines_tests.servers import ServerFactory, SettingsMaker

pytestmark = pytest.mark.slow

OPEN_TO_OTHERS = {"bin/wal-archive.sh": 0o755, "wal/order-db/system_identifier": 0o644}
"""What servers of other users must be able to read; neither holds any of their data."""


@pytest.fixture(params=[0o000, 0o077], ids=["umask 000", "umask 077"])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def modes(root: Path) -> dict[str, int]:
    return {
        str(path.relative_to(root)): path.lstat().st_mode & 0o7777
        for path in root.rglob("*")
        if not path.is_symlink()
    }


def test_nothing_that_is_written_is_open_to_others(
    umask: int, server_factory: ServerFactory, pitr_settings: SettingsMaker
) -> None:
    server = server_factory(archiving=False, options={"archive_mode": "on"})
    settings = pitr_settings(server)
    root = settings.backup_root
    terminal = Terminal(pitr_settings.file)
    terminal.run("init-db", "order-db", "--admin-dsn", server.admin_dsn)
    terminal.run("backup")
    server.execute("CREATE TABLE rows AS SELECT generate_series(1, 1000) AS id")
    terminal.run("bundle", "--now")
    terminal.run("drill", "order-db")
    terminal.run("report")
    terminal.run("watch", "--once")

    found = modes(root)
    rooms = {name.split("/")[0] for name in found}
    assert rooms >= {"base", "bin", "bundles", "drills", "manifests", "wal", "alerts"}
    for name, mode in OPEN_TO_OTHERS.items():
        assert found.pop(name) == mode
    # Others pass through what leads to the archive and the script, if the server is another user's.
    loose = {
        name: oct(mode)
        for name, mode in found.items()
        if mode & (0o026 if (root / name).is_dir() else 0o027) or mode & 0o7000
    }
    assert loose == {}
    closed = {name: mode for name, mode in found.items() if name.split("/")[0] not in ("wal", "bin")}
    assert {name: oct(mode) for name, mode in closed.items() if mode & 0o007} == {}

    terminal.run("restore", "order-db", "--latest", "--stop")
    copies = modes(settings.restore_root)
    assert any(name.endswith("PG_VERSION") for name in copies)
    data = {name: mode for name, mode in copies.items() if "/data" in name}
    assert {name: oct(mode) for name, mode in data.items() if mode & 0o077} == {}
