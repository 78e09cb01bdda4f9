"""Looking into WAL files with pg_waldump: the commits in a stretch, and where it really ends.

Recovery to a time stops at a commit or abort record; so whether a target can be stopped at is a
question about these records, and only the WAL itself can answer it.
Source: recoveryStopsBefore() in PostgreSQL's src/backend/access/transam/xlogrecovery.c.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from pitr_pipelines.postgres.binaries import Binaries
from pitr_pipelines.wal.lsn import Lsn, SegmentName

_RECORD = re.compile(
    r"rmgr: Transaction\s.*?\btx:\s*(?P<xid>\d+), lsn: (?P<lsn>[0-9A-F]+/[0-9A-F]+),.*?"
    r"desc: (?P<kind>COMMIT|ABORT)(?:_PREPARED)? (?:\d+: )?"
    r"(?P<time>\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(?:\.\d+)?) UTC"
)


@dataclass(frozen=True, slots=True)
class TransactionEnd:
    """A commit or abort record, at which recovery to a time can stop."""

    xid: int
    lsn: Lsn
    at: datetime
    committed: bool


@dataclass(frozen=True, slots=True)
class WalTail:
    """The last records of a stretch of WAL.

    `switched` is true when the stretch ends with a segment switch: everything that was written
    before the switch is in it. `last_record` is None when no record begins in the stretch.
    """

    last_record: Lsn | None
    switched: bool


def transaction_ends(
    binaries: Binaries, directory: Path, first: SegmentName, last: SegmentName, segment_size: int
) -> Iterator[TransactionEnd]:
    """Yield the commits and aborts in the segments `first` to `last`, which lie in `directory`.

    A record that begins in `last` and ends beyond it is not seen.
    """
    for line in _dump(binaries, directory, first, last, segment_size, "--rmgr=Transaction"):
        match = _RECORD.search(line)
        if match:
            yield TransactionEnd(
                int(match["xid"]),
                Lsn.parse(match["lsn"]),
                datetime.fromisoformat(match["time"]).replace(tzinfo=UTC),
                match["kind"] == "COMMIT",
            )


def read_tail(binaries: Binaries, directory: Path, segment: SegmentName, segment_size: int) -> WalTail:
    """Return how a segment that lies in `directory` ends."""
    last: str | None = None
    for line in _dump(binaries, directory, segment, segment, segment_size):
        if line.startswith("rmgr:"):
            last = line
    if last is None:
        return WalTail(None, False)
    match = re.search(r"lsn: ([0-9A-F]+/[0-9A-F]+)", last)
    return WalTail(Lsn.parse(match[1]) if match else None, "desc: SWITCH" in last)


def _dump(
    binaries: Binaries,
    directory: Path,
    first: SegmentName,
    last: SegmentName,
    segment_size: int,
    *options: str,
) -> Iterator[str]:
    """Yield pg_waldump's lines; it ends with an error where a record runs on past `last`."""
    command = [
        str(binaries.program("pg_waldump")),
        *options,
        f"--path={directory}",
        f"--timeline={last.timeline}",
        f"--start={first.start(segment_size)}",
        f"--end={last.end(segment_size)}",
    ]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={"TZ": "UTC", "PGTZ": "UTC", "LC_ALL": "C"},
    ) as process:
        assert process.stdout is not None
        yield from process.stdout
