"""In-place recovery, whole: a dropped table comes back in the server's own place, and it can be undone."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from pitr_pipelines.postgres.account import give, make_owned_directory
from pitr_pipelines.restore.in_place import alone
from pitr_pipelines.restore.target import LatestTarget, TimeTarget
from pitr_pipelines_tests.integration.in_place_scene import Scene, moment
from pitr_pipelines_tests.integration.restoring import restored, restored_ids
from pitr_pipelines_tests.servers import MAJORS, ServerFactory, SettingsMaker

pytestmark = pytest.mark.slow

CONFIRMED = ("--confirm", "order-db")


@pytest.mark.parametrize("major", MAJORS[:1] + MAJORS[-1:])
def test_the_table_is_back_the_server_is_as_it_was_and_its_archive_goes_on(
    server_factory: ServerFactory, pitr_settings: SettingsMaker, major: int
) -> None:
    server = server_factory(major=major)
    scene = Scene.of(server, pitr_settings)
    old = scene.fingerprint()
    configuration = {name: (scene.data / name).read_bytes() for name in ("postgresql.conf", "pg_hba.conf")}

    printed = scene.in_place(*CONFIRMED)

    assert scene.beside("before-restore")[0].name in printed
    assert "--undo" in printed
    [aside] = scene.beside("before-restore")
    assert scene.fingerprint(aside) == old
    assert {name: (scene.data / name).read_bytes() for name in configuration} == configuration
    assert not list(scene.data.glob("*.signal"))
    assert not list(scene.data.glob("*.original"))
    assert scene.data.stat().st_mode == aside.stat().st_mode
    assert scene.data.stat().st_uid == aside.stat().st_uid

    server.start()
    assert scene.rows() == {1, 2, 3}
    assert not scene.has_table("after_the_drop")
    assert server.execute("SHOW archive_mode") == [("on",)]
    assert server.execute("SHOW port") == [(str(server.port),)]
    assert server.execute("SHOW cluster_name") == [("",)]

    server.execute("INSERT INTO rows VALUES (4)")
    scene.seal()
    assert (server.archive / "00000002.history").exists()
    assert list(server.archive.glob("00000002????????????????"))
    assert server.execute("SELECT failed_count FROM pg_stat_archiver") == [(0,)]
    after = moment()
    server.execute("INSERT INTO rows VALUES (5)")
    scene.pitr("bundle", server.name, "--now")

    # To after the switch; to before it, along the new branch; and along the one that was left.
    assert restored_ids(scene.settings, TimeTarget(after)) == {1, 2, 3, 4}
    assert restored_ids(scene.settings, TimeTarget(scene.before_drop)) == {1, 2, 3}
    left = scene.pitr("restore", server.name, "--latest", "--timeline", "1", "--stop", "--plan")
    assert "to timeline 1" in left

    scene.pitr("backup", server.name, "--replace")
    server.execute("INSERT INTO rows VALUES (6)")
    with restored(scene.settings, LatestTarget()) as (plan, _, connection):
        assert plan.base.timeline == 2
        assert {row[0] for row in connection.execute("SELECT id FROM rows")} == {1, 2, 3, 4, 5, 6}
    assert "0 with problems" in scene.pitr("verify")


@pytest.mark.parametrize("major", MAJORS[:1] + MAJORS[-1:])
def test_undo_gives_back_the_old_server_and_a_further_restore_takes_a_new_timeline(
    server_factory: ServerFactory, pitr_settings: SettingsMaker, major: int
) -> None:
    server = server_factory(major=major)
    scene = Scene.of(server, pitr_settings)
    old = scene.fingerprint()
    scene.in_place(*CONFIRMED)
    server.start()
    server.execute("INSERT INTO rows VALUES (4)")
    scene.seal()
    server.stop()

    printed = scene.in_place("--undo", *CONFIRMED)

    assert "undone" in printed
    assert scene.fingerprint() == old
    assert scene.beside("before-restore") == []
    server.start()
    assert scene.has_table("after_the_drop")
    assert not scene.has_table("rows")
    server.execute("CREATE TABLE after_the_undo (id int)")
    scene.seal()
    server.stop()
    [undone] = scene.beside("undone")
    assert (undone / "PG_VERSION").exists()

    assert "no restore in place" in scene.in_place("--undo", *CONFIRMED, exit_code=2)
    assert "timeline  3" in scene.in_place(*CONFIRMED)
    server.start()
    assert scene.rows() == {1, 2, 3}
    scene.seal()
    assert (server.archive / "00000003.history").exists()
    assert server.execute("SELECT failed_count FROM pg_stat_archiver") == [(0,)]


def test_a_restore_along_the_branch_that_was_left_still_works(
    server_factory: ServerFactory, pitr_settings: SettingsMaker
) -> None:
    server = server_factory()
    scene = Scene.of(server, pitr_settings)
    scene.in_place(*CONFIRMED)
    server.start()
    server.execute("INSERT INTO rows VALUES (4)")
    scene.seal()
    server.stop()
    scene.in_place("--latest", "--timeline", "1", *CONFIRMED)
    server.start()
    assert scene.has_table("after_the_drop")
    assert not scene.has_table("rows")
    scene.seal()
    assert (server.archive / "00000003.history").read_text().startswith("1\t")


def test_one_restore_after_the_other_is_undone_one_after_the_other(
    server_factory: ServerFactory, pitr_settings: SettingsMaker
) -> None:
    server = server_factory()
    scene = Scene.of(server, pitr_settings)
    old = scene.fingerprint()
    scene.in_place(*CONFIRMED)
    first = scene.fingerprint()
    scene.in_place("--latest", *CONFIRMED)
    assert len(scene.beside("before-restore")) == 2

    scene.in_place("--undo", *CONFIRMED)
    assert scene.fingerprint() == first
    scene.in_place("--undo", *CONFIRMED)
    assert scene.fingerprint() == old
    server.start()
    assert scene.has_table("after_the_drop")


def test_what_somebody_else_has_put_there_is_not_undone(
    server_factory: ServerFactory, pitr_settings: SettingsMaker
) -> None:
    scene = Scene.of(server_factory(), pitr_settings)
    scene.in_place(*CONFIRMED)
    [aside] = scene.beside("before-restore")
    shutil.copytree(scene.data, scene.data.with_name("copy"))
    scene.data.rename(scene.data.with_name("mine"))
    assert f"mv '{aside}' '{scene.data}'" in scene.in_place("--undo", *CONFIRMED, exit_code=7)
    scene.data.with_name("copy").rename(scene.data)
    assert f"move it aside, and {aside} back" in scene.in_place("--undo", *CONFIRMED, exit_code=2)
    shutil.rmtree(scene.data)
    scene.data.with_name("mine").rename(scene.data)
    aside.rename(scene.data.with_name("far away"))
    assert f"{aside}, which was {scene.data}" in scene.in_place("--undo", *CONFIRMED, exit_code=7)
    assert aside.exists() is False

    [work] = scene.beside("restore")
    journal = work / "in-place.json"
    journal.write_text(journal.read_text().replace(f'"{aside}"', '"/etc"'))
    assert f"is not about {scene.data}, or was changed" in scene.in_place("--undo", *CONFIRMED, exit_code=5)


def test_two_at_a_time_are_one_too_many(server_factory: ServerFactory, pitr_settings: SettingsMaker) -> None:
    scene = Scene.of(server_factory(), pitr_settings)
    before = sorted(scene.data.parent.iterdir())
    with alone(scene.data):
        said = scene.in_place(*CONFIRMED, exit_code=9)
    assert "another process is replacing a data directory" in said
    assert sorted(scene.data.parent.iterdir()) == before


def test_tablespaces_get_new_places_and_the_old_ones_keep_their_content(
    server_factory: ServerFactory, pitr_settings: SettingsMaker, reachable_tmp: Path
) -> None:
    server = server_factory()
    place = reachable_tmp / "fast disk"
    place.mkdir()
    give(place, server.cluster.account)
    server.execute(f"CREATE TABLESPACE fast LOCATION '{place}'")
    server.execute("CREATE TABLE kept (id int) TABLESPACE fast")
    server.execute("INSERT INTO kept VALUES (1)")
    scene = Scene.of(server, pitr_settings)
    old = scene.fingerprint(place)

    printed = scene.in_place(*CONFIRMED)

    [tablespaces] = scene.beside("tablespaces")
    assert f"{place} -> {tablespaces}" in printed
    assert scene.fingerprint(place) == old
    server.start()
    assert server.execute("SELECT id FROM kept") == [(1,)]
    [(where,)] = server.execute(
        "SELECT pg_tablespace_location(oid) FROM pg_tablespace WHERE spcname = 'fast'"
    )
    assert Path(where).parent == tablespaces
    server.execute("INSERT INTO kept VALUES (2)")
    server.execute("CHECKPOINT")
    assert scene.fingerprint(place) == old
    server.stop()

    scene.in_place("--undo", *CONFIRMED)
    server.start()
    assert server.execute("SELECT id FROM kept") == [(1,)]


def test_links_directories_group_and_an_edit_since_the_backup_are_as_the_original_has_them(
    server_factory: ServerFactory, pitr_settings: SettingsMaker, reachable_tmp: Path
) -> None:
    server = server_factory()
    scene = Scene.of(server, pitr_settings)
    elsewhere = reachable_tmp / "etc"
    elsewhere.mkdir(mode=0o755)
    main = scene.data / "postgresql.conf"
    (elsewhere / "postgresql.conf").write_text(main.read_text() + "include_dir = 'conf.d'\n")
    (elsewhere / "postgresql.conf").chmod(0o644)
    main.unlink()
    main.symlink_to(elsewhere / "postgresql.conf")
    wal_disk = reachable_tmp / "wal disk"
    shutil.move(scene.data / "pg_wal", wal_disk)
    (scene.data / "pg_wal").symlink_to(wal_disk)
    (scene.data / "conf.d").mkdir(mode=0o700)
    (scene.data / "conf.d" / "memory.conf").write_text("work_mem = '7MB'\n")
    give(scene.data / "conf.d", server.cluster.account)
    for path in (scene.data, *scene.data.rglob("*")):  # as after initdb --allow-group-access
        if not path.is_symlink():
            path.chmod(0o750 if path.is_dir() else 0o640)

    printed = scene.in_place(*CONFIRMED)

    assert f"pg_wal was a link to {wal_disk}; the restored one is an ordinary directory" in printed
    assert not (scene.data / "pg_wal").is_symlink()
    assert main.readlink() == elsewhere / "postgresql.conf"
    modes = {path.lstat().st_mode & 0o777 for path in scene.data.rglob("*") if not path.is_symlink()}
    assert modes == {0o750, 0o640}
    owners = {path.lstat().st_uid for path in (scene.data, *(scene.data / "base").rglob("*"))}
    assert owners == {server.cluster.account.uid}
    server.start()
    assert server.execute("SHOW work_mem") == [("7MB",)]
    assert server.execute("SHOW data_directory_mode") == [("0750",)]
    assert scene.rows() == {1, 2, 3}


def test_a_lost_directory_created_anew_gets_what_the_base_backup_had(
    server_factory: ServerFactory, pitr_settings: SettingsMaker
) -> None:
    server = server_factory()
    scene = Scene.of(server, pitr_settings)
    shutil.rmtree(scene.data)
    make_owned_directory(scene.data, server.cluster.account)

    printed = scene.in_place(*CONFIRMED)

    assert (
        "it is empty, so nothing in it tells whether it is order-db's: it is replaced on your word" in printed
    )
    assert "the restored one has what was in the base backup" in printed
    server.start()
    assert scene.rows() == {1, 2, 3}
    assert server.execute("SHOW port") == [(str(server.port),)]
    assert server.execute("SHOW archive_mode") == [("on",)]
    assert "pitr restore" not in (scene.data / "postgresql.conf").read_text()


def test_configuration_outside_the_data_directory_is_left_where_it_is(
    server_factory: ServerFactory, pitr_settings: SettingsMaker, reachable_tmp: Path
) -> None:
    server = server_factory()
    server.stop()
    outside = make_owned_directory(reachable_tmp / "etc", server.cluster.account, mode=0o755)
    for name in ("postgresql.conf", "pg_hba.conf", "pg_ident.conf"):
        shutil.move(server.cluster.data_directory / name, outside / name)
    options = {name: str(outside / f"{name}.conf") for name in ("pg_hba", "pg_ident")}
    options = {f"{name.removeprefix('pg_')}_file": value for name, value in options.items()}
    options["config_file"] = str(outside / "postgresql.conf")
    server.cluster.start(log_file=server.log_file, options=options)
    scene = Scene.of(server, pitr_settings)

    printed = scene.in_place(*CONFIRMED)

    assert "configuration is outside its data directory, and stays as it is" in printed
    assert sorted(path.name for path in scene.data.glob("*.conf")) == ["postgresql.auto.conf"]
    server.cluster.start(log_file=server.log_file, options=options)
    assert scene.rows() == {1, 2, 3}
