"""In-place recovery that is refused leaves everything as it is, and says what to do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pitr_pipelines.catalog.layout import Layout
from pitr_pipelines.restore import in_place
from pitr_pipelines.restore.in_place_checks import InPlaceRefused, check_identity, examine
from pitr_pipelines.restore.prepare import plan_restore
from pitr_pipelines.restore.target import LatestTarget
from pitr_pipelines_tests.integration.in_place_scene import Scene
from pitr_pipelines_tests.servers import ServerFactory, SettingsMaker

pytestmark = pytest.mark.slow


@pytest.fixture
def scene(server_factory: ServerFactory, pitr_settings: SettingsMaker) -> Scene:
    return Scene.of(server_factory(), pitr_settings)


def everything(scene: Scene) -> tuple[str, list[Path]]:
    return scene.fingerprint(), sorted(scene.data.parent.iterdir())


def test_what_is_asked_wrongly_touches_nothing(scene: Scene) -> None:
    before = everything(scene)
    assert "'order-bd' is not the name" in scene.in_place("--confirm", "order-bd", exit_code=2)
    assert "there is no terminal" in scene.in_place(exit_code=2)
    assert "none of --to, --port, --stop" in scene.in_place("--port", "5433", exit_code=2)
    assert "none of --to, --port, --stop" in scene.in_place("--stop", exit_code=2)
    moment = scene.before_drop.isoformat()
    assert "takes no target" in scene.pitr(
        "restore", "order-db", moment, "--undo", "--in-place", str(scene.data), exit_code=2
    )
    assert "only for --in-place" in scene.pitr("restore", "order-db", "--undo", exit_code=2)
    assert "no restore in place" in scene.in_place("--undo", "--confirm", "order-db", exit_code=2)
    assert "only the plan" in scene.in_place("--plan")
    plan, _ = json.JSONDecoder().raw_decode(scene.in_place("--plan", "--json"))
    assert plan["in_place"][0] == f"in place of {scene.data}"
    refused = scene.pitr("restore", "order-db", "--latest", "--in-place", "/nowhere/main", exit_code=7)
    assert "/nowhere cannot be opened" in refused
    assert everything(scene) == before


def test_another_clusters_directory_is_refused(scene: Scene, server_factory: ServerFactory) -> None:
    other = server_factory("other-db", start=False)
    plan = plan_restore(scene.settings, "order-db", LatestTarget(), seal=False)
    original = examine(scene.settings, "order-db", other.cluster.data_directory)
    with pytest.raises(InPlaceRefused, match="is the data directory of the cluster"):
        in_place.prepare(scene.settings, plan, original)

    (other.cluster.data_directory / "PG_VERSION").write_text("14\n")
    with pytest.raises(InPlaceRefused, match="is a data directory of PostgreSQL 14"):
        in_place.prepare(scene.settings, plan, original)


def test_a_destroyed_control_file_leaves_the_word_of_the_person(scene: Scene) -> None:
    plan = plan_restore(scene.settings, "order-db", LatestTarget(), seal=False)
    original = examine(scene.settings, "order-db", scene.data)
    control = scene.data / "global" / "pg_control"
    content = control.read_bytes()
    for destroyed in (b"", content[:100] + b"\xff" + content[101:], b"\0" * len(content)):
        control.write_bytes(destroyed)
        found = check_identity(scene.settings, original, plan.base, "order-db")
        assert found.control is None
        assert "its control file cannot be read" in found.notes[0]
        assert "replaced on your word" in found.notes[0]
    (scene.data / "PG_VERSION").unlink()
    assert check_identity(scene.settings, original, plan.base, "order-db").control is None


def test_what_is_no_data_directory_is_refused_and_an_empty_one_is_not(scene: Scene) -> None:
    plan = plan_restore(scene.settings, "order-db", LatestTarget(), seal=False)
    place = scene.data.with_name("home")
    place.mkdir()
    empty = check_identity(scene.settings, examine(scene.settings, "order-db", place), plan.base, "order-db")
    assert "it is empty" in empty.notes[0]
    (place / "letters.txt").write_text("dear")
    with pytest.raises(InPlaceRefused, match="is not a PostgreSQL data directory"):
        check_identity(scene.settings, examine(scene.settings, "order-db", place), plan.base, "order-db")


def test_without_room_for_both_it_is_refused(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    before = everything(scene)
    plan = plan_restore(scene.settings, "order-db", LatestTarget(), seal=False)
    original = examine(scene.settings, "order-db", scene.data)
    monkeypatch.setattr(in_place, "space_needed", lambda _plan: 10**15)
    with pytest.raises(InPlaceRefused, match="no room beside the old one") as refused:
        in_place.prepare(scene.settings, plan, original)
    assert "onto another file system (--to)" in refused.value.remedy
    assert everything(scene) == before


def test_a_server_that_was_started_meanwhile_stays_in_its_place(scene: Scene) -> None:
    plan = plan_restore(scene.settings, "order-db", LatestTarget(), seal=False)
    original = examine(scene.settings, "order-db", scene.data)
    wanted = in_place.prepare(scene.settings, plan, original)
    scene.server.start()
    with pytest.raises(InPlaceRefused, match="a server runs in") as refused:
        in_place.carry_out(scene.settings, wanted)
    assert f"The restored one is whole, in {wanted.destination.data_directory}" in refused.value.remedy
    assert scene.has_table("after_the_drop")


def test_wal_that_was_never_archived_is_told_before_the_name_is_typed(scene: Scene) -> None:
    server = scene.server
    server.configure({"archive_command": "false"})
    server.start()
    server.execute("SELECT pg_logical_emit_message(true, 'test', 'x'), pg_switch_wal()")
    server.execute("SELECT pg_create_physical_replication_slot('replica')")
    server.execute("SELECT pg_logical_emit_message(true, 'test', 'y')")
    server.crash()
    printed = scene.in_place("--plan")
    assert "never archived: 2 WAL segments (0000000100000000" in printed
    assert "replication slots are not restored, create them again: replica" in printed
    assert Layout(scene.settings.backup_root).wal("order-db").is_dir()
    server.configure({"archive_command": server_command(scene)})
    server.start()
    server.stop()
    assert "never archived" not in scene.in_place("--plan")


def server_command(scene: Scene) -> str:
    script = Layout(scene.settings.backup_root).archive_script
    return f'"{script}" "{scene.server.archive}" "%p" "%f"'
