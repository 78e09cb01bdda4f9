"""The object store: one write request, ever, and the reads.

The promise of `put`: exactly one HTTP request leaves for it, or none. Nothing is looked at before it (no
HEAD, no list, no bucket made), botocore's retries are off, region redirects (which botocore would first ask
the bucket about) are not followed, and below all that a guard sits where requests are handed to the
connection, which lets one pass and stops every other of this store's write client for good (wire.py). An
instance writes once; who wants to write again must open another, with another day's claim in hand. What is
larger than one request carries goes in parts, if settings allow it (parts.py).

`Expect: 100-continue` is sent: it is the same request, and it lets the store refuse before the gigabytes
have gone. No second one can come of it, since the body cannot be rewound.

In that one request: `If-None-Match: *`, so that no object is ever replaced; the object in `aws-chunked`
frames with its SHA-256 behind it, read once, in constant memory, with an exact Content-Length
(framing.py); the id of the call and the size as metadata, by which the object is known later; and Object
Lock, storage class, encryption and tags where configured. Over plain http the content is not signed (that
would mean reading it twice), only summed: use https beyond one's own machine.

Reads go through a client of their own, which may retry. They are counted, not limited.

Nothing here is printed with a secret in it, and no place but the store is ever written to.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from pitr_pipelines.errors import BadRequest
from pitr_pipelines.offsite import answers, wire
from pitr_pipelines.offsite.answers import Outcome, StoreUnavailable, Verdict
from pitr_pipelines.offsite.framing import FramedBody, Readable
from pitr_pipelines.offsite_settings import Place

if TYPE_CHECKING:
    from botocore.client import BaseClient

MAX_PUT_BYTES = 5 * 1024**3
"""S3's limit for one request: https://docs.aws.amazon.com/AmazonS3/latest/userguide/upload-objects.html"""

CALL_KEY = "pitr-call"
SIZE_KEY = "pitr-size"

_READ_BYTES = 1024 * 1024
_READ_ATTEMPTS = 4


@dataclass(frozen=True, slots=True)
class StoredObject:
    """What the store says of one object. `metadata` is what its writer put beside it, names in lower case."""

    key: str
    size_bytes: int
    etag: str
    modified_at: datetime
    metadata: dict[str, str]
    version_id: str | None = None


@dataclass(frozen=True, slots=True)
class Listed:
    """One line of a listing."""

    key: str
    size_bytes: int
    modified_at: datetime


class ObjectStore:
    """One place in a store of objects. `reads` counts the HTTP requests that left for a look.

    Keys are whole: `key_of` puts the place's prefix before a name, nothing else does. Not for several
    threads at once.
    """

    def __init__(self, place: Place) -> None:
        """Find the credentials, and build the write client. Nothing is asked of the store.

        Finding credentials may ask whoever issues them (an instance's role, SSO). Raises SettingsError if
        there are none, or the profile or CA bundle is not there: before a day is claimed for nothing.
        """
        self.place = place
        self.reads = 0
        self._session = wire.session_of(place)
        secrets = wire.secrets_of(self._session)
        # A closure, so that nobody who prints what this holds prints them.
        self._clean: Callable[[str], str] = lambda text: answers.without_secrets(text, secrets)
        self._writer = wire.WriteClient(self._session, place)

    def __repr__(self) -> str:
        return f"ObjectStore({self.place.bucket!r}, prefix={self.place.prefix!r})"

    @property
    def endpoint_url(self) -> str:
        """Where requests go, as boto3 has worked it out."""
        return self._writer.endpoint_url

    @property
    def requests(self) -> Counter[str]:
        """Count, by S3's name of the request, every one that left for a write."""
        return +self._writer.requests

    @property
    def writes(self) -> int:
        """How many write requests left, of whatever kind."""
        return self._writer.requests.total()

    def key_of(self, name: str) -> str:
        """Return the key of a name in this place."""
        return self.place.prefix + name

    def put(
        self,
        key: str,
        body: Readable,
        size_bytes: int,
        *,
        call_id: str,
        at: datetime,
        sha256: str | None = None,
    ) -> Outcome:
        """Send one object with one request, and return what became of it. It is never sent again.

        `body` gives exactly `size_bytes` when read, with SHA-256 `sha256` (hex) if that is known; if it does
        not, no object comes of it. `call_id` marks the object as this call's (settling.call_id_of). `at` is
        when it is sent; Object Lock counts from it. `answers` says what is stored, refused or unknown.
        Errors of the store and the network are outcomes, not exceptions. Raises BadRequest for more than
        5 GiB, and SecondWrite if this store has written before: nothing is sent then.
        """
        if size_bytes > MAX_PUT_BYTES:
            raise BadRequest(
                f"{size_bytes} bytes do not go in one request: S3 takes 5 GiB ({MAX_PUT_BYTES} bytes)",
                remedy="Compress more, use incremental base backups, or back up fewer databases with it.",
            )
        self._writer.allow({wire.PUT: 1})
        framed = FramedBody(body, size_bytes, sha256=sha256)
        parameters = self._describe(key, size_bytes, call_id, at) | {"IfNoneMatch": "*"}
        try:
            return self._cleaned(self._put(framed, parameters))
        finally:
            self._writer.close()

    def head(self, key: str) -> StoredObject | None:
        """Return what the store says of an object; None if it says that there is none (404).

        Raises StoreUnavailable for every other answer, and for none. Mind that S3 answers 403 for an absent
        object to whoever may not list the bucket.
        """
        with self._reading(f"looking for {key}") as errors:
            try:
                answer = self._reader.head_object(**self._of(key))  # type: ignore[attr-defined]
            except errors as error:
                if answers.status_of(error) == 404:
                    return None
                raise
        return StoredObject(
            key=key,
            size_bytes=answer["ContentLength"],
            etag=answer["ETag"],
            modified_at=answer["LastModified"],
            metadata={name.lower(): value for name, value in answer["Metadata"].items()},
            version_id=answer.get("VersionId"),
        )

    def get_range(self, key: str, offset: int, length: int, *, etag: str | None = None) -> Iterator[bytes]:
        """Yield exactly `length` bytes of an object from `offset` on, as they come, in parts of up to 1 MiB.

        With `etag` only of that object: one put in its place raises. A connection that breaks is taken up
        again where it broke, a few times. Raises StoreUnavailable if not all of them can be had, then or in
        the middle. What the bytes are is for the caller to verify: whoever stops early got less.
        """
        done = 0
        failures = 0
        while done < length:
            try:
                for part in self._get(key, offset + done, length - done, etag):
                    done += len(part)
                    yield part
            except _Broken as error:
                failures += 1
                if failures >= _READ_ATTEMPTS:
                    raise StoreUnavailable(
                        f"reading {key}: the connection broke {failures} times, {length - done} of "
                        f"{length} bytes are missing: {self._clean(str(error))}",
                        remedy="Ask again when the network is better; nothing was changed.",
                    ) from None

    def list(self, prefix: str) -> Iterator[Listed]:
        """Yield every object whose key begins with `prefix` (a whole one: see `key_of`), in order of keys."""
        pages = self._reader.get_paginator("list_objects_v2").paginate(
            Bucket=self.place.bucket, Prefix=prefix, **self._owner()
        )
        with self._reading(f"listing {prefix or 'everything'}"):
            for page in pages:
                for line in page.get("Contents", ()):
                    yield Listed(line["Key"], line["Size"], line["LastModified"])

    @cached_property
    def _reader(self) -> BaseClient:
        client = wire.client_of(self._session, self.place, attempts=_READ_ATTEMPTS)
        client.meta.events.register("before-send.s3", self._count_read)
        return client

    def _put(self, framed: FramedBody, parameters: dict[str, Any]) -> Outcome:
        try:
            response = self._writer.send(wire.PUT, parameters, framed)
        except wire.errors_of_sending() as error:
            if framed.failure is not None and not answers.is_answer(error):
                return answers.of_held_back(str(framed.failure))
            return answers.of_error(error, started=framed.started)
        outcome = answers.of_success(response, framed.checksum)
        if outcome.verdict is Verdict.STORED and not framed.finished:
            return Outcome(
                Verdict.UNKNOWN,
                "the store said stored before it had everything",
                "Something between here and the store answers in its place: look at `proxies`.",
            )
        return outcome

    def _cleaned(self, outcome: Outcome) -> Outcome:
        return replace(outcome, said=self._clean(outcome.said))

    def _describe(self, key: str, size_bytes: int, call_id: str, at: datetime) -> dict[str, Any]:
        """Return what the request that makes an object says of it, but for the condition."""
        place = self.place
        parameters = self._of(key) | {
            "ContentType": "application/x-tar",
            "Metadata": {CALL_KEY: call_id, SIZE_KEY: str(size_bytes)},
        }
        if place.storage_class:
            parameters["StorageClass"] = place.storage_class
        if place.sse:
            parameters["ServerSideEncryption"] = place.sse
        if place.sse_kms_key_id:
            parameters["SSEKMSKeyId"] = place.sse_kms_key_id
        if place.tags:
            parameters["Tagging"] = urlencode(place.tags)
        if place.object_lock:
            parameters["ObjectLockMode"] = place.object_lock.mode
            parameters["ObjectLockRetainUntilDate"] = at.astimezone(UTC) + timedelta(
                days=place.object_lock.days
            )
        return parameters

    def _get(self, key: str, offset: int, length: int, etag: str | None) -> Iterator[bytes]:
        wanted = self._of(key) | {"Range": f"bytes={offset}-{offset + length - 1}"}
        if etag is not None:
            wanted["IfMatch"] = etag
        with self._reading(f"reading {key}"):
            answer = self._reader.get_object(**wanted)  # type: ignore[attr-defined]
        stream = answer["Body"]
        try:
            said = answer.get("ContentRange", "").split("/")[0]
            if said != f"bytes {offset}-{offset + length - 1}":
                raise StoreUnavailable(
                    f"reading {key}: bytes {offset} to {offset + length - 1} were asked for, and the store "
                    f"gives {said or 'the whole object'}",
                    remedy="The object is shorter than its index says, or the store knows no ranges.",
                )
            left = length
            while left:
                part = _read_some(stream, min(left, _READ_BYTES))
                left -= len(part)
                yield part
        finally:
            stream.close()

    def _count_read(self, **_: Any) -> None:
        self.reads += 1

    def _reading(self, doing: str) -> _Reading:
        return _Reading(self, doing)

    def _of(self, key: str) -> dict[str, Any]:
        return {"Bucket": self.place.bucket, "Key": key, **self._owner()}

    def _owner(self) -> dict[str, str]:
        owner = self.place.expected_bucket_owner
        return {"ExpectedBucketOwner": owner} if owner else {}


class _Broken(Exception):
    """A connection broke while an answer was read."""


class _Reading:
    """Turns what botocore raises while reading into StoreUnavailable, which says what and what to do."""

    def __init__(self, store: ObjectStore, doing: str) -> None:
        self._store = store
        self._doing = doing

    def __enter__(self) -> type[Exception]:
        from botocore.exceptions import ClientError

        return ClientError

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        from botocore.exceptions import BotoCoreError, ClientError

        code: str | None = None
        forbidden = False
        if isinstance(error, ClientError):
            answer = error.response.get("Error", {})
            code, status = answer.get("Code", ""), answers.status_of(error)
            said = answers.said_by(status, code, answer.get("Message", ""))
            remedy = answers.remedy_of(code, status, reading=True)
            forbidden = status in (401, 403)
        elif isinstance(error, BotoCoreError):
            said, remedy = answers.trouble(error)
        else:
            return
        raise StoreUnavailable(
            f"{self._doing} in {self._store.place.bucket}: {self._store._clean(said)}",
            remedy=remedy,
            code=code,
            forbidden=forbidden,
        ) from None


def _read_some(stream: Any, size: int) -> bytes:
    from botocore.exceptions import BotoCoreError
    from urllib3.exceptions import HTTPError

    try:
        part: bytes = stream.read(size)
    except (BotoCoreError, HTTPError, OSError) as error:
        raise _Broken(type(error).__name__) from None
    if not part:
        raise _Broken("the answer ended early")
    return part
