"""One upload, in as many requests as it has parts: counted at a proxy, on a real S3 server."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from pitr_pipelines.offsite.answers import SecondWrite, Verdict
from pitr_pipelines.offsite.budget import CallState, claim, read_entry, send
from pitr_pipelines.offsite.parts import PartsStore
from pitr_pipelines.offsite.settling import call_id_of, conclude, settle
from pitr_pipelines_tests.offsite.conftest import StoreMaker
from pitr_pipelines_tests.offsite.s3_server import CountingProxy, Mishap
from pitr_pipelines_tests.offsite.uploads import (
    ALL_WELL,
    AT,
    CONTENT,
    DAY,
    MIB,
    PART,
    Stream,
    answer_of,
    call,
    in_parts,
    left_lying,
    name_of,
    object_of,
    put,
    time_for,
    writes_by_kind,
)


def test_a_large_object_goes_as_one_upload_and_reads_back(
    proxy: CountingProxy, open_store: StoreMaker, tmp_path: Path
) -> None:
    store = in_parts(open_store)

    entry = call(tmp_path, store)

    assert entry.state is CallState.CONFIRMED
    assert writes_by_kind(proxy) == ALL_WELL
    assert entry.requests == {"CreateMultipartUpload": 1, "UploadPart": 3, "CompleteMultipartUpload": 1}
    assert (entry.request_count, entry.reads) == (5, 1)
    found = store.head(store.key_of("envelope"))
    assert found is not None
    assert found.metadata == {"pitr-call": call_id_of(entry), "pitr-size": str(len(CONTENT))}
    assert b"".join(store.get_range(found.key, 0, len(CONTENT), etag=found.etag)) == CONTENT
    assert left_lying(store) == []


def test_what_one_request_carries_goes_with_one_request(proxy: CountingProxy, open_store: StoreMaker) -> None:
    store = PartsStore(open_store().place, one_request_bytes=len(CONTENT))

    outcome = put(store, sha256=hashlib.sha256(CONTENT).hexdigest())

    assert outcome.verdict is Verdict.STORED
    assert proxy.requests == {"PUT": 1}
    assert store.requests == {"PutObject": 1}


@pytest.mark.parametrize(
    ("mishap", "answer"),
    [
        ("answer", answer_of(500, "InternalError")),
        ("answer", answer_of(503, "SlowDown")),
        ("answer-late", answer_of(503)),
        ("answer-after", answer_of(500, "InternalError")),
        ("answer", answer_of(200)),
        ("reset-before-body", b""),
        ("reset-mid-body", b""),
        ("reset-answer", b""),
        ("swallow-answer", b""),
        ("damage", b""),
    ],
    ids=name_of,
)
def test_a_part_that_failed_goes_again_and_every_request_is_counted(
    proxy: CountingProxy, open_store: StoreMaker, tmp_path: Path, mishap: Mishap, answer: bytes
) -> None:
    proxy.mishap, proxy.answer, proxy.spoils, proxy.mishaps_left = mishap, answer, {"part"}, 2
    store = in_parts(open_store, answer_timeout_s=time_for(mishap))

    entry = call(tmp_path, store)

    assert entry.state is CallState.CONFIRMED, entry
    assert writes_by_kind(proxy) == ALL_WELL | {"part": 5}
    assert entry.requests is not None
    assert entry.requests["UploadPart"] == 5
    assert b"".join(open_store().get_range(store.key_of("envelope"), 0, len(CONTENT))) == CONTENT


@pytest.mark.parametrize(
    ("answer", "attempts"),
    [
        (answer_of(503, "SlowDown"), 4),
        (answer_of(403, "AccessDenied"), 1),
        (answer_of(404, "NoSuchUpload"), 1),
    ],
    ids=["SlowDown", "AccessDenied", "NoSuchUpload"],
)
def test_a_part_that_does_not_arrive_ends_the_upload_for_certain(
    proxy: CountingProxy, open_store: StoreMaker, tmp_path: Path, answer: bytes, attempts: int
) -> None:
    proxy.mishap, proxy.answer, proxy.spoils = "answer", answer, {"part"}
    store = in_parts(open_store)

    entry = call(tmp_path, store)

    assert entry.state is CallState.REFUSED
    assert "part 1 of 3 did not arrive" in (entry.said or "")
    assert writes_by_kind(proxy) == {"create": 1, "part": attempts, "abort": 1}
    assert store.head(store.key_of("envelope")) is None
    assert left_lying(store) == []


@pytest.mark.parametrize("mishap", ["answer", "answer-after", "swallow-answer", "reset-before-body"])
def test_an_upload_that_could_not_be_begun_sends_no_part(
    proxy: CountingProxy, open_store: StoreMaker, tmp_path: Path, mishap: Mishap
) -> None:
    proxy.mishap, proxy.answer, proxy.spoils = mishap, answer_of(500, "InternalError"), {"create"}
    store = in_parts(open_store, answer_timeout_s=time_for(mishap))

    entry = call(tmp_path, store)

    assert entry.state is CallState.REFUSED
    assert "no part was sent" in (entry.said or "")
    assert writes_by_kind(proxy) == {"create": 1}
    assert store.head(store.key_of("envelope")) is None


@pytest.mark.parametrize(
    ("mishap", "answer", "state", "stored", "aborts"),
    [
        ("answer", answer_of(500, "InternalError"), CallState.UNKNOWN, False, 0),
        ("answer", answer_of(503, "SlowDown"), CallState.REFUSED, False, 1),
        ("answer", answer_of(403, "AccessDenied"), CallState.REFUSED, False, 1),
        ("answer", answer_of(307, "TemporaryRedirect"), CallState.UNKNOWN, False, 0),
        # S3 answers 200 at once, and says later in the body that it came to nothing.
        ("answer", answer_of(200, "InternalError"), CallState.UNKNOWN, False, 0),
        ("answer", answer_of(200, "SlowDown"), CallState.UNKNOWN, False, 0),
        ("answer", answer_of(200), CallState.UNKNOWN, False, 0),
        ("reset-before-body", b"", CallState.UNKNOWN, False, 0),
        ("swallow-answer", b"", CallState.CONFIRMED, True, 0),
        ("reset-answer", b"", CallState.CONFIRMED, True, 0),
        ("answer-after", answer_of(500, "InternalError"), CallState.CONFIRMED, True, 0),
        ("answer-after", answer_of(404, "NoSuchUpload"), CallState.CONFIRMED, True, 0),
        # Something on the way completes it, and then once more for good measure.
        ("twice", b"", CallState.CONFIRMED, True, 1),
    ],
    ids=name_of,
)
def test_one_complete_leaves_and_the_ledger_ends_as_the_store_has_it(
    proxy: CountingProxy,
    open_store: StoreMaker,
    tmp_path: Path,
    mishap: Mishap,
    answer: bytes,
    state: CallState,
    stored: bool,
    aborts: int,
) -> None:
    proxy.mishap, proxy.answer, proxy.spoils = mishap, answer, {"complete"}
    store = in_parts(open_store, answer_timeout_s=time_for(mishap))

    entry = call(tmp_path, store)

    assert entry.state is state, entry
    assert writes_by_kind(proxy) == ALL_WELL | ({"abort": aborts} if aborts else {})
    later, _ = settle(tmp_path, DAY, open_store(), at=AT + timedelta(days=1))
    assert later is not None
    assert later.state is (CallState.CONFIRMED if stored else CallState.REFUSED)
    assert (store.head(store.key_of("envelope")) is not None) == stored


def test_an_upload_whose_maker_died_behind_it_is_settled_from_the_store(
    proxy: CountingProxy, open_store: StoreMaker, tmp_path: Path
) -> None:
    store = in_parts(open_store)
    entry = send(claim(tmp_path, DAY, at=AT), object_of(store), at=AT)
    put(store, call_id=call_id_of(entry))

    settled, _ = settle(tmp_path, DAY, open_store(), at=AT)

    assert settled is not None
    assert (settled.state, settled.requests, settled.reads) == (CallState.CONFIRMED, None, 1)
    assert writes_by_kind(proxy) == ALL_WELL


def test_a_time_out_of_the_complete_is_unknown_until_a_look(
    proxy: CountingProxy, open_store: StoreMaker
) -> None:
    proxy.mishap, proxy.spoils = "swallow-answer", {"complete"}

    outcome = put(in_parts(open_store, answer_timeout_s=time_for("swallow-answer")))

    assert outcome.verdict is Verdict.UNKNOWN
    assert "look at the store" in outcome.remedy


def test_an_upload_never_takes_the_place_of_another_object(
    proxy: CountingProxy, open_store: StoreMaker, tmp_path: Path
) -> None:
    first = put(open_store(), call_id="another")
    store = in_parts(open_store)

    entry = call(tmp_path, store)

    assert entry.state is CallState.REFUSED
    assert "not from this call" in (entry.said or "")
    found = store.head(store.key_of("envelope"))
    assert found is not None
    assert found.etag == first.etag
    assert proxy.kinds["abort"] == 1
    assert left_lying(store) == []


@pytest.mark.parametrize(
    ("content", "fails_after"),
    [(CONTENT[:-1], None), (CONTENT[: PART + 10], None), (CONTENT + b"!", None), (CONTENT, PART)],
    ids=["one short", "short", "more", "not readable"],
)
def test_a_source_that_is_not_as_announced_is_never_completed(
    proxy: CountingProxy, open_store: StoreMaker, content: bytes, fails_after: int | None
) -> None:
    store = in_parts(open_store)

    outcome = put(store, Stream(content, fails_after=fails_after))

    assert outcome.verdict is Verdict.REFUSED
    assert "could not be read as announced" in outcome.said
    assert (proxy.kinds["complete"], proxy.kinds["abort"]) == (0, 1)
    assert store.head(store.key_of("envelope")) is None


def test_a_source_with_another_digest_is_never_completed(
    proxy: CountingProxy, open_store: StoreMaker
) -> None:
    outcome = put(in_parts(open_store), sha256="0" * 64)

    assert outcome.verdict is Verdict.REFUSED
    assert "SHA-256" in outcome.said
    assert proxy.kinds["complete"] == 0


def test_an_upload_that_cannot_be_aborted_says_what_removes_it(
    proxy: CountingProxy, open_store: StoreMaker
) -> None:
    proxy.mishap, proxy.answer, proxy.spoils = "answer", answer_of(500, "InternalError"), {"abort"}

    outcome = put(in_parts(open_store), Stream(CONTENT[:-1]))

    assert outcome.verdict is Verdict.REFUSED
    assert "AbortIncompleteMultipartUpload" in outcome.said
    assert proxy.kinds["abort"] == 1


def test_an_interrupted_upload_is_aborted_on_the_way_out(
    proxy: CountingProxy, open_store: StoreMaker
) -> None:
    class Interrupted(Stream):
        def read(self, size: int, /) -> bytes:
            if self._content.tell() >= PART:
                raise KeyboardInterrupt
            return super().read(size)

    store = in_parts(open_store)
    with pytest.raises(KeyboardInterrupt):
        put(store, Interrupted(CONTENT))

    assert writes_by_kind(proxy) == {"create": 1, "part": 1, "abort": 1}
    assert left_lying(store) == []


def test_after_the_upload_the_guard_stops_whatever_its_client_is_asked_for(
    proxy: CountingProxy, open_store: StoreMaker
) -> None:
    store = in_parts(open_store)
    put(store)
    before = proxy.requests.copy()
    where: dict[str, Any] = {"Bucket": store.place.bucket, "Key": "again"}
    writer: Any = store._writer.client

    asked: tuple[Callable[[], object], ...] = (
        lambda: writer.create_multipart_upload(**where),
        lambda: writer.upload_part(**where, UploadId="x", PartNumber=1, Body=b""),
        lambda: writer.complete_multipart_upload(**where, UploadId="x", MultipartUpload={"Parts": []}),
        lambda: writer.put_object(**where, Body=b""),
        lambda: writer.delete_object(**where),
    )
    for ask in asked:
        with pytest.raises(SecondWrite):
            ask()
    with pytest.raises(SecondWrite):
        put(store)

    assert proxy.requests == before


UPLOADER = """
import json, sys
from datetime import UTC, date, datetime
from pathlib import Path
from pitr_pipelines.offsite.budget import CallObject, claim, send
from pitr_pipelines.offsite.parts import PartsStore
from pitr_pipelines.offsite.settling import call_id_of
from pitr_pipelines.offsite_settings import Place

place, ledger, stop_at = Place.model_validate_json(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
size, at = 12 * 1024**2, datetime(2026, 3, 1, 3, 0, tzinfo=UTC)

class Stream:
    read_so_far = 0

    def read(self, wanted, /):
        if self.read_so_far >= stop_at:
            print("here", flush=True)
            sys.stdin.read()
        given = bytes(min(wanted, size - self.read_so_far))
        self.read_so_far += len(given)
        return given

store = PartsStore(place, one_request_bytes=1, part_bytes=5 * 1024**2)
key = store.key_of("envelope")
carries = CallObject(endpoint_url=place.endpoint_url, bucket=place.bucket, key=key, size_bytes=size)
entry = send(claim(ledger, date(2026, 3, 1), at=at), carries, at=at)
store.put(key, Stream(), size, call_id=call_id_of(entry), at=at)
"""


@pytest.mark.parametrize(("stop_at", "parts"), [(0, 0), (PART + MIB, 1), (2 * PART + MIB, 2)])
def test_a_process_killed_in_the_middle_leaves_no_object_and_the_next_day_goes(
    proxy: CountingProxy, open_store: StoreMaker, tmp_path: Path, stop_at: int, parts: int
) -> None:
    store = in_parts(open_store)
    arguments = [store.place.model_dump_json(), str(tmp_path), str(stop_at)]
    process = subprocess.Popen(
        [sys.executable, "-c", UPLOADER, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "here\n"
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=30)

    assert store.head(store.key_of("envelope")) is None
    assert writes_by_kind(proxy) == {"create": 1} | ({"part": parts} if parts else {})
    after = read_entry(tmp_path, DAY)
    assert after is not None
    assert (after.state, after.requests) == (CallState.SENT, None)
    later, _ = settle(tmp_path, DAY, open_store(), at=AT + timedelta(days=1))
    assert later is not None
    assert later.state is CallState.REFUSED

    tomorrow = DAY + timedelta(days=1)
    entry = send(claim(tmp_path, tomorrow, at=AT), object_of(store), at=AT)
    outcome = put(store, call_id=call_id_of(entry))
    assert conclude(tmp_path, tomorrow, outcome, store, at=AT).state is CallState.CONFIRMED
    assert (proxy.kinds["create"], proxy.kinds["complete"]) == (2, 1)
