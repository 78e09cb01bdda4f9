"""Every alert is made to fire by its real cause, is received once, and is silent after the cure."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from pitr_pipelines_tests.servers import MAJORS, ServerFactory, SettingsMaker, TestServer, wait_for
from pitr_pipelines_tests.watch.watching import ALERTS, Watching
from pitr_pipelines_tests.watch.webhook import TOKEN, Webhook

pytestmark = pytest.mark.slow

Watched = Callable[..., tuple[TestServer, Watching]]
oldest_and_newest = pytest.mark.parametrize("major", sorted({*MAJORS[:1], *MAJORS[-1:]}))


@pytest.fixture
def watching(pitr_settings: SettingsMaker, tmp_path: Path, webhook: Webhook) -> Callable[..., Watching]:
    def make(*servers: TestServer, **alerts: object) -> Watching:
        settings = pitr_settings(*servers, alerts={**ALERTS, **alerts})
        local = tmp_path / "local"
        local.mkdir(exist_ok=True)
        return Watching(settings, local)

    return make


@pytest.fixture
def watched(server_factory: ServerFactory, watching: Callable[..., Watching]) -> Watched:
    """A server with WAL in its archive, and a watch that has looked at it once."""

    def make(*, major: int | None = None, **alerts: object) -> tuple[TestServer, Watching]:
        server = server_factory(major=major)
        server.archive_wal()
        watch = watching(server, **alerts)
        watch.look()
        return server, watch

    return make


def write_wal(server: TestServer, segments: int = 1) -> None:
    """Let a server finish some segments."""
    for _ in range(segments):
        server.execute("SELECT pg_logical_emit_message(true, 'test', 'something')")
        server.execute("SELECT pg_switch_wal()")


def reconfigure(server: TestServer, **settings: str) -> None:
    server.configure(settings)
    server.execute("SELECT pg_reload_conf()")
    for name, value in settings.items():
        wait_for(lambda name=name, value=value: server.execute(f"SHOW {name}")[0][0] == value, what=name)  # type: ignore[misc]


def threads_of_the_watch() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("pitr-watch-")]


def failures(server: TestServer) -> int:
    return int(server.execute("SELECT failed_count FROM pg_stat_archiver")[0][0])


@oldest_and_newest
def test_a_well_server_is_no_incident_and_its_numbers_are_all_there(
    server_factory: ServerFactory, watching: Callable[..., Watching], webhook: Webhook, major: int
) -> None:
    server = server_factory(major=major)
    write_wal(server, 2)
    server.archive_wal()
    watch = watching(server)

    watch.looks(4)

    assert watch.open() == set()
    assert webhook.take() == []
    assert watch.last is not None
    numbers = watch.last.observations[0].numbers()
    assert numbers.keys() >= {
        "lag_s",
        "raw_bytes",
        "free_bytes",
        "free_percent",
        "unarchived_bytes",
        "ready_backlog",
        "ready_age_s",
        "archived_count",
        "failed_count",
        "pg_wal_bytes",
        "timeline",
    }
    assert (numbers["ready_backlog"], numbers["failed_count"], numbers["server_answers"]) == (0, 0, 1)
    assert numbers["archived_count"] >= 1
    assert ("pg_wal_free_bytes" in numbers) == (os.geteuid() == 0)


def test_a_server_that_is_stopped_is_told_after_its_grace_and_again_when_it_is_back(
    watched: Watched, webhook: Webhook
) -> None:
    server, watch = watched()
    server.stop()

    watch.looks(2)
    assert webhook.take() == []
    watch.look()
    assert webhook.titles() == ["order-db/server-down"]
    assert watch.last is not None
    assert watch.last.observations[0].lag_s is not None
    watch.looks(3)
    assert webhook.take() == []

    server.start()
    watch.look()
    assert webhook.take() == []
    watch.looks(3)
    assert webhook.titles() == ["over: order-db/server-down"]
    watch.looks(3)
    assert webhook.take() == []


def test_a_server_that_hangs_is_given_up_and_costs_one_thread(
    server_factory: ServerFactory, watching: Callable[..., Watching], webhook: Webhook
) -> None:
    server = server_factory()
    watch = watching(server)
    watch.look()
    pid = server.cluster.pid()
    assert pid is not None
    os.kill(pid, 19)
    try:
        watch.looks(3)
        wait_for(lambda: len(threads_of_the_watch()) <= 1, what="the threads that are not stuck")
    finally:
        os.kill(pid, 18)
    assert webhook.titles() == ["order-db/server-down"]


@oldest_and_newest
def test_an_archive_nobody_can_write_to_is_told_with_its_backlog(
    watched: Watched, webhook: Webhook, major: int
) -> None:
    server, watch = watched(major=major, ready_backlog=3)
    server.archive.chmod(0o500)
    write_wal(server, 4)
    wait_for(lambda: failures(server) > 0, what="a failure")
    # By the server's clock: longer than archive_timeout and its slack, both none here.
    waits = "SELECT clock_timestamp() - min(modification) > '1 s' FROM pg_ls_archive_statusdir()"
    wait_for(lambda: server.execute(f"{waits} WHERE name LIKE '%ready'")[0][0], what="the time to pass")

    watch.looks(2)

    message = webhook.take()
    assert [one["title"].partition(": ")[2] for one in message] == [
        "order-db/archive-stalled, order-db/archive-backlog",
        "order-db/archive-failing",
    ]
    assert "finished segments wait for the archive" in message[0]["message"]
    assert "docs/operate.md#archive-failing" in message[1]["message"]
    watch.looks(3)
    assert webhook.take() == []

    server.archive.chmod(0o750)
    write_wal(server)
    ready = "SELECT count(*) FROM pg_ls_archive_statusdir() WHERE name LIKE '%ready'"
    wait_for(
        lambda: server.execute(ready)[0][0] == 0,
        timeout_s=90,
        what="the backlog to go",
    )
    watch.looks(5)
    assert webhook.titles() == [
        "over: order-db/archive-failing, order-db/archive-stalled, order-db/archive-backlog"
    ]
    assert watch.open() == set()


def test_a_foreign_file_in_the_way_is_named(watched: Watched, webhook: Webhook) -> None:
    server, watch = watched(archive_slack_s=3600)
    current = server.running_segment()
    foreign = server.archive / current
    foreign.write_bytes(b"another server's")
    write_wal(server)
    wait_for(lambda: failures(server) > 0, what="a failure")

    watch.looks(2)

    (message,) = webhook.take()
    assert message["title"].endswith("order-db/archive-failing")
    assert f"{foreign} is there already, with other content" in message["message"]

    foreign.unlink()
    # The file is there before the archiver's own word for it.
    content = "SELECT last_archived_time > last_failed_time FROM pg_stat_archiver"
    wait_for(lambda: server.execute(content)[0][0], timeout_s=90, what="the archiver's next attempt")
    assert foreign.exists()
    watch.looks(4)
    assert webhook.titles() == ["over: order-db/archive-failing"]


def test_archiving_that_was_turned_off_is_told_at_once(watched: Watched, webhook: Webhook) -> None:
    server, watch = watched()
    command = server.execute("SHOW archive_command")[0][0]
    reconfigure(server, archive_command="")

    watch.look()

    (message,) = webhook.take()
    assert message["title"].endswith(": order-db/archiving-off, order-db/settings-changed")
    assert "archive_command was changed" in message["message"]
    reconfigure(server, archive_command=command)
    watch.looks(4)
    assert webhook.titles() == ["over: order-db/archiving-off, order-db/settings-changed"]


def test_a_command_that_archives_elsewhere_is_found_although_the_server_is_content(
    watched: Watched, webhook: Webhook
) -> None:
    server, watch = watched()
    command = server.execute("SHOW archive_command")[0][0]
    secret = "AWS_SECRET_ACCESS_KEY=hush"
    reconfigure(server, archive_command=f"{secret} /bin/true")
    archived = server.execute("SELECT archived_count FROM pg_stat_archiver")[0][0]
    write_wal(server)
    wait_for(
        lambda: server.execute("SELECT archived_count FROM pg_stat_archiver")[0][0] > archived,
        what="the archiver",
    )

    watch.looks(3)

    assert watch.open() == {"order-db/archive-elsewhere", "order-db/settings-changed"}
    sent = "".join(str(message) for message in webhook.take())
    assert "does not get it" in sent
    assert "hush" not in sent + (watch.settings.backup_root / "alerts" / "state.json").read_text()
    reconfigure(server, archive_command=command)
    server.archive_wal()
    watch.looks(5)
    assert webhook.titles() == ["over: order-db/archive-elsewhere, order-db/settings-changed"]


def test_a_promotion_is_told_once_and_needs_no_cure(watched: Watched, webhook: Webhook) -> None:
    server, watch = watched()
    server.stop()
    (server.cluster.data_directory / "standby.signal").touch()
    server.start()
    watch.look()
    assert webhook.titles() == ["order-db/not-primary"]

    server.execute("SELECT pg_promote(true)")
    server.archive_wal()
    watch.looks(5)

    assert webhook.titles() == ["order-db/timeline-changed/2", "over: order-db/not-primary"]
    watch.looks(2, minutes=24 * 60)
    assert not [title for title in webhook.titles() if "timeline" in title]


def test_another_cluster_at_the_same_address_is_told(
    server_factory: ServerFactory,
    pitr_settings: SettingsMaker,
    watching: Callable[..., Watching],
    webhook: Webhook,
) -> None:
    server, other = server_factory(), server_factory("other-db")
    server.archive_wal()
    watch = watching(server)
    watch.look()
    mine = server.dsn
    server.dsn = other.dsn
    watch.settings = watching(server).settings
    watch.look()

    assert webhook.titles() == ["order-db/cluster-changed"]
    server.dsn = mine
    watch.settings = watching(server).settings
    watch.looks(4)
    assert webhook.titles() == ["over: order-db/cluster-changed"]


def test_a_role_without_pg_monitor_sees_less_and_that_is_no_error(
    server_factory: ServerFactory, watching: Callable[..., Watching], webhook: Webhook
) -> None:
    server = server_factory()
    server.archive_wal()
    server.execute("REVOKE pg_monitor FROM pitr")
    watch = watching(server)

    watch.looks(2)

    assert watch.last is not None
    numbers = watch.last.observations[0].numbers()
    assert "ready_backlog" not in numbers
    assert numbers["failed_count"] == 0
    assert watch.open() == set()


def test_a_webhook_that_refuses_is_tried_again_and_its_address_is_in_no_text(
    watched: Watched, webhook: Webhook
) -> None:
    server, watch = watched()
    reconfigure(server, archive_command="")
    webhook.status = 500

    done = watch.look()

    assert done.sent_to == ()
    assert any("PITR_ALERT_URL did not take the message" in problem for problem in done.problems)
    assert TOKEN not in repr(done) + str(done.problems)
    webhook.status = 200
    watch.look()
    assert webhook.titles() == ["order-db/archiving-off, order-db/settings-changed"]
    watch.looks(2)
    assert webhook.take() == []
