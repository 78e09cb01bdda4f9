"""Stops: where recovery is told to end its replay. A target is what was asked for, a stop what is done."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from pitr_pipelines.wal.lsn import Lsn


@dataclass(frozen=True, slots=True)
class StopAtTime:
    """Recovery stops before the first commit later than `moment`; there is one in the chain.

    If not `inclusive`, before the first at `moment` or later.
    """

    moment: datetime
    inclusive: bool = True


@dataclass(frozen=True, slots=True)
class StopAtLsn:
    """Recovery stops at the first record that begins at `lsn` or later; there is one in the chain.

    If `inclusive`, that record is replayed. With `restore_point` it begins exactly at `lsn`, and is the
    restore point of that name: by its place it is found even if the name was given before.
    """

    lsn: Lsn
    inclusive: bool = True
    restore_point: str | None = None


@dataclass(frozen=True, slots=True)
class StopAtXid:
    """Recovery stops at the record, in the chain, that ends the transaction `xid`.

    If `inclusive`, that record is replayed. `committed` is false if it was rolled back; `lsn` is where
    it begins, if that is known.
    """

    xid: int
    inclusive: bool
    committed: bool
    at: datetime
    lsn: Lsn | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class StopAtConsistency:
    """Recovery stops as soon as the base backup is consistent."""


@dataclass(frozen=True, slots=True)
class StopAtEnd:
    """Recovery replays the whole chain. `why` says why that is the state that was asked for."""

    why: str


Stop = StopAtTime | StopAtLsn | StopAtXid | StopAtConsistency | StopAtEnd
