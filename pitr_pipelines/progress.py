"""How long work tells how far it is: to a terminal, to Dagster's log, or to nobody.

The work only reports; whoever called it decides how, and how often, to show it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Progress:
    """`done` of `total` `unit`s of `step` are finished; `total` is None while nobody can know it."""

    step: str
    done: int
    total: int | None
    unit: str = "bytes"


Report = Callable[[Progress], None]


def silent(progress: Progress) -> None:
    """Report to nobody."""
