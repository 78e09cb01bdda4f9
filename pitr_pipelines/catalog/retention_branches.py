"""Branches of history as retention sees them: which may be the server's, which were left, which are in doubt.

Whatever `lineage` cannot rule out to be the server's branch is treated as if it were. A timeline of
unknown origin may have left anything, and of two that share a number only one can be followed: what may
belong to such a timeline is kept, and named.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from pitr_pipelines.catalog.coverage import Coverage
from pitr_pipelines.catalog.inventory import BundleEntry, Inventory
from pitr_pipelines.catalog.lineage import Life, Sighting, newest_sighting, server_timeline
from pitr_pipelines.catalog.wal_map import END_OF_WAL, Stretch, WalMap
from pitr_pipelines.wal.lsn import WalFileKind
from pitr_pipelines.wal.timelines import TimelineHistory, history_file_name


@dataclass(frozen=True, slots=True)
class Doubt:
    """Something that cannot be decided: what belongs to it is kept.

    `bundles` are places in the sequence of bundles. `began` is when a timeline of unknown origin was first
    seen: what leads there may be needed for it, too.
    """

    what: str
    note: str
    timelines: frozenset[int]
    bundles: tuple[int, ...]
    began: datetime | None = None


@dataclass(frozen=True, slots=True)
class Branches:
    """`server` is the branch that the server is on, `live` the timelines that may be its own.

    `followed` are the branches of which it is known how they came about; `written` is when each timeline
    was last written to.
    """

    server: TimelineHistory | None
    live: frozenset[int]
    followed: tuple[TimelineHistory, ...]
    written: Mapping[int, datetime]
    doubts: tuple[Doubt, ...]
    histories: Mapping[int, TimelineHistory]

    @property
    def doubtful(self) -> frozenset[int]:
        """Timelines whose base backups do not count."""
        return frozenset(timeline for doubt in self.doubts for timeline in doubt.timelines)

    def history(self, timeline: int) -> TimelineHistory:
        return self.histories.get(timeline, TimelineHistory(timeline))


def read_branches(inventory: Inventory, wal: WalMap, bundles: Sequence[BundleEntry]) -> Branches:
    """Sort out the branches of a database. `bundles` are those of which `wal` was made."""
    histories = inventory.histories
    written = _written(inventory, wal.coverage)
    timelines = sorted(written)
    unknown = [timeline for timeline in timelines[1:] if timeline not in histories]
    seals = [wal.newest_seal] if wal.newest_seal is not None else []
    seen = inventory.seen or newest_sighting(inventory.bases, seals)
    lives = [
        Life(histories.get(timeline, TimelineHistory(timeline)), inventory.began.get(timeline), at)
        for timeline, at in written.items()
    ]
    standing = server_timeline(lives, seen)
    doubts = [_unknown(inventory, wal, bundles, timeline) for timeline in unknown]
    doubts += [_contested(inventory, wal, bundles, timeline) for timeline in sorted(inventory.contested)]
    server = None
    if standing is not None:
        server = histories.get(standing.timeline, TimelineHistory(standing.timeline))
    followed = [t for t in timelines if t not in unknown]
    if server is not None and server.timeline not in followed and server.timeline not in unknown:
        followed.append(server.timeline)
    return Branches(
        server=server,
        live=_live(standing.timeline, standing.rivals, seen) if standing is not None else frozenset(),
        followed=tuple(histories.get(timeline, TimelineHistory(timeline)) for timeline in followed),
        written=written,
        doubts=tuple(doubts),
        histories=histories,
    )


def _live(timeline: int, rivals: Sequence[int], seen: Sighting | None) -> frozenset[int]:
    return frozenset({timeline, *rivals} | ({seen.timeline} if seen is not None else set()))


def _written(inventory: Inventory, bundled: Coverage) -> dict[int, datetime]:
    """Return when each timeline was last written to, raw WAL included."""
    written = bundled.last_written()
    for file in inventory.raw:
        if file.kind is WalFileKind.SEGMENT:
            timeline = file.segment.timeline
            written[timeline] = max(written.get(timeline, file.closed_at), file.closed_at)
    return written


def _unknown(inventory: Inventory, wal: WalMap, bundles: Sequence[BundleEntry], timeline: int) -> Doubt:
    holders = tuple(sorted(wal.holders(Stretch(timeline, 0, END_OF_WAL))))
    began = [bundles[index].hour.start for index in holders[:1]]
    began += [base.started_at for base in inventory.bases if base.timeline == timeline]
    began += [
        file.closed_at
        for file in inventory.raw
        if file.kind is WalFileKind.SEGMENT and file.segment.timeline == timeline
    ]
    return Doubt(
        f"it is not known where timeline {timeline} comes from",
        f"{history_file_name(timeline)} is missing, so all of timeline {timeline}, and what may lead to it, "
        f"is kept; `pitr verify {inventory.database}` says what to do",
        frozenset({timeline}),
        holders,
        min(began, default=None),
    )


def _contested(inventory: Inventory, wal: WalMap, bundles: Sequence[BundleEntry], timeline: int) -> Doubt:
    """Keep what is of the timeline that does not count; of both, where the server vouches for neither."""
    name = history_file_name(timeline)
    texts = [
        (index, copy.text)
        for index in wal.with_histories
        for copy in bundles[index].histories
        if copy.name == name
    ]
    winner = inventory.histories.get(timeline)
    parsed = {text: _parse(timeline, text) for text in {text for _, text in texts}}
    losing = [index for index, text in texts if parsed[text] != winner]
    vouched = any(
        parsed[text] == winner
        and (seal := bundles[index].seal) is not None
        and seal.segment.timeline == timeline
        for index, text in texts
    )
    note = f"two servers have used timeline {timeline} (`pitr status {inventory.database}`): "
    if vouched:
        return Doubt(
            f"it may be of another server's timeline {timeline}",
            f"{note}bundles with the one that does not count are kept; delete them when that is settled",
            frozenset(),
            tuple(losing),
        )
    holders = {*wal.holders(Stretch(timeline, 0, END_OF_WAL)), *(index for index, _ in texts)}
    return Doubt(
        f"two servers have used timeline {timeline}",
        f"{note}all of it is kept",
        frozenset({timeline}),
        tuple(sorted(holders)),
    )


def _parse(timeline: int, text: str | None) -> TimelineHistory | None:
    try:
        return TimelineHistory.parse(timeline, text) if text is not None else None
    except ValueError:
        return None
