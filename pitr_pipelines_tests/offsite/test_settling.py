"""What becomes of the ledger when the wire misbehaves: at most one write, and the truth in the end."""

from __future__ import annotations

import io
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pitr_pipelines.offsite.answers import NAME_TAKEN, Outcome, Verdict, of_answer
from pitr_pipelines.offsite.budget import CallObject, CallState, LedgerEntry, claim, end, read_entry, send
from pitr_pipelines.offsite.object_store import ObjectStore, StoredObject
from pitr_pipelines.offsite.settling import call_id_of, decide, settle
from pitr_pipelines_tests.offsite.conftest import StoreMaker
from pitr_pipelines_tests.offsite.s3_server import CountingProxy, Mishap

DAY = date(2026, 3, 1)
AT = datetime(2026, 3, 1, 3, 0, tzinfo=UTC)
PATIENCE = timedelta(hours=6)
CONTENT = b"all that a day has to say" * 50_000
STATES = {
    Verdict.STORED: CallState.CONFIRMED,
    Verdict.REFUSED: CallState.REFUSED,
    Verdict.UNKNOWN: CallState.UNKNOWN,
}


def call(ledger: Path, store: ObjectStore) -> Outcome:
    """Make a day's call as the off-site copy does, and put its outcome on record."""
    claimed = claim(ledger, DAY, at=AT)
    entry = send(claimed, _object(store), at=AT)
    outcome = store.put(
        store.key_of("envelope"), io.BytesIO(CONTENT), len(CONTENT), call_id=call_id_of(entry), at=AT
    )
    end(ledger, DAY, STATES[outcome.verdict], at=AT, said=outcome.said)
    return outcome


def _object(store: ObjectStore) -> CallObject:
    return CallObject(
        endpoint_url=store.place.endpoint_url,
        bucket=store.place.bucket,
        key=store.key_of("envelope"),
        size_bytes=len(CONTENT),
        sha256="0" * 64,
    )


def _answer(status: int, code: str = "", more: str = "") -> bytes:
    body = f"<Error><Code>{code}</Code><Message>so</Message></Error>" if code else ""
    return f"HTTP/1.1 {status} X\r\n{more}Content-Length: {len(body)}\r\n\r\n{body}".encode()


ELSEWHERE = "Location: http://127.0.0.1:1/backups/elsewhere\r\nx-amz-bucket-region: eu-west-3\r\n"


@pytest.mark.parametrize(
    ("mishap", "answer", "verdict", "stored"),
    [
        ("none", b"", Verdict.STORED, True),
        ("answer", _answer(500, "InternalError"), Verdict.UNKNOWN, False),
        ("answer", _answer(502), Verdict.UNKNOWN, False),
        ("answer", _answer(503), Verdict.UNKNOWN, False),
        ("answer", _answer(503, "SlowDown"), Verdict.REFUSED, False),
        ("answer-late", _answer(503, "SlowDown"), Verdict.REFUSED, False),
        ("answer-late", _answer(500, "InternalError"), Verdict.UNKNOWN, False),
        ("answer", _answer(301, "PermanentRedirect", ELSEWHERE), Verdict.REFUSED, False),
        ("answer", _answer(307, "TemporaryRedirect", ELSEWHERE), Verdict.UNKNOWN, False),
        ("answer-late", _answer(307, "TemporaryRedirect", ELSEWHERE), Verdict.UNKNOWN, False),
        ("answer", _answer(400, "AuthorizationHeaderMalformed", ELSEWHERE), Verdict.REFUSED, False),
        ("answer", _answer(400, "RequestTimeout"), Verdict.UNKNOWN, False),
        ("answer", _answer(403, "RequestTimeTooSkewed"), Verdict.REFUSED, False),
        ("answer", _answer(404, "NoSuchBucket"), Verdict.REFUSED, False),
        ("answer", _answer(200), Verdict.UNKNOWN, False),
        ("answer", _answer(102), Verdict.UNKNOWN, False),
        ("answer", b"what is this\r\n\r\n", Verdict.UNKNOWN, False),
        ("reset-before-body", b"", Verdict.REFUSED, False),
        ("reset-mid-body", b"", Verdict.UNKNOWN, False),
        ("swallow-answer", b"", Verdict.UNKNOWN, True),
        ("reset-answer", b"", Verdict.UNKNOWN, True),
        ("answer-after", _answer(500, "InternalError"), Verdict.UNKNOWN, True),
        ("answer-after", _answer(504), Verdict.UNKNOWN, True),
        ("answer-after", _answer(307, "TemporaryRedirect", ELSEWHERE), Verdict.UNKNOWN, True),
    ],
)
def test_at_most_one_write_leaves_and_the_ledger_ends_as_the_store_has_it(
    proxy: CountingProxy,
    open_store: StoreMaker,
    tmp_path: Path,
    mishap: Mishap,
    answer: bytes,
    verdict: Verdict,
    stored: bool,
) -> None:
    proxy.mishap, proxy.answer = mishap, answer

    outcome = call(tmp_path, open_store(answer_timeout_s=1))

    assert outcome.verdict is verdict, outcome
    assert proxy.requests == {"PUT": 1}

    proxy.mishap = "none"
    reader = open_store()
    soon, _ = settle(tmp_path, DAY, reader, at=AT + PATIENCE / 2, patience=PATIENCE)
    later, _ = settle(tmp_path, DAY, reader, at=AT + PATIENCE, patience=PATIENCE)

    assert soon is not None
    assert later is not None
    assert proxy.writes == 1
    assert later.state is (CallState.CONFIRMED if stored else CallState.REFUSED)
    if stored:
        assert soon.state is CallState.CONFIRMED
    elif verdict is Verdict.UNKNOWN:
        assert soon.state is CallState.UNKNOWN
        # The first look decided nothing, and is on record all the same.
        assert (soon.reads, later.reads) == (1, 2)


def test_a_call_whose_maker_died_is_settled_from_the_store(
    proxy: CountingProxy, open_store: StoreMaker, tmp_path: Path
) -> None:
    store = open_store()
    entry = send(claim(tmp_path, DAY, at=AT), _object(store), at=AT)
    store.put(store.key_of("envelope"), io.BytesIO(CONTENT), len(CONTENT), call_id=call_id_of(entry), at=AT)

    settled, said = settle(tmp_path, DAY, open_store(), at=AT, patience=PATIENCE)

    assert settled == read_entry(tmp_path, DAY)
    assert settled is not None
    assert settled.state is CallState.CONFIRMED
    assert "ETag" in said
    assert proxy.writes == 1


def test_an_object_of_another_call_proves_only_in_time_that_ours_is_not_there(
    open_store: StoreMaker, tmp_path: Path
) -> None:
    store = open_store()
    store.put(store.key_of("envelope"), io.BytesIO(CONTENT), len(CONTENT), call_id="another", at=AT)
    send(claim(tmp_path, DAY, at=AT), _object(store), at=AT)

    soon, said = settle(tmp_path, DAY, open_store(), at=AT + PATIENCE / 2, patience=PATIENCE)
    later, _ = settle(tmp_path, DAY, open_store(), at=AT + PATIENCE, patience=PATIENCE)

    assert soon is not None
    assert later is not None
    assert (soon.state, soon.reads) == (CallState.SENT, 1)
    assert "not from this call" in said
    assert (later.state, later.reads) == (CallState.REFUSED, 2)


def test_a_store_that_does_not_answer_settles_nothing(open_store: StoreMaker, tmp_path: Path) -> None:
    away = open_store(endpoint_url="http://127.0.0.1:1")
    send(claim(tmp_path, DAY, at=AT), _object(away), at=AT)

    settled, said = settle(tmp_path, DAY, away, at=AT + 2 * PATIENCE, patience=PATIENCE)

    assert settled is not None
    assert settled.state is CallState.SENT
    assert "could not be reached" in said


@pytest.mark.parametrize("other", [{"bucket": "other"}, {"endpoint_url": "http://127.0.0.1:1"}], ids=repr)
def test_another_place_in_the_settings_is_not_asked(
    proxy: CountingProxy, open_store: StoreMaker, tmp_path: Path, other: dict[str, str]
) -> None:
    """That it does not have the object would prove nothing."""
    send(claim(tmp_path, DAY, at=AT), _object(open_store()), at=AT)

    settled, said = settle(tmp_path, DAY, open_store(**other), at=AT + 2 * PATIENCE)

    assert settled is not None
    assert (settled.state, settled.reads) == (CallState.SENT, 0)
    assert "another" in said
    assert proxy.requests == {}


def test_a_large_upload_under_way_is_given_the_time_that_it_may_take() -> None:
    large = CallObject(bucket="b", key="k", size_bytes=10**12)
    entry = LedgerEntry(day=DAY, state=CallState.CLAIMED, claimed_at=AT, claimed_by="here, process 1")
    sent = entry.then(CallState.SENT, at=AT, carries=large)
    unknown = sent.then(CallState.UNKNOWN, at=AT + timedelta(hours=7), said="no answer")

    def state(of: LedgerEntry, after: timedelta) -> CallState | None:
        return decide(of, None, at=AT + after, patience=PATIENCE).state

    assert state(sent, timedelta(days=46)) is None
    assert state(sent, timedelta(days=47)) is CallState.REFUSED
    assert state(unknown, timedelta(hours=12)) is None
    assert state(unknown, timedelta(hours=13)) is CallState.REFUSED


ENTRIES = st.builds(
    LedgerEntry,
    day=st.just(DAY),
    state=st.sampled_from(CallState),
    claimed_at=st.just(AT),
    claimed_by=st.sampled_from(["here, process 1", "there, process 1"]),
    object=st.none() | st.just(CallObject(bucket="b", key="k", size_bytes=7, sha256="0" * 64)),
    sent_at=st.none() | st.just(AT),
    ended_at=st.none() | st.just(AT + timedelta(minutes=5)),
    code=st.sampled_from([None, "InternalError", NAME_TAKEN]),
)


@given(
    entry=ENTRIES,
    found=st.booleans(),
    mine=st.booleans(),
    size=st.sampled_from([6, 7]),
    said_size=st.sampled_from(["6", "7", None]),
    minutes=st.integers(-600, 1200),
)
def test_only_proof_changes_an_entry(
    entry: LedgerEntry, found: bool, mine: bool, size: int, said_size: str | None, minutes: int
) -> None:
    metadata = {"pitr-call": call_id_of(entry) if mine else "another"}
    if said_size is not None:
        metadata["pitr-size"] = said_size
    seen = StoredObject("k", size, '"e"', AT, metadata) if found else None
    at = AT + timedelta(minutes=minutes)

    state = decide(entry, seen, at=at, patience=PATIENCE).state

    under_way = entry.state in (CallState.SENT, CallState.UNKNOWN) and entry.object and entry.sent_at
    whole = found and mine and size == 7 and said_size == "7"
    elsewhere = found and not mine
    gone = (not found or elsewhere) and at - (entry.ended_at or AT) >= PATIENCE
    gone = gone or (elsewhere and entry.code == NAME_TAKEN)
    if under_way and whole:
        assert state is CallState.CONFIRMED
    elif under_way and gone:
        assert state is CallState.REFUSED
    else:
        assert state is None


def test_the_id_of_a_call_outlives_its_states_and_is_no_other_calls() -> None:
    carries = CallObject(bucket="b", key="k", size_bytes=7, sha256="0" * 64)
    entry = LedgerEntry(day=DAY, state=CallState.CLAIMED, claimed_at=AT, claimed_by="here, process 1")
    sent = entry.then(CallState.SENT, at=AT, carries=carries)
    again = LedgerEntry.model_validate_json(sent.then(CallState.UNKNOWN, at=AT, said="?").model_dump_json())
    rival = entry.model_copy(update={"claimed_at": AT + timedelta(microseconds=1)})

    assert call_id_of(entry) == call_id_of(sent) == call_id_of(again)
    assert call_id_of(rival) != call_id_of(entry)


@given(status=st.integers(300, 599), code=st.sampled_from(["", "InternalError", "RequestTimeout", "Other"]))
def test_no_answer_but_a_refusal_of_the_request_is_certain(status: int, code: str) -> None:
    outcome = of_answer(status, code, "so")

    certain = 400 <= status < 500 and status not in (408, 409, 412) and code != "RequestTimeout"
    assert outcome.verdict is (Verdict.REFUSED if certain else Verdict.UNKNOWN)
    assert outcome.remedy
