"""What a day's off-site copy came to, as it is shown, recorded in Dagster, and asked for by scripts."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date
from zoneinfo import ZoneInfo

from pydantic import BaseModel, ConfigDict

from pitr_pipelines.catalog.records import Moment
from pitr_pipelines.errors import PitrError
from pitr_pipelines.offsite.budget import LOOK_AGAIN, CallObject, CallState, LedgerEntry
from pitr_pipelines.offsite.envelope_index import EnvelopeIndex, MemberKind
from pitr_pipelines.units import show_bytes


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class DatabasePart(_Part):
    """What an envelope carries of one database: days of base backups, how many hours of WAL, bytes.

    Bytes are of the files themselves, as they lie here.
    """

    bases: tuple[date, ...] = ()
    hours: int = 0
    size_bytes: int = 0


class CopyReport(_Part):
    """One day's call and what it carried.

    `made` is whether it was made just now. `missing` are the databases without a base backup of the day in
    it. `problems` says in a line each what could not be sealed, bundled, read or sent; `left_bytes` is what
    there was no room for, and which goes with the next ones.
    """

    day: date
    state: CallState
    made: bool
    said: str
    remedy: str = ""
    object: CallObject | None = None
    sent_at: Moment | None = None
    ended_at: Moment | None = None
    encrypted: bool | None = None
    databases: dict[str, DatabasePart] = {}
    missing: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    left_bytes: int = 0
    reads: int = 0

    @property
    def seconds(self) -> float | None:
        """How long the call took."""
        if self.sent_at is None or self.ended_at is None:
            return None
        return (self.ended_at - self.sent_at).total_seconds()

    def lines(self, zone: ZoneInfo) -> Iterator[str]:
        """Yield the report as lines for people, with moments in `zone`."""
        size = f", {show_bytes(self.object.size_bytes)}" if self.object else ""
        where = f" {self.object.bucket}/{self.object.key}" if self.object else ""
        yield f"off-site copy of {self.day}: {self.state}{where}{size}"
        if self.ended_at is not None:
            yield f"  {self.ended_at.astimezone(zone):%Y-%m-%d %H:%M:%S%z}: {self.said}"
        for name, part in self.databases.items():
            bases = f"base of {', '.join(map(str, part.bases))}" if part.bases else "no base"
            yield f"  {name:<20} {bases}, {part.hours} hours of WAL, {show_bytes(part.size_bytes)}"
        yield from self.troubles()
        if self.encrypted is False:
            yield "  not encrypted: whoever can read the bucket can read the data"

    def troubles(self) -> Iterator[str]:
        """Yield in lines for people what was missing and what could not be done."""
        if self.missing:
            yield f"  WITHOUT the day's base backup of: {', '.join(self.missing)}"
        if self.left_bytes:
            yield f"  no room for {show_bytes(self.left_bytes)} of older files: they go with the next copies"
        for problem in self.problems:
            yield f"  PROBLEM  {problem}"


class CallFailed(PitrError):
    """The day's call was made, or spent, and the store is not known to have the copy."""

    exit_code = 12

    def __init__(self, report: CopyReport) -> None:
        remedy = report.remedy or "What it did not deliver goes with the next day's."
        if report.state is CallState.UNKNOWN:
            remedy += f"\n{LOOK_AGAIN}"
        super().__init__(f"the off-site copy of {report.day} is {report.state}: {report.said}", remedy=remedy)
        self.report = report


def report_of(
    entry: LedgerEntry, index: EnvelopeIndex | None, *, made: bool = False, remedy: str = ""
) -> CopyReport:
    """Describe a day from its ledger entry, and the index of what was sent if that is known."""
    return CopyReport(
        day=entry.day,
        state=entry.state,
        made=made,
        said=entry.said or f"claimed by {entry.claimed_by}",
        remedy=remedy,
        object=entry.object,
        sent_at=entry.sent_at,
        ended_at=entry.ended_at,
        encrypted=index.encrypted if index else None,
        databases=_parts(index) if index else {},
        reads=entry.reads,
    )


def _parts(index: EnvelopeIndex) -> dict[str, DatabasePart]:
    found: dict[str, DatabasePart] = {}
    bases: dict[str, set[date]] = {}
    for member in index.members:
        file = member.artifact
        if file.database is None:
            continue
        part = found.get(file.database, DatabasePart())
        if file.kind is MemberKind.BASE and file.day is not None:
            bases.setdefault(file.database, set()).add(file.day)
        found[file.database] = part.model_copy(
            update={
                "hours": part.hours + (file.kind is MemberKind.BUNDLE),
                "size_bytes": part.size_bytes + file.size_bytes,
                "bases": tuple(sorted(bases.get(file.database, ()))),
            }
        )
    return found
