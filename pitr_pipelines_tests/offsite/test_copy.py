"""The day's call, whole: what goes, when, once, and what is known of it afterwards.

The store is a real one behind a proxy that counts. The databases are files from earlier: their servers are
out of reach, which must not keep what they left from going off-site.
"""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from pitr_pipelines import durable
from pitr_pipelines.catalog.layout import Layout
from pitr_pipelines.errors import ArtifactBusy, BadRequest, SettingsError
from pitr_pipelines.offsite.answers import StoreUnavailable
from pitr_pipelines.offsite.artifacts import Found, find_artifacts
from pitr_pipelines.offsite.budget import BudgetSpent, CallState, claim, days
from pitr_pipelines.offsite.copy import settle_now
from pitr_pipelines.offsite.copy_report import CallFailed
from pitr_pipelines.offsite.delivered import delivered, read_index
from pitr_pipelines.offsite.due import NotDue
from pitr_pipelines.offsite.encryption import generate_identity, parse_identities
from pitr_pipelines.offsite.envelope import EnvelopeTooLarge
from pitr_pipelines.offsite.envelope_reader import open_envelope
from pitr_pipelines_tests.offsite.copy_scene import (
    TOMORROW,
    Held,
    MakeSettings,
    clock_at,
    copied,
    layout_of,
    state_of,
)
from pitr_pipelines_tests.offsite.s3_server import CountingProxy
from pitr_pipelines_tests.offsite.scenes import TODAY, put_base, put_bundle
from pitr_pipelines_tests.wal_files import at, hour_of


def test_everything_goes_in_one_request_and_the_ledger_says_so(
    make_settings: MakeSettings, proxy: CountingProxy
) -> None:
    settings = make_settings()

    done = copied(settings)

    assert (proxy.requests["PUT"], proxy.writes) == (1, 1)
    assert (done.state, done.made, done.missing) == (CallState.CONFIRMED, True, ())
    assert {name: part.bases for name, part in done.databases.items()} == {
        "order-db": (TODAY,),
        "users": (TODAY,),
    }
    assert sum("users" in problem for problem in done.problems) >= 1, "its server is out of reach"
    index = open_envelope(Held(settings)).index
    assert index == read_index(layout_of(settings), TODAY)
    assert index.delivers == delivered(layout_of(settings), settings.offsite_copy().store)
    assert not layout_of(settings).outgoing.exists()


def test_asked_again_it_makes_no_second_call(make_settings: MakeSettings, proxy: CountingProxy) -> None:
    settings = make_settings()
    copied(settings)

    again = copied(settings, clock=clock_at(9))

    assert proxy.writes == 1
    assert (again.made, again.state) == (False, CallState.CONFIRMED)
    assert again.databases["users"].bases == (TODAY,)


def test_the_next_day_carries_only_what_is_new(make_settings: MakeSettings, proxy: CountingProxy) -> None:
    settings = make_settings()
    copied(settings)
    put_base(layout_of(settings), "users", at(3) + timedelta(days=1), b"a newer base")

    copied(settings, clock=clock_at(12, day=TOMORROW))

    index = read_index(layout_of(settings), TOMORROW)
    assert index is not None
    carried = {entry.artifact.path for entry in index.members}
    assert f"base/users/{TOMORROW}/base.tar" in carried
    assert f"base/users/{TODAY}/base.tar" not in carried
    assert "bundles/users/2026-01-29-03.tar.gz" not in carried


@pytest.mark.parametrize("status", [403, 503])
def test_what_a_refused_call_did_not_deliver_goes_the_next_day(
    make_settings: MakeSettings, proxy: CountingProxy, status: int
) -> None:
    settings = make_settings()
    proxy.mishap, proxy.answer = "answer", _answer(status)
    with pytest.raises(CallFailed) as failed:
        copied(settings)
    assert failed.value.report.state is state_of(settings) is CallState.REFUSED
    with pytest.raises(BudgetSpent):
        copied(settings, clock=clock_at(9))
    assert proxy.writes == 1

    proxy.mishap = "none"
    copied(settings, clock=clock_at(12, day=TOMORROW))

    assert open_envelope(Held(settings, TOMORROW)).index.of_database("users")
    assert proxy.writes == 2


def test_a_call_whose_answer_was_lost_is_settled_by_a_look(
    make_settings: MakeSettings, proxy: CountingProxy
) -> None:
    settings = make_settings(store={"answer_timeout_s": 2})
    proxy.mishap = "swallow-answer"

    done = copied(settings)

    assert done.state is state_of(settings) is CallState.CONFIRMED
    assert (proxy.writes, done.reads) == (1, 1)


def test_a_call_of_which_nothing_is_known_is_settled_by_a_later_run_before_it_calls(
    make_settings: MakeSettings, proxy: CountingProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = make_settings()
    with monkeypatch.context() as dying:
        dying.setattr("pitr_pipelines.offsite.copy.conclude", _die)
        with pytest.raises(KeyboardInterrupt):
            copied(settings)
    assert state_of(settings) is CallState.SENT

    copied(settings, clock=clock_at(12, day=TOMORROW))

    assert state_of(settings) is state_of(settings, TOMORROW) is CallState.CONFIRMED
    index = read_index(layout_of(settings), TOMORROW)
    assert index is not None
    assert not [e for e in index.members if "2026-01-29-03" in e.artifact.path], "it was delivered"


def test_a_call_that_broke_off_is_put_down_as_refused_once_that_is_certain(
    make_settings: MakeSettings, proxy: CountingProxy
) -> None:
    settings = make_settings()
    proxy.mishap = "reset-mid-body"
    with pytest.raises(CallFailed):
        copied(settings)
    assert state_of(settings) is CallState.UNKNOWN, "the store might still have stored it"

    assert settle_now(settings, now=clock_at(7)()) == []
    assert [entry.state for entry in settle_now(settings, now=clock_at(14)())] == [CallState.REFUSED]
    assert proxy.writes == 1


def test_a_claim_whose_process_died_is_put_down_the_next_day(
    make_settings: MakeSettings, proxy: CountingProxy
) -> None:
    settings = make_settings()
    claim(layout_of(settings).ledger, TODAY, at=clock_at(4)())
    with pytest.raises(BudgetSpent):
        copied(settings)

    copied(settings, clock=clock_at(12, day=TOMORROW))

    assert state_of(settings) is CallState.REFUSED
    assert state_of(settings, TOMORROW) is CallState.CONFIRMED
    assert proxy.writes == 1


def test_another_day_than_today_makes_no_call(make_settings: MakeSettings, proxy: CountingProxy) -> None:
    settings = make_settings()
    for day in (TODAY - timedelta(days=1), TOMORROW):
        with pytest.raises(BadRequest, match=f"only be made for today, {TODAY}, not for {day}"):
            copied(settings, day=day)
    assert (proxy.writes, days(layout_of(settings).ledger)) == (0, [])


def test_a_confirmed_past_day_is_described_and_not_called(
    make_settings: MakeSettings, proxy: CountingProxy
) -> None:
    settings = make_settings()
    copied(settings)

    past = copied(settings, day=TODAY, clock=clock_at(12, day=TOMORROW))

    assert (past.day, past.made, proxy.writes) == (TODAY, False, 1)


def test_it_waits_for_every_base_of_the_day_until_the_deadline(
    make_settings: MakeSettings, proxy: CountingProxy
) -> None:
    settings = make_settings(deadline="06:00")
    (layout_of(settings).base_record("users", TODAY)).unlink()

    with pytest.raises(NotDue, match="waits for the base backup of users"):
        copied(settings)
    assert proxy.writes == 0
    done = copied(settings, clock=clock_at(6, 0))

    assert done.missing == ("users",)
    assert done.databases["users"].bases == ()
    assert done.databases["users"].hours == 2


def test_the_day_of_the_provider_decides_which_base_is_the_days(make_settings: MakeSettings) -> None:
    settings = make_settings(api_calls={"day_in": "America/Los_Angeles"}, deadline="23:00")

    done = copied(settings, clock=clock_at(7))  # 23:10 of the 28th there, and the bases ended at 19:00

    assert (done.day, done.missing) == (TODAY - timedelta(days=1), ())


def test_by_hand_it_need_not_wait(make_settings: MakeSettings) -> None:
    settings = make_settings()
    (layout_of(settings).base_record("users", TODAY)).unlink()

    assert copied(settings, wait=False).missing == ("users",)


def test_a_damaged_file_is_left_out_and_named_and_the_day_is_not_lost_over_it(
    make_settings: MakeSettings, proxy: CountingProxy
) -> None:
    settings = make_settings()
    bad = layout_of(settings).bundles("users") / "2026-01-29-03.tar.gz"
    bad.write_bytes(bad.read_bytes()[:-1] + b"?")

    done = copied(settings)

    assert done.state is CallState.CONFIRMED
    assert any(str(bad.name) in problem for problem in done.problems)
    assert done.databases["users"].hours == 1
    index = read_index(layout_of(settings), TODAY)
    assert index is not None
    assert "bundles/users/2026-01-29-03.json" not in {entry.artifact.path for entry in index.members}


def test_a_damaged_base_counts_as_missing(make_settings: MakeSettings) -> None:
    settings = make_settings()
    (layout_of(settings).base("users", TODAY) / "base.tar").write_bytes(b"not what it was")

    assert copied(settings).missing == ("users",)


def test_what_does_not_fit_is_refused_before_the_day_is_claimed(
    make_settings: MakeSettings, proxy: CountingProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pitr_pipelines.offsite.parts.MAX_PUT_BYTES", 100_000)
    settings = make_settings()

    with pytest.raises(EnvelopeTooLarge, match="bases of order-db"):
        copied(settings)
    assert (proxy.writes, days(layout_of(settings).ledger)) == (0, [])


def test_a_store_out_of_reach_costs_no_day(make_settings: MakeSettings, proxy: CountingProxy) -> None:
    settings = make_settings()
    proxy.stop()

    with pytest.raises(StoreUnavailable, match="cannot be reached at port"):
        copied(settings)
    assert days(layout_of(settings).ledger) == []


def test_missing_credentials_cost_no_day(
    make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = make_settings()
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")

    with pytest.raises(SettingsError, match="credentials"):
        copied(settings)
    assert days(layout_of(settings).ledger) == []


def test_a_bad_public_key_costs_no_day(make_settings: MakeSettings) -> None:
    settings = make_settings(recipients=["age1notakey"])
    with pytest.raises(SettingsError, match="no public key"):
        copied(settings)
    assert days(layout_of(settings).ledger) == []


def test_two_senders_at_once_are_one(make_settings: MakeSettings, proxy: CountingProxy) -> None:
    settings = make_settings()
    lock = layout_of(settings).ledger / ".sending"
    with durable.exclusive_lock(lock, subject="x", wait=False), pytest.raises(ArtifactBusy):
        copied(settings)
    assert proxy.writes == 0


def test_a_ledger_that_was_lost_does_not_lead_to_a_second_call_on_the_same_day(
    make_settings: MakeSettings, proxy: CountingProxy
) -> None:
    settings = make_settings()
    copied(settings)
    for path in layout_of(settings).ledger.iterdir():
        path.unlink()

    with pytest.raises(BudgetSpent, match="before this ledger began"):
        copied(settings)

    assert proxy.writes == 1
    assert state_of(settings) is CallState.REFUSED
    assert copied(settings, clock=clock_at(12, day=TOMORROW)).databases["users"].bases == (TODAY,)


def test_an_object_under_todays_name_is_never_replaced(
    make_settings: MakeSettings, proxy: CountingProxy
) -> None:
    settings = make_settings()
    first = copied(settings)
    for path in layout_of(settings).ledger.iterdir():
        path.unlink()
    claim(layout_of(settings).ledger, TODAY - timedelta(days=3), at=clock_at(1)())  # not a new ledger

    with pytest.raises(CallFailed, match="412"):
        copied(settings, clock=clock_at(5, 20))

    assert state_of(settings) is CallState.REFUSED
    held = Held(settings)
    head = held.store.head(held.name)
    assert head is not None
    assert first.object is not None
    assert head.size_bytes == first.object.size_bytes


def test_in_another_bucket_everything_goes_again(make_settings: MakeSettings) -> None:
    copied(make_settings())

    moved = make_settings(store={"prefix": "elsewhere/"})
    done = copied(moved, clock=clock_at(12, day=TOMORROW))

    assert done.databases["users"].bases == (TODAY,)


def test_encrypted_it_is_read_back_with_the_key_alone(make_settings: MakeSettings, tmp_path: Path) -> None:
    secret, public = generate_identity()
    settings = make_settings(recipients=[public])

    done = copied(settings)

    reader = open_envelope(Held(settings), parse_identities(secret))
    fetched = reader.fetch(reader.index.of_database("users"), tmp_path / "back")
    assert done.encrypted
    assert len(fetched) == len(reader.index.of_database("users"))
    here = layout_of(settings).bundle_record("users", hour_of(3))
    there = Layout(tmp_path / "back").bundle_record("users", hour_of(3))
    assert here.read_bytes() == there.read_bytes()


def test_what_is_replaced_while_it_is_prepared_is_planned_again(
    make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = make_settings()
    looks: list[Found] = []

    def find_and_replace(layout: Layout, databases: Any) -> Any:
        found = find_artifacts(layout, databases)
        if not looks:
            put_bundle(layout, "users", 4, first=140, count=2)
        looks.append(found)
        return found

    monkeypatch.setattr("pitr_pipelines.offsite.copy.find_artifacts", find_and_replace)

    assert copied(settings).state is CallState.CONFIRMED
    assert len(looks) == 2


def _die(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def _answer(status: int) -> bytes:
    code = {403: "AccessDenied", 412: "PreconditionFailed", 503: "SlowDown"}[status]
    body = f"<Error><Code>{code}</Code><Message>no</Message></Error>".encode()
    return b"HTTP/1.1 %d No\r\nContent-Type: application/xml\r\nContent-Length: %d\r\n\r\n%b" % (
        status,
        len(body),
        body,
    )
