"""What lies off-site, as far as it can be told: from a listing alone, from indexes, and from records.

A listing needs no key and says days and sizes. Indexes, which are encrypted where the envelopes are, say
which bases and which hours of WAL each holds. Until which moment a database can be restored, only its
records say, so they are read where that is asked.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path

from pitr_pipelines.catalog.coverage import Gap, Window
from pitr_pipelines.catalog.inventory import read_inventory
from pitr_pipelines.catalog.layout import Layout
from pitr_pipelines.errors import ArtifactDamaged, PitrError
from pitr_pipelines.offsite.answers import StoreUnavailable
from pitr_pipelines.offsite.encryption import Identities, WrongKey
from pitr_pipelines.offsite.envelope_index import MemberKind
from pitr_pipelines.offsite.object_store import ObjectStore
from pitr_pipelines.offsite.ranges import StoredEnvelope
from pitr_pipelines.offsite.shelf import Envelope, Shelf, key_of, list_envelopes, open_listed
from pitr_pipelines.offsite.stage import Stage
from pitr_pipelines.progress import Progress, Report, silent
from pitr_pipelines.wal.hours import Hour


@dataclass(frozen=True, slots=True)
class Contents:
    """What an envelope, or all of them, hold of one database, oldest first."""

    database: str
    bases: tuple[date, ...]
    hours: tuple[Hour, ...]
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Seen:
    """One envelope in the store. `made_at` and `contents` are known only of one that could be opened.

    `problem` says why it could not; `needs_key` that a key is all that is missing.
    """

    day: date
    key: str
    size_bytes: int
    stored_at: datetime
    made_at: datetime | None = None
    encrypted: bool | None = None
    contents: tuple[Contents, ...] = ()
    problem: PitrError | None = None
    needs_key: bool = False
    envelope: Envelope | None = None


@dataclass(frozen=True, slots=True)
class Reach:
    """What of a database can be restored from envelopes alone, oldest first, and what ends it."""

    windows: tuple[Window, ...]
    gaps: tuple[Gap, ...]
    problems: tuple[str, ...]


def look(store: ObjectStore, identities: Identities | None, report: Report = silent) -> list[Seen]:
    """Look at every envelope, newest first, as far as the keys go. Raises StoreUnavailable."""
    found: list[Seen] = []
    every = list_envelopes(store)
    for day, listed in every:
        report(Progress("open", len(found) + 1, len(every), "envelopes"))
        seen = Seen(day, listed.key, listed.size_bytes, listed.modified_at)
        try:
            envelope = open_listed(StoredEnvelope(store, listed.key, listed.size_bytes), day, identities)
        except WrongKey as error:
            found.append(_unopened(seen, error, needs_key=identities is None))
        except ArtifactDamaged as error:
            found.append(_unopened(seen, error))
        except StoreUnavailable as error:
            if error.code is None:
                raise
            found.append(_unopened(seen, error))
        else:
            found.append(_opened(seen, envelope))
    return found


def shelf_of(seen: list[Seen]) -> Shelf:
    """Return the shelf of what was opened."""
    return Shelf(tuple(one.envelope for one in seen if one.envelope is not None), ())


def everything_of(seen: list[Seen], database: str) -> Contents:
    """Return what all envelopes together hold of a database."""
    held = [contents for one in seen for contents in one.contents if contents.database == database]
    return Contents(
        database,
        tuple(sorted({day for contents in held for day in contents.bases})),
        tuple(sorted({hour for contents in held for hour in contents.hours})),
        sum(contents.size_bytes for contents in held),
    )


def reach_of(shelf: Shelf, database: str) -> Reach:
    """Read the records of a database, and return what can be restored from the envelopes alone."""
    with tempfile.TemporaryDirectory(prefix="pitr-offsite-") as scratch:
        stage = Stage(shelf, database, Path(scratch, "stage"), Layout(Path(scratch, "nothing")))
        stage.set_up()
        inventory = read_inventory(stage.layout, database)
        windows, gaps = inventory.windows()
        problems = (*inventory.problems, *stage.notes, *(damage.problem for damage in stage.damaged))
        return Reach(tuple(windows), tuple(gaps), problems)


def _opened(seen: Seen, envelope: Envelope) -> Seen:
    index = envelope.index
    problem = None
    if seen.size_bytes != index.size_bytes:
        problem = ArtifactDamaged(
            f"{seen.key} has {seen.size_bytes} bytes where its index says {index.size_bytes}: it was cut off "
            "or changed",
            remedy="What is whole in it is still used.",
        )
    return Seen(
        seen.day,
        seen.key,
        seen.size_bytes,
        seen.stored_at,
        index.made_at,
        index.encrypted,
        tuple(_contents(envelope)),
        problem,
        envelope=envelope,
    )


def _unopened(seen: Seen, problem: PitrError, *, needs_key: bool = False) -> Seen:
    encrypted = True if isinstance(problem, WrongKey) else None
    return Seen(
        seen.day,
        seen.key,
        seen.size_bytes,
        seen.stored_at,
        encrypted=encrypted,
        problem=problem,
        needs_key=needs_key,
    )


def _contents(envelope: Envelope) -> Iterator[Contents]:
    names = {entry.artifact.database for entry in envelope.index.members} - {None}
    for database in sorted(str(name) for name in names):
        entries = envelope.index.of_database(database)
        keys = {key_of(e.artifact) for e in entries if e.artifact.kind is MemberKind.RECORD}
        yield Contents(
            database,
            tuple(sorted(key for key in keys if isinstance(key, date))),
            tuple(sorted(key for key in keys if isinstance(key, Hour))),
            sum(entry.length for entry in entries),
        )
