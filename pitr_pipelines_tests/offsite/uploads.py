"""An upload in parts of a small object, as if one request did not carry it, and what a proxy saw of it."""

from __future__ import annotations

import io
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

from pitr_pipelines.offsite.answers import Outcome
from pitr_pipelines.offsite.budget import CallObject, LedgerEntry, claim, send
from pitr_pipelines.offsite.object_store import ObjectStore
from pitr_pipelines.offsite.parts import PartsStore
from pitr_pipelines.offsite.settling import call_id_of, conclude
from pitr_pipelines_tests.offsite.conftest import StoreMaker
from pitr_pipelines_tests.offsite.s3_server import CountingProxy, Kind, Mishap

DAY = date(2026, 3, 1)
AT = datetime(2026, 3, 1, 3, 0, tzinfo=UTC)
MIB = 1024**2
PART = 5 * MIB
CONTENT = bytes(range(256)) * (12 * MIB // 256) + b"an odd end"  # three parts
ALL_WELL: dict[Kind, int] = {"create": 1, "part": 3, "complete": 1}


class Stream:
    """A body as an envelope is: it can be read, once, and nothing else."""

    def __init__(self, content: bytes, *, fails_after: int | None = None) -> None:
        self._content = io.BytesIO(content)
        self._fails_after = fails_after

    def read(self, size: int, /) -> bytes:
        if self._fails_after is not None and self._content.tell() >= self._fails_after:
            raise OSError(5, "Input/output error")
        return self._content.read(size)


def in_parts(open_one: StoreMaker, **settings: object) -> PartsStore:
    """Open a store for which anything above one byte is too large for one request."""
    place = open_one(**settings).place
    return PartsStore(place, one_request_bytes=1, part_bytes=PART, pauses_s=(0.0, 0.0, 0.0))


def put(store: ObjectStore, body: Stream | None = None, **options: Any) -> Outcome:
    options.setdefault("call_id", "this")
    options.setdefault("at", AT)
    return store.put(store.key_of("envelope"), body or Stream(CONTENT), len(CONTENT), **options)


def call(ledger: Path, store: ObjectStore) -> LedgerEntry:
    """Make a day's call as the off-site copy does, with what became of it on record."""
    entry = send(claim(ledger, DAY, at=AT), object_of(store), at=AT)
    outcome = put(store, call_id=call_id_of(entry))
    return conclude(ledger, DAY, outcome, store, at=AT)


def object_of(store: ObjectStore) -> CallObject:
    return CallObject(
        endpoint_url=store.place.endpoint_url,
        bucket=store.place.bucket,
        key=store.key_of("envelope"),
        size_bytes=len(CONTENT),
    )


def time_for(mishap: Mishap) -> float:
    """Return how long a store waits for an answer, in seconds: short only where none will come."""
    return 4 if mishap == "swallow-answer" else 20


def writes_by_kind(proxy: CountingProxy) -> dict[Kind, int]:
    return {kind: count for kind, count in proxy.kinds.items() if kind not in ("look", "read")}


def answer_of(status: int, code: str = "") -> bytes:
    body = f"<Error><Code>{code}</Code><Message>so</Message></Error>" if code else ""
    return f"HTTP/1.1 {status} X\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()


def left_lying(store: ObjectStore) -> list[str]:
    listed: dict[str, Any] = store._reader.list_multipart_uploads(  # type: ignore[attr-defined]
        Bucket=store.place.bucket, Prefix=store.place.prefix
    )
    return [upload["Key"] for upload in listed.get("Uploads", [])]


def header_of(lines: list[str], name: str) -> str | None:
    found = [line.partition(":")[2].strip() for line in lines if line.lower().startswith(f"{name}:")]
    return found[0] if found else None


def name_of(value: object) -> str:
    """Name a parameter for pytest: an answer by its status line and S3's word."""
    if not isinstance(value, bytes):
        return str(value)
    word = value.partition(b"<Code>")[2].partition(b"<")[0]
    return f"{value[9:12].decode()} {word.decode()}".strip()
