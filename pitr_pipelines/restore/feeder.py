"""The WAL feeder: makes each file that recovery will ask for, before it asks.

While the base backup is unpacked, and then while the server replays, segments are unpacked in the
order of the plan, in parallel, into a directory from which restore-wal.sh takes them. What is ready
there and not yet taken is never more than a fixed amount, whatever there is to replay. A file that
recovery wants again, or out of order, is made at once.

Each segment is looked through for what must not be replayed as it is (see diversion.py) before it is
handed out, and none is handed out before `open_up`.

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
from pitr_pipelines.postgres.binaries import Binaries
from pitr_pipelines.restore.destination import AHEAD_BYTES
from pitr_pipelines.restore.diversion import (
    BEGINNING_BYTES,
    Change,
    Diversion,
    Diverted,
    change,
    find_creations,
)
from pitr_pipelines.restore.segment_files import SegmentFiles
from pitr_pipelines.restore.wal_source import InBase
from pitr_pipelines.wal.lsn import SegmentName, WalFileKind, classify

EXPECTED = "expected"
"""The list of every file that recovery can need."""

_AHEAD_AT_LEAST = 2
_MEMORY_BYTES = 512 * 1024**2
"""How much unpacked WAL may be in memory at once."""
_WANT, _FAILED, _ALIVE, _MADE = "want", "failed", "alive", "made"
_POLL_S = 0.005
_BEAT_S = 1.0


class Feeder:
    """Serves the WAL of a plan to its recovery. Made by `feed`.

    `waited_s` is for how long, in seconds, recovery had asked for a file that was not ready.
    """

    def __init__(
        self,
        files: SegmentFiles,
        directory: Path,
        binaries: Binaries,
        ahead_bytes: int,
        *,
        base_is_unpacked: bool,
    ) -> None:
        self.files = files
        self.waited_s = 0.0
        self._binaries = binaries
        self._open = threading.Event()
        self._diverted: dict[int, Diverted] = {}
        self._changes: dict[str, tuple[Change, ...]] = {}
        """What is to be changed about a segment, because of a record that begins in the one before."""
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
        self._working: dict[Future[list[Diversion]], tuple[int, ...]] = {}
        self._made: set[int] = set()
        """Made and looked through, but not handed out."""
        self._seen: set[int] = set()
        """Looked through, at any time."""
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

    @property
    def diverted(self) -> tuple[Diverted, ...]:
        """The tablespaces that the WAL creates, as far as it was served."""
        return tuple(self._diverted.values())

    def open_up(self, pg_wal: Path | None = None) -> None:
        """Let recovery have what is ready, now that all is there that comes before it.

        `pg_wal` is where the base's own segments are; they are looked through first. Raises
        ArtifactDamaged.
        """
        for path in sorted(pg_wal.iterdir()) if pg_wal is not None else ():
            if classify(path.name) is WalFileKind.SEGMENT:
                self._look_through_own(path)
        self._open.set()

    def check(self) -> None:
        """Raise what kept a file from being made, if anything did."""
        if self._running is not None and self._running.done():
            self._running.result()

    def _look_through_own(self, path: Path) -> None:
        """Look through a segment that came with the base, together with each that can follow it."""
        size = self.files.plan.base.wal_segment_size
        name = SegmentName.parse(path.name)
        served = [s for s in self._segments if s.name.number(size) == name.number(size) + 1]
        own = path.with_name(str(name.following(size)))
        found = [self._find(path, name, self.files.beginning(segment)) for segment in served]
        if own.exists():
            with own.open("rb") as file:
                found.append(self._find(path, name, file.read(BEGINNING_BYTES)))
        elif not served:
            found.append(self._find(path, name, b""))
        for diversion in found:
            change(path, diversion.inside)
        for segment, diversion in zip(served, found, strict=False):
            self._changes[str(segment.name)] = diversion.beyond
        if own.exists():
            change(own, found[-1].beyond)

    def _find(self, path: Path, name: SegmentName, following: bytes) -> Diversion:
        found = find_creations(path, name, following, self._binaries)
        self._diverted.update((tablespace.oid, tablespace) for tablespace in found.diverted)
        return found

    def _start(self) -> None:
        names = list(self._place)
        for name, content in self.files.histories():
            self.files.write(self._directory / name, content)
            names.append(name)
        (self._directory / _MADE).mkdir(mode=0o700)
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
                self._hand_out()
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
            for index, found in zip(indexes, future.result(), strict=True):
                path = self._made_file(index)
                change(path, found.inside)
                if found.beyond:
                    self._changes[str(self._segments[index + 1].name)] = found.beyond
                self._made.add(index)
                self._seen.add(index)

    def _hand_out(self) -> None:
        """Hand out what is made, once it is known what the segment before does to it."""
        if not self._open.is_set():
            return
        for index in sorted(self._made):
            before = index - 1
            if self._is_being_made(before) or (index != self._taken and before not in self._seen):
                continue
            name = str(self._segments[index].name)
            change(self._made_file(index), self._changes.get(name, ()))
            self._made_file(index).rename(self._directory / name)
            self._made.remove(index)
            self._ready.add(index)
            if self._wanted is not None and self._wanted[0] == index:
                self.waited_s += max(0.0, time.time() - self._wanted[1])
                self._wanted = None

    def _made_file(self, index: int) -> Path:
        return self._directory / _MADE / str(self._segments[index].name)

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
        want.unlink(missing_ok=True)
        index = self._place.get(name.strip())
        if index is None or index in self._ready:
            return
        for passed in [made for made in self._made if made < index]:
            self._made.remove(passed)
            self._made_file(passed).unlink()
        self._wanted = (index, since)
        # It may have gone back: at its end, recovery reads the segment in which it ended once more.
        self._taken, self._next = index, index + 1
        if index not in self._made and not self._is_being_made(index):
            self._begin([index])

    def _make_ahead(self) -> None:
        self._next = max(self._next, self._taken)
        while self._next < len(self._segments):
            held = len(self._ready) + len(self._made) + sum(map(len, self._working.values()))
            if held >= self._window:
                return
            index, self._next = self._next, self._next + 1
            if index not in self._ready and index not in self._made and not self._is_being_made(index):
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
            and other not in self._made
            and not self._is_being_made(other)
        ]

    def _is_being_made(self, index: int) -> bool:
        return any(index in indexes for indexes in self._working.values())

    def _begin(self, indexes: Sequence[int]) -> None:
        self._working[self._pool.submit(self._make, indexes)] = tuple(indexes)

    def _make(self, indexes: Sequence[int]) -> list[Diversion]:
        """Make some segments, and look through them."""
        segments = [self._segments[index] for index in indexes]
        place = segments[0].place
        if isinstance(place, InBase):
            names = [str(segment.name) for segment in segments]
            self.files.make_from_base(place.day, names, self._directory / _MADE)
        else:
            self.files.make(segments[0], self._made_file(indexes[0]))
        return [self._look_through(index, together=index + 1 in indexes) for index in indexes]

    def _look_through(self, index: int, *, together: bool) -> Diversion:
        """`together`: the segment that follows was made just now as well, and is not changed yet."""
        beginning = b""
        if together:
            with self._made_file(index + 1).open("rb") as file:
                beginning = file.read(BEGINNING_BYTES)
        elif index + 1 < len(self._segments):
            beginning = self.files.beginning(self._segments[index + 1])
        return self._find(self._made_file(index), self._segments[index].name, beginning)

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
    binaries: Binaries,
    *,
    ahead_bytes: int = AHEAD_BYTES,
    base_is_unpacked: bool = True,
) -> Iterator[Feeder]:
    """Serve the WAL of a plan from `directory` for the length of the block.

    What the plan's base backup carries is served too, unless `base_is_unpacked`: then recovery finds it in
    pg_wal. The directory exists and belongs to the server's account. What is left in it afterwards is for the
    caller to remove.
    """
    feeder = Feeder(files, directory, binaries, ahead_bytes, base_is_unpacked=base_is_unpacked)
    try:
        feeder._start()
        yield feeder
    finally:
        feeder._stop()
