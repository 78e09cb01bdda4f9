"""What in a data directory is configuration, and is carried over as it is."""

from __future__ import annotations

from pathlib import Path

import pytest

from pitr_pipelines.restore.in_place_configuration import (
    LARGE_BYTES,
    copy_configuration,
    entries,
    remove_entry,
    unreadable,
)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    root = tmp_path / "data"
    for directory in ("base", "global", "pg_wal", "pg_tblspc", "pg_tde", "log", "conf.d", "backup of friday"):
        (root / directory).mkdir(parents=True)
    names = (
        "PG_VERSION",
        "postmaster.opts",
        "standby.signal",
        "backup_label.old",
        "current_logfiles",
        "core.77",
    )
    own = ("postgresql.conf", "postgresql.auto.conf", "pg_hba.conf", "server.key", "core_settings.conf")
    for name in (*names, *own, "server.log", "conf.d/memory.conf"):
        (root / name).write_text(name)
    (root / "backup of friday" / "all.dump").write_bytes(bytes(LARGE_BYTES + 1))
    (root / "pg_ident.conf").symlink_to("/etc/postgresql/pg_ident.conf")
    (root / "server.key").chmod(0o600)
    return root


def test_it_is_what_is_neither_data_nor_log_nor_large(data: Path) -> None:
    carried, left = entries(data)
    assert carried == [
        "conf.d",
        "core_settings.conf",
        "pg_hba.conf",
        "pg_ident.conf",
        "postgresql.auto.conf",
        "postgresql.conf",
        "server.key",
    ]
    assert left == ["backup of friday"]
    assert unreadable(data) is None


def test_a_copy_replaces_what_is_there_and_keeps_links_modes_and_times(data: Path, tmp_path: Path) -> None:
    target = tmp_path / "new"
    (target / "conf.d").mkdir(parents=True)
    (target / "conf.d" / "long-gone.conf").touch()
    (target / "pg_hba.conf").mkdir()
    (target / "other.conf").touch()
    (data / "conf.d" / "here.conf").symlink_to("memory.conf")

    copy_configuration(data, target)

    assert sorted(path.name for path in (target / "conf.d").iterdir()) == ["here.conf", "memory.conf"]
    assert (target / "conf.d" / "here.conf").readlink() == Path("memory.conf")
    assert (target / "pg_ident.conf").readlink() == Path("/etc/postgresql/pg_ident.conf")
    assert (target / "pg_hba.conf").read_text() == "pg_hba.conf"
    assert (target / "other.conf").exists()
    for name in ("server.key", "postgresql.conf"):
        old, new = (data / name).stat(), (target / name).stat()
        assert (old.st_mode, old.st_uid, old.st_mtime_ns) == (new.st_mode, new.st_uid, new.st_mtime_ns)


def test_removing_what_is_not_there_is_no_error(tmp_path: Path) -> None:
    remove_entry(tmp_path / "nothing")
