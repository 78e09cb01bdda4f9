"""The answer to a call is looked at before the ledger believes it: on a real S3 server, past a proxy."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from pitr_pipelines.offsite.answers import Outcome, StoreUnavailable, Verdict
from pitr_pipelines.offsite.budget import CallState, claim, end, read_entry, send
from pitr_pipelines.offsite.settling import PATIENCE, call_id_of, conclude, confirm, settle
from pitr_pipelines_tests.offsite.conftest import StoreMaker
from pitr_pipelines_tests.offsite.s3_server import CountingProxy
from pitr_pipelines_tests.offsite.uploads import AT, CONTENT, DAY, answer_of, call, object_of, put

FALSE_SUCCESS = b'HTTP/1.1 200 OK\r\nETag: "0123"\r\nContent-Length: 0\r\n\r\n'


def test_a_success_that_something_on_the_way_made_up_is_not_believed(
    proxy: CountingProxy, open_store: StoreMaker, tmp_path: Path
) -> None:
    proxy.mishap, proxy.answer = "answer-late", FALSE_SUCCESS

    entry = call(tmp_path, open_store())

    assert (entry.state, entry.requests, entry.reads) == (CallState.UNKNOWN, {"PutObject": 1}, 1)
    assert "stored" in (entry.said or "")
    assert "does not have it" in (entry.said or "")
    later, _ = settle(tmp_path, DAY, open_store(), at=AT + PATIENCE)
    assert later is not None
    assert later.state is CallState.REFUSED
    assert proxy.writes == 1


def test_a_request_that_something_on_the_way_sent_twice_is_stored(
    proxy: CountingProxy, open_store: StoreMaker, tmp_path: Path
) -> None:
    """The answer to the second is that the name is taken: by this very call."""
    proxy.mishap = "twice"

    entry = call(tmp_path, open_store())

    assert entry.code == "PreconditionFailed"
    assert (entry.state, entry.reads) == (CallState.CONFIRMED, 1)
    assert proxy.writes == 1


def test_a_name_that_another_call_has_taken_is_refused_for_certain(
    proxy: CountingProxy, open_store: StoreMaker, tmp_path: Path
) -> None:
    put(open_store(), call_id="another")

    entry = call(tmp_path, open_store())

    assert (entry.state, entry.reads) == (CallState.REFUSED, 1)
    assert "the name is taken" in (entry.said or "")
    assert "not from this call" in (entry.said or "")


def test_that_a_name_was_taken_is_remembered_until_a_look_is_possible(
    proxy: CountingProxy, open_store: StoreMaker, tmp_path: Path
) -> None:
    put(open_store(), call_id="another")
    proxy.mishap, proxy.answer, proxy.spoils = "answer", answer_of(403), {"look"}

    entry = call(tmp_path, open_store())
    proxy.mishap = "none"
    settled, _ = settle(tmp_path, DAY, open_store(), at=AT)

    assert (entry.state, entry.code, entry.reads) == (CallState.UNKNOWN, "PreconditionFailed", 1)
    assert settled is not None
    assert (settled.state, settled.reads) == (CallState.REFUSED, 2)


def test_where_looks_are_forbidden_the_word_of_the_store_counts_and_is_all_there_is(
    proxy: CountingProxy, open_store: StoreMaker, tmp_path: Path
) -> None:
    proxy.mishap, proxy.answer, proxy.spoils = "answer", answer_of(403), {"look"}

    entry = call(tmp_path, open_store())

    assert entry.state is CallState.CONFIRMED
    assert "could not be looked at" in (entry.said or "")
    assert "403" in (entry.said or "")


def test_a_look_that_is_not_answered_leaves_it_unknown_and_is_counted(
    proxy: CountingProxy, open_store: StoreMaker, tmp_path: Path
) -> None:
    proxy.mishap, proxy.spoils = "reset-before-body", {"look"}

    entry = call(tmp_path, open_store())
    looked, _ = settle(tmp_path, DAY, open_store(), at=AT)
    proxy.mishap = "none"
    settled, _ = settle(tmp_path, DAY, open_store(), at=AT)

    assert entry.state is CallState.UNKNOWN
    assert looked is not None
    assert settled is not None
    assert (looked.state, settled.state) == (CallState.UNKNOWN, CallState.CONFIRMED)
    assert settled.reads == proxy.kinds["look"] == 2 * entry.reads + 1
    assert proxy.writes == 1


def test_a_call_that_was_settled_before_its_answer_came_stays_settled(
    open_store: StoreMaker, tmp_path: Path
) -> None:
    store = open_store()
    entry = send(claim(tmp_path, DAY, at=AT), object_of(store), at=AT)
    outcome = put(store, call_id=call_id_of(entry))
    settled, _ = settle(tmp_path, DAY, open_store(), at=AT)

    concluded = conclude(tmp_path, DAY, outcome, store, at=AT + timedelta(minutes=1))

    assert settled is not None
    assert settled.state is concluded.state is CallState.CONFIRMED
    assert (concluded.said, concluded.ended_at) == (settled.said, settled.ended_at)
    assert (concluded.requests, concluded.reads) == ({"PutObject": 1}, 2)


def test_an_answer_that_contradicts_what_is_on_record_is_an_error(
    open_store: StoreMaker, tmp_path: Path
) -> None:
    store = open_store()
    entry = send(claim(tmp_path, DAY, at=AT), object_of(store), at=AT)
    outcome = put(store, call_id=call_id_of(entry))
    end(tmp_path, DAY, CallState.REFUSED, at=AT, said="so it seemed")

    with pytest.raises(ValueError, match="cannot go from refused to confirmed"):
        conclude(tmp_path, DAY, outcome, store, at=AT)


def test_a_refusal_does_not_undo_what_a_look_has_proved(open_store: StoreMaker, tmp_path: Path) -> None:
    store = open_store()
    entry = send(claim(tmp_path, DAY, at=AT), object_of(store), at=AT)
    put(store, call_id=call_id_of(entry))
    settle(tmp_path, DAY, open_store(), at=AT)

    concluded = conclude(tmp_path, DAY, Outcome(Verdict.REFUSED, "403"), store, at=AT)

    assert (concluded.state, concluded.requests) == (CallState.CONFIRMED, {"PutObject": 1})


def test_a_refusal_needs_no_look(proxy: CountingProxy, open_store: StoreMaker, tmp_path: Path) -> None:
    store = open_store()
    send(claim(tmp_path, DAY, at=AT), object_of(store), at=AT)

    entry = conclude(tmp_path, DAY, Outcome(Verdict.REFUSED, "no", code="AccessDenied"), store, at=AT)

    assert (entry.state, entry.code, entry.requests, entry.reads) == (
        CallState.REFUSED,
        "AccessDenied",
        {},
        0,
    )
    assert proxy.requests == {}


def test_what_was_never_sent_cannot_be_concluded(open_store: StoreMaker, tmp_path: Path) -> None:
    store = open_store()
    with pytest.raises(ValueError, match="no call of 2026-03-01 that was sent"):
        conclude(tmp_path, DAY, Outcome(Verdict.STORED, "yes"), store, at=AT)
    claim(tmp_path, DAY, at=AT)
    with pytest.raises(ValueError, match="no call of 2026-03-01 that was sent"):
        conclude(tmp_path, DAY, Outcome(Verdict.STORED, "yes"), store, at=AT)
    assert read_entry(tmp_path, DAY) is not None


def test_one_look_confirms_what_a_call_sent(proxy: CountingProxy, open_store: StoreMaker) -> None:
    store = open_store()
    key = store.key_of("envelope")
    size = len(CONTENT)

    before = confirm(store, key, call_id="this", size_bytes=size)
    put(store)

    assert before.state is CallState.UNKNOWN
    assert confirm(store, key, call_id="this", size_bytes=size).state is CallState.CONFIRMED
    assert confirm(store, key, call_id="that", size_bytes=size).state is CallState.UNKNOWN
    assert confirm(store, key, call_id="this", size_bytes=size - 1).state is CallState.UNKNOWN
    assert store.reads == 4
    proxy.mishap, proxy.answer, proxy.spoils = "answer", answer_of(403), {"look"}
    assert confirm(store, key, call_id="this", size_bytes=size).state is None
    away = open_store(endpoint_url="http://127.0.0.1:1")
    with pytest.raises(StoreUnavailable):
        confirm(away, key, call_id="this", size_bytes=size)
