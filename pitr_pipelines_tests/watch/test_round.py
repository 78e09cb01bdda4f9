"""A whole round: one message however much is wrong, nothing lost by crashes, and state that survives."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from pitr_pipelines.catalog.drills import DrillOutcome, DrillReport, DrillSeconds, record_file, stamp_of
from pitr_pipelines.catalog.layout import Layout
from pitr_pipelines.catalog.records import write_record
from pitr_pipelines.errors import ArtifactBusy, PitrError
from pitr_pipelines.offsite.budget import CallObject, CallState, claim, end, send
from pitr_pipelines.settings import Settings
from pitr_pipelines.watch.look import is_there
from pitr_pipelines.watch.message import Message
from pitr_pipelines.watch.recipients import Recipient
from pitr_pipelines.watch.round import Round, watch_once
from pitr_pipelines.watch.state import State, StateFile
from pitr_pipelines_tests.defs.storage import make_settings
from pitr_pipelines_tests.servers import wait_for
from pitr_pipelines_tests.watch.conftest import VARIABLE
from pitr_pipelines_tests.watch.webhook import TOKEN, Webhook

NOW = datetime(2026, 3, 10, 14, tzinfo=UTC)
ALERTS = {"to_env": [VARIABLE], "gap_s": 0, "min_free_percent": 0}
ROOT = Path(__file__).parents[2]


def settings_with(
    directory: Path, *databases: str, alerts: dict[str, Any] | None = None, **keys: Any
) -> Settings:
    return make_settings(
        directory, *(databases or ("order-db",)), alerts={**ALERTS, **(alerts or {})}, **keys
    )


def local_state(settings: Settings) -> StateFile:
    """The state's file, with a directory of the test's own for what is kept outside the storage."""
    local = settings.backup_root.parent / "local"
    local.mkdir(exist_ok=True)
    return StateFile(settings.backup_root, local=local)


def look(settings: Settings, minutes: float, **more: Any) -> Round:
    moment = NOW + timedelta(minutes=minutes)
    return watch_once(settings, now=moment, state_file=local_state(settings), **more)


def test_a_hundred_databases_that_go_down_together_are_one_message(tmp_path: Path, webhook: Webhook) -> None:
    settings = settings_with(tmp_path, *(f"db-{number}" for number in range(100)))

    for minute in range(0, 20, 2):
        look(settings, minute)

    (message,) = webhook.take()
    assert re.search(r"and 9\d more: db-", message["message"])
    assert len(message["message"]) < 2000
    for minute in range(20, 100, 20):
        look(settings, minute)
    assert webhook.take() == []
    look(settings, 25 * 60)
    (reminder,) = webhook.titles()  # and by now none of them has a recent moment to go back to
    assert "still: db-0/server-down, db-1/server-down, db-10/server-down and 97 more" in reminder
    assert "db-0/recovery-point-old" in reminder


def test_what_goes_wrong_soon_after_a_message_waits_for_the_next(tmp_path: Path, webhook: Webhook) -> None:
    settings = settings_with(tmp_path, alerts={"gap_s": 600, "server_grace_s": 120})
    look(settings, 0)
    look(settings, 2)
    assert webhook.titles() == ["order-db/server-down"]
    # The volume is unmounted. What was told before is on it; this machine knows it from its own file.
    gone = tmp_path / "elsewhere"
    shutil.copy(settings.backup_root / "alerts" / "state.json", local_state(settings).fallback)
    settings.backup_root.rename(gone)

    look(settings, 4)
    assert webhook.take() == []
    look(settings, 12)
    assert webhook.titles() == ["storage/storage-gone"]
    gone.rename(settings.backup_root)
    look(settings, 14)
    look(settings, 24)
    assert webhook.titles() == ["over: storage/storage-gone"]


def test_a_crash_after_sending_repeats_a_message_and_loses_none(tmp_path: Path, webhook: Webhook) -> None:
    settings = settings_with(tmp_path, alerts={"server_grace_s": 0})
    sent: list[str] = []

    def works(messages: dict[Recipient, Message]) -> dict[str, PitrError | None]:
        sent.extend(message.title.partition(": ")[2] for message in messages.values())
        return {recipient.name: None for recipient in messages}

    def crashes(messages: dict[Recipient, Message]) -> dict[str, PitrError | None]:
        works(messages)
        raise KeyboardInterrupt

    look(settings, 0, send=works)
    with pytest.raises(KeyboardInterrupt):
        look(settings, 2, send=crashes)
    look(settings, 4, send=works)
    look(settings, 6, send=works)
    assert sent == ["order-db/server-down"] * 2


def test_a_storage_that_hangs_is_told_and_is_not_waited_for(
    tmp_path: Path, webhook: Webhook, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pitr_pipelines.watch.look.STORAGE_TIMEOUT_S", 0.2)
    settings = settings_with(tmp_path, alerts={"quiet_s": 0, "server_grace_s": 10**6})
    back = threading.Event()

    def hangs(root: Path) -> bool:
        return back.wait(60) and root.is_dir()

    look(settings, 0, look_at_root=hangs)
    look(settings, 2, look_at_root=hangs)  # the first is still at it

    (message,) = webhook.take()
    assert message["title"].endswith("storage/storage-gone")
    assert "does not answer" in message["message"]
    assert list(settings.backup_root.iterdir()) == []
    back.set()
    wait_for(lambda: is_there(settings.backup_root, look=hangs) is None, what="the probe to come back")
    look(settings, 4)
    assert webhook.titles() == ["over: storage/storage-gone"]


def test_a_storage_that_vanishes_is_not_made_again(tmp_path: Path) -> None:
    settings = make_settings(tmp_path, "order-db")
    settings.backup_root.rmdir()
    file = local_state(settings)
    with file.locked():
        assert file.write(State(), now=NOW) is not None
    assert file.read().written_at == NOW
    assert not settings.backup_root.exists()


def test_there_is_one_watcher_at_a_time(tmp_path: Path) -> None:
    settings = make_settings(tmp_path, "order-db")
    with StateFile(settings.backup_root).locked(), pytest.raises(ArtifactBusy):
        watch_once(settings, now=NOW)


def test_a_state_that_cannot_be_read_is_begun_anew(tmp_path: Path, webhook: Webhook) -> None:
    settings = settings_with(tmp_path)
    look(settings, 0)
    (settings.backup_root / "alerts" / "state.json").write_text('{"format": 1, "lives": 7')
    assert look(settings, 2).problems == ()


def test_a_local_state_that_somebody_else_put_there_counts_for_nothing(tmp_path: Path) -> None:
    file = StateFile(tmp_path / "absent", local=tmp_path)
    (tmp_path / "theirs.json").write_text('{"format": 1, "written_at": "2030-01-01T00:00:00Z"}')
    file.fallback.symlink_to(tmp_path / "theirs.json")
    assert file.read().written_at is None


def test_without_recipients_incidents_are_found_all_the_same(tmp_path: Path) -> None:
    settings = make_settings(tmp_path, "order-db", alerts={"server_grace_s": 0, "min_free_percent": 0})
    look(settings, 0)
    done = look(settings, 2)
    assert [life.incident.key for life in done.opened] == ["order-db/server-down"]
    assert done.problems == ()


def test_a_variable_that_is_not_set_is_a_problem_that_is_said_and_keeps_nothing_from_being_seen(
    tmp_path: Path,
) -> None:
    done = look(settings_with(tmp_path), 0)
    assert len(done.observations) == 1
    assert "PITR_ALERT_URL, which is not set" in done.problems[0]


def put_drill(settings: Settings, at: datetime, outcome: DrillOutcome) -> None:
    layout = Layout(settings.backup_root)
    failed = outcome is DrillOutcome.FAILED
    report = DrillReport(
        database="order-db",
        started_at=at,
        finished_at=at,
        outcome=outcome,
        problems=("the orders are gone",) if failed else (),
        remedy="Look into it." if failed else None,
        target=at,
        seed=7,
        server_version=None,
        recovered_to_lsn=None,
        last_transaction_at=None,
        plan=None,
        seconds=DrillSeconds(total=1.0),
        checks=(),
    )
    layout.drills("order-db").mkdir(parents=True, exist_ok=True)
    write_record(record_file(layout, "order-db", stamp_of(layout, "order-db", at)), report)


def test_drills_that_fail_or_are_too_old_are_told_until_one_passes(tmp_path: Path, webhook: Webhook) -> None:
    settings = settings_with(tmp_path, alerts={"server_grace_s": 10**6, "quiet_s": 0})
    put_drill(settings, NOW - timedelta(days=7), DrillOutcome.PASSED)
    look(settings, 0)
    assert webhook.take() == []

    put_drill(settings, NOW, DrillOutcome.FAILED)
    look(settings, 1)
    (message,) = webhook.take()
    assert message["title"].endswith(": order-db/drill-failed")
    assert "the orders are gone" in message["message"]
    assert "--seed 7" in message["message"]
    look(settings, 26 * 60)
    assert any("order-db/drill-old" in title for title in webhook.titles())

    put_drill(settings, NOW + timedelta(hours=27), DrillOutcome.PASSED)
    look(settings, 27 * 60)
    (title,) = (title for title in webhook.titles() if "drill" in title)
    assert "over: order-db/drill-failed, order-db/drill-old" in title


def test_a_call_that_was_refused_is_told_and_over_when_the_next_day_is_delivered(
    tmp_path: Path, webhook: Webhook
) -> None:
    settings = settings_with(
        tmp_path,
        alerts={"server_grace_s": 10**6, "quiet_s": 0},
        offsite={"store": {"bucket": "backups"}, "unencrypted": True, "deadline": "12:00"},
    )
    ledger = Layout(settings.backup_root).ledger

    def call(day: date, at: datetime, state: CallState, said: str) -> None:
        carries = CallObject(bucket="backups", key=f"{day}.pitr", size_bytes=1)
        send(claim(ledger, day, at=at), carries, at=at)
        end(ledger, day, state, at=at, said=said)

    call(NOW.date(), NOW, CallState.REFUSED, "AccessDenied")
    look(settings, 0)

    (message,) = webhook.take()
    assert message["title"].endswith("offsite/offsite-undelivered")
    assert "AccessDenied" in message["message"]
    look(settings, 60)
    assert not any("offsite" in title for title in webhook.titles())

    tomorrow = NOW + timedelta(days=1)
    call(tomorrow.date(), tomorrow, CallState.CONFIRMED, "200")
    look(settings, 24 * 60 + 1)
    told = webhook.titles()
    assert any("over: offsite/offsite-undelivered" in title for title in told)
    # It was delivered, and there is no base of that database in it.
    assert any("offsite/offsite-incomplete" in title.partition("over: ")[0] for title in told)


DISK = """
root=$1 python=$2
mount -t tmpfs -o size=8m none "$root" || exit 99
look() { "$python" -m pitr_pipelines.cli_main watch --once || true; }
look
dd if=/dev/zero of="$root/ballast" bs=1M count=6 2>/dev/null || exit 98
look
dd if=/dev/zero of="$root/more" bs=64k 2>/dev/null
look
ls "$TMPDIR"
rm "$root/ballast" "$root/more"
look
ls "$TMPDIR"
"""


def test_a_disk_that_fills_up_is_told_once_even_when_no_byte_can_be_written_on_it(
    tmp_path: Path, webhook: Webhook, mount_namespace: Sequence[str]
) -> None:
    local = tmp_path / "local"
    local.mkdir()
    alerts = {**ALERTS, "min_free_percent": 40, "server_grace_s": 10**6, "quiet_s": 0}
    settings = settings_with(tmp_path, alerts=alerts)
    config = tmp_path / "pitr.yaml"
    values = {
        "backup_root": str(settings.backup_root),
        "restore_root": str(settings.restore_root),
        "databases": {"order-db": {"dsn": "host=127.0.0.1 port=1"}},
        "alerts": alerts,
    }
    config.write_text(yaml.safe_dump(values))
    program = 'import sys; from pitr_pipelines.cli import main; main(["watch", "--once"])'
    script = DISK.replace("-m pitr_pipelines.cli_main watch --once", f"-c '{program}'")

    done = subprocess.run(
        [*mount_namespace, "sh", "-c", script, "sh", settings.backup_root, sys.executable],
        cwd=tmp_path,
        env={**os.environ, "PITR_CONFIG": str(config), "PYTHONPATH": str(ROOT), "TMPDIR": str(local)},
        capture_output=True,
        text=True,
        timeout=180,
    )

    assert done.returncode == 0, done.stderr
    assert webhook.titles() == ["storage/storage-full", "over: storage/storage-full"]
    assert "NEW   storage/storage-full" in done.stdout
    assert "No space left on device" in done.stderr  # and where the state is kept instead
    assert "pitr-alerts-" in done.stdout
    assert TOKEN not in done.stdout + done.stderr
