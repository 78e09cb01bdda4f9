"""A restore's directory is new, reachable and large enough, or nothing is touched."""

from __future__ import annotations

import os
import socket
from dataclasses import replace
from pathlib import Path

import pytest

from pitr_pipelines.catalog.records import Tablespace
from pitr_pipelines.errors import BadRequest, DestinationInUse, PitrError
from pitr_pipelines.postgres.account import Account
from pitr_pipelines.restore.destination import (
    Destination,
    DestinationUnusable,
    choose_destination,
    claim,
    fits_a_socket,
    space_needed,
)
from pitr_pipelines.restore.plan import Plan
from pitr_pipelines.restore.tablespace_places import parse_assignments
from pitr_pipelines.restore.target import HourTarget, LatestTarget
from pitr_pipelines.settings import Settings, parse_settings
from pitr_pipelines.wal.hours import Hour
from pitr_pipelines_tests.restore.scenes import plan_by_hand, snapshot


@pytest.fixture
def settings(reachable_tmp: Path) -> Settings:
    values = {
        "backup_root": str(reachable_tmp / "backup"),
        "restore_root": str(reachable_tmp / "restore"),
        "databases": {"order-db": {"dsn": "host=db.example.org"}},
    }
    return parse_settings(values, source=reachable_tmp / "pitr.yaml")


def choose(
    settings: Settings, plan: Plan | None = None, to: Path | None = None, port: int | None = None
) -> Destination:
    return choose_destination(settings, plan or plan_by_hand(), to=to, port=port, keep_running=True)


def test_the_default_directory_is_named_for_database_and_target(settings: Settings) -> None:
    root = settings.restore_root
    assert choose(settings).directory == root / "order-db-20260129T143000Z"
    hour = plan_by_hand(target=HourTarget(Hour.parse("2026-01-29-14")))
    assert choose(settings, hour).directory == root / "order-db-20260129T150000Z"
    latest = choose(settings, plan_by_hand(target=LatestTarget())).directory
    assert latest.name.startswith("order-db-latest-20")
    assert not root.exists()


def test_the_default_directory_is_always_a_new_one(settings: Settings) -> None:
    (settings.restore_root / "order-db-20260129T143000Z").mkdir(parents=True)
    (settings.restore_root / "order-db-20260129T143000Z-2").symlink_to("nowhere")
    assert choose(settings).directory.name == "order-db-20260129T143000Z-3"


def test_a_directory_that_is_not_empty_is_refused_and_left_alone(
    settings: Settings, reachable_tmp: Path
) -> None:
    there = reachable_tmp / "mine"
    there.mkdir()
    (there / "precious").write_text("x")
    before = snapshot(reachable_tmp)
    with pytest.raises(DestinationInUse, match=r"mine is not empty \(it holds precious\)"):
        choose(settings, to=there)
    assert snapshot(reachable_tmp) == before
    with pytest.raises(DestinationInUse, match="is a file"):
        choose(settings, to=there / "precious")


def test_a_mount_point_gets_a_hint(settings: Settings, reachable_tmp: Path) -> None:
    (reachable_tmp / "disk" / "lost+found").mkdir(parents=True)
    with pytest.raises(DestinationInUse) as caught:
        choose(settings, to=reachable_tmp / "disk")
    assert "name one below it" in caught.value.remedy


@pytest.mark.parametrize("place", ["backup", "backup/base/x", "link/x"])
def test_a_directory_in_the_backups_is_refused(settings: Settings, reachable_tmp: Path, place: str) -> None:
    settings.backup_root.mkdir()
    (reachable_tmp / "link").symlink_to("backup")
    with pytest.raises(DestinationInUse, match="lies in the backups"):
        choose(settings, to=reachable_tmp / place)


@pytest.mark.parametrize("place", ["pgdata", "pgdata/base/new"])
def test_a_directory_in_a_cluster_is_refused(settings: Settings, reachable_tmp: Path, place: str) -> None:
    (reachable_tmp / "pgdata").mkdir()
    (reachable_tmp / "pgdata" / "PG_VERSION").write_text("15\n")
    with pytest.raises(DestinationInUse, match="data directory of a PostgreSQL cluster"):
        choose(settings, to=reachable_tmp / place)


def test_a_name_that_cannot_be_configured_is_refused(settings: Settings, reachable_tmp: Path) -> None:
    with pytest.raises(BadRequest, match="cannot hold"):
        choose(settings, to=reachable_tmp / "two\nlines")


def test_too_little_space_is_found_out_before(settings: Settings) -> None:
    plan = plan_by_hand(base_bytes=1024**5)
    with pytest.raises(DestinationUnusable, match=r"free, and this restore needs 1\d{3} TiB") as caught:
        choose(settings, plan)
    assert caught.value.exit_code == 7
    assert space_needed(plan) > 1024**5


def test_a_taken_port_is_refused_and_a_free_one_is_found(settings: Settings) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(DestinationInUse, match=f"the port {port} of 127.0.0.1 is taken"):
            choose(settings, port=port)
        assert choose(settings).port != port
    with pytest.raises(BadRequest):
        choose(settings, port=70000)


def test_a_closed_directory_on_the_way_is_named(settings: Settings, reachable_tmp: Path) -> None:
    """As root, servers run as somebody else, who must get there; otherwise we must."""
    closed = reachable_tmp / "home"
    (closed / "restores").mkdir(parents=True)
    if os.geteuid() == 0:
        closed.chmod(0o700)
        expected = f"{closed} is closed to that user"
    else:
        (closed / "restores").chmod(0o500)
        expected = f"{closed / 'restores'} is not a directory in which this user can write"
    with pytest.raises(DestinationUnusable, match=expected):
        choose(settings, to=closed / "restores" / "new")
    assert not (closed / "restores" / "new").exists()


def test_a_claimed_directory_is_marked_and_cannot_be_claimed_again(
    settings: Settings, account: Account
) -> None:
    plan = plan_by_hand()
    destination = choose(settings)
    claim(destination, plan, account)
    text = destination.marker.read_text()
    assert "It is not a database" in text
    assert str(os.getpid()) in text
    assert destination.data_directory.stat().st_uid == account.uid
    assert destination.data_directory.stat().st_mode & 0o777 == 0o700
    with pytest.raises(DestinationInUse, match="holds a restore that has not finished") as caught:
        claim(destination, plan, account)
    assert "delete the directory" in caught.value.remedy
    with pytest.raises(DestinationInUse, match="holds a restore that has not finished"):
        choose(settings, to=destination.directory)


def test_an_empty_directory_that_is_given_is_used(
    settings: Settings, account: Account, reachable_tmp: Path
) -> None:
    there = reachable_tmp / "empty"
    there.mkdir(mode=0o700)
    destination = choose(settings, to=there)
    claim(destination, plan_by_hand(), account)
    assert destination.data_directory.is_dir()


def test_a_running_server_of_an_interrupted_restore_is_named(settings: Settings, account: Account) -> None:
    destination = choose(settings)
    claim(destination, plan_by_hand(), account)
    (destination.data_directory / "postmaster.pid").write_text(f"{os.getpid()}\n")
    with pytest.raises(DestinationInUse, match=f"process {os.getpid()} still runs"):
        choose(settings, to=destination.directory)


def test_a_socket_path_has_107_bytes() -> None:
    assert fits_a_socket(Path("/" + "x" * 92), 5432)
    assert not fits_a_socket(Path("/" + "x" * 93), 5432)


def spaced_plan(*locations: str, base_bytes: int = 1000) -> Plan:
    """Return a plan with tablespaces, numbered from 16388 on."""
    plan = plan_by_hand(base_bytes=base_bytes)
    tablespaces = tuple(
        Tablespace(oid=oid, location=location) for oid, location in enumerate(locations, 16388)
    )
    return replace(plan, base=plan.base.model_copy(update={"tablespaces": tablespaces}))


def place(settings: Settings, plan: Plan, wanted: dict[str, str]) -> Destination:
    return choose_destination(settings, plan, to=None, port=None, keep_running=True, tablespaces=wanted)


def test_a_tablespace_goes_where_it_is_wanted_by_oid_or_location(
    settings: Settings, reachable_tmp: Path, account: Account
) -> None:
    plan = spaced_plan("/srv/one", "/srv/two = /three", "/srv/four")
    four = f"/srv/four/={reachable_tmp}/d"
    wanted = parse_assignments(
        [f"16388={reachable_tmp}/a", f"/srv/two = /three={reachable_tmp}/b c/../b", four]
    )
    destination = place(settings, plan, wanted)
    assert destination.tablespace(16388) == reachable_tmp / "a"
    assert destination.tablespace(16389) == reachable_tmp / "b"
    assert destination.tablespace(16390) == reachable_tmp / "d"
    assert sorted(path.name for path in reachable_tmp.iterdir()) == []
    claim(destination, plan, account)
    for path in (destination.directory, *(reachable_tmp / name for name in "abd")):
        assert "has not finished" in (path / "INCOMPLETE").read_text()
    with pytest.raises(DestinationInUse, match="has not finished"):
        place(settings, plan, {"16388": f"{reachable_tmp}/a"})


@pytest.mark.parametrize(
    ("wanted", "refused", "says"),
    [
        ({"16399": "{}/a"}, BadRequest, "It has 16388 (/srv/one), 16389 (/srv/two)"),
        ({"16388": "a"}, BadRequest, "not an absolute path"),
        ({"16388": "{}/a", "/srv/one": "{}/b"}, BadRequest, "given two places"),
        ({"16388": "{}/a", "16389": "{}/a"}, DestinationInUse, "are not apart"),
        ({"16388": "{}/a", "16389": "{}/a/b"}, DestinationInUse, "are not apart"),
        ({"16388": "{}/restore/order-db-20260129T143000Z/x"}, DestinationInUse, "are not apart"),
        ({"16388": "{}/backup/x"}, DestinationInUse, "lies in the backups themselves"),
        ({"16388": "{}/full"}, DestinationInUse, "is not empty"),
        ({"16388": "{}/cluster/x"}, DestinationInUse, "in the data directory of a PostgreSQL cluster"),
        ({"16388": "{}/space/x"}, DestinationInUse, "lies in a tablespace of a PostgreSQL cluster"),
        ({"16388": "{}/a\n"}, BadRequest, "a character that PostgreSQL's configuration cannot hold"),
    ],
)
def test_a_place_that_a_tablespace_cannot_have_is_refused_and_nothing_is_touched(
    settings: Settings, reachable_tmp: Path, wanted: dict[str, str], refused: type[PitrError], says: str
) -> None:
    (reachable_tmp / "full").mkdir()
    (reachable_tmp / "full" / "file").touch()
    (reachable_tmp / "cluster").mkdir()
    (reachable_tmp / "cluster" / "PG_VERSION").touch()
    (reachable_tmp / "space" / "PG_15_202209061").mkdir(parents=True)
    before = snapshot(reachable_tmp)
    filled = {which: where.format(reachable_tmp) for which, where in wanted.items()}
    with pytest.raises(refused) as error:
        place(settings, spaced_plan("/srv/one", "/srv/two"), filled)
    assert says in str(error.value)
    assert snapshot(reachable_tmp) == before


@pytest.mark.parametrize("assignment", ["16388", "16388=relative", "=/a", ""])
def test_an_assignment_that_says_nothing_is_refused(assignment: str) -> None:
    with pytest.raises(BadRequest, match="does not say which tablespace goes where"):
        parse_assignments([assignment])


def test_a_tablespace_that_has_a_directory_of_its_own_needs_its_room_there(
    settings: Settings, reachable_tmp: Path
) -> None:
    plan = spaced_plan("/srv/one", base_bytes=1024**5)
    with pytest.raises(DestinationUnusable, match="go to tablespaces elsewhere"):
        place(settings, plan, {"16388": f"{reachable_tmp}/a"})
