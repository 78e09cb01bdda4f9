"""Restoring to what was drawn, and comparing what comes back with the truth."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

from pitr_pipelines.catalog.inventory import read_inventory
from pitr_pipelines.catalog.layout import Layout
from pitr_pipelines.catalog.manifest import refresh_manifest
from pitr_pipelines.errors import NotRestorable
from pitr_pipelines.postgres.account import server_account
from pitr_pipelines.postgres.binaries import find_binaries
from pitr_pipelines.postgres.server import Cluster
from pitr_pipelines.restore.prepare import plan_restore
from pitr_pipelines.restore.report import RestoreReport
from pitr_pipelines.restore.target import HourTarget, LatestTarget, Target, TimeTarget
from pitr_pipelines.settings import Settings
from pitr_pipelines.wal.hours import Hour
from pitr_pipelines.wal.lsn import WalFileKind
from pitr_pipelines_tests.integration.restoring import restored
from pitr_pipelines_tests.oracle.truth import State
from pitr_pipelines_tests.servers import remove_directory

_SHOWN = 5


class OracleFailure(AssertionError):
    """A restore brought back something else than what was committed, or was refused without reason."""


def check_restore(
    settings: Settings,
    database: str,
    target: Target,
    expected: State,
    *,
    seal: bool,
    timeline: int | None = None,
    at: datetime | None = None,
) -> None:
    """Restore to `target` and compare. Raises OracleFailure with the first differences."""
    report: RestoreReport | None = None
    try:
        asked = restored(settings, target, database=database, seal=seal, timeline=timeline, at=at)
        with asked as (plan, report, connection):
            found = State.of(connection)
            # The primary key's index must lead to the same rows as the table.
            connection.execute("SET enable_seqscan = off")
            connection.execute("SET enable_bitmapscan = off")
            by_index = State.of(connection)
    except NotRestorable as refusal:
        raise OracleFailure(f"it was refused: {refusal}") from refusal
    finally:
        # `report` is known unless the restore itself failed; then its directory stays to be looked at.
        if report is not None:
            remove_directory(report.directory)
    if by_index != found:
        raise OracleFailure(f"the indexes and the tables disagree: {_difference(found, by_index)}")
    if found != expected:
        raise OracleFailure(
            f"{_difference(expected, found)}\n"
            f"plan: base {plan.base.day}, which ended at {plan.base.ended_at}; segments "
            f"{', '.join(str(segment.name) for segment in plan.segments)}; {plan.stop}\n"
            + "\n".join(plan.notes)
        )


def check_refusal(settings: Settings, database: str, target: Target, *reasons: str, seal: bool) -> None:
    """Expect a refusal that names its reasons, touches nothing, and offers only what can be planned."""
    with _untouched(settings.restore_root):
        try:
            plan = plan_restore(settings, database, target, seal=seal)
        except NotRestorable as refusal:
            refused = refusal
        else:
            raise OracleFailure(f"it was not refused; the plan is to {plan.stop} from {plan.base.day}")
        for reason in reasons:
            if reason not in str(refused):
                raise OracleFailure(f"the refusal does not say {reason!r}: {refused}")
        if not refused.nearest:
            raise OracleFailure(f"the refusal offers no moment: {refused}")
        for moment in refused.nearest:
            _check_offer(settings, database, moment, "the refusal")


def check_manifest(settings: Settings, database: str) -> None:
    """Expect that a plan can be made for every restore point and both ends of every window."""
    manifest = refresh_manifest(settings).databases[database]
    if manifest.problems:
        raise OracleFailure(f"the manifest has problems: {manifest.problems}")
    now = datetime.now(UTC)
    for window in manifest.windows:
        for moment in (window.start, window.end, window.start + (window.end - window.start) / 2):
            if moment <= now:
                _check_offer(settings, database, moment, "a window of the manifest")
    for point in manifest.restore_points:
        if point.at <= now:
            _check_offer(settings, database, point.at, f"the manifest's restore point {point.name}")


def check_hole(settings: Settings, database: str, last: datetime, expected: State) -> None:
    """Take a raw segment that no bundle holds away, ask for what is behind it, and put it back.

    `last` is a moment that only WAL behind the hole can reach, and `expected` the state at it, which
    must be had again once the segment is back.
    """
    inventory = read_inventory(Layout(settings.backup_root), database)
    raw = [file for file in inventory.raw if file.kind is WalFileKind.SEGMENT]
    hole = raw[-2]
    runs = [run for entry in inventory.bundles for run in entry.runs]
    assert not any(run.first <= hole.segment <= run.last for run in runs), "a story ends with raw segments"
    aside = hole.path.with_name(f".{hole.name}.aside")
    hole.path.rename(aside)
    try:
        check_refusal(settings, database, TimeTarget(last), hole.name, seal=False)
        check_refusal(settings, database, LatestTarget(), hole.name, seal=False)
    finally:
        aside.rename(hole.path)
    check_restore(settings, database, TimeTarget(last), expected, seal=False)


def check_ended_hour(settings: Settings, database: str, expected: State) -> None:
    """Pretend that the running hour is over and its last segment was closed after it; restore its end.

    The last thing that can be asked of these backups, for the clock does not go back.
    """
    raw = read_inventory(Layout(settings.backup_root), database).raw
    newest = [file for file in raw if file.kind is WalFileKind.SEGMENT][-1]
    hour = Hour.containing(newest.closed_at)
    later = (hour.end + timedelta(minutes=1)).timestamp()
    os.utime(newest.path, (later, later))
    at = hour.end + timedelta(minutes=2)
    check_restore(settings, database, HourTarget(hour), expected, seal=False, at=at)


def _check_offer(settings: Settings, database: str, moment: datetime, who: str) -> None:
    try:
        plan_restore(settings, database, TimeTarget(moment), seal=False, check=False)
    except NotRestorable as refusal:
        raise OracleFailure(
            f"{who} offers {moment.isoformat(sep=' ')}, which is refused: {refusal}"
        ) from None


@contextmanager
def _untouched(directory: Path) -> Iterator[None]:
    def content() -> dict[Path, int]:
        paths = directory.rglob("*") if directory.exists() else ()
        return {path: path.lstat().st_mtime_ns for path in paths}

    before, existed = content(), directory.exists()
    yield
    if (content(), directory.exists()) != (before, existed):
        raise OracleFailure(f"a refusal touched {directory}")


def _difference(expected: State, found: State) -> str:
    parts = []
    for what, ours, theirs in (
        ("log", expected.log, found.log),
        ("things", expected.things, found.things),
    ):
        missing, extra = sorted(ours - theirs), sorted(theirs - ours)
        if missing:
            parts.append(f"{len(missing)} of {len(ours)} rows of {what} are missing: {missing[:_SHOWN]}")
        if extra:
            parts.append(f"{len(extra)} rows of {what} should not be there: {extra[:_SHOWN]}")
    return "; ".join(parts)


def end_restored(settings: Settings, major: int) -> None:
    """End the servers that a failed comparison may have left running below restore_root."""
    for file in settings.restore_root.rglob("postmaster.pid"):
        Cluster(file.parent, find_binaries(major, settings.binaries), server_account(None)).stop("immediate")
