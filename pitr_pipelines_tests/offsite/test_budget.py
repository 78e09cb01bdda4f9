"""At most one call a day, whatever crashes, comes twice, or comes at once."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pitr_pipelines import durable
from pitr_pipelines.errors import ArtifactDamaged
from pitr_pipelines.offsite.budget import (
    BudgetSpent,
    CallObject,
    CallState,
    LedgerEntry,
    claim,
    count_reads,
    day_of,
    days,
    end,
    read_entry,
    send,
)

DAY = date(2026, 1, 29)
AT = datetime(2026, 1, 29, 23, 30, tzinfo=UTC)
CARRIES = CallObject(bucket="backups", key="2026-01-29.tar", size_bytes=3, sha256="0" * 64)


class Crash(BaseException):
    """The process dies here."""


def entry(state: CallState = CallState.CLAIMED) -> LedgerEntry:
    return LedgerEntry(day=DAY, state=state, claimed_at=AT, claimed_by="test")


def test_a_call_goes_its_way_and_all_of_it_is_on_record(tmp_path: Path) -> None:
    ledger = tmp_path / "offsite"
    taken = claim(ledger, DAY, at=AT)
    assert taken.ledger_file == ledger / "2026-01-29.json"
    assert send(taken, CARRIES, at=AT + timedelta(seconds=1)).state is CallState.SENT
    end(ledger, DAY, CallState.UNKNOWN, at=AT + timedelta(seconds=9), said="no answer")
    end(ledger, DAY, CallState.CONFIRMED, at=AT + timedelta(seconds=20), said="HEAD: it is there", reads=2)
    found = read_entry(ledger, DAY)
    assert found is not None
    assert (found.state, found.object, found.reads) == (CallState.CONFIRMED, CARRIES, 2)
    assert (found.sent_at, found.ended_at) == (AT + timedelta(seconds=1), AT + timedelta(seconds=20))
    assert found.is_settled
    assert taken.ledger_file.stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("state", [None, *CallState])
def test_a_day_that_was_taken_is_never_free_again(tmp_path: Path, state: CallState | None) -> None:
    """Not even if the file is empty, because its maker died between two steps."""
    file = tmp_path / "2026-01-29.json"
    file.write_text("" if state is None else entry(state).model_dump_json())
    with pytest.raises(BudgetSpent, match="the backup call of 2026-01-29 is taken") as caught:
        claim(tmp_path, DAY, at=AT)
    assert str(state or CallState.CLAIMED) in caught.value.what


def test_a_ledger_file_that_cannot_be_read_has_taken_its_day(tmp_path: Path) -> None:
    (tmp_path / "2026-01-29.json").write_text('{"half')
    with pytest.raises(BudgetSpent, match=r"2026-01-29\.json cannot be used"):
        claim(tmp_path, DAY, at=AT)
    with pytest.raises(ArtifactDamaged, match="cannot be used"):
        read_entry(tmp_path, DAY)
    (tmp_path / "2026-01-29.json").write_text(
        entry().model_copy(update={"day": date(2026, 1, 1)}).model_dump_json()
    )
    with pytest.raises(BudgetSpent, match="is about 2026-01-01"):
        claim(tmp_path, DAY, at=AT)


def test_a_clock_that_stepped_back_gets_no_second_call(tmp_path: Path) -> None:
    claim(tmp_path, DAY, at=AT)
    with pytest.raises(BudgetSpent, match="the backup call of 2026-01-29 is already on the ledger") as caught:
        claim(tmp_path, DAY - timedelta(days=1), at=AT - timedelta(days=1))
    assert "clock" in caught.value.remedy
    assert days(tmp_path) == [DAY]
    claim(tmp_path, DAY + timedelta(days=1), at=AT + timedelta(days=1))
    assert days(tmp_path) == [DAY, DAY + timedelta(days=1)]


def test_a_claim_serves_for_one_call(tmp_path: Path) -> None:
    taken = claim(tmp_path, DAY, at=AT)
    send(taken, CARRIES, at=AT)
    with pytest.raises(ValueError, match="cannot go from sent to sent"):
        send(taken, CARRIES, at=AT)


def test_the_day_is_the_providers(tmp_path: Path) -> None:
    assert day_of(AT, ZoneInfo("UTC")) == DAY
    assert day_of(AT, ZoneInfo("Asia/Tokyo")) == DAY + timedelta(days=1)
    assert day_of(AT, ZoneInfo("America/Los_Angeles")) == DAY


@given(st.lists(st.sampled_from(CallState)))
def test_no_sequence_of_steps_sends_twice_or_takes_a_final_word_back(steps: list[CallState]) -> None:
    now, sent, ended = entry(), 0, None
    for step in steps:
        try:
            following = now.then(step, at=AT, said="so", carries=CARRIES)
        except ValueError:
            continue
        assert ended is None
        sent += step is CallState.SENT
        assert (following.object is not None) == bool(sent)
        assert following.ended_at is None or following.state is not CallState.SENT
        ended = step if step in (CallState.CONFIRMED, CallState.REFUSED) else None
        assert following.is_settled == (ended is not None)
        now = following
    assert sent <= 1
    assert now.state is not CallState.CONFIRMED or sent == 1


def crashing(monkeypatch: pytest.MonkeyPatch, step: int) -> Callable[[], int]:
    """Die before the given one of the system calls with which the ledger is written; count them."""
    seen = 0

    def wrap(name: str) -> None:
        real = getattr(os, name)

        def call(*arguments: object, **named: object) -> object:
            nonlocal seen
            seen += 1
            if seen == step:
                raise Crash
            return real(*arguments, **named)

        monkeypatch.setattr(os, name, call)

    for name in ("open", "fsync", "replace", "rename"):
        wrap(name)
    return lambda: seen


@pytest.mark.parametrize("step", range(1, 25))
def test_a_crash_at_any_step_never_frees_the_day_and_never_hides_that_something_was_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """What counts is what the next process finds: it may call only if nothing can have been sent."""
    sent = False
    with monkeypatch.context() as patch:
        crashing(patch, step)
        try:
            taken = claim(tmp_path, DAY, at=AT)
            send(taken, CARRIES, at=AT)
            sent = True
            end(tmp_path, DAY, CallState.CONFIRMED, at=AT, said="200")
        except Crash:
            pass
    after = read_entry(tmp_path, DAY)
    try:
        claim(tmp_path, DAY, at=AT)
        again = True
    except BudgetSpent:
        again = False
    assert again == (after is None)
    if sent:
        assert after is not None
        assert after.state in (CallState.SENT, CallState.CONFIRMED)
        assert after.object == CARRIES
    if again:
        assert not sent


def test_the_steps_above_are_all_there_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        count = crashing(patch, 0)
        send(claim(tmp_path, DAY, at=AT), CARRIES, at=AT)
        end(tmp_path, DAY, CallState.CONFIRMED, at=AT, said="200")
    assert 8 < count() < 24


def test_what_is_sent_is_on_disk_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file and its directory are synced before `claim` and `send` return."""
    synced: list[str] = []

    def sync(number: int) -> None:
        synced.append(str(Path(f"/proc/self/fd/{number}").readlink()))

    monkeypatch.setattr(os, "fsync", sync)
    taken = claim(tmp_path, DAY, at=AT)
    assert synced == [str(taken.ledger_file), str(tmp_path)]
    synced.clear()
    send(taken, CARRIES, at=AT)
    assert synced[0].startswith(str(tmp_path / ".2026-01-29.json."))
    assert synced[1:] == [str(tmp_path)]
    assert durable.temporary_name(taken.ledger_file).exists() is False


RIVAL = """
import sys
from datetime import UTC, date, datetime
from pathlib import Path
from pitr_pipelines.offsite.budget import BudgetSpent, claim
ledger = Path(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
won = 0
for number in range(1, 11):
    try:
        claim(ledger, date(2026, 1, number), at=datetime.now(UTC))
        won += 1
    except BudgetSpent:
        pass
print(won)
"""


def test_of_many_processes_one_wins_each_day(tmp_path: Path) -> None:
    rivals = [
        subprocess.Popen(
            [sys.executable, "-c", RIVAL, str(tmp_path / "offsite")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(6)
    ]
    for rival in rivals:
        assert rival.stdout is not None
        assert rival.stdout.readline() == "ready\n"
    for rival in rivals:
        assert rival.stdin is not None
        rival.stdin.write("go\n")
        rival.stdin.flush()
    won = [int(rival.communicate(timeout=60)[0]) for rival in rivals]
    assert sum(won) == len(days(tmp_path / "offsite")) == 10


def test_the_same_end_twice_is_one_end_and_a_contradiction_is_an_error(tmp_path: Path) -> None:
    """Whoever settles a call may be quicker than the one who made it."""
    send(claim(tmp_path, DAY, at=AT), CARRIES, at=AT)
    first = end(tmp_path, DAY, CallState.CONFIRMED, at=AT, said="seen", reads=1)
    later = AT + timedelta(minutes=1)

    again = end(tmp_path, DAY, CallState.CONFIRMED, at=later, said="200", requests={"PutObject": 1})
    unsure = end(tmp_path, DAY, CallState.UNKNOWN, at=later, said="no answer", reads=1)

    assert (again.said, again.ended_at, again.reads) == (first.said, first.ended_at, 1)
    assert unsure == again.model_copy(update={"reads": 2})
    assert (unsure.requests, unsure.request_count) == ({"PutObject": 1}, 1)
    assert read_entry(tmp_path, DAY) == unsure
    with pytest.raises(ValueError, match="cannot go from confirmed to refused"):
        end(tmp_path, DAY, CallState.REFUSED, at=later, said="403")


def test_looks_that_decide_nothing_are_counted_and_change_nothing_else(tmp_path: Path) -> None:
    sent = send(claim(tmp_path, DAY, at=AT), CARRIES, at=AT)

    counted = count_reads(tmp_path, DAY, 2)

    assert counted == sent.model_copy(update={"reads": 2}) == read_entry(tmp_path, DAY)
    with pytest.raises(ValueError, match="no call of"):
        count_reads(tmp_path, DAY + timedelta(days=1), 1)


def test_a_call_is_not_sent_after_the_providers_day_is_over(tmp_path: Path) -> None:
    """It would be the next day's first call, and that day's own its second."""
    zone = ZoneInfo("America/Los_Angeles")
    taken = claim(tmp_path, DAY, at=AT)

    with pytest.raises(BudgetSpent, match="was not sent before that day was over"):
        send(taken, CARRIES, at=AT + timedelta(hours=9), zone=zone)

    found = read_entry(tmp_path, DAY)
    assert found is not None
    assert found.state is CallState.CLAIMED
    assert send(taken, CARRIES, at=AT + timedelta(hours=8), zone=zone).state is CallState.SENT
