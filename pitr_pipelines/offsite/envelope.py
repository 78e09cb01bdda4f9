"""What goes into the day's envelope, decided before anything is read.

A pure function of what exists and what earlier envelopes are confirmed to have delivered. Nothing goes that
need not, and nothing that was not delivered is left out for good. What must go is what leads to now: the
newest base of each database, and its WAL from that base's day on. What is older and still waits, after
failed days or in a new bucket, goes as far as there is room, the newest first, WAL before bases that newer
ones make up for: else a few failed days would make every later envelope too large. What stays behind goes
with the next ones. The size is exact, and known before the day is claimed.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime

from pitr_pipelines.errors import PitrError
from pitr_pipelines.offsite.encryption import Recipients
from pitr_pipelines.offsite.envelope_index import (
    Artifact,
    EnvelopeIndex,
    MemberKind,
    build_index,
    entry_room,
)
from pitr_pipelines.units import show_bytes

_SMALL = {MemberKind.RECORD, MemberKind.SEAL, MemberKind.HISTORY}


class EnvelopeTooLarge(PitrError):
    """What must go does not fit into one request. Nothing was sent, and the day is not claimed."""

    exit_code = 12


@dataclass(frozen=True)
class EnvelopePlan:
    """An envelope that can be made: its index, and exactly how large it is.

    `left_behind` are files for which there was no room: of days before the newest base of their database,
    which is in it or was delivered before.
    """

    index: EnvelopeIndex
    index_text: bytes
    recipients: Recipients | None
    left_behind: tuple[Artifact, ...] = ()

    @property
    def size_bytes(self) -> int:
        return self.index.size_bytes


def plan_envelope(
    artifacts: Iterable[Artifact],
    *,
    day: date,
    made_at: datetime,
    delivered: Collection[tuple[str, str]] = frozenset(),
    recipients: Recipients | None = None,
    limit_bytes: int | None = None,
) -> EnvelopePlan:
    """Decide what goes into the envelope of a day, and where in it each file lies.

    `artifacts` is everything that exists (`find_artifacts`); `delivered` holds the identities, path and
    SHA-256, of what confirmed envelopes carry. Files of one unit go together. Raises EnvelopeTooLarge if
    what must go has more than `limit_bytes`.
    """
    units = _units(artifacts)
    waiting = [unit for unit in units if any(file.identity not in delivered for file in unit)]
    newest = _newest_bases(units)
    optional = [unit for unit in waiting if _can_wait(unit, newest)]
    optional.sort(key=lambda unit: (not _is_base(unit), unit[0].day or date.min, unit[0].unit), reverse=True)
    chosen = [unit for unit in waiting if not _can_wait(unit, newest)]

    def fits(more: Sequence[list[Artifact]]) -> bool:
        plan = _lay_out([*chosen, *more], day, made_at, recipients)
        return limit_bytes is None or plan.size_bytes <= limit_bytes

    if not fits([]):
        raise _too_large(_lay_out(chosen, day, made_at, recipients), limit_bytes or 0)
    wal = [unit for unit in optional if not _is_base(unit)]
    chosen += wal[: bisect_left(range(1, len(wal) + 1), True, key=lambda count: not fits(wal[:count]))]
    for unit in optional[len(wal) :]:
        if fits([unit]):
            chosen.append(unit)
    plan = _lay_out(chosen, day, made_at, recipients)
    taken = {unit[0].unit for unit in chosen}
    left = tuple(file for unit in optional if unit[0].unit not in taken for file in unit)
    return EnvelopePlan(plan.index, plan.index_text, recipients, left)


def _units(artifacts: Iterable[Artifact]) -> list[list[Artifact]]:
    """Group files into units, in the order in which they shall lie in the envelope."""
    units: dict[str, list[Artifact]] = {}
    for file in artifacts:
        units.setdefault(file.unit, []).append(file)
    for files in units.values():
        files.sort(key=lambda file: (file.kind is MemberKind.RECORD, file.path))
    return sorted(units.values(), key=_order)


def _order(files: list[Artifact]) -> tuple[bool, str, str]:
    """One database after the other, so that one is read in one piece; the manifest at the end."""
    first = files[0]
    return first.kind is MemberKind.MANIFEST, first.database or "", first.unit


def _lay_out(
    units: Iterable[list[Artifact]], day: date, made_at: datetime, recipients: Recipients | None
) -> EnvelopePlan:
    files = [file for unit in sorted(units, key=_order) for file in unit]
    # What a restore reads before it knows what else it needs lies together: one request a database.
    files.sort(key=lambda file: (file.kind is MemberKind.MANIFEST, file.database or "", file.kind in _SMALL))
    index, text = build_index(files, day=day, made_at=made_at, recipients=recipients)
    return EnvelopePlan(index, text, recipients)


def _is_base(unit: list[Artifact]) -> bool:
    return unit[0].kind is MemberKind.BASE


def _can_wait(unit: list[Artifact], newest: Mapping[str | None, tuple[date, str]]) -> bool:
    """Tell whether newer artifacts of the same database make up for a unit."""
    first = unit[0]
    if first.day is None or first.database not in newest:
        return False
    day, base = newest[first.database]
    return first.unit != base if _is_base(unit) else first.day < day


def _newest_bases(units: Iterable[list[Artifact]]) -> dict[str | None, tuple[date, str]]:
    newest: dict[str | None, tuple[date, str]] = {}
    for unit in units:
        if _is_base(unit):
            key = (unit[0].day or date.min, unit[0].unit)
            newest[unit[0].database] = max(key, newest.get(unit[0].database, key))
    return newest


def _too_large(plan: EnvelopePlan, limit_bytes: int) -> EnvelopeTooLarge:
    sizes: dict[str, int] = {}
    for entry in plan.index.members:
        file = entry.artifact
        if file.database is None:
            continue
        what = f"{'bases' if file.kind is MemberKind.BASE else 'WAL'} of {file.database}"
        sizes[what] = sizes.get(what, 0) + entry_room(file.path, file.size_bytes, plan.recipients)
    largest = sorted(sizes.items(), key=lambda item: item[1], reverse=True)[:3]
    return EnvelopeTooLarge(
        f"the envelope of {plan.index.day} would have {show_bytes(plan.size_bytes)}, and one backup call "
        f"carries at most {show_bytes(limit_bytes)}; most of it: "
        + ", ".join(f"{what} {show_bytes(size)}" for what, size in largest),
        remedy="Make it smaller: stronger compression of base backups, or incremental ones. A call of unit "
        "`request` carries 5 GiB; let it be an upload in parts: `api_calls: {unit: upload}` in pitr.yaml. "
        "The day's call is not spent.",
    )
