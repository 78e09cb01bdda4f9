"""Looking into WAL files with pg_waldump: commits, aborts, restore points, where records begin.

Recovery to a time stops at a commit or abort record; so whether a target can be stopped at is a
question about these records, and only the WAL itself can answer it.
Source: recoveryStopsBefore() in PostgreSQL's src/backend/access/transam/xlogrecovery.c.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from pitr_pipelines.errors import ArtifactDamaged, PitrError
from pitr_pipelines.postgres.binaries import Binaries
from pitr_pipelines.wal.lsn import Lsn, SegmentName

_RECORD = re.compile(
    r"rmgr: Transaction\s.*?\btx:\s*(?P<xid>\d+), lsn: (?P<lsn>[0-9A-F]+/[0-9A-F]+),.*?"
    r"desc: (?P<kind>COMMIT|ABORT)(?:_PREPARED)? (?:(?P<prepared>\d+): )?"
    r"(?P<time>\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(?:\.\d+)?) UTC"
)
_RESTORE_POINT = re.compile(
    r"rmgr: XLOG\s.*?lsn: (?P<lsn>[0-9A-F]+/[0-9A-F]+),.*?desc: RESTORE_POINT (?P<name>.*)"
)
_ANY_RECORD = re.compile(r"rmgr: .*?lsn: (?P<lsn>[0-9A-F]+/[0-9A-F]+),")
_NO_RECORD = "could not find a valid record after"
"""A segment may hold nothing but the middle of one long record."""
_END_OF_WAL = re.compile(r"invalid record length at \S+ (wanted|expected at least) \d+, got 0")


@dataclass(frozen=True, slots=True)
class TransactionEnd:
    """A commit or abort record, at which recovery to a time or to an xid can stop.

    `xid` is that of the transaction that ended, also if it was prepared before.
    """

    xid: int
    lsn: Lsn
    at: datetime
    committed: bool


def transaction_ends(
    binaries: Binaries, directory: Path, first: SegmentName, last: SegmentName, segment_size: int
) -> Iterator[TransactionEnd]:
    """Yield the commits and aborts in the segments `first` to `last`, which lie in `directory`.

    A record that begins in `last` and ends beyond it is not seen. Raises ArtifactDamaged where the WAL
    cannot be read, because what follows there is not known; PitrError if pg_waldump does not work.
    """
    for line in _dump(binaries, directory, first, last, segment_size, "--rmgr=Transaction"):
        match = _RECORD.search(line)
        if match:
            yield TransactionEnd(
                int(match["prepared"] or match["xid"]),
                Lsn.parse(match["lsn"]),
                datetime.fromisoformat(match["time"]).replace(tzinfo=UTC),
                match["kind"] == "COMMIT",
            )


def restore_points(
    binaries: Binaries, directory: Path, first: SegmentName, last: SegmentName, segment_size: int
) -> Iterator[tuple[str, Lsn]]:
    """Yield the name of each restore point and where its record begins. Raises as `transaction_ends`."""
    for line in _dump(binaries, directory, first, last, segment_size, "--rmgr=XLOG"):
        match = _RESTORE_POINT.search(line.removesuffix("\n"))
        if match:
            yield match["name"], Lsn.parse(match["lsn"])


def first_record(
    binaries: Binaries, directory: Path, first: SegmentName, last: SegmentName, segment_size: int, lsn: Lsn
) -> Lsn | None:
    """Return where the first record begins that begins at `lsn` or later and ends in `last` or before.

    What lies behind a segment switch is not found from a place before it. Raises as `transaction_ends`.
    """
    for line in _dump(binaries, directory, first, last, segment_size, "--limit=1", start=lsn):
        match = _ANY_RECORD.search(line)
        if match:
            return Lsn.parse(match["lsn"])
    return None


def last_record(
    binaries: Binaries,
    directory: Path,
    first: SegmentName,
    last: SegmentName,
    segment_size: int,
    *,
    may_end_torn: bool = False,
) -> Lsn | None:
    """Return where the last record begins that ends in `last` or before. Raises as `transaction_ends`.

    With `may_end_torn` the WAL is taken to end where it cannot be read any more, as recovery takes it.
    """
    found = None
    try:
        for line in _dump(binaries, directory, first, last, segment_size):
            found = _ANY_RECORD.search(line) or found
    except ArtifactDamaged:
        if not may_end_torn:
            raise
    return Lsn.parse(found["lsn"]) if found else None


def _dump(
    binaries: Binaries,
    directory: Path,
    first: SegmentName,
    last: SegmentName,
    segment_size: int,
    *options: str,
    start: Lsn | None = None,
) -> Iterator[str]:
    """Yield pg_waldump's lines. Raises ArtifactDamaged or PitrError where it ends with an error."""
    command = [
        str(binaries.program("pg_waldump")),
        *options,
        f"--path={directory}",
        f"--timeline={last.timeline}",
        f"--start={start if start is not None else first.start(segment_size)}",
        f"--end={last.end(segment_size)}",
    ]
    with (
        tempfile.TemporaryFile("w+") as complaints,
        subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=complaints,
            text=True,
            errors="replace",
            env={**os.environ, "TZ": "UTC", "PGTZ": "UTC", "LC_ALL": "C"},
        ) as process,
    ):
        assert process.stdout is not None
        yield from process.stdout
        if process.wait() != 0:
            complaints.seek(0)
            _judge(complaints.read().strip(), first, last)


def _judge(complaint: str, first: SegmentName, last: SegmentName) -> None:
    """Raise what pg_waldump's complaint amounts to; nothing where the WAL just holds no more."""
    if _NO_RECORD in complaint or _END_OF_WAL.search(complaint):
        return
    if "error in WAL record" in complaint:
        raise ArtifactDamaged(
            f"the WAL from {first} to {last} cannot be read to its end: {complaint}",
            remedy="If the server's pg_wal or another copy still has these segments whole, put them in "
            "their place; otherwise `pitr backup --replace`.",
        )
    raise PitrError(
        f"pg_waldump could not look into the WAL from {first} to {last}: {complaint}",
        remedy="Try again; if it stays so, check that the PostgreSQL programs are those of the server's "
        "major version.",
    )
