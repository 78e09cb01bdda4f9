"""What `pitr offsite copy` and `pitr offsite budget` tell the person who asks, for each way it can end."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime
from functools import partial
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from pitr_pipelines.cli import main
from pitr_pipelines.cli.offsite_copy import budget, copy
from pitr_pipelines.offsite.copy import make_copy
from pitr_pipelines_tests.offsite.copy_scene import MakeSettings, clock_at, layout_of
from pitr_pipelines_tests.offsite.s3_server import CountingProxy
from pitr_pipelines_tests.offsite.scenes import TODAY

Pitr = Callable[..., Result]


@pytest.fixture
def pitr(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pitr:
    """Runs a command as `pitr offsite` would, at a time of the test's choice."""

    @click.group(cls=type(main))
    @click.pass_context
    def group(ctx: click.Context) -> None:
        ctx.obj = tmp_path / "pitr.yaml"

    group.add_command(copy)
    group.add_command(budget)

    def run(*words: str, clock: Callable[[], datetime] | None = None) -> Result:
        called = partial(make_copy, clock=clock or clock_at(5), looks_s=(0.0,))
        monkeypatch.setattr("pitr_pipelines.offsite.copy.make_copy", called)
        return CliRunner().invoke(group, words)

    return run


def test_a_copy_that_went_is_described_and_asked_for_again_not_made(
    make_settings: MakeSettings, proxy: CountingProxy, pitr: Pitr
) -> None:
    make_settings()

    first, second = pitr("copy"), pitr("copy", clock=clock_at(9))

    assert (first.exit_code, second.exit_code, proxy.writes) == (0, 0, 1)
    assert f"off-site copy of {TODAY}: confirmed backups/" in first.stdout
    assert f"  users                base of {TODAY}, 2 hours of WAL" in first.stdout
    problems = [line for line in first.stdout.splitlines() if line.startswith("  PROBLEM")]
    assert [line.split()[1] for line in problems] == ["order-db:", "users:"], "one line for each server"
    assert "not encrypted: whoever can read the bucket can read the data" in first.stdout
    assert second.stdout.startswith("Today's call was made before; this made none.\n")


def test_too_early_it_says_what_it_waits_for_and_how_to_go_without(
    make_settings: MakeSettings, proxy: CountingProxy, pitr: Pitr
) -> None:
    settings = make_settings()
    layout_of(settings).base_record("users", TODAY).unlink()

    early, at_once = pitr("copy"), pitr("copy", "--now")

    assert early.exit_code == 4
    assert "waits for the base backup of users" in early.stderr
    assert "`pitr offsite copy --now`" in early.stderr
    assert at_once.exit_code == 0
    assert "  WITHOUT the day's base backup of: users\n" in at_once.stdout
    assert proxy.writes == 1


def test_a_refused_call_says_so_last_and_what_else_was_wrong_before_it(
    make_settings: MakeSettings, proxy: CountingProxy, pitr: Pitr
) -> None:
    make_settings()
    body = b"<Error><Code>AccessDenied</Code><Message>no</Message></Error>"
    proxy.mishap, proxy.answer = (
        "answer",
        b"HTTP/1.1 403 X\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body),
    )

    refused, spent = pitr("copy"), pitr("copy", clock=clock_at(9))

    assert (refused.exit_code, spent.exit_code, proxy.writes) == (12, 11, 1)
    assert all(line.startswith("  PROBLEM  ") for line in refused.stdout.splitlines())
    assert (
        f"pitr: the off-site copy of {TODAY} is refused: the store answered 403 AccessDenied"
        in refused.stderr
    )
    assert "allow s3:PutObject" in refused.stderr.splitlines()[-1]
    assert f"the backup call of {TODAY} is taken" in spent.stderr
    assert "is refused: the store answered 403" in spent.stderr
    assert spent.stderr.endswith("What it did not deliver goes with the next day's.\n")


def test_of_a_call_in_doubt_it_says_that_nothing_need_be_done_and_how_to_look(
    make_settings: MakeSettings, proxy: CountingProxy, pitr: Pitr
) -> None:
    make_settings()
    proxy.mishap = "reset-mid-body"

    doubtful, spent = pitr("copy"), pitr("copy", clock=clock_at(9))

    assert (doubtful.exit_code, spent.exit_code, proxy.writes) == (12, 11, 1)
    for said in (doubtful.stderr, spent.stderr):
        assert "Nothing need be done: the next copy looks for it first" in said
        assert "`pitr offsite budget --settle` looks now" in said

    proxy.mishap = "none"
    ledger = pitr("budget", "--settle")  # months later
    assert ledger.exit_code == 0
    assert f"{TODAY}  refused" in ledger.stdout
    assert "does not tell" not in ledger.stdout


def test_a_look_that_tells_nothing_is_named_as_one(
    make_settings: MakeSettings, proxy: CountingProxy, pitr: Pitr
) -> None:
    make_settings()
    proxy.mishap = "reset-mid-body"
    pitr("copy")
    proxy.stop()

    ledger = pitr("budget", "--settle")

    assert ledger.exit_code == 0
    assert f"{TODAY}  unknown" in ledger.stdout
    assert f"does not tell yet what became of {TODAY}:" in ledger.stdout


def test_a_script_gets_the_report_of_a_call_that_failed(
    make_settings: MakeSettings, proxy: CountingProxy, pitr: Pitr
) -> None:
    make_settings()
    proxy.mishap = "answer"

    failed = pitr("copy", "--json")

    said = json.loads(failed.stdout)
    assert (failed.exit_code, said["exit_code"], said["error"]) == (12, 12, "CallFailed")
    assert (said["report"]["state"], said["report"]["made"]) == ("unknown", True)
    assert len(said["report"]["problems"]) == 2


def test_the_ledger_is_shown_and_says_what_is_open_after_a_look(
    make_settings: MakeSettings, proxy: CountingProxy, pitr: Pitr
) -> None:
    make_settings()
    assert pitr("budget").stdout == "No backup call was made yet.\n"
    assert pitr("budget", "--settle").stdout == "No backup call was made yet.\n"
    pitr("copy")

    shown = pitr("budget").stdout

    assert shown.splitlines()[0].split() == ["day", "state", "size"]
    assert f"{TODAY}  confirmed  49" in shown
    assert "open" not in pitr("budget", "--settle").stdout
    (entry,) = json.loads(pitr("budget", "--json").stdout)
    assert (entry["day"], entry["state"]) == (str(TODAY), "confirmed")
