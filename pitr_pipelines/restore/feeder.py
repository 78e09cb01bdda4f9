"""The WAL feeder: makes each file that recovery will ask for, before it asks.

While the base backup is unpacked, and then while the server replays, segments are unpacked in the
order of the plan, in parallel, into a directory from which restore-wal.sh takes them. What is ready
there and not yet taken is never more than a fixed amount, whatever there is to replay. A file that
recovery wants again, or out of order, is made at once.

The list `expected`, written before recovery starts, says which files there are, so that one that never
existed can be told from one that is not ready. When a file cannot be made, the feeder says so in
`failed`, which makes recovery abort, and `check` raises: recovery never ends early as if all were well.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path

from pitr_pipelines.errors import PitrError
from pitr_pipelines.restore.destination import AHEAD_BYTES
from pitr_pipelines.restore.segment_files import SegmentFiles
from pitr_pipelines.restore.wal_source import InBase, WalSegment

EXPECTED = "expected"
"""The list of every file that recovery can need."""

_AHEAD_AT_LEAST = 2
_MEMORY_BYTES = 512 * 1024**2
"""How much unpacked WAL may be in memory at once."""
_WANT, _FAILED, _ALIVE = "want", "failed", "alive"
_POLL_S = 0.005
_BEAT_S = 1.0


class Feeder:
    """Serves the WAL of a plan to its recovery. Made by `feed`.

    `waited_s` is for how long, in seconds, recovery had asked for a file that was not ready.
    """

    def __init__(
        self, files: SegmentFiles, directory: Path, ahead_bytes: int, *, base_is_unpacked: bool
    ) -> None:
        self.files = files
        self.waited_s = 0.0
        self._directory = directory
        there = InBase(files.plan.base.day) if base_is_unpacked else None
        self._segments = [segment for segment in files.plan.segments if segment.place != there]
        self._place = {str(segment.name): index for index, segment in enumerate(self._segments)}
        size = files.plan.base.wal_segment_size
        self._window = max(_AHEAD_AT_LEAST, ahead_bytes // size)
        workers = max(1, min(os.cpu_count() or 1, _MEMORY_BYTES // size))
        self._pool = ThreadPoolExecutor(workers, "pitr-feed")
        self._loop = ThreadPoolExecutor(1, "pitr-feeder")
        self._running: Future[None] | None = None
        self._end = threading.Event()
        # The rest is the loop's own.
        self._working: dict[Future[None], tuple[int, ...]] = {}
        self._ready: set[int] = set()
        self._taken = 0
        """All segments before this one were taken, or passed by."""
        self._next = 0
        """The first segment that nobody has begun to make."""
        self._wanted: tuple[int, float] | None = None
        """What recovery waits for, and since when."""

    @property
    def total(self) -> int:
        """How many segments there are to serve."""
        return len(self._segments)

    def check(self) -> None:
        """Raise what kept a file from being made, if anything did."""
        if self._running is not None and self._running.done():
            self._running.result()

    def _start(self) -> None:
        names = list(self._place)
        for name, content in self.files.histories():
            self.files.write(self._directory / name, content)
            names.append(name)
        self._beat(0)
        self.files.write(self._directory / EXPECTED, "".join(f"{name}\n" for name in sorted(names)).encode())
        self._running = self._loop.submit(self._run)

    def _stop(self) -> None:
        self._end.set()
        self._loop.shutdown(wait=True)
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _run(self) -> None:
        beats, beaten = 0, time.monotonic()
        try:
            while not self._end.is_set():
                self._collect()
                self._see_what_was_taken()
                self._hear()
                self._make_ahead()
                if time.monotonic() - beaten >= _BEAT_S:
                    beats, beaten = beats + 1, time.monotonic()
                    self._beat(beats)
                if self._working:
                    wait(self._working, timeout=_POLL_S, return_when=FIRST_COMPLETED)
                else:
                    self._end.wait(_POLL_S)
        except PitrError as error:
            self._say_failed(error.what)
            raise
        finally:
            if not self._end.is_set():
                self._say_failed("the feeder has ended; the restore says why")

    def _collect(self) -> None:
        """Take note of what is ready. Raises what kept a file from being made."""
        for future in [future for future in self._working if future.done()]:
            indexes = self._working.pop(future)
            future.result()
            self._ready.update(indexes)
            if self._wanted is not None and self._wanted[0] in indexes:
                self.waited_s += max(0.0, time.time() - self._wanted[1])
                self._wanted = None

    def _see_what_was_taken(self) -> None:
        while self._ready:
            first = min(self._ready)
            path = self._directory / str(self._segments[first].name)
            if first < self._taken:
                path.unlink(missing_ok=True)  # recovery is past it
            elif path.exists():
                return
            self._ready.remove(first)
            self._taken = max(self._taken, first + 1)

    def _hear(self) -> None:
        """Begin at once with what recovery waits for."""
        want = self._directory / _WANT
        try:
            since = want.stat().st_mtime
            name = want.read_text("ascii", "replace")
        except FileNotFoundError:
            return
        if not name.endswith("\n"):
            return  # it is being written
        want.unlink()
        index = self._place.get(name.strip())
        if index is None or index in self._ready:
            return
        self._wanted = (index, since)
        # It may have gone back: at its end, recovery reads the segment in which it ended once more.
        self._taken, self._next = index, index + 1
        if not self._is_being_made(index):
            self._begin([index])

    def _make_ahead(self) -> None:
        while self._next < len(self._segments):
            held = len(self._ready) + sum(map(len, self._working.values()))
            if held >= self._window:
                return
            index, self._next = self._next, self._next + 1
            if index not in self._ready and not self._is_being_made(index):
                self._begin(self._together(index))

    def _together(self, index: int) -> list[int]:
        """Return what is made in one go: a base backup is read as a whole, for all that it alone has."""
        place = self._segments[index].place
        if not isinstance(place, InBase):
            return [index]
        return [
            other
            for other in range(index, len(self._segments))
            if self._segments[other].place == place
            and other not in self._ready
            and not self._is_being_made(other)
        ]

    def _is_being_made(self, index: int) -> bool:
        return any(index in indexes for indexes in self._working.values())

    def _begin(self, indexes: Sequence[int]) -> None:
        segments = [self._segments[index] for index in indexes]
        self._working[self._pool.submit(self._make, segments)] = tuple(indexes)

    def _make(self, segments: Sequence[WalSegment]) -> None:
        place = segments[0].place
        if isinstance(place, InBase):
            names = [str(segment.name) for segment in segments]
            self.files.make_from_base(place.day, names, self._directory)
        else:
            self.files.make(segments[0], self._directory / str(segments[0].name))

    def _beat(self, count: int) -> None:
        self.files.write(self._directory / _ALIVE, f"{count}\n".encode())

    def _say_failed(self, why: str) -> None:
        path = self._directory / _FAILED
        if not path.exists():
            self.files.write(path, f"{' '.join(why.split())}\n".encode())


@contextmanager
def feed(
    files: SegmentFiles,
    directory: Path,
    *,
    ahead_bytes: int = AHEAD_BYTES,
    base_is_unpacked: bool = True,
) -> Iterator[Feeder]:
    """Serve the WAL of a plan from `directory` for the length of the block.

    What the plan's base backup carries is served too, unless `base_is_unpacked`: then recovery finds it in
    pg_wal. The directory exists and belongs to the server's account. What is left in it afterwards is for the
    caller to remove.
    """
    feeder = Feeder(files, directory, ahead_bytes, base_is_unpacked=base_is_unpacked)
    try:
        feeder._start()
        yield feeder
    finally:
        feeder._stop()
