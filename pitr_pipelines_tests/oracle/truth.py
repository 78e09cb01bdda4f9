"""What was committed, when, and where in the WAL: what every restore is compared with.

The times are PostgreSQL's own word (pg_xact_commit_timestamp), the places are its WAL's
(wal_truth.py), and the transactions are numbered by the rows of the log themselves. So the state at
any target is known without asking whatever is under test: the log's rows committed by then, and the
things that they leave when they are applied in order.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any

import psycopg

from pitr_pipelines.wal.lsn import Lsn
from pitr_pipelines_tests.oracle.wal_truth import WalTruth
from pitr_pipelines_tests.servers import TestServer

CLEAR = timedelta(milliseconds=10)
"""A commit takes its time shortly before its place in the WAL: targets keep this far from later commits."""

_LOG = """
SELECT n, writer, thing, value, pg_xact_commit_timestamp(xmin), xid::text::bigint, xmin::text::bigint FROM log
"""


@dataclass(frozen=True, slots=True, order=True)
class Change:
    """One row of the log: what a writer did to a thing. `value` is None where it was deleted."""

    n: int
    writer: int
    thing: int
    value: str | None


@dataclass(frozen=True, slots=True)
class State:
    """What a cluster holds: the log, and the things."""

    log: frozenset[Change]
    things: frozenset[tuple[int, str]]

    @classmethod
    def after(cls, changes: Iterable[Change]) -> State:
        """Return the state that some changes leave. A thing's lock lets them be logged in their order."""
        log = sorted(changes)
        last = {change.thing: change.value for change in log}
        return cls(frozenset(log), frozenset((t, value) for t, value in last.items() if value is not None))

    @classmethod
    def of(cls, connection: psycopg.Connection[Any]) -> State:
        """Read the state of a running cluster."""
        log = connection.execute("SELECT n, writer, thing, value FROM log").fetchall()
        things = connection.execute("SELECT thing, value FROM things").fetchall()
        return cls(frozenset(Change(*row) for row in log), frozenset((row[0], row[1]) for row in things))


@dataclass(frozen=True, slots=True)
class Span:
    """What targets may be drawn from: in time and in the WAL, both ends included."""

    since: datetime
    until: datetime
    first: Lsn
    last: Lsn


@dataclass(frozen=True)
class Truth:
    """Everything that was committed, when, by which transaction. `times` are the commits' in order."""

    commits: dict[Change, datetime]
    xids: dict[Change, int]
    subtransactions: list[int]
    """Numbers that rows bear, but of which no commit record tells."""
    wal: WalTruth
    times: list[datetime] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "times", sorted(set(self.commits.values())))

    @classmethod
    def of(cls, server: TestServer, since: Lsn) -> Truth:
        """Ask the server under backup; places are known from `since` on.

        Raises AssertionError where its own words do not agree.
        """
        wal = WalTruth.of(server, since)
        rows = server.execute(_LOG)
        commits = {Change(*row[:4]): row[4] for row in rows}
        xids = {Change(*row[:4]): row[5] for row in rows}
        at = {xids[change]: moment for change, moment in commits.items()}
        committed = [end.xid for end in wal.ends if end.committed]
        for before, after in pairwise(at[xid] for xid in committed if xid in at):
            assert after > before - CLEAR, f"a commit of {after} comes after one of {before} in the WAL"
        assert not set(at) & {end.xid for end in wal.ends if not end.committed}, "rolled back, and yet there"
        return cls(commits, xids, sorted({row[6] for row in rows if row[6] != row[5]}), wal)

    def at(self, moment: datetime, *, inclusive: bool = True) -> State:
        """Return the state in which everything committed by `moment` is in, and nothing else."""
        return State.after(
            change for change, at in self.commits.items() if at < moment or (inclusive and at == moment)
        )

    def having(self, committed: Collection[int]) -> State:
        """Return the state with what some transactions committed, and what is older than `wal`."""
        known = {end.xid for end in self.wal.ends}
        return State.after(c for c, xid in self.xids.items() if xid in committed or xid not in known)

    def all(self) -> State:
        return State.after(self.commits)

    def is_clear(self, moment: datetime) -> bool:
        """Tell whether no commit near `moment` may have its time on one side and its place on the other."""
        index = bisect_right(self.times, moment)
        before, after = self.times[:index][-1:], self.times[index : index + 1]
        just_committed = bool(before) and moment - before[0] < timedelta(microseconds=1)
        if just_committed:
            before = self.times[: index - 1][-1:]
        just_before = bool(after) and after[0] - moment <= timedelta(microseconds=1)
        if just_before:
            after = self.times[index + 1 : index + 2]
        return all(abs(moment - other) > CLEAR for other in (*before, *after))
