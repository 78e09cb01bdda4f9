"""The shelf: every envelope at a place, and for each artifact the envelopes that hold it.

Only the beginnings of envelopes are read, which hold their indexes. One that cannot be used (damaged, cut
off, another program's, to another key, put into an archive class) is named and passed over: the others
still serve. Without any key that fits, nothing is passed over: that is an error before anything is fetched.
Whatever an index says, only what belongs below base/, bundles/ and wal/ of its database counts.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import date

from pitr_pipelines.errors import ArtifactDamaged, BadRequest, PitrError
from pitr_pipelines.offsite.answers import StoreUnavailable
from pitr_pipelines.offsite.delivered import day_of_key, envelope_key
from pitr_pipelines.offsite.encryption import Identities, WrongKey
from pitr_pipelines.offsite.envelope_index import Artifact, EnvelopeIndex, IndexEntry, MemberKind
from pitr_pipelines.offsite.envelope_reader import EnvelopeReader, open_envelope
from pitr_pipelines.offsite.object_store import Listed, ObjectStore
from pitr_pipelines.offsite.ranges import Neighbours, StoredEnvelope
from pitr_pipelines.progress import Progress, Report, silent
from pitr_pipelines.wal.hours import Hour

_PLACES = {
    MemberKind.BASE: "base",
    MemberKind.BUNDLE: "bundles",
    MemberKind.SEAL: "bundles",
    MemberKind.HISTORY: "wal",
}
_NAMED = 3
"""How many of the envelopes that cannot be used are named where none can."""
_GONE = ("InvalidObjectState", "NoSuchKey")
"""S3's words for an object that is in an archive class, and for one that expired meanwhile."""


@dataclass(frozen=True)
class Envelope:
    """One envelope that was opened."""

    source: StoredEnvelope
    index: EnvelopeIndex
    identities: Identities | None = field(repr=False)

    @property
    def day(self) -> date:
        return self.index.day

    def reader(
        self, wanted: Iterable[IndexEntry], count: Callable[[int], None] | None = None
    ) -> tuple[EnvelopeReader, Neighbours]:
        """Return what reads these members with few requests, and its source, which is to be closed."""
        source = Neighbours(self.source, wanted, count)
        return EnvelopeReader(source, self.index, self.identities), source


@dataclass(frozen=True)
class PassedOver:
    """An envelope that cannot be used, and why."""

    key: str
    day: date
    size_bytes: int
    error: PitrError

    def __str__(self) -> str:
        return self.error.what


@dataclass(frozen=True)
class Copy:
    """One artifact in one envelope: its files, the record last."""

    envelope: Envelope
    entries: tuple[IndexEntry, ...]

    @property
    def unit(self) -> str:
        return self.entries[0].artifact.unit

    @property
    def identity(self) -> frozenset[tuple[str, str]]:
        """Equal for copies of the same making."""
        return frozenset(entry.artifact.identity for entry in self.entries)

    @property
    def record(self) -> IndexEntry:
        return self.entries[-1]

    @property
    def payload(self) -> tuple[IndexEntry, ...]:
        return self.entries[:-1]

    @property
    def key(self) -> date | Hour | None:
        """A base's day, a bundle's or a seal's hour; None for a history file."""
        return key_of(self.record.artifact)


@dataclass(frozen=True)
class Shelf:
    """The envelopes that can be used, newest first, and those that cannot."""

    envelopes: tuple[Envelope, ...]
    passed_over: tuple[PassedOver, ...]

    def databases(self) -> list[str]:
        """Return the names of the databases of which there is anything."""
        found = {entry.artifact.database for env in self.envelopes for entry in env.index.members}
        return sorted(name for name in found if name is not None)

    def copies(self, database: str) -> dict[str, list[Copy]]:
        """Return the copies of every artifact of a database by its unit, those of the newest envelope first.

        Raises BadRequest if there is nothing of it.
        """
        found: dict[str, list[Copy]] = {}
        for envelope in self.envelopes:
            units: dict[str, list[IndexEntry]] = {}
            for entry in envelope.index.of_database(database):
                if is_in_its_place(entry.artifact) and entry.end <= envelope.source.size_bytes:
                    units.setdefault(entry.artifact.unit, []).append(entry)
            for unit, entries in units.items():
                entries.sort(key=lambda entry: entry.artifact.kind is MemberKind.RECORD)
                last = entries[-1].artifact
                if last.path == unit and (last.kind is MemberKind.RECORD or len(entries) == 1):
                    found.setdefault(unit, []).append(Copy(envelope, tuple(entries)))
        if not found:
            there = ", ".join(self.databases())
            raise BadRequest(
                f"no envelope that can be read holds anything of {database}"
                + "".join(f"\n  passed over: {passed}" for passed in self.passed_over),
                remedy=f"They hold {there}." if there else "`pitr offsite list` shows what is there.",
            )
        return found


def open_shelf(store: ObjectStore, identities: Identities | None, report: Report = silent) -> Shelf:
    """Open every envelope of a place.

    Raises BadRequest if there is none, WrongKey if none of them can be opened with the keys that are
    there, ArtifactDamaged if all are damaged, and StoreUnavailable.
    """
    envelopes, passed_over = [], []
    every = list_envelopes(store)
    for done, (day, listed) in enumerate(every, 1):
        source = StoredEnvelope(store, listed.key, listed.size_bytes)
        try:
            envelopes.append(open_listed(source, day, identities))
        except (ArtifactDamaged, WrongKey) as error:
            passed_over.append(PassedOver(listed.key, day, listed.size_bytes, error))
        except StoreUnavailable as error:
            if error.code not in _GONE:
                raise
            passed_over.append(PassedOver(listed.key, day, listed.size_bytes, error))
        report(Progress("open", done, len(every), "envelopes"))
    if not envelopes:
        raise _nothing(store, passed_over)
    return Shelf(tuple(envelopes), (*_cut_off(envelopes), *passed_over))


def open_listed(source: StoredEnvelope, day: date, identities: Identities | None) -> Envelope:
    """Open the envelope of a day. Raises ArtifactDamaged, WrongKey or StoreUnavailable."""
    index = open_envelope(source, identities).index
    if index.day != day:
        raise ArtifactDamaged(
            f"{source.key} is the envelope of {index.day}: it was copied or renamed",
            remedy="Delete it, or give it its name back; nothing in it is used.",
        )
    return Envelope(source, index, identities)


def list_envelopes(store: ObjectStore) -> list[tuple[date, Listed]]:
    """List what has an envelope's name, newest first, with its day."""
    found = []
    for listed in store.list(store.place.prefix):
        day = day_of_key(store.place, listed.key)
        if day is not None and listed.key == envelope_key(store.place, day):
            found.append((day, listed))
    return sorted(found, key=lambda pair: pair[0], reverse=True)


def key_of(artifact: Artifact) -> date | Hour | None:
    """Return the day of a base's file, the hour of a bundle's or a seal's; None for anything else."""
    room, _, rest = artifact.unit.partition("/")
    name = rest.rpartition("/")[2]
    try:
        if room == "base":
            return date.fromisoformat(rest.split("/")[1])
        if room == "bundles":
            return Hour.parse(name.split(".")[0])
    except (ValueError, IndexError):
        return None
    return None


def is_in_its_place(artifact: Artifact) -> bool:
    """Tell whether a member lies where its kind does, in the directory of its own database."""
    parts = artifact.path.split("/")
    room = artifact.unit.split("/")[0] if artifact.kind is MemberKind.RECORD else _PLACES.get(artifact.kind)
    depth = 4 if room == "base" else 3
    return (
        room in _PLACES.values()
        and len(parts) == depth
        and parts[:2] == [room, artifact.database]
        and artifact.unit.split("/")[:-1] == parts[:-1]
    )


def _nothing(store: ObjectStore, passed_over: Collection[PassedOver]) -> PitrError:
    place = f"{store.place.bucket}/{store.place.prefix}"
    if not passed_over:
        return BadRequest(
            f"there is no envelope at {place}",
            remedy="Are `bucket` and `prefix` those that the backups were sent to?",
        )
    wrong = [passed for passed in passed_over if isinstance(passed.error, WrongKey)]
    said = "".join(f"\n  {passed}" for passed in list(passed_over)[:_NAMED])
    if len(passed_over) > _NAMED:
        said += f"\n  … and {len(passed_over) - _NAMED} more"
    if wrong:
        return WrongKey(
            f"no envelope at {place} can be opened with the keys that are here:{said}",
            remedy=f"{wrong[0].error.remedy} Name its file with --key, or in PITR_AGE_KEY_FILE.",
        )
    first = next(iter(passed_over)).error
    return type(first)(f"no envelope at {place} can be used:{said}", remedy=first.remedy)


def _cut_off(envelopes: Iterable[Envelope]) -> Iterator[PassedOver]:
    """Name envelopes that end too early; what is whole in them still serves."""
    for env in envelopes:
        if env.source.size_bytes != env.index.size_bytes:
            source = env.source
            error = ArtifactDamaged(
                f"the envelope {source.key} has {source.size_bytes} bytes where its index says "
                f"{env.index.size_bytes}: it was cut off or changed; what is whole in it is still used",
                remedy="Look for an older version of the object, if the bucket keeps versions.",
            )
            yield PassedOver(source.key, env.day, source.size_bytes, error)
