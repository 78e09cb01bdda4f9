"""What PostgreSQL says in its log while it recovers, and what that means for the person who waits.

The log is written by a server that we start with English messages, one line prefix and times in
UTC, so its words can be relied on; they are the same from version 15 to 18.
Source: src/backend/access/transam/xlogrecovery.c.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from pitr_pipelines.wal.lsn import Lsn

LINE_PREFIX = "%m [%p] "

_TAIL = 15
_LEVEL = re.compile(r"\[\d+\] (?P<level>LOG|WARNING|ERROR|FATAL|PANIC):  (?P<text>.*)")
_LSN = r"([0-9A-F]+/[0-9A-F]+)"
_RESTORED = re.compile(r'restored log file "([0-9A-F.a-z]+)" from archive')
_STOPPING = re.compile(r"recovery stopping (before|after) (.+)")
_AT_TRANSACTION = re.compile(r"(?:commit|abort).* of transaction (\d+), time (.+)")
_AT_LSN = re.compile(rf'WAL location \(LSN\) "{_LSN}"')
_SHUT_DOWN = "database system is shut down"
_CONSISTENT = "consistent recovery state reached"
_LAST_BY_THEN = re.compile(r"\[\d+\] DETAIL:  Last completed transaction was at log time (.+?)\.?$")
"""What a restartpoint says: the time of the last transaction that is in it."""
_LAST = re.compile(r"last completed transaction was at log time (.+)")
_MADE_UP = re.compile(r"creating missing directory: (.+)")
_REDO_DONE = re.compile(rf"redo done at {_LSN}")
_TIMELINE = re.compile(r"selected new timeline ID: (\d+)")
_INVALID = re.compile(
    rf"(?:invalid|incorrect|unexpected|out-of-sequence|record with|there is no contrecord|missing contrecord)"
    rf".* (?:at|in record at|offset) .*?{_LSN}"
)

# What stands in the log, what it means, and what to do.
_EXPLANATIONS: tuple[tuple[str, str, str], ...] = (
    (
        "restore-wal.sh: ",
        "a WAL file could not be given to recovery",
        "Nobody but the restore may touch its directory while it runs. Delete it and restore again.",
    ),
    (
        "recovery ended before configured recovery target was reached",
        "the WAL ends, or is damaged, before the target",
        "`pitr verify` finds a damaged file; `pitr restore --plan` says which moments can be reached.",
    ),
    (
        "No space left on device",
        "the file system is full",
        "Make room, or restore into a directory on a larger file system.",
    ),
    (
        "shared memory segment",
        "this machine did not give the server its memory",
        "End what uses the memory of this machine, and restore again.",
    ),
    (
        "resource manager with ID",
        "the WAL was written with the help of an extension that is not loaded here",
        "Install what the source has in shared_preload_libraries on this machine, and restore again.",
    ),
    (
        "maximum number of prepared transactions reached",
        "the source held more prepared transactions than the restore expects",
        "Restore from a newer base backup, taken after max_prepared_transactions was raised.",
    ),
    (
        "is not a child of this server's history",
        "the base backup does not lie on the branch of history that was asked for",
        "Ask for another timeline, or for a target after a base backup of that branch.",
    ),
    (
        "invalid page",
        "the WAL does not fit the base backup, so one of them is damaged",
        "Run `pitr verify`, then restore from another base backup or to another moment.",
    ),
    (
        "could not locate required checkpoint record",
        "the base backup lacks the WAL with which recovery begins",
        "Run `pitr verify`; restore from another base backup.",
    ),
)


@dataclass(frozen=True, slots=True)
class Stopped:
    """Where recovery said that it stopped: in its own words, and what they name.

    Of `xid` and `at`, `lsn` and `consistent` only that is set at which it stopped. `before` says that
    the record it stopped at was not replayed.
    """

    words: str
    before: bool
    xid: int | None = None
    at: datetime | None = None
    lsn: Lsn | None = None
    consistent: bool = False


@dataclass(slots=True)
class RecoveryLog:
    """The part of a server's log that one recovery wrote, read as it grows."""

    path: Path
    position: int = 0
    restored: dict[str, None] = field(default_factory=dict)
    """The WAL files that were given to recovery, each once, in its order."""
    stopped: Stopped | None = None
    """None while it goes on, and if it went to the end of the WAL."""
    last_transaction_at: datetime | None = None
    redo_done_at: Lsn | None = None
    timeline: int | None = None
    invalid: tuple[Lsn, str] | None = None
    """The first record that could not be read after the last file was given, and why."""
    consistent: bool = False
    ended: bool = False
    """Whether the server said that it has shut down."""
    made_up: list[str] = field(default_factory=list)
    """Directories that were missing, although the cluster was consistent, and were made, empty."""
    problems: list[str] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    """The last lines."""
    _rest: bytes = b""

    @classmethod
    def at_end_of(cls, path: Path) -> RecoveryLog:
        """Return a log of what is written from now on."""
        return cls(path, path.stat().st_size if path.exists() else 0)

    def update(self) -> None:
        """Read what was written since the last time."""
        try:
            with self.path.open("rb") as file:
                file.seek(self.position)
                data = file.read()
        except FileNotFoundError:
            return
        self.position += len(data)
        *whole, self._rest = (self._rest + data).split(b"\n")
        for line in whole:
            self._take(line.decode(errors="replace"))

    def tail(self) -> str:
        """Return the last lines, indented."""
        return "\n".join(f"  {line}" for line in self.lines) or "  (nothing)"

    def explain(self) -> tuple[str, str]:
        """Return why recovery failed, and what to do, by the first problem that is known."""
        for sign, meaning, remedy in _EXPLANATIONS:
            for problem in self.problems:
                if sign in problem:
                    return f"{meaning} ({problem})", remedy
        said = self.problems[-1] if self.problems else "it ended without saying why"
        return said, f"The whole log is {self.path}."

    def _take(self, line: str) -> None:
        self.lines = [*self.lines[1 - _TAIL :], line]
        if line.startswith("restore-wal.sh: "):
            self.problems.append(line)
            return
        match = _LEVEL.search(line)
        if match is None:
            if by_then := _LAST_BY_THEN.search(line):
                self.last_transaction_at = _moment(by_then[1])
            return
        text = match["text"]
        if match["level"] in ("ERROR", "FATAL", "PANIC"):
            self.problems.append(text)
        elif found := _MADE_UP.match(text):
            self.made_up.append(found[1])
        elif found := _RESTORED.match(text):
            # At its end, recovery asks once more for the segment in which it ended.
            if found[1] not in self.restored:
                self.restored[found[1]] = None
                self.invalid = None
        elif found := _STOPPING.match(text):
            self.stopped = _stopped(text, found[1] == "before", found[2])
        elif found := _LAST.match(text):
            self.last_transaction_at = _moment(found[1])
        elif text.startswith(_CONSISTENT):
            self.consistent = True
        elif text == _SHUT_DOWN:
            self.ended = True
        elif found := _REDO_DONE.match(text):
            self.redo_done_at = Lsn.parse(found[1])
        elif found := _TIMELINE.match(text):
            self.timeline = int(found[1])
        elif (found := _INVALID.match(text)) and self.invalid is None:
            self.invalid = Lsn.parse(found[1]), text


def _stopped(words: str, before: bool, where: str) -> Stopped:
    if found := _AT_TRANSACTION.match(where):
        return Stopped(words, before, xid=int(found[1]), at=_moment(found[2]))
    if found := _AT_LSN.match(where):
        return Stopped(words, before, lsn=Lsn.parse(found[1]))
    return Stopped(words, before, consistent=where == "reaching consistency")


def _moment(text: str) -> datetime:
    """Read a time as PostgreSQL prints it with TimeZone UTC: `2026-01-29 14:30:00.123456+00`."""
    return datetime.fromisoformat(text.strip()).astimezone(UTC)


def count_segments(names: Iterable[str]) -> int:
    """Return how many segments are among the names of WAL files."""
    return sum(1 for name in names if len(name) == 24)
