"""A restore point is found in the server's own segment, wherever its record lies, and in no other's."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path

import pytest

from pitr_pipelines.errors import ArtifactDamaged, ForeignWal
from pitr_pipelines.wal.lsn import Lsn, SegmentName
from pitr_pipelines.wal.sealed_segment import check_sealed_segment, keep_history
from pitr_pipelines_tests.servers import ServerFactory, each_major, wait_for

PAGE = 8192
RECORD = 104
SIZE = 1024 * 1024
WRITTEN_AT = datetime(2026, 1, 29, 14, 30, tzinfo=UTC)


@pytest.mark.slow
@each_major
def test_a_restore_point_is_found_across_pages_and_segments(
    server_factory: ServerFactory, major: int
) -> None:
    server = server_factory(major=major, wal_segment_size_mb=1)
    marks: list[tuple[str, Lsn]] = []
    with server.connect() as connection:
        for number in range(1200):
            name = f"{number} {'x' * (number % 50)}"
            row = connection.execute("SELECT pg_create_restore_point(%s)::text", [name]).fetchone()
            assert row is not None
            marks.append((name, Lsn.parse(row[0])))
            if number % 7 == 0:
                message = "SELECT pg_logical_emit_message(false, 'a', repeat('y', %s))"
                connection.execute(message, [number * 8 % 5000])
        row = connection.execute("SELECT pg_walfile_name(pg_switch_wal())").fetchone()
        assert row is not None
        last = server.archive / row[0]
    wait_for(last.exists, what=f"{last.name} in the archive")
    assert any((lsn - 1) // PAGE != (lsn - RECORD) // PAGE for _, lsn in marks), "none crosses pages"
    for name, lsn in marks:
        segment = SegmentName.containing(lsn - 1, 1, SIZE)
        check_sealed_segment(server.archive, segment, lsn, name, database="order-db")
        if (lsn - RECORD) // SIZE == (lsn - 1) // SIZE:
            for other, place in ((f"{name}x", lsn), (name[1:], lsn), (name, Lsn(lsn - 8))):
                with pytest.raises(ForeignWal, match="is not what the server of order-db wrote"):
                    check_sealed_segment(server.archive, segment, place, other, database="order-db")


def test_a_history_file_is_put_into_the_archive_with_its_time_and_never_replaces_one(tmp_path: Path) -> None:
    ours, name = b"1\t0/5000000\tno recovery target specified\n", "00000002.history"
    keep_history(tmp_path, name, ours, WRITTEN_AT)
    path = tmp_path / name
    assert (path.read_bytes(), path.stat().st_mtime) == (ours, WRITTEN_AT.timestamp())
    assert path.stat().st_mode & 0o777 == 0o644
    os.utime(path, (1, 1))
    keep_history(tmp_path, name, ours, WRITTEN_AT)
    assert path.stat().st_mtime == 1
    for theirs, error in ((b"1\t0/6000000\tx\n", ForeignWal), (b"1\t0/50", ArtifactDamaged)):
        path.write_bytes(theirs)
        with pytest.raises(error, match=name):
            keep_history(tmp_path, name, ours, WRITTEN_AT)
        assert path.read_bytes() == theirs
