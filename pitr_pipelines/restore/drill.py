"""Drills: restores done only to prove that they work, measured, then thrown away.

A drill takes a random moment of what can be restored and goes all the way: plan, restore, page
checksums, start, pg_amcheck, the user's own queries. What it finds wrong with the backups is its
outcome, and goes on record; that it could not be carried out (no room, no programs, a request that
makes no sense) is an error and proves nothing either way. Neither the source server nor the backups
are ever changed, and whatever happens the scratch directory is removed and its server ended; what a
drill that was killed outright left behind, the next one clears away.
"""

from __future__ import annotations

import logging
import random
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

from pitr_pipelines import durable
from pitr_pipelines.catalog.coverage import Gap, Window
from pitr_pipelines.catalog.drills import (
    CheckResult,
    DrillOutcome,
    DrillPlan,
    DrillReport,
    DrillSeconds,
    record_file,
    stamp_of,
)
from pitr_pipelines.catalog.holds import reading
from pitr_pipelines.catalog.inventory import Inventory, read_inventory
from pitr_pipelines.catalog.layout import Layout
from pitr_pipelines.catalog.records import write_record
from pitr_pipelines.errors import (
    ArtifactDamaged,
    NotRestorable,
    PitrError,
    RecoveryFailed,
    ServerNotReady,
    StorageFailed,
)
from pitr_pipelines.postgres.account import Account, server_account
from pitr_pipelines.postgres.binaries import Binaries, find_binaries
from pitr_pipelines.postgres.server import Cluster
from pitr_pipelines.progress import Progress, Report, silent
from pitr_pipelines.restore.conf_file import ConfFile
from pitr_pipelines.restore.destination import Destination
from pitr_pipelines.restore.plan import NotCovered, Plan
from pitr_pipelines.restore.plan_text import stop_text
from pitr_pipelines.restore.prepare import plan_restore
from pitr_pipelines.restore.recover import private_directory
from pitr_pipelines.restore.report import RestoreReport
from pitr_pipelines.restore.restore import choose_destination, restore, terminable
from pitr_pipelines.restore.target import TimeTarget
from pitr_pipelines.settings import Settings

logger = logging.getLogger(__name__)

_START_S = 300.0
_ACCESS_FILE = "pg_hba.drill.conf"
_FINDINGS = (NotRestorable, ArtifactDamaged, RecoveryFailed, ServerNotReady)
"""Errors that say something about the backups, and are therefore a drill's outcome."""


def run_drill(
    settings: Settings,
    database: str,
    *,
    target: TimeTarget | None = None,
    seed: int | None = None,
    scratch: Path | None = None,
    seal: bool = False,
    report: Report = silent,
    log: Callable[[str], None] = logger.info,
) -> DrillReport:
    """Carry out one drill and record what came of it, good or bad; `raise_if_failed` tells them apart.

    `target` is the moment to restore; by default one drawn from the recovery window with `seed`, or
    with a random one. `scratch` is where the scratch directory is made; by default restore_root.
    With `seal` the source may be sealed to cover a recent `target`. `report` gets the steps of a
    restore, then `amcheck` and `queries`.

    Raises ArtifactBusy while another drill of the database runs, NotRestorable if `target` is no
    moment that could be expected to be restorable, and whatever keeps a restore from being tried:
    DestinationUnusable, BinariesNotFound, StorageFailed, SettingsError.
    """
    settings.database(database)
    layout = Layout(settings.backup_root)
    if not layout.root.is_dir():
        # Nor may the record go to the machine's own disk.
        raise StorageFailed(
            f"backup_root {layout.root} is not there",
            remedy="Is its volume mounted, and is the path in the settings right?",
        )
    with (
        durable.exclusive_lock(layout.drill_lock(database), subject=f"a drill of {database}", wait=False),
        terminable(),
        reading(settings, database),
    ):
        drill = _Drill(settings, layout, database, (scratch or settings.restore_root).absolute(), report, log)
        drill.carry_out(target, seed, seal=seal)
        return drill.record()


def choose_moment(windows: Sequence[Window], seed: int, *, now: datetime) -> datetime | None:
    """Draw a moment from the windows, each second as likely as any other; None if there is no window.

    The same windows and seed give the same moment. None later than `now` is drawn.
    """
    spans = [(window.start, min(window.end, now)) for window in windows if window.start <= now]
    if not spans:
        return None
    left = random.Random(seed).random() * sum((end - start).total_seconds() for start, end in spans)  # noqa: S311
    for start, end in spans:
        length = (end - start).total_seconds()
        if left <= length:
            return min(start + timedelta(seconds=left), end)
        left -= length
    return spans[-1][1]


@dataclass
class _Drill:
    """One drill under way, and what is known of it so far."""

    settings: Settings
    layout: Layout
    database: str
    scratch: Path
    report: Report
    log: Callable[[str], None]
    started_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    began: float = field(default_factory=time.monotonic)
    stamp: str = ""
    target: TimeTarget | None = None
    seed: int | None = None
    plan: Plan | None = None
    restored: RestoreReport | None = None
    problems: list[str] = field(default_factory=list)
    remedy: str | None = None
    checks: list[CheckResult] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)

    def carry_out(self, target: TimeTarget | None, seed: int | None, *, seal: bool) -> None:
        """Go as far as it goes, and note what is wrong."""
        self.stamp = stamp_of(self.layout, self.database, self.started_at)
        inventory = read_inventory(self.layout, self.database)
        windows, _ = inventory.windows()
        gap = newest_gap(inventory)
        if gap is not None:
            self._note(
                f"the WAL segments {gap.first} to {gap.last} are missing: no later moment can be restored",
                f"Bring them back, or take a new base backup with `pitr backup --replace {self.database}`.",
            )
        if target is None:
            self.seed = secrets.randbits(32) if seed is None else seed
            moment = choose_moment(windows, self.seed, now=self.started_at)
            if moment is None:
                self._note(
                    f"nothing of {self.database} can be restored: there is no base backup with its WAL",
                    f"Take one with `pitr backup {self.database}`.",
                )
                return
            target = TimeTarget(moment)
            self.log(f"{self.database}: drew {moment.isoformat(sep=' ')} with the seed {self.seed}")
        self.target = target
        try:
            self.plan = plan_restore(self.settings, self.database, target, seal=seal, report=self.report)
        except NotRestorable as error:
            asked = self.seed is None
            first = windows[0].start if windows else None
            if asked and (
                isinstance(error, NotCovered)
                or target.moment > self.started_at
                or (first is not None and target.moment < first)
            ):
                raise  # nobody could expect that moment
            self._note(error.what, error.remedy)
            return
        self._clock("plan")
        account = server_account(self.settings.run_as)
        binaries = find_binaries(self.plan.base.major, self.settings.binaries).reachable_by(account)
        if self.settings.drills.amcheck:
            binaries.program("pg_amcheck")  # asked for before the work is done, not after
        self._clear_away(binaries, account)
        destination = choose_destination(
            self.settings, self.plan, to=self._directory(self.stamp), port=None, keep_running=False
        )
        cluster = Cluster(destination.data_directory, binaries, account)
        with _thrown_away(destination.directory, cluster):
            try:
                self._try(self.plan, destination, cluster)
            except _FINDINGS as error:
                # What restore says about its directory holds no longer: it is removed.
                self._note(error.what, error.remedy.partition(f" {destination.directory} is marked")[0])
            self.seconds["total"] = time.monotonic() - self.began

    def record(self) -> DrillReport:
        """Put on record what came of it, durably, and return that."""
        restored, plan = self.restored, self.plan
        took = {"total": time.monotonic() - self.began, **self.seconds}
        done = DrillReport(
            database=self.database,
            started_at=self.started_at,
            finished_at=datetime.now(UTC),
            outcome=DrillOutcome.FAILED if self.problems else DrillOutcome.PASSED,
            problems=tuple(self.problems),
            remedy=self.remedy,
            target=self.target.moment if self.target else None,
            seed=self.seed,
            server_version=restored.server_version if restored else None,
            recovered_to_lsn=restored.recovered_to_lsn if restored else None,
            last_transaction_at=restored.last_transaction_at if restored else None,
            plan=_facts(plan) if plan else None,
            seconds=DrillSeconds(**{name: round(seconds, 3) for name, seconds in took.items()}),
            checks=tuple(self.checks),
        )
        write_record(record_file(self.layout, self.database, self.stamp), done)
        return done

    def _try(self, plan: Plan, destination: Destination, cluster: Cluster) -> None:
        self.restored = restore(self.settings, plan, destination, report=self.report, log=self.log)
        self.seconds["fetch"] = self.restored.fetch_s
        self.seconds["replay"] = self.restored.recovery_s
        self.seconds["finish"] = self.restored.finish_s
        if self.restored.pages is not None:
            self.seconds["pages"] = self.restored.pages.took_s
            self._keep(self.restored.pages)
        with private_directory(destination, cluster) as sockets:
            began = time.monotonic()
            self._start(destination, cluster, sockets)
            self._clock("start", began)
            self._clock("recovery_time")
            try:
                self._check(destination, cluster, sockets)
            finally:
                cluster.stop("immediate")

    def _start(self, destination: Destination, cluster: Cluster, sockets: Path) -> None:
        """Start the copy, open to nobody but those who can enter the directory of its socket."""
        ConfFile(cluster.data_directory / _ACCESS_FILE, cluster.account).write("local all all trust\n")
        cluster.start(
            log_file=destination.log_file,
            options={
                "listen_addresses": "",
                "unix_socket_directories": '"' + str(sockets).replace('"', '""') + '"',
                "unix_socket_permissions": "0700",
                "hba_file": str(cluster.data_directory / _ACCESS_FILE),
                "cluster_name": f"{self.database} drill",
            },
            timeout_s=_START_S,
        )

    def _check(self, destination: Destination, cluster: Cluster, sockets: Path) -> None:
        # psycopg is slow to import, and only needed here.
        from pitr_pipelines.postgres.connection import DBNAME, parse_dsn
        from pitr_pipelines.restore.drill_checks import Copy, run_amcheck, run_query
        from pitr_pipelines.restore.verify import look

        seen = look(self.settings, self.database, destination, sockets)
        if seen.superuser is None:
            self._note("; ".join(seen.notes), "Does the role in the dsn, or postgres, exist in the database?")
            return
        copy = Copy(self.database, sockets, destination.port, seen.superuser)
        if self.settings.drills.amcheck:
            began = time.monotonic()
            self.log("running pg_amcheck over every database")
            self.report(Progress("amcheck", 0, 1, "clusters"))
            self._keep(run_amcheck(copy, cluster.binaries, cluster.account))
            self.report(Progress("amcheck", 1, 1, "clusters"))
            self._clock("amcheck", began)
        entry = self.settings.database(self.database)
        if not entry.drill_checks:
            return
        began = time.monotonic()
        dbname = parse_dsn(entry.dsn, key=f"databases.{self.database}.dsn").get("dbname", DBNAME)
        for number, check in enumerate(entry.drill_checks):
            self.report(Progress("queries", number, len(entry.drill_checks), "queries"))
            timeout_s = self.settings.drills.check_timeout_s
            self._keep(run_query(copy, check, check.dbname or dbname, timeout_s=timeout_s))
        self.report(Progress("queries", len(entry.drill_checks), len(entry.drill_checks), "queries"))
        self._clock("checks", began)

    def _keep(self, result: CheckResult) -> None:
        self.checks.append(result)
        self.log(f"{result.check}: {result.problem or 'as it should be'}")
        if result.problem is not None:
            self._note(result.problem, None)

    def _note(self, problem: str, remedy: str | None) -> None:
        self.problems.append(problem)
        self.remedy = self.remedy or remedy

    def _clock(self, phase: str, since: float | None = None) -> None:
        self.seconds[phase] = time.monotonic() - (self.began if since is None else since)

    def _directory(self, stamp: str) -> Path:
        return self.scratch / f".drill-{self.database}-{stamp}"

    def _clear_away(self, binaries: Binaries, account: Account) -> None:
        """Remove what drills left that were killed outright. We hold the lock: none of them still runs."""
        ours = re.compile(rf"\.drill-{re.escape(self.database)}-\d{{8}}T\d{{6}}Z(-\d+)?")
        left = self.scratch.iterdir() if self.scratch.is_dir() else []
        for path in [path for path in left if ours.fullmatch(path.name)]:
            self.log(f"removing {path}, which an interrupted drill left")
            with _thrown_away(path, Cluster(path / "data", binaries, account)):
                pass


def newest_gap(inventory: Inventory) -> Gap | None:
    """Return the gap that ends the newest base backup's chain, if it is broken.

    Older gaps are none of a drill's business: a newer base made up for them.
    """
    branch = inventory.branch()
    usable = [base for base in inventory.bases if branch and branch.includes(base.timeline, base.end_lsn)]
    if branch is None or not usable:
        return None
    reach = inventory.coverage().reach(usable[-1].first_segment, branch)
    return reach.gap if reach else None


@contextmanager
def _thrown_away(directory: Path, cluster: Cluster) -> Iterator[None]:
    """End the server and remove the directory after the block, however that ends."""
    try:
        yield
    finally:
        cluster.stop("immediate")
        _remove(directory)


def _remove(directory: Path) -> None:
    try:
        shutil.rmtree(directory)
    except FileNotFoundError:
        if directory.exists():
            raise
    except OSError as error:
        raise PitrError(
            f"the scratch directory {directory} cannot be removed: {error.strerror} ({error.filename})",
            remedy="Delete it; the next drill tries that too.",
        ) from error


def _facts(plan: Plan) -> DrillPlan:
    return DrillPlan(
        base_day=plan.base.day.isoformat(),
        timeline=plan.branch.timeline,
        segments=len(plan.segments),
        base_bytes=plan.base.uncompressed_bytes,
        wal_bytes=plan.wal_bytes,
        stop=stop_text(plan.stop, ZoneInfo("UTC")),
        notes=plan.notes,
    )
