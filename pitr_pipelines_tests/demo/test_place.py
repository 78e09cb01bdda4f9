"""The demo's directory: where servers can reach it, and cleared away by the next demo if it must be."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from pitr_pipelines.demo import place as places
from pitr_pipelines.demo.place import NoPlace, abandoned, remove, workplace


def test_the_directory_is_open_to_the_server_account_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        with workplace([tmp_path]) as place:
            assert place.parent == tmp_path
            assert stat.S_IMODE(place.stat().st_mode) == 0o755
    finally:
        os.umask(before)


def test_a_living_demo_is_not_cleared_away_and_a_dead_one_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(places, "_YOUNG_S", -1.0)
    with workplace([tmp_path]) as dead:
        pass
    with workplace([tmp_path]) as living:
        assert list(abandoned([tmp_path])) == [dead]
    assert set(abandoned([tmp_path])) == {dead, living}


def test_a_directory_that_is_just_being_made_is_left_alone(tmp_path: Path) -> None:
    with workplace([tmp_path]):
        pass
    assert list(abandoned([tmp_path])) == []


def test_what_is_not_ours_is_never_cleared_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "_YOUNG_S", -1.0)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / "pitr-demo-link").symlink_to(elsewhere)
    (tmp_path / "pitr-demo-file").write_text("a file")
    foreign = tmp_path / "pitr-demo-foreign"
    foreign.mkdir()
    real = os.geteuid()
    monkeypatch.setattr("os.geteuid", lambda: real + 1)
    assert list(abandoned([tmp_path])) == []


def test_a_place_is_refused_with_every_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "ROOM_BYTES", 1 << 62)
    with pytest.raises(NoPlace) as refusal, workplace([tmp_path, tmp_path / "absent"]):
        pass
    assert "MiB free" in refusal.value.what
    assert "No such file" in refusal.value.what


def test_the_second_parent_serves_if_the_first_does_not(tmp_path: Path) -> None:
    with workplace([tmp_path / "absent", tmp_path]) as place:
        assert place.parent == tmp_path


def test_removing_takes_everything(tmp_path: Path) -> None:
    with workplace([tmp_path]) as place:
        (place / "deep").mkdir()
        (place / "deep" / "file").write_text("x")
        remove(place)
    assert list(tmp_path.iterdir()) == []
