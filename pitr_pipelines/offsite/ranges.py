"""Ranges of a stored envelope, in few requests: what lies side by side is asked for together.

A gap between two members is read and thrown away where that costs less than another request. Nothing is
kept in memory but the piece at hand.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass

from pitr_pipelines.offsite.answers import StoreUnavailable
from pitr_pipelines.offsite.envelope_index import IndexEntry
from pitr_pipelines.offsite.envelope_reader import RangeSource
from pitr_pipelines.offsite.object_store import ObjectStore

GAP_BYTES = 64 * 1024
"""What is rather read than asked around: on a line of 10 Mbit/s, half of what a request takes."""
RUN_BYTES = 256 * 1024**2
"""From where on a run of neighbours ends. A broken connection is taken up again only so often in one."""
WORTHWHILE_BYTES = 8 * 1024**2
"""What must have come before a store that gave up is asked again for the rest."""


@dataclass(frozen=True)
class StoredEnvelope:
    """An object in the store as a source of ranges: a range ends where the object does.

    A store gives up after a few broken connections; here it goes on for as long as that gets further.
    """

    store: ObjectStore
    key: str
    size_bytes: int

    @property
    def name(self) -> str:
        return self.key

    def get_range(self, offset: int, length: int) -> Generator[bytes, None, None]:
        end = min(offset + length, self.size_bytes)
        while offset < end:
            begun = offset
            try:
                for piece in self.store.get_range(self.key, offset, end - offset):
                    offset += len(piece)
                    yield piece
            except StoreUnavailable:
                if offset - begun < WORTHWHILE_BYTES:
                    raise


class Neighbours:
    """A source for members that are read in their order; those that lie together, from one request.

    `count` is told of every byte of a wanted member that has come. Close it when no more is wanted.
    """

    def __init__(
        self,
        source: RangeSource,
        wanted: Iterable[IndexEntry],
        count: Callable[[int], None] | None = None,
    ) -> None:
        self._source = source
        self._runs = list(runs(wanted))
        self._count = count
        self._pieces: Iterator[bytes] | None = None
        self._held = memoryview(b"")
        self._at = 0
        self._end = 0

    @property
    def name(self) -> str:
        return self._source.name

    def get_range(self, offset: int, length: int) -> Generator[bytes, None, None]:
        if not (self._at <= offset <= self._at + GAP_BYTES and offset + length <= self._end):
            self._open(offset, length)
        while self._at < offset and (piece := self._take(offset - self._at)):
            pass
        done = 0
        while done < length and (piece := self._take(length - done)):
            done += len(piece)
            if self._count is not None:
                self._count(len(piece))
            yield bytes(piece)

    def close(self) -> None:
        """Give the connection back."""
        closing = getattr(self._pieces, "close", None)
        if closing is not None:
            closing()
        self._pieces = None
        self._end = 0

    def _open(self, offset: int, length: int) -> None:
        self.close()
        at = bisect_right(self._runs, offset, key=lambda run: run[0]) - 1
        end = offset + length
        if at >= 0:
            end = max(end, self._runs[at][1])
        self._at, self._end, self._held = offset, end, memoryview(b"")
        self._pieces = iter(self._source.get_range(offset, end - offset))

    def _take(self, size: int) -> memoryview:
        """Return up to so many bytes; none where the object ends."""
        if not self._held and self._pieces is not None:
            try:
                self._held = memoryview(next(self._pieces, b""))
            except BaseException:
                self.close()  # whoever asks on begins with another request
                raise
        piece, self._held = self._held[:size], self._held[size:]
        self._at += len(piece)
        return piece


def runs(wanted: Iterable[IndexEntry]) -> Iterator[tuple[int, int]]:
    """Yield where members that are asked for together begin and end, in their order."""
    begin = end = -1
    for entry in sorted(wanted, key=lambda entry: entry.offset):
        if begin >= 0 and entry.offset - end <= GAP_BYTES and end - begin < RUN_BYTES:
            end = entry.end
            continue
        if begin >= 0:
            yield begin, end
        begin, end = entry.offset, entry.end
    if begin >= 0:
        yield begin, end
