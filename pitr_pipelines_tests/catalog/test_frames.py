"""The restore points as a frame: a row a point, with the columns and dtypes that are documented."""

from __future__ import annotations

from pathlib import Path

from pitr_pipelines.catalog.frames import RESTORE_POINT_DTYPES, restore_points_frame
from pitr_pipelines.catalog.manifest import Manifest, refresh_manifest
from pitr_pipelines_tests.catalog.fortnight import make_fortnight


def test_there_is_a_row_for_each_restore_point(tmp_path: Path) -> None:
    manifest = refresh_manifest(make_fortnight(tmp_path).settings)
    frame = restore_points_frame(manifest)
    points = [
        (database, point.at, point.kind, point.name, point.lsn)
        for database, held in sorted(manifest.databases.items())
        for point in held.restore_points
    ]
    assert len(frame) == len(points) > 500
    assert list(frame["database"]) == [point[0] for point in points]
    assert [moment.to_pydatetime() for moment in frame["at"]] == [point[1] for point in points]
    assert list(frame["kind"]) == [point[2] for point in points]
    sealed = frame[frame["name"].notna()]
    assert list(sealed["name"]) == ["pitr-order-db-2026-01-29-14"]
    assert [int(lsn) for lsn in sealed["lsn"]] == [int(point[4]) for point in points if point[4] is not None]
    assert (frame["hour"].dt.hour == (frame["at"] - frame["hour"]).rsub(frame["at"]).dt.hour).all()
    assert (frame["base_age_s"] >= 0).all()
    assert (frame["timeline"] == 1).all()


def test_a_point_starts_from_the_newest_base_before_it(tmp_path: Path) -> None:
    frame = restore_points_frame(refresh_manifest(make_fortnight(tmp_path).settings))
    order = frame[frame["database"] == "order-db"]
    # No base backup was taken on the 23rd: its points start from that of the 22nd.
    assert set(order[order["at"].dt.day == 23]["base_day"]) == {"2026-01-22"}
    assert order["base_age_s"].max() > 24 * 3600


def test_the_dtypes_are_the_same_with_and_without_points(tmp_path: Path) -> None:
    full = restore_points_frame(refresh_manifest(make_fortnight(tmp_path).settings))
    for frame in (full, restore_points_frame(Manifest(databases={}))):
        assert {name: str(dtype) for name, dtype in frame.dtypes.items()} == RESTORE_POINT_DTYPES
