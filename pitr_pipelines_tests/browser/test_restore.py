"""A restore by clicks, as somebody does it who is tired: the right way, and every wrong one."""

from __future__ import annotations

import re
import socket
from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from playwright.sync_api import expect

from pitr_pipelines.restore.target import show_moment
from pitr_pipelines.wal.hours import Hour
from pitr_pipelines_tests.browser.pages import Launchpad, RunPage, Ui
from pitr_pipelines_tests.browser.scene import Scene


@pytest.fixture
def launchpad(ui: Ui) -> Launchpad:
    launchpad = Launchpad(ui)
    launchpad.go()
    return launchpad


def _refused(run: RunPage, *texts: str, shot: str) -> None:
    """The run fails, and its page shows what is wrong and what to do; nothing was restored."""
    run.ends("Failure")
    for text in texts:
        run.ui.sees(re.compile(re.escape(text)))
    run.ui.shoot(shot)


def test_a_moment_of_a_chosen_hour_is_restored(stage: Scene, ui: Ui) -> None:
    launchpad = Launchpad(ui)
    launchpad.find()
    stage.insert()
    wanted = stage.insert()
    rows = set(range(1, len(stage.moments) + 1))
    stage.insert()
    ui.shoot("restore-1-launchpad")
    launchpad.choose(Hour.containing(wanted))
    ui.shoot("restore-2-hour-chosen")
    launchpad.edit({"target_time": f"'{show_moment(wanted, ZoneInfo('UTC'))}'"})
    ui.page.locator(".CodeMirror-line", has_text="target_time").get_by_text("target_time").hover()
    ui.sees("everything committed by then, and nothing later")
    ui.shoot("restore-3-filled-in")

    run = launchpad.launch()
    run.ends("Success")
    ui.shoot("restore-4-run")

    log = run.log("then delete", shot="restore-5-whole-log")
    story = (
        f"restore order-db to {wanted.isoformat(sep=' ')}",
        "restoring order-db into",
        "unpacking the base backup",
        "replaying",
        "starting the restored server",
        "restored order-db in",
        "connect   /",
        "look      is what you miss there",
        "be done   end it",
    )
    places = [log.find(line) for line in story]
    assert -1 not in places, [line for line, place in zip(story, places, strict=True) if place < 0]
    assert places == sorted(places)
    found = re.search(r"connect\s+\S*psql .*-p (\d+)", log)
    assert found is not None
    assert stage.rows(int(found[1])) == rows
    assert stage.rows(stage.orders.port) >= rows | {len(rows) + 1}

    ui.page.goto(f"/assets/order_db/restored_cluster?view=partitions&partition={Hour.containing(wanted)}")
    ui.sees(re.compile(rf"psql .*-p {found[1]}"))
    ui.shoot("restore-6-restored-cluster")


def test_without_an_hour_it_is_refused(ui: Ui, launchpad: Launchpad) -> None:
    ui.sees('Missing required config entry "ops"')
    expect(launchpad.launch_button).to_be_disabled()
    launchpad.write("ops: {plan_restore: {config: {database: order-db}}}")
    # With a form that somebody typed, Dagster only asks whether that is meant.
    _refused(
        launchpad.launch(although="without a partition specified"),
        "no hour was chosen",
        "Open Jobs, restore, Launchpad, and choose the hour to restore as partition",
        shot="wrong-no-hour",
    )


def test_another_hour_brings_its_own_time(ui: Ui, launchpad: Launchpad) -> None:
    hour = Hour.containing(datetime.now(UTC) - timedelta(hours=3))
    launchpad.choose(hour)
    assert f"target_time: '{hour.end:%Y-%m-%d %H}:00:00+00:00'" in launchpad.text


def test_a_time_outside_the_hour_is_refused_with_the_right_hour(stage: Scene, launchpad: Launchpad) -> None:
    hour = Hour.containing(stage.insert())
    before = hour.start - timedelta(minutes=20)
    launchpad.choose(hour)
    launchpad.edit({"target_time": f"'{before:%Y-%m-%d %H:%M:%S}'"})
    _refused(
        launchpad.launch(),
        f"target_time {before:%Y-%m-%d %H:%M:%S}+00:00 is not in the chosen hour {hour}",
        f"Choose the partition {Hour.containing(before)}, or a time within the hour",
        shot="wrong-time",
    )


def test_an_unknown_database_is_refused_in_the_launchpad(stage: Scene, ui: Ui, launchpad: Launchpad) -> None:
    launchpad.choose(Hour.containing(stage.insert()))
    launchpad.edit({"database": "other-db"})
    ui.sees("not in enum type (order-db | inventory-db) got other-db")
    expect(launchpad.launch_button).to_be_disabled()
    ui.shoot("wrong-database")


def test_a_directory_that_is_not_empty_is_refused(stage: Scene, launchpad: Launchpad) -> None:
    directory: Path = stage.plan.place / "mine"
    directory.mkdir(exist_ok=True)
    (directory / "precious").write_text("still here")
    moment = stage.insert()
    launchpad.choose(Hour.containing(moment))
    launchpad.edit({"target_time": f"'{moment.isoformat(sep=' ')}'", "directory": str(directory)})
    _refused(
        launchpad.launch(),
        f"{directory} is not empty (it holds precious)",
        "name one that does not exist yet, or none",
        "Nothing was touched",
        shot="wrong-directory",
    )
    assert [file.name for file in directory.iterdir()] == ["precious"]


def test_a_port_that_is_taken_is_refused(stage: Scene, launchpad: Launchpad) -> None:
    moment = stage.insert()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        launchpad.choose(Hour.containing(moment))
        launchpad.edit({"target_time": f"'{moment.isoformat(sep=' ')}'", "port": str(port)})
        _refused(
            launchpad.launch(),
            f"the port {port} of 127.0.0.1 is taken",
            "Name another one, or none: then a new restore takes one that is free",
            shot="wrong-port",
        )


def test_a_backfill_over_restore_is_refused_and_called_off(stage: Scene, ui: Ui) -> None:
    last = Hour.containing(datetime.now(UTC) - timedelta(hours=2))
    first = Hour(last.start - timedelta(hours=2))
    ui.page.goto("/locations/pitr_pipelines/jobs/restore/partitions")
    ui.button("Launch backfill…").click()
    dialog = ui.choose_partitions(f"[{first}...{last}]", 3)
    ui.shoot("wrong-backfill-dialog")
    dialog.get_by_role("button", name="Submit 3 runs").click()
    expect(dialog).to_be_hidden()
    ui.page.get_by_role("link", name=re.compile(r"^[a-z]{8}$")).first.click()
    ui.button("View error").click()
    ui.sees(re.compile("a restore goes to one hour, not to every one of a backfill"))
    ui.sees(re.compile("Open Jobs, restore, Launchpad, choose one hour as partition"))
    ui.shoot("wrong-backfill")
    assert not list(stage.plan.settings.restore_root.glob(f"*-{last.end:%Y%m%dT%H}*"))
