"""Whatever the wire does to the day's call: it leaves once, the ledger is true, the next day makes up for it.

Each case is a whole story at the proxy before a real store: the call in trouble, a second run of the same
day, and the next day's. What a person is told is checked along the way.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import timedelta

import pytest

from pitr_pipelines.offsite.artifacts import find_artifacts
from pitr_pipelines.offsite.budget import BudgetSpent, CallState, claim
from pitr_pipelines.offsite.copy_report import CallFailed
from pitr_pipelines.offsite.envelope_index import MemberKind
from pitr_pipelines.offsite.envelope_reader import open_envelope
from pitr_pipelines.settings import Settings
from pitr_pipelines_tests.offsite.copy_scene import (
    TOMORROW,
    Held,
    MakeSettings,
    clock_at,
    copied,
    layout_of,
    state_of,
)
from pitr_pipelines_tests.offsite.s3_server import SECRET_KEY, CountingProxy, Mishap
from pitr_pipelines_tests.offsite.scenes import TODAY


def answer(status: int, code: str = "", message: str = "so", *, headers: str = "") -> bytes:
    body = f"<Error><Code>{code}</Code><Message>{message}</Message></Error>" if code else ""
    return f"HTTP/1.1 {status} X\r\n{headers}Content-Length: {len(body)}\r\n\r\n{body}".encode()


@dataclass(frozen=True)
class Story:
    """What happens to the call, and how it shall stand with it at once and in the end.

    `said` and `remedy` are patterns of what is told of a call that is not confirmed at once.
    """

    mishap: Mishap
    answer: bytes
    at_once: CallState
    in_the_end: CallState
    said: str = ""
    remedy: str = ""
    same_server: bool = False


CONFIRMED, REFUSED, UNKNOWN = CallState.CONFIRMED, CallState.REFUSED, CallState.UNKNOWN
LOOK = "a look at the store will tell"

STORIES = {
    "500": Story("answer", answer(500, "InternalError"), UNKNOWN, REFUSED, "500 InternalError: so", LOOK),
    "500-though-stored": Story("answer-after", answer(500, "InternalError"), CONFIRMED, CONFIRMED),
    "502-late": Story("answer-late", answer(502), UNKNOWN, REFUSED, "answered 502", LOOK),
    "504-though-stored": Story("answer-after", answer(504), CONFIRMED, CONFIRMED),
    "503-slow-down": Story("answer", answer(503, "SlowDown"), REFUSED, REFUSED, "503 SlowDown", "busy"),
    "503-slow-down-late": Story("answer-late", answer(503, "SlowDown"), REFUSED, REFUSED, "SlowDown", "busy"),
    "503-of-a-proxy": Story("answer", answer(503), UNKNOWN, REFUSED, "answered 503", LOOK),
    "307": Story("answer", b"307", UNKNOWN, REFUSED, "307 TemporaryRedirect", LOOK, same_server=True),
    "307-late": Story("answer-late", b"307", UNKNOWN, REFUSED, "307", LOOK, same_server=True),
    "307-though-stored": Story("answer-after", b"307", CONFIRMED, CONFIRMED, same_server=True),
    "301": Story("answer", b"301", REFUSED, REFUSED, "301 PermanentRedirect", "`region`", same_server=True),
    "400-expired": Story(
        "answer", answer(400, "ExpiredToken"), REFUSED, REFUSED, "400 ExpiredToken", "get new credentials"
    ),
    "400-region": Story(
        "answer",
        answer(400, "AuthorizationHeaderMalformed", headers="x-amz-bucket-region: eu-west-3\r\n"),
        REFUSED,
        REFUSED,
        "AuthorizationHeaderMalformed",
        "`region`",
    ),
    "403-skewed": Story(
        "answer", answer(403, "RequestTimeTooSkewed"), REFUSED, REFUSED, "RequestTimeTooSkewed", "clock"
    ),
    "403-denied": Story(
        "answer", answer(403, "AccessDenied"), REFUSED, REFUSED, "AccessDenied", "s3:PutObject"
    ),
    "408": Story("answer", answer(408), UNKNOWN, REFUSED, "answered 408", LOOK),
    "reset-before-body": Story(
        "reset-before-body", b"", REFUSED, REFUSED, "nothing of the object was sent", "network"
    ),
    "reset-mid-body": Story("reset-mid-body", b"", UNKNOWN, REFUSED, "the connection broke", LOOK),
    "reset-answer": Story("reset-answer", b"", CONFIRMED, CONFIRMED),
    "time-out-after-body": Story("swallow-answer", b"", CONFIRMED, CONFIRMED),
    "damaged-on-the-way": Story("damage", b"", REFUSED, REFUSED, "400", "not stored"),
    "not-http": Story("answer", b"what is this\r\n\r\n", UNKNOWN, REFUSED, "", LOOK),
    "200-of-a-portal": Story("answer", answer(200), UNKNOWN, REFUSED, "no ETag", LOOK),
}


def undelivered(settings: Settings) -> set[str]:
    """Return the paths of what lies here and is in none of these days' envelopes."""
    there: set[tuple[str, str]] = set()
    for day in (TODAY, TOMORROW):
        if state_of(settings, day) is CONFIRMED:
            there |= open_envelope(Held(settings, day)).index.delivers
    found = find_artifacts(layout_of(settings), settings.databases).artifacts
    return {
        file.path for file in found if file.kind is not MemberKind.MANIFEST and file.identity not in there
    }


def the_next_day_makes_up_for_it(settings: Settings, proxy: CountingProxy, ends: CallState) -> None:
    """Let the wire be well again, run again on the same day and on the next."""
    proxy.mishap = "none"
    before = proxy.writes
    if state_of(settings) is CONFIRMED:
        assert copied(settings, clock=clock_at(9)).made is False
    else:
        with pytest.raises(BudgetSpent):
            copied(settings, clock=clock_at(9))
    assert proxy.writes == before

    assert copied(settings, clock=clock_at(12, day=TOMORROW)).state is CONFIRMED

    assert proxy.writes == before + 1
    assert state_of(settings) is ends
    assert not undelivered(settings)


@pytest.mark.parametrize("name", STORIES)
def test_a_call_in_trouble_leaves_once_and_the_next_day_makes_up_for_it(
    make_settings: MakeSettings, proxy: CountingProxy, name: str
) -> None:
    story = STORIES[name]
    settings = make_settings(store={"answer_timeout_s": 1.5})
    proxy.mishap, proxy.answer = story.mishap, story.answer
    if story.same_server:
        # A redirect to the same server: whoever followed it would be counted there.
        status = int(story.answer)
        word = {301: "PermanentRedirect", 307: "TemporaryRedirect"}[status]
        where = f"Location: {proxy.url}/backups/elsewhere\r\nx-amz-bucket-region: eu-west-3\r\n"
        proxy.answer = answer(status, word, headers=where)

    if story.at_once is CONFIRMED:
        assert copied(settings).state is CONFIRMED
    else:
        with pytest.raises(CallFailed) as failed:
            copied(settings)
        assert f"the off-site copy of {TODAY} is {story.at_once}: " in failed.value.what
        assert re.search(story.said, failed.value.what), failed.value.what
        assert re.search(story.remedy, failed.value.remedy, re.IGNORECASE), failed.value.remedy

    assert state_of(settings) is story.at_once
    assert proxy.writes == 1
    the_next_day_makes_up_for_it(settings, proxy, story.in_the_end)


def test_the_wrong_secret_costs_a_day_and_nothing_else(
    make_settings: MakeSettings, proxy: CountingProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = make_settings()
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a-wrong-secret")

    with pytest.raises(CallFailed, match="SignatureDoesNotMatch") as failed:
        copied(settings)

    assert "secret key is not that of the access key" in failed.value.remedy
    assert "a-wrong-secret" not in str(failed.value)
    assert proxy.writes == 1
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
    the_next_day_makes_up_for_it(settings, proxy, REFUSED)


def test_a_bucket_that_is_not_there_costs_a_day_and_nothing_else(
    make_settings: MakeSettings, proxy: CountingProxy
) -> None:
    with pytest.raises(CallFailed) as failed:
        copied(make_settings(store={"bucket": "not-there"}))

    # SeaweedFS says 403 to whoever may not make it; Amazon says NoSuchBucket.
    assert re.search("NoSuchBucket|AccessDenied", failed.value.what), failed.value.what
    assert proxy.writes == 1
    settings = make_settings()
    assert state_of(settings) is REFUSED
    the_next_day_makes_up_for_it(settings, proxy, REFUSED)


def test_another_machines_object_under_the_days_name_is_left_alone(
    make_settings: MakeSettings, proxy: CountingProxy
) -> None:
    settings = make_settings()
    theirs = Held(settings)
    theirs.store.put(theirs.name, Words(), len(Words.text), call_id="theirs", at=clock_at(4)())
    claim(layout_of(settings).ledger, TODAY - timedelta(days=3), at=clock_at(1)())  # not a new ledger
    before = proxy.writes

    with pytest.raises(CallFailed) as failed:
        copied(settings)

    assert "prefix" in failed.value.remedy
    assert state_of(settings) is REFUSED
    assert proxy.writes == before + 1
    found = theirs.store.head(theirs.name)
    assert found is not None
    assert found.metadata["pitr-call"] == "theirs"
    the_next_day_makes_up_for_it(settings, proxy, REFUSED)


class Words:
    text = b"not yours"

    def __init__(self) -> None:
        self._left = self.text

    def read(self, size: int, /) -> bytes:
        given, self._left = self._left[:size], self._left[size:]
        return given
