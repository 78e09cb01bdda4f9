"""The body of a write request: framed, of a length known beforehand, and whole or nothing.

The object goes as S3's `aws-chunked`, with its SHA-256 in a trailer behind the last byte: so it is read
once, nothing of it is kept, and the store compares what arrived before it makes an object of it. That
last frame leaves only when exactly as many bytes were read as were announced, no more follow, and the
digest is the expected one if there is one. A source that ends early, has more, or differs therefore never
becomes an object: the request stays unfinished, short of its Content-Length and of its checksum.

Format: https://docs.aws.amazon.com/AmazonS3/latest/API/sigv4-streaming-trailers.html
"""

from __future__ import annotations

import base64
import hashlib
from typing import Any, Protocol

CHUNK_BYTES = 1024 * 1024
TRAILER = "x-amz-checksum-sha256"

_LAST_FRAME_BYTES = len(f"0\r\n{TRAILER}:\r\n\r\n") + 44  # 44: 32 bytes in base64


class Readable(Protocol):
    """What an object is read from: as a file opened for bytes, but it need not seek."""

    def read(self, size: int, /) -> bytes: ...


class BodyDiffers(Exception):
    """The source is not what was announced. The last frame was held back, so nothing was stored."""


class FramedBody:
    """A body that botocore can read once, from start to end, and cannot rewind.

    `started` tells whether anything was handed to the connection, `finished` whether the last frame was made;
    `failure` is what reading the source raised, if it did: then the last frame was not, and never will be.
    """

    def __init__(self, source: Readable, size_bytes: int, *, sha256: str | None = None) -> None:
        self._source = source
        self._size_bytes = size_bytes
        self._expected = sha256
        self._left = size_bytes
        self._digest = hashlib.sha256()
        self._ready = memoryview(b"")
        self.started = False
        self.finished = False
        self.failure: BaseException | None = None

    @property
    def wire_bytes(self) -> int:
        """Return how many bytes the body takes on the wire, frames included."""
        full, rest = divmod(self._size_bytes, CHUNK_BYTES)
        return full * _frame_bytes(CHUNK_BYTES) + (_frame_bytes(rest) if rest else 0) + _LAST_FRAME_BYTES

    def put_into(self, request: Any) -> None:
        """Make this the body of a request of botocore's that is about to be signed."""
        request.data = self
        request.headers["Expect"] = "100-continue"
        request.headers["Content-Encoding"] = "aws-chunked"
        request.headers["Content-Length"] = str(self.wire_bytes)
        request.headers["X-Amz-Decoded-Content-Length"] = str(self._size_bytes)
        request.headers["X-Amz-Trailer"] = TRAILER
        request.headers["X-Amz-Sdk-Checksum-Algorithm"] = "SHA256"
        # From this the signer knows that a checksum follows: it signs STREAMING-UNSIGNED-PAYLOAD-TRAILER.
        request.context["checksum"] = {
            "request_algorithm": {"algorithm": "sha256", "in": "trailer", "name": TRAILER}
        }

    @property
    def checksum(self) -> str:
        """Return the SHA-256 of what was read so far, in base64 as S3 writes it."""
        return base64.b64encode(self._digest.digest()).decode()

    def read(self, size: int = -1) -> bytes:
        """Return the next bytes for the wire, at most `size`; none at the end.

        Raises BodyDiffers, before the last frame leaves, and whatever the source raises.
        """
        if self.failure is not None:
            raise BodyDiffers("it failed before")
        if not self._ready and not self.finished:
            try:
                self._ready = memoryview(self._next_frame())
            except BaseException as error:
                # The connection turns it into an error of its own, from which nobody could tell whose it was.
                self.failure = error
                raise
        given = self._ready if size < 0 else self._ready[:size]
        self._ready = self._ready[len(given) :]
        self.started = self.started or bool(given)
        return bytes(given)

    def _next_frame(self) -> bytes:
        if not self._left:
            return self._last_frame()
        wanted = min(self._left, CHUNK_BYTES)
        chunk = bytearray()
        while len(chunk) < wanted:
            part = self._source.read(wanted - len(chunk))
            if not part:
                have = self._size_bytes - self._left + len(chunk)
                raise BodyDiffers(f"it ended after {have} of the {self._size_bytes} bytes announced")
            chunk += part
        if len(chunk) > wanted:
            raise BodyDiffers("its source gives more bytes than it is asked for")
        self._left -= wanted
        self._digest.update(chunk)
        return b"".join((b"%x\r\n" % wanted, chunk, b"\r\n"))

    def _last_frame(self) -> bytes:
        if self._source.read(1):
            raise BodyDiffers(f"it has more than the {self._size_bytes} bytes announced")
        if self._expected is not None and self._digest.hexdigest() != self._expected:
            raise BodyDiffers("its content changed: the SHA-256 is not the one announced")
        self.finished = True
        return f"0\r\n{TRAILER}:{self.checksum}\r\n\r\n".encode()


def _frame_bytes(content: int) -> int:
    return len(f"{content:x}") + content + 4
