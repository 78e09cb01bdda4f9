"""Timeline history files, wherever they lie: in the archive, and in the bundles that they ride in.

A history that cannot be read is passed over where another copy tells the same; where copies tell
different things, one counts, by a rule, and it is said aloud. Nothing is changed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from pitr_pipelines.catalog.records import BundleMember, Moment, SealRecord
from pitr_pipelines.errors import ArtifactDamaged
from pitr_pipelines.wal import archive, bundle_file
from pitr_pipelines.wal.archive import ArchivedFile
from pitr_pipelines.wal.hours import Hour
from pitr_pipelines.wal.lsn import WalFileKind
from pitr_pipelines.wal.timelines import TimelineHistory, history_file_name


class BundledHistory(BaseModel):
    """A timeline history file in a bundle. `text` is None if it could not be read."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    written_at: Moment
    text: str | None


@dataclass(frozen=True, slots=True)
class HistoryCopy:
    """A history file: in the bundle of `hour`, or in the archive. `written_at` is its preserved mtime.

    `sealed` is whether that hour's seal lies on the same timeline, so that the server itself vouches for it.
    """

    history: TimelineHistory
    written_at: datetime
    hour: Hour | None = None
    sealed: bool = False

    def __str__(self) -> str:
        return "the archive" if self.hour is None else f"the bundle of {self.hour}"


@dataclass(frozen=True, slots=True)
class Origins:
    """Where each timeline came from, and when it began.

    `foreign` names what must be left out: the WAL of a timeline in an hour's bundle that is of another
    timeline with the same number. `contested` says for a timeline what its copies contradict each other in.
    """

    histories: Mapping[int, TimelineHistory]
    began: Mapping[int, datetime]
    foreign: frozenset[tuple[Hour, int]]
    contested: Mapping[int, str]


def read_bundled_history(bundle: Path, member: BundleMember) -> BundledHistory:
    """Read a history file out of a bundle."""
    try:
        content = bytes(bundle_file.read_member(bundle, member))
    except (ArtifactDamaged, OSError):
        return BundledHistory(name=member.name, written_at=member.closed_at, text=None)
    text = content.decode("utf-8", errors="replace")
    return BundledHistory(name=member.name, written_at=member.closed_at, text=text)


def archived_histories(raw: Iterable[ArchivedFile], problems: list[str]) -> Iterator[HistoryCopy]:
    """Read the history files of an archive. Those that cannot be used are named in `problems`."""
    for file in raw:
        if file.kind is WalFileKind.HISTORY:
            try:
                yield HistoryCopy(archive.read_history(file.path), file.closed_at)
            except ArtifactDamaged as error:
                problems.append(error.what)
            except OSError as error:
                problems.append(f"{file.path} cannot be read: {error.strerror}")


def bundled_histories(
    hour: Hour, histories: Iterable[BundledHistory], seal: SealRecord | None
) -> Iterator[HistoryCopy]:
    """Yield the history files of an hour's bundle that can be used; `pitr verify` names the others."""
    for held in histories:
        history = _parse(held.name, held.text or "")
        if history is None:
            continue
        sealed = seal is not None and seal.segment.timeline == history.timeline
        yield HistoryCopy(history, held.written_at, hour, sealed)


@lru_cache(maxsize=256)
def _parse(name: str, text: str) -> TimelineHistory | None:
    """Return what a history file says, or None. Every bundle of a timeline has the same one."""
    try:
        return archive.parse_history(name, text.encode(), name)
    except ArtifactDamaged:
        return None


def settle(copies: Iterable[HistoryCopy]) -> Origins:
    """Decide which history of each timeline counts, where its copies differ.

    Two servers that were promoted from the same timeline can both have made the next number. Of their
    histories the one counts that rides with a seal of the server; then the archive's, then the newest.
    """
    by_timeline: dict[int, list[HistoryCopy]] = defaultdict(list)
    for copy in copies:
        by_timeline[copy.history.timeline].append(copy)
    histories, began, foreign, contested = {}, {}, set(), {}
    for timeline, held in sorted(by_timeline.items()):
        best = max(held, key=lambda copy: (copy.sealed, copy.hour is None, str(copy.hour)))
        histories[timeline] = best.history
        began[timeline] = min(copy.written_at for copy in held if copy.history == best.history)
        others = [copy for copy in held if copy.history != best.history]
        foreign |= {(copy.hour, timeline) for copy in others if copy.hour is not None}
        for other in others[:1]:
            what = (
                f"two servers have used timeline {timeline}: by {history_file_name(timeline)} in {best} it "
            )
            what += f"{_came_from(best.history)}, by that in {other} it {_came_from(other.history)}; "
            what += "the former counts, " + ("which came with the server's seal, " if best.sealed else "")
            if other.hour is None:
                what += f"and WAL of timeline {timeline} in the archive may be of either"
            else:
                what += f"and the WAL of timeline {timeline} in {other} is left out"
            contested[timeline] = f"{what} (see docs/timelines.md)"
    for history in list(histories.values()):
        for index, ancestor in enumerate(history.ancestors):
            if ancestor.timeline != 1:
                # What is known of a timeline's descendant is known of it.
                derived = TimelineHistory(ancestor.timeline, history.ancestors[:index])
                histories.setdefault(ancestor.timeline, derived)
    return Origins(histories, began, frozenset(foreign), contested)


def _came_from(history: TimelineHistory) -> str:
    if not history.ancestors:
        return "has no ancestor"
    return f"left timeline {history.ancestors[-1].timeline} at {history.ancestors[-1].switched_at}"
