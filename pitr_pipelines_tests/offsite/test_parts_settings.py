"""What an upload in parts carries with it, and how large it may be."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pitr_pipelines.errors import BadRequest
from pitr_pipelines.offsite import parts
from pitr_pipelines.offsite.answers import Verdict
from pitr_pipelines.offsite.budget import claim, read_entry
from pitr_pipelines.offsite.object_store import MAX_PUT_BYTES, ObjectStore
from pitr_pipelines.offsite.parts import (
    MAX_PART_BYTES,
    MAX_PARTS,
    PART_BYTES,
    PartsStore,
    largest_object,
    part_size,
)
from pitr_pipelines_tests.offsite.conftest import StoreMaker
from pitr_pipelines_tests.offsite.s3_server import (
    ADMIN_KEY,
    LOCKED_BUCKET,
    CountingProxy,
    S3Server,
    self_signed,
)
from pitr_pipelines_tests.offsite.uploads import (
    ALL_WELL,
    AT,
    CONTENT,
    DAY,
    MIB,
    PART,
    Stream,
    answer_of,
    header_of,
    in_parts,
    put,
    writes_by_kind,
)


def test_object_lock_tags_and_class_are_those_of_the_settings(
    proxy: CountingProxy, open_store: StoreMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ADMIN_KEY)
    store = in_parts(
        open_store,
        bucket=LOCKED_BUCKET,
        object_lock={"mode": "GOVERNANCE", "days": 3},
        storage_class="STANDARD_IA",
        tags={"kept by": "pitr & co"},
        expected_bucket_owner="123456789012",
    )
    now = datetime.now(UTC)

    outcome = put(store, at=now)

    assert outcome.verdict is Verdict.STORED, outcome
    where = {"Bucket": LOCKED_BUCKET, "Key": store.key_of("envelope")}
    reader: Any = store._reader
    assert reader.head_object(**where)["StorageClass"] == "STANDARD_IA"
    assert reader.get_object_tagging(**where)["TagSet"] == [{"Key": "kept by", "Value": "pitr & co"}]
    retention = reader.get_object_retention(**where)["Retention"]
    assert retention["Mode"] == "GOVERNANCE"
    assert abs(retention["RetainUntilDate"] - now - timedelta(days=3)) < timedelta(seconds=2)
    owners = [header_of(lines, "x-amz-expected-bucket-owner") for _, lines in proxy.heads]
    assert owners[:5] == ["123456789012"] * 5


@pytest.mark.parametrize("unit", ["request", "upload"])
def test_the_store_encrypts_what_it_keeps_if_settings_say_so(
    proxy: CountingProxy, open_store: StoreMaker, unit: str
) -> None:
    store = in_parts(open_store, sse="AES256") if unit == "upload" else open_store(sse="AES256")

    outcome = put(store)

    assert outcome.verdict is Verdict.STORED, outcome
    key = store.key_of("envelope")
    reader: Any = store._reader
    assert reader.head_object(Bucket=store.place.bucket, Key=key)["ServerSideEncryption"] == "AES256"
    assert b"".join(store.get_range(key, 0, len(CONTENT))) == CONTENT
    assert b"".join(store.get_range(key, PART - 100, 200)) == CONTENT[PART - 100 : PART + 100]


@pytest.mark.parametrize("unit", ["request", "upload"])
def test_a_key_of_kms_is_named_in_the_request_that_makes_the_object(
    proxy: CountingProxy, open_store: StoreMaker, unit: str
) -> None:
    """The test server has no KMS: what is held against the settings is the request."""
    proxy.mishap, proxy.answer = "answer", answer_of(501, "NotImplemented")
    settings: dict[str, object] = {"sse": "aws:kms", "sse_kms_key_id": "a-key"}
    store = in_parts(open_store, **settings) if unit == "upload" else open_store(**settings)

    outcome = put(store)

    assert outcome.verdict is Verdict.REFUSED
    ((kind, lines),) = proxy.heads
    assert kind == ("create" if unit == "upload" else "put")
    assert header_of(lines, "x-amz-server-side-encryption") == "aws:kms"
    assert header_of(lines, "x-amz-server-side-encryption-aws-kms-key-id") == "a-key"


def test_over_tls_it_is_one_upload_too(s3_server: S3Server, open_store: StoreMaker, tmp_path: Path) -> None:
    certificate, context = self_signed(tmp_path)
    proxy = CountingProxy(s3_server.port, tls=context)
    try:
        store = in_parts(open_store, endpoint_url=proxy.url, ca_bundle=str(certificate))
        outcome = put(store)
        given = b"".join(store.get_range(store.key_of("envelope"), 0, len(CONTENT)))
    finally:
        proxy.stop()

    assert outcome.verdict is Verdict.STORED, outcome
    assert given == CONTENT
    assert writes_by_kind(proxy) == ALL_WELL


def test_every_request_of_an_upload_says_what_makes_it_safe(
    proxy: CountingProxy, open_store: StoreMaker
) -> None:
    put(in_parts(open_store))

    said = dict(proxy.heads)
    assert header_of(said["create"], "x-amz-checksum-algorithm") == "SHA256"
    assert header_of(said["create"], "x-amz-meta-pitr-call") == "this"
    assert header_of(said["part"], "x-amz-trailer") == "x-amz-checksum-sha256"
    assert header_of(said["complete"], "if-none-match") == "*"
    assert header_of(said["complete"], "x-amz-mp-object-size") == str(len(CONTENT))


@given(st.integers(1, largest_object("upload")))
def test_parts_are_as_small_as_the_stores_rules_allow(size: int) -> None:
    part = part_size(size)

    assert PART_BYTES <= part <= MAX_PART_BYTES
    assert -(-size // part) <= MAX_PARTS
    assert part == PART_BYTES or size / (part - MIB) > MAX_PARTS


def test_what_is_too_large_is_refused_before_anything_is_sent(
    proxy: CountingProxy, open_store: StoreMaker
) -> None:
    assert largest_object("request") == MAX_PUT_BYTES == 5 * 1024**3
    assert largest_object("upload") == 10_000 * 512 * MIB < 5 * 1024**4
    assert part_size(300 * 1024**3) == 32 * MIB
    assert part_size(1024**4) == 105 * MIB
    store = in_parts(open_store)
    with pytest.raises(BadRequest, match="10000 parts, of 512 MiB at most"):
        store.put("k", Stream(b""), largest_object("upload") + 1, call_id="this", at=AT)
    assert proxy.requests == {}


def test_the_unit_of_the_settings_decides_what_is_opened(open_store: StoreMaker) -> None:
    place = open_store().place

    assert type(parts.open_store(place, "request")) is ObjectStore
    assert type(parts.open_store(place, "upload")) is PartsStore


def test_the_ledger_reads_files_of_before_there_were_counts(tmp_path: Path) -> None:
    taken = claim(tmp_path, DAY, at=AT)
    old = json.loads(taken.ledger_file.read_text())
    for name in ("requests", "code"):
        del old[name]
    taken.ledger_file.write_text(json.dumps(old))

    entry = read_entry(tmp_path, DAY)

    assert entry is not None
    assert (entry.requests, entry.request_count, entry.code) == (None, None, None)
