"""The record of a restore in place: its journal while directories are moved, and what makes undo possible."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

from pitr_pipelines.catalog.records import Record
from pitr_pipelines.restore.in_place_swap import Swap
from pitr_pipelines.restore.report import RestoreReport


class State(StrEnum):
    """How far it is. What is `replacing` or `undoing` was interrupted, unless it still runs."""

    REPLACING = "replacing"
    IN_PLACE = "in place"
    UNDOING = "undoing"
    UNDONE = "undone"
    GIVEN_UP = "given up"
    """It was interrupted before anything was moved; the old directory is in its place."""


class InPlaceRecord(Record):
    """One restore in place. `swap` is the last that was begun: the restore's, or that of its undoing."""

    kind: Literal["in_place"] = "in_place"
    stamp: str
    state: State
    swap: Swap
    restored: RestoreReport
