"""What a person reads before, and after, a data directory is replaced."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

from pitr_pipelines.restore.in_place_checks import Original
from pitr_pipelines.restore.in_place_record import InPlaceRecord, State
from pitr_pipelines.restore.plan import Plan
from pitr_pipelines.units import show_bytes
from pitr_pipelines.wal.lsn import SegmentName

_WIDTH = 110
_TIMELINE = "Latest checkpoint's TimeLineID"

if TYPE_CHECKING:
    from pitr_pipelines.restore.in_place import InPlace


def losses(
    original: Original, plan: Plan, unarchived: Sequence[SegmentName], tablespaces: Path
) -> Iterator[str]:
    """Yield what a person gives up, or must do again, in a line each."""
    if unarchived:
        first, last = unarchived[0], unarchived[-1]
        span = str(first) if first == last else f"{first} to {last}"
        yield (
            f"never archived: {len(unarchived)} WAL segments ({span}), so transactions since "
            f"{first.start(plan.base.wal_segment_size)} are in the old data directory only"
        )
    slots = _names(original.path / "pg_replslot")
    if slots:
        yield f"replication slots are not restored, create them again: {', '.join(slots)}"
    if original.pg_wal.is_symlink():
        yield (
            f"pg_wal was a link to {original.pg_wal.readlink()}; the restored one is an ordinary directory. "
            "To move it, stop the server, move its content to a new directory there, and put a link "
            f"in its place"
        )
    if plan.base.tablespaces:
        places = ", ".join(f"{t.location} -> {tablespaces / str(t.oid)}" for t in plan.base.tablespaces)
        yield f"restored tablespaces get new places, the old ones keep theirs: {places}"


def prepared_lines(wanted: InPlace) -> list[str]:
    """Return what will be done to the data directory, for the person who is to confirm it."""
    original = wanted.original
    control = original.control or {}
    lines = [f"in place of {original.path}"]
    if control:
        lines.append(
            f"  there is  cluster {control['Database system identifier']}, "
            f"{control['Database cluster state']}, last checkpoint {control['Time of latest checkpoint']}, "
            f"timeline {control[_TIMELINE]}"
        )
    lines += [
        f"  aside     {wanted.aside} is what it will be called; nothing in it is changed or deleted",
        f"  room      {show_bytes(wanted.needed_bytes)} needed beside it, "
        f"{show_bytes(wanted.free_bytes)} free",
        f"  timeline  {wanted.highest_timeline + 1}, in the same WAL archive",
        "  left out  what was written after the target stays in the old data directory only, and in the "
        "backups as far as it was archived",
    ]
    lines += [f"  note      {note}" for note in original.notes]
    lines += [f"  NOTE      {warning}" for warning in wanted.warnings]
    return lines


def record_lines(record: InPlaceRecord, zone: ZoneInfo) -> list[str]:
    """Return what became of a data directory, the most important first."""
    swap, name = record.swap, record.database
    match record.state:
        case State.IN_PLACE:
            report = record.restored.lines(zone)
            lines = [report[0].replace(f"restored {name} in ", f"restored {name} in place, in ", 1)]
            lines += [line for line in report[1:] if not line.startswith(("  connect", "  start it"))]
            return [
                *lines,
                f"  before    {swap.aside}: the old data directory, as it was",
                f"  start it  {record.restored.start}",
                f"  undo it   stop the server, then: pitr restore {name} --in-place {swap.place} --undo",
                *_paragraph(
                    "then",
                    "look at the data, and make standbys anew (or pg_rewind). Backups go on as they do: the "
                    f"next base backup comes when it always does. `pitr backup --replace {name}` would take "
                    "today's away, from which earlier moments are restored. When you are sure, delete the "
                    "old data directory by hand.",
                ),
            ]
        case State.UNDONE:
            return [
                f"undone: {swap.place} is the data directory that it was before the restore",
                f"  aside     {swap.aside}: the restored one, with what was written to it since",
                "  start it  as it is always started",
                *_paragraph(
                    "then",
                    "it archives along its old timeline again. If a base backup was taken of the restored "
                    f"server, take one of this (`pitr backup --replace {name}`). Standbys of the restored "
                    "one must be made anew. When you are sure, delete what is aside by hand.",
                ),
            ]
        case State.GIVEN_UP:
            return [
                f"an earlier restore in place of {swap.place} was interrupted before anything was moved",
                f"  left      {swap.incoming}: its result; delete {swap.incoming.parent} by hand",
            ]
        case State.REPLACING | State.UNDOING:
            return [f"{name}: {record.state} {swap.place}"]


def undo_lines(record: InPlaceRecord) -> list[str]:
    """Return what undoing would do, for the person who is to confirm it."""
    return [
        f"undo the restore of {record.database} to {record.restored.target}",
        f"  put back  {record.swap.aside} as {record.swap.place}",
        "  aside     the restored one, with everything written to it since; nothing is deleted",
    ]


def _paragraph(label: str, text: str) -> list[str]:
    return textwrap.wrap(
        text, _WIDTH, initial_indent=f"  {label:<10}", subsequent_indent=" " * 12, break_long_words=False
    )


def _names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir()) if directory.is_dir() else []
