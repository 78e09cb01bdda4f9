"""One write request, whatever happens, and the reads: on a real S3 server behind a counting proxy."""

from __future__ import annotations

import hashlib
import io
import tracemalloc
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from pitr_pipelines.errors import BadRequest, SettingsError
from pitr_pipelines.offsite.answers import Outcome, SecondWrite, StoreUnavailable, Verdict
from pitr_pipelines.offsite.framing import FramedBody
from pitr_pipelines.offsite.object_store import MAX_PUT_BYTES, ObjectStore
from pitr_pipelines_tests.offsite.conftest import StoreMaker
from pitr_pipelines_tests.offsite.s3_server import (
    ADMIN_KEY,
    LOCKED_BUCKET,
    SECRET_KEY,
    CountingProxy,
    S3Server,
    self_signed,
)

NOW = datetime.now(UTC)
CONTENT = bytes(range(256)) * 8192 + b"an odd end"  # two frames and a bit


class Stream:
    """A body as an envelope is: it can be read, once, and nothing else."""

    def __init__(self, content: bytes) -> None:
        self._content = io.BytesIO(content)

    def read(self, size: int, /) -> bytes:
        return self._content.read(size)


def put(store: ObjectStore, name: str = "object", content: bytes = CONTENT, **options: str) -> Outcome:
    announced = len(CONTENT)
    return store.put(store.key_of(name), Stream(content), announced, call_id="this", at=NOW, **options)


def test_an_object_is_stored_with_one_request_and_reads_back(
    proxy: CountingProxy, open_store: StoreMaker
) -> None:
    store = open_store(tags={"kept by": "pitr & co"})

    outcome = put(store, sha256=hashlib.sha256(CONTENT).hexdigest())

    assert outcome.verdict is Verdict.STORED
    assert proxy.requests == {"PUT": 1}
    assert store.writes == 1
    found = store.head(store.key_of("object"))
    assert found is not None
    assert (found.size_bytes, found.etag) == (len(CONTENT), outcome.etag)
    assert found.metadata == {"pitr-call": "this", "pitr-size": str(len(CONTENT))}
    assert b"".join(store.get_range(found.key, 0, len(CONTENT), etag=found.etag)) == CONTENT
    assert store.reads == 2


@pytest.mark.parametrize("size", [0, 1, 1024 * 1024 - 1, 1024 * 1024, 3 * 1024 * 1024])
def test_objects_of_every_size_come_back_as_they_went(open_store: StoreMaker, size: int) -> None:
    store = open_store()
    content = (CONTENT * 2)[:size]

    outcome = store.put(store.key_of("o"), Stream(content), size, call_id="this", at=NOW)

    assert outcome.verdict is Verdict.STORED
    found = store.head(store.key_of("o"))
    assert found is not None
    assert found.size_bytes == size
    assert b"".join(store.get_range(found.key, 0, size)) == content


def test_a_large_object_is_framed_in_constant_memory() -> None:
    class Zeros:
        left = 200 * 1024 * 1024

        def read(self, size: int, /) -> bytes:
            given = min(size, self.left)
            self.left -= given
            return bytes(given)

    body = FramedBody(Zeros(), Zeros.left)
    tracemalloc.start()
    sent = 0
    while part := body.read(16384):
        sent += len(part)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert sent == body.wire_bytes
    assert peak < 8 * 1024 * 1024


def test_an_existing_object_is_never_replaced(proxy: CountingProxy, open_store: StoreMaker) -> None:
    first = put(open_store())
    store = open_store()

    second = store.put(store.key_of("object"), Stream(b"other"), 5, call_id="that", at=NOW)

    # Not known yet: were the object this call's own, something on the way had sent the request twice.
    assert (second.verdict, second.code) == (Verdict.UNKNOWN, "PreconditionFailed")
    assert "prefix" in second.remedy
    found = store.head(store.key_of("object"))
    assert found is not None
    assert (found.etag, found.metadata["pitr-call"]) == (first.etag, "this")
    assert proxy.requests["PUT"] == 2


def test_a_store_that_refuses_at_once_is_sent_nothing_of_the_object(
    proxy: CountingProxy, open_store: StoreMaker
) -> None:
    proxy.mishap, proxy.answer = "answer", _answer(403, "AccessDenied")

    outcome = put(open_store())
    proxy.stop()

    assert outcome.verdict is Verdict.REFUSED
    assert proxy.requests == {"PUT": 1}
    assert proxy.body_bytes == 0


@pytest.mark.parametrize(
    "content", [CONTENT[:-1], CONTENT[:10], b"", CONTENT + b"!"], ids=["one short", "short", "empty", "more"]
)
def test_a_body_that_is_not_what_was_announced_never_becomes_an_object(
    proxy: CountingProxy, open_store: StoreMaker, content: bytes
) -> None:
    store = open_store()

    outcome = put(store, content=content)

    assert outcome.verdict is Verdict.REFUSED
    assert "announced" in outcome.said
    assert proxy.writes <= 1
    assert store.head(store.key_of("object")) is None


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), ValueError("an artifact is damaged")])
def test_a_body_that_cannot_be_read_to_its_end_never_becomes_an_object(
    proxy: CountingProxy, open_store: StoreMaker, error: Exception
) -> None:
    class Failing(Stream):
        def read(self, size: int, /) -> bytes:
            if self._content.tell() > 1024 * 1024:
                raise error
            return super().read(size)

    store = open_store()

    outcome = store.put(store.key_of("object"), Failing(CONTENT), len(CONTENT), call_id="this", at=NOW)

    assert outcome.verdict is Verdict.REFUSED
    assert str(error) in outcome.said
    assert proxy.requests == {"PUT": 1}
    assert store.head(store.key_of("object")) is None


def test_a_body_whose_digest_is_not_the_announced_one_never_becomes_an_object(open_store: StoreMaker) -> None:
    store = open_store()

    outcome = put(store, sha256="0" * 64)

    assert outcome.verdict is Verdict.REFUSED
    assert "SHA-256" in outcome.said
    assert store.head(store.key_of("object")) is None


def test_the_store_refuses_what_was_damaged_on_the_way(proxy: CountingProxy, open_store: StoreMaker) -> None:
    store = open_store()
    proxy.mishap = "damage"

    outcome = put(store)

    assert outcome.verdict is Verdict.REFUSED
    assert "not stored" in outcome.remedy
    assert proxy.writes == 1
    assert store.head(store.key_of("object")) is None


def test_a_store_writes_once(proxy: CountingProxy, open_store: StoreMaker) -> None:
    store = open_store()
    put(store)

    with pytest.raises(SecondWrite):
        put(store, "another")

    assert proxy.writes == 1


def test_a_retry_that_botocore_wants_does_not_leave(proxy: CountingProxy, open_store: StoreMaker) -> None:
    store = open_store()
    proxy.mishap, proxy.answer = "answer", _answer(500)

    def at_once(**_: object) -> Any:
        return 0

    # As if retries were on, whatever the reason: the number is the seconds to wait.
    store._writer.client.meta.events.register("needs-retry.s3.PutObject", at_once)

    outcome = put(store)

    assert outcome.verdict is Verdict.UNKNOWN
    assert proxy.writes == 1
    assert store.head(store.key_of("object")) is None


def test_after_the_write_the_guard_stops_whatever_its_client_is_asked_for(
    proxy: CountingProxy, open_store: StoreMaker
) -> None:
    store = open_store()
    put(store)
    where = {"Bucket": store.place.bucket}
    writer: Any = store._writer.client

    asked: tuple[Callable[[], object], ...] = (
        lambda: writer.put_object(**where, Key="again", Body=b""),
        lambda: writer.head_bucket(**where),
        lambda: writer.create_bucket(Bucket="another"),
        lambda: writer.create_multipart_upload(**where, Key="again"),
    )
    for ask in asked:
        with pytest.raises(SecondWrite):
            ask()

    assert proxy.requests == {"PUT": 1}
    assert store.writes == 1


def test_not_even_an_admin_deletes_a_locked_object_before_its_day(
    open_store: StoreMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    from botocore.exceptions import ClientError

    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ADMIN_KEY)
    store = open_store(bucket=LOCKED_BUCKET, object_lock={"mode": "COMPLIANCE", "days": 2})

    outcome = put(store)

    assert outcome.verdict is Verdict.STORED
    assert outcome.version_id
    where = {"Bucket": LOCKED_BUCKET, "Key": store.key_of("object"), "VersionId": outcome.version_id}
    until = store._reader.get_object_retention(**where)["Retention"]["RetainUntilDate"]  # type: ignore[attr-defined]
    assert abs(until - NOW - timedelta(days=2)) < timedelta(seconds=2)
    with pytest.raises(ClientError):
        store._reader.delete_object(**where)  # type: ignore[attr-defined]


def test_a_range_is_given_whole_or_refused(open_store: StoreMaker) -> None:
    store = open_store()
    put(store)
    key = store.key_of("object")

    assert b"".join(store.get_range(key, 100, 1000)) == CONTENT[100:1100]
    assert b"".join(store.get_range(key, 100, 0)) == b""
    with pytest.raises(StoreUnavailable, match="shorter than its index"):
        list(store.get_range(key, len(CONTENT) - 10, 11))
    with pytest.raises(StoreUnavailable, match="412"):
        list(store.get_range(key, 0, 10, etag='"0123"'))


def test_a_read_that_breaks_is_taken_up_where_it_broke_a_few_times(
    proxy: CountingProxy, open_store: StoreMaker
) -> None:
    store = open_store()
    put(store)
    key = store.key_of("object")

    proxy.cut_reads = 2
    assert b"".join(store.get_range(key, 1, len(CONTENT) - 2)) == CONTENT[1:-1]
    assert store.reads == proxy.requests["GET"] == 3

    proxy.cut_reads = 100
    with pytest.raises(StoreUnavailable, match="the connection broke 4 times"):
        list(store.get_range(key, 0, len(CONTENT)))
    assert proxy.writes == 1


def test_a_listing_gives_what_begins_with_the_prefix(open_store: StoreMaker) -> None:
    for name in ("b", "a", "other/c"):
        put(open_store(), name)
    store = open_store()

    assert [line.key for line in store.list(store.key_of(""))] == [
        store.key_of(name) for name in ("a", "b", "other/c")
    ]
    assert [line.size_bytes for line in store.list(store.key_of("other/"))] == [len(CONTENT)]
    assert store.reads == 2


def test_the_wrong_secret_is_refused_and_not_shown(
    proxy: CountingProxy, open_store: StoreMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a-wrong-secret")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "a-session-token")
    store = open_store()

    outcome = put(store)
    with pytest.raises(StoreUnavailable) as caught:
        store.head(store.key_of("object"))

    assert outcome.verdict is Verdict.REFUSED
    assert proxy.writes == 1
    for text in (repr(outcome), repr(store), repr(vars(store)), str(caught.value), repr(store.place)):
        assert "a-wrong-secret" not in text
        assert "a-session-token" not in text


def test_a_clock_that_is_wrong_is_named(open_store: StoreMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("botocore.auth.get_current_datetime", lambda *_: datetime(2020, 1, 1))  # noqa: DTZ001

    outcome = put(open_store())

    assert (outcome.verdict, outcome.code) == (Verdict.REFUSED, "RequestTimeTooSkewed")
    assert "clock of this machine" in outcome.remedy


def test_a_bucket_that_is_not_there_is_not_made(proxy: CountingProxy, open_store: StoreMaker) -> None:
    store = open_store(bucket="not-there")

    outcome = put(store)

    assert outcome.verdict is Verdict.REFUSED
    assert proxy.requests == {"PUT": 1}


def test_a_configured_proxy_is_used(
    proxy: CountingProxy, open_store: StoreMaker, s3_server: S3Server
) -> None:
    outcome = put(open_store(endpoint_url=s3_server.url, proxies={"http": proxy.url}))

    assert outcome.verdict is Verdict.STORED
    assert proxy.requests == {"PUT": 1}


def test_secrets_that_a_store_echoes_are_taken_out(
    proxy: CountingProxy, open_store: StoreMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SESSION_TOKEN", "a-session-token")
    proxy.mishap = "answer"
    proxy.answer = _answer(400, "ExpiredToken", f"Token a-session-token of {SECRET_KEY} is over")

    outcome = put(open_store())

    assert (outcome.verdict, outcome.code) == (Verdict.REFUSED, "ExpiredToken")
    assert "Token *** of *** is over" in outcome.said
    assert "new credentials" in outcome.remedy


def test_without_credentials_no_store_is_opened(
    open_store: StoreMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")

    with pytest.raises(SettingsError, match="no credentials"):
        open_store()
    with pytest.raises(SettingsError, match="nobody"):
        open_store(profile="nobody")


def test_a_missing_ca_bundle_is_found_before_anything_is_sent(
    proxy: CountingProxy, open_store: StoreMaker, tmp_path: Path
) -> None:
    with pytest.raises(SettingsError, match="ca_bundle"):
        open_store(ca_bundle=str(tmp_path / "none.pem"))
    assert proxy.requests == {}


def test_more_than_one_request_takes_is_refused_before_it_is_sent(
    proxy: CountingProxy, open_store: StoreMaker
) -> None:
    store = open_store()
    with pytest.raises(BadRequest, match="5 GiB"):
        store.put("k", Stream(b""), MAX_PUT_BYTES + 1, call_id="this", at=NOW)
    assert proxy.requests == {}


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_nobody_there_means_that_nothing_was_sent(open_store: StoreMaker, scheme: str) -> None:
    outcome = put(open_store(endpoint_url=f"{scheme}://127.0.0.1:1"))

    assert outcome.verdict is Verdict.REFUSED
    assert "could not be reached (Connection refused); nothing of the object was sent" in outcome.said


def test_an_endpoint_that_speaks_no_tls_gets_nothing_of_the_object(
    s3_server: S3Server, open_store: StoreMaker
) -> None:
    outcome = put(open_store(endpoint_url=s3_server.url.replace("http:", "https:")))

    assert outcome.verdict is Verdict.REFUSED
    assert "TLS" in outcome.said
    assert "ca_bundle" in outcome.remedy


def test_over_tls_it_is_one_request_too_and_only_to_whom_the_bundle_vouches_for(
    s3_server: S3Server, open_store: StoreMaker, tmp_path: Path
) -> None:
    certificate, context = self_signed(tmp_path)
    proxy = CountingProxy(s3_server.port, tls=context)
    try:
        stranger = put(open_store(endpoint_url=proxy.url))
        assert proxy.requests == {}
        trusted = put(open_store(endpoint_url=proxy.url, ca_bundle=str(certificate)))
    finally:
        proxy.stop()

    assert stranger.verdict is Verdict.REFUSED
    assert "TLS" in stranger.said
    assert "nothing of the object was sent" in stranger.said
    assert trusted.verdict is Verdict.STORED
    assert proxy.requests == {"PUT": 1}
    assert b"".join(open_store().get_range(open_store().key_of("object"), 0, len(CONTENT))) == CONTENT


@pytest.mark.parametrize(
    "settings",
    [
        {"endpoint_url": "https://me:hidden@s3.example.com"},
        {"proxies": {"https": "http://me:hidden@proxy"}},
        {"bucket": "mine--euw1-az1--x-s3"},
        {"secret_access_key": "hidden"},
        {"sse_kms_key_id": "key"},
        {"prefix": "/a"},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_settings_that_hold_a_secret_or_make_no_sense_are_refused_without_showing_it(
    open_store: StoreMaker, settings: dict[str, object]
) -> None:
    with pytest.raises(ValueError, match="validation error") as caught:
        open_store(**settings)
    assert "hidden" not in str(caught.value)


def _answer(status: int, code: str = "", message: str = "") -> bytes:
    body = f"<Error><Code>{code}</Code><Message>{message}</Message></Error>" if code else ""
    return f"HTTP/1.1 {status} X\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()
