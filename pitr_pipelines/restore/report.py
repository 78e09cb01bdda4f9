"""What a restore came to: for the person who waits, for Dagster, and as restore.json beside the data."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

from pydantic import BaseModel, ConfigDict

from pitr_pipelines.catalog.drills import CheckResult
from pitr_pipelines.catalog.records import Moment
from pitr_pipelines.errors import RestoredButDamaged
from pitr_pipelines.restore.at_target import AtTarget
from pitr_pipelines.restore.target import show_moment
from pitr_pipelines.units import show_bytes, show_duration
from pitr_pipelines.wal.lsn import Lsn


class RestoreReport(BaseModel):
    """One restore that succeeded.

    `timeline` is the restored cluster's new one, and `recovered_to_lsn` where it begins; of one that
    stands at its target (`at_target` is pause or shutdown), the one that it replays, and how far it has.
    `branch_timeline` is the branch of the source's history that was followed.
    `last_transaction_at` is when the last transaction that is in it ended (None: none was replayed);
    `first_left_out_at` is when the first that is not in it did (None: all there was is
    in it, or recovery stopped at no transaction). `base_bytes` is the base unpacked, `wal_bytes` the
    WAL of the plan, of which `segments_fed` segments did not come with the base. Times are in seconds;
    `wal_wait_s` is that part of `recovery_s` in which recovery waited for WAL that was not ready.
    `checks` are what was verified, `notes` what a person should know. `pages` and `amcheck` are what
    came of these checks, None where they were not done; `plan` is the plan, as `pitr restore --plan
    --json` shows it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    database: str
    target: str
    stop: str
    at_target: AtTarget = AtTarget.PROMOTE
    directory: Path
    data_directory: Path
    port: int
    running: bool
    server_version: str
    system_identifier: str
    timeline: int
    branch_timeline: int | None = None
    recovered_to_lsn: Lsn
    last_transaction_at: Moment | None
    first_left_out_at: Moment | None
    base_day: str
    segments: int
    segments_fed: int
    base_bytes: int
    wal_bytes: int
    fetch_s: float
    recovery_s: float
    wal_wait_s: float
    finish_s: float
    total_s: float
    finished_at: Moment
    connect: str
    start: str
    stop_command: str
    checks: tuple[str, ...]
    notes: tuple[str, ...]
    """Until the base and the WAL were there: both are fetched at once, so they overlap in `fetch_s`."""
    pages: CheckResult | None = None
    amcheck: CheckResult | None = None
    plan: dict[str, Any] = {}

    @property
    def damage(self) -> str | None:
        """What pg_amcheck found in the restored cluster, or why it could not look; None if nothing."""
        return self.amcheck.problem if self.amcheck is not None else None

    def raise_if_damaged(self) -> None:
        """Raise RestoredButDamaged if pg_amcheck did not find everything as it should be."""
        if self.damage is not None:
            raise RestoredButDamaged(
                f"{self.database} is restored to {self.target}, whole and on disk, in "
                f"{self.data_directory}, but {self.damage}",
                remedy="What it found was most likely so in the original at this moment: run pg_amcheck "
                "there, or restore to an earlier one. A damaged index is mended with REINDEX; of a damaged "
                "table, save what can be read. The restored server is as you asked for it. If pg_amcheck "
                "could not do its work, run it by hand.",
            )

    @property
    def bytes_per_second(self) -> float:
        """Base and WAL, unpacked, over the time that all of it took."""
        return (self.base_bytes + self.wal_bytes) / max(self.total_s, 0.001)

    @property
    def wal_wait_share(self) -> float:
        """The share of the replay, from 0 to 1, in which recovery waited for WAL."""
        return min(1.0, self.wal_wait_s / max(self.recovery_s, 0.001))

    @property
    def stands(self) -> bool:
        """Is the cluster still in recovery at its target, to be resumed?"""
        return self.at_target is not AtTarget.PROMOTE

    @property
    def promote(self) -> str:
        """The command that promotes a cluster that stands at its target."""
        return f"pitr restore {shlex.quote(self.database)} --resume {shlex.quote(str(self.directory))}"

    @property
    def move_on(self) -> str:
        """The command that moves it on; any other later target can stand where `--latest` does."""
        return f"{self.promote} --latest"

    def lines(self, zone: ZoneInfo) -> list[str]:
        """Return the report as a person reads it, the most important first."""
        last = self.last_transaction_at
        lines = [
            f"restored {self.database} in {show_duration(self.total_s)} "
            f"({show_bytes(self.base_bytes + self.wal_bytes)}, {show_bytes(self.bytes_per_second)}/s: "
            f"base {show_duration(self.fetch_s)}, replay {show_duration(self.recovery_s)}, of which "
            f"{self.wal_wait_share:.0%} waiting for WAL, finish {show_duration(self.finish_s)})",
            f"  data      {self.data_directory}",
            f"  state     last transaction {show_moment(last, zone) if last else 'that of the base backup'}; "
            f"{self.recovered_to_lsn}, {self._mode}",
        ]
        if self.first_left_out_at:
            lines.append(f"  left out  everything from {show_moment(self.first_left_out_at, zone)} on")
        lines += [f"  checked   {check}" for check in self.checks]
        if self.damage is not None:
            lines += [f"  FAILED    {line}" for line in self.damage.splitlines()]
        lines += [f"  note      {note}" for note in self.notes]
        if self.running:
            lines += [f"  connect   {self.connect}", f"  end it    {self.stop_command}"]
        else:
            lines += [f"  start it  {self.start}", f"  connect   {self.connect}"]
        if self.stands:
            lines += [f"  promote   {self.promote}"]
            lines += [f"  move on   {self.move_on}   (or any later target; --at-target pause to look again)"]
        return lines

    @property
    def _mode(self) -> str:
        if not self.stands:
            return f"now timeline {self.timeline}"
        how = "read-only" if self.running else "its server stopped"
        return f"in recovery at the target, {how}; timeline {self.timeline}"
