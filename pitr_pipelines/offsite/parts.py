"""Unit `upload`: one logical upload a day, in parts if the object is more than one request carries.

The promise: an object of up to 5 GiB goes with one request, as ever. A larger one goes as exactly one
multipart upload: one CreateMultipartUpload, one UploadPart for each part, and one CompleteMultipartUpload,
which alone makes the object, all at once, and with `If-None-Match: *` never in the place of another. Every
request is counted by its kind, and the guard of wire.py stops a second Create or Complete where it would
leave. Nothing is looked at, listed, or taken up again: an upload of another process is never completed here.

A part that failed is sent again, a few times: the same bytes under the same number, which replace what may
have arrived, so that it is no second upload. The source is read once; what can be sent again is held in
memory, one part at a time. Parts have 32 MiB, and more only if 10,000 of them, as many as S3 takes, were too
few: up to 312 GiB need 32 MiB, 1 TiB 105 MiB, and the largest object (`largest_object`) 512 MiB. Nothing is
put on disk.

Whatever fails before the Complete is a refusal for certain. The upload is then aborted, with one request. If
that fails too, or the process dies, its parts stay in the store, are no object, and cost money: give the
bucket a lifecycle rule with AbortIncompleteMultipartUpload. A Complete without an answer is unknown, and
settled by a look, as for one request: the object carries the call's id and size from the Create.

Limits: https://docs.aws.amazon.com/AmazonS3/latest/userguide/qfacts.html
"""

from __future__ import annotations

import base64
import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Literal

from pitr_pipelines.errors import BadRequest, PitrError
from pitr_pipelines.offsite import answers, wire
from pitr_pipelines.offsite.answers import Outcome, Verdict
from pitr_pipelines.offsite.framing import CHUNK_BYTES, BodyDiffers, FramedBody, Readable
from pitr_pipelines.offsite.object_store import MAX_PUT_BYTES, ObjectStore
from pitr_pipelines.offsite_settings import Place

Unit = Literal["request", "upload"]

MAX_PARTS = 10_000
PART_BYTES = 32 * 1024**2
MAX_PART_BYTES = 512 * 1024**2
"""What is held in memory at most. S3 would take parts of 5 GiB."""

PAUSES_S = (1.0, 5.0, 25.0)
"""How long to wait before a part is sent again, the first time, the second, and the last."""

MAX_RESENDS = 100
"""How many parts of an upload are sent again in all. A store that needs more is not up to it today."""

_AGAIN = {
    "SlowDown",
    "ServiceUnavailable",
    "BadDigest",
    "InvalidDigest",
    "IncompleteBody",
    "XAmzContentChecksumMismatch",
}
"""Refusals of a part that say nothing against sending it again."""


def largest_object(unit: Unit) -> int:
    """Return the size in bytes of the largest object that one call of this unit carries."""
    return MAX_PUT_BYTES if unit == "request" else MAX_PARTS * MAX_PART_BYTES


def part_size(size_bytes: int, *, least: int = PART_BYTES) -> int:
    """Return the size of each part but the last, for an object of a size: in whole MiB, 32 if it can be."""
    mib = 1024**2
    needed = -(-size_bytes // MAX_PARTS)
    return max(least, -(-needed // mib) * mib)


def open_store(place: Place, unit: Unit) -> ObjectStore:
    """Open a place for one call of a unit, and for reads. Raises SettingsError, as ObjectStore does."""
    return ObjectStore(place) if unit == "request" else PartsStore(place)


class PartsStore(ObjectStore):
    """A place in a store, to which one upload may be sent: with one request if it fits, else in parts.

    `one_request_bytes` is what goes with one request, `part_bytes` the least size of a part, `pauses_s` the
    waits before a part is sent again.
    """

    def __init__(
        self,
        place: Place,
        *,
        one_request_bytes: int = MAX_PUT_BYTES,
        part_bytes: int = PART_BYTES,
        pauses_s: tuple[float, ...] = PAUSES_S,
    ) -> None:
        super().__init__(place)
        self._one_request_bytes = one_request_bytes
        self._part_bytes = part_bytes
        self._pauses_s = pauses_s

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
        """Send one object with one upload, and return what became of it. It is never sent again.

        As ObjectStore.put, but for the size: raises BadRequest for more than `largest_object("upload")`.
        """
        if size_bytes <= self._one_request_bytes:
            return super().put(key, body, size_bytes, call_id=call_id, at=at, sha256=sha256)
        if size_bytes > largest_object("upload"):
            raise BadRequest(
                f"{size_bytes} bytes do not go in one upload: {MAX_PARTS} parts, of {MAX_PART_BYTES >> 20} "
                f"MiB at most, since they are held in memory, make {largest_object('upload')} bytes",
                remedy="Compress more, use incremental base backups, or back up fewer databases with it.",
            )
        part_bytes = part_size(size_bytes, least=self._part_bytes)
        count = -(-size_bytes // part_bytes)
        self._writer.allow({wire.CREATE: 1, wire.PART: count + MAX_RESENDS, wire.COMPLETE: 1, wire.ABORT: 1})
        upload = _Upload(
            self._writer,
            self._of(key),
            _Source(body, size_bytes, part_bytes, sha256),
            pauses_s=self._pauses_s,
        )
        try:
            return self._cleaned(upload.send(self._describe(key, size_bytes, call_id, at)))
        finally:
            self._writer.close()


class _Source:
    """The object as parts, read once, into one buffer. Raises BodyDiffers if it is not as announced."""

    def __init__(self, body: Readable, size_bytes: int, part_bytes: int, sha256: str | None) -> None:
        self.size_bytes = size_bytes
        self.count = -(-size_bytes // part_bytes)
        self._body = body
        self._buffer = bytearray(part_bytes)
        self._read = 0
        self._expected = sha256
        self._digest = hashlib.sha256()

    def next(self) -> memoryview:
        """Return the next part; it is overwritten by the one after it.

        The last is only given once the whole source was as announced.
        """
        wanted = min(len(self._buffer), self.size_bytes - self._read)
        part = memoryview(self._buffer)[:wanted]
        filled = 0
        while filled < wanted:
            piece = self._body.read(min(CHUNK_BYTES, wanted - filled))
            if not piece:
                raise BodyDiffers(
                    f"it ended after {self._read + filled} of the {self.size_bytes} bytes announced"
                )
            if len(piece) > wanted - filled:
                raise BodyDiffers("its source gives more bytes than it is asked for")
            part[filled : filled + len(piece)] = piece
            filled += len(piece)
        self._read += wanted
        if self._expected is not None:
            self._digest.update(part)
        if self._read == self.size_bytes:
            self._at_end()
        return part

    def _at_end(self) -> None:
        if self._body.read(1):
            raise BodyDiffers(f"it has more than the {self.size_bytes} bytes announced")
        if self._expected is not None and self._digest.hexdigest() != self._expected:
            raise BodyDiffers("its content changed: the SHA-256 is not the one announced")


class _Bytes:
    """A part, to be read once. It is not copied."""

    def __init__(self, content: memoryview) -> None:
        self._left = content

    def read(self, size: int, /) -> bytes:
        given = bytes(self._left[:size])
        self._left = self._left[len(given) :]
        return given


class _GivenUp(Exception):
    """The upload cannot be completed, for the reason in the outcome."""

    def __init__(self, outcome: Outcome) -> None:
        super().__init__(outcome.said)
        self.outcome = outcome


@dataclass
class _Upload:
    """One multipart upload, from its Create to its Complete or its Abort."""

    writer: wire.WriteClient
    where: dict[str, Any]
    source: _Source
    pauses_s: tuple[float, ...]
    sleep: Callable[[float], None] = time.sleep
    resends_left: int = MAX_RESENDS
    done: list[dict[str, Any]] = field(default_factory=list)
    digests: list[bytes] = field(default_factory=list)

    def send(self, described: dict[str, Any]) -> Outcome:
        """Send it all, and return what became of it."""
        try:
            upload_id = self._create(described)
        except _GivenUp as given_up:
            return given_up.outcome
        try:
            for number in range(1, self.source.count + 1):
                self._part(upload_id, number, self._read())
            outcome = self._complete(upload_id)
        except _GivenUp as given_up:
            outcome = given_up.outcome
        except BaseException:
            if not self.writer.requests[wire.COMPLETE]:
                self._abort(upload_id)
            raise
        if outcome.verdict is not Verdict.REFUSED and outcome.code != answers.NAME_TAKEN:
            # Perhaps it is being completed, or was: then it is not to be touched.
            return outcome
        if self._abort(upload_id):
            return outcome
        return replace(outcome, said=f"{outcome.said}; {_STAYS}")

    def _create(self, described: dict[str, Any]) -> str:
        try:
            answer = self.writer.send(wire.CREATE, described | {"ChecksumAlgorithm": "SHA256"})
        except wire.errors_of_sending() as error:
            # Perhaps the store has begun an upload that nobody knows the id of: no object comes of that.
            raise _GivenUp(_refused(answers.of_error(error, started=False), "no part was sent")) from None
        upload_id = answer.get("UploadId")
        if not upload_id:
            said = "the answer to the beginning of the upload is not S3's: it has no id; no part was sent"
            raise _GivenUp(Outcome(Verdict.REFUSED, said, "Look at `endpoint_url` and `proxies`."))
        return str(upload_id)

    def _read(self) -> memoryview:
        try:
            return self.source.next()
        except (PitrError, BodyDiffers, OSError, ValueError) as error:
            raise _GivenUp(answers.of_held_back(str(error))) from None

    def _part(self, upload_id: str, number: int, content: memoryview) -> None:
        """Send a part until it is there, as often as is right. Raises _GivenUp."""
        pauses = iter(self.pauses_s)
        while (outcome := self._part_once(upload_id, number, content)).verdict is not Verdict.STORED:
            pause = next(pauses, None)
            if pause is None or not self.resends_left or not _may_go_again(outcome):
                raise _GivenUp(
                    _refused(outcome, f"part {number} of {self.source.count} did not arrive, so no object")
                )
            self.resends_left -= 1
            self.sleep(pause)

    def _part_once(self, upload_id: str, number: int, content: memoryview) -> Outcome:
        framed = FramedBody(_Bytes(content), len(content))
        named = self.where | {"UploadId": upload_id, "PartNumber": number}
        try:
            answer = self.writer.send(wire.PART, named, framed)
        except wire.errors_of_sending() as error:
            return answers.of_error(error, started=framed.started)
        outcome = answers.of_success(answer, framed.checksum)
        if outcome.verdict is Verdict.STORED:
            if not framed.finished:
                return Outcome(Verdict.UNKNOWN, "the store said stored before it had everything")
            part = {"PartNumber": number, "ETag": outcome.etag, "ChecksumSHA256": framed.checksum}
            self.done.append(part)
            self.digests.append(base64.b64decode(framed.checksum))
        return outcome

    def _complete(self, upload_id: str) -> Outcome:
        digest = base64.b64encode(hashlib.sha256(b"".join(self.digests)).digest()).decode()
        named = self.where | {
            "UploadId": upload_id,
            "IfNoneMatch": "*",
            "MpuObjectSize": self.source.size_bytes,
            "MultipartUpload": {"Parts": self.done},
        }
        try:
            answer = self.writer.send(wire.COMPLETE, named)
        except wire.errors_of_sending() as error:
            # An error in the body of a 200 comes as a 500 from botocore, so as unknown.
            return answers.of_error(error, started=self._has_left(error))
        return answers.of_success(answer, f"{digest}-{len(self.done)}")

    def _has_left(self, error: Exception) -> bool:
        """Tell whether the store may have got the Complete."""
        from botocore.exceptions import ConnectTimeoutError, EndpointConnectionError, ProxyConnectionError

        unconnected = (ConnectTimeoutError, EndpointConnectionError, ProxyConnectionError)
        return bool(self.writer.requests[wire.COMPLETE]) and not isinstance(error, unconnected)

    def _abort(self, upload_id: str) -> bool:
        """Give the upload up, with one request, and tell whether the store said that it is gone."""
        try:
            self.writer.send(wire.ABORT, self.where | {"UploadId": upload_id})
        except wire.errors_of_sending() as error:
            return answers.is_answer(error) and answers.status_of(error) == 404
        return True


_STAYS = (
    "what was sent of it could not be removed, and waits for the bucket's lifecycle rule with "
    "AbortIncompleteMultipartUpload"
)


def _refused(outcome: Outcome, why: str) -> Outcome:
    """Return the outcome of an upload that cannot be completed, from that of one request."""
    remedy = answers.LATER if outcome.verdict is Verdict.UNKNOWN else outcome.remedy
    return replace(outcome, verdict=Verdict.REFUSED, said=f"{outcome.said}; {why}", remedy=remedy)


def _may_go_again(outcome: Outcome) -> bool:
    """Tell whether a part that failed so may be sent again: it was the network, or the store for a moment."""
    if outcome.code is None or outcome.code in _AGAIN:
        return True
    return outcome.verdict is Verdict.UNKNOWN and outcome.code != "NoSuchUpload"
