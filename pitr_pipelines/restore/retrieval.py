"""Artifacts that are not where they are read from yet: what planning asks of whoever can bring them.

An ordinary restore needs none of this: everything lies below `backup_root`. Where it does not, records lie
in some `layout` already, and a bundle or a base comes to lie beside its record when it is asked for.
"""

from __future__ import annotations

from datetime import date
from typing import Protocol

from pitr_pipelines.catalog.layout import Layout
from pitr_pipelines.restore.wal_source import InBase, InBundle, WalSegment
from pitr_pipelines.wal.hours import Hour


class Retrieval(Protocol):
    """Brings artifacts of one database to where `layout` says they are."""

    @property
    def layout(self) -> Layout: ...

    def envelope_of(self, hour: Hour) -> date | None:
        """Return the day of the envelope that an hour's bundle comes from; None if it lies here."""
        ...

    def provide(self, artifact: date | Hour) -> None:
        """See to it that a base's files, or a bundle's, can be read.

        What it raises of its own, where another copy has another record, is no PitrError: the plan must
        begin anew with what is known by then.
        """
        ...


def provide_for(retrieval: Retrieval | None, segment: WalSegment) -> None:
    """See to it that the artifact which holds a segment can be read."""
    if retrieval is None:
        return
    match segment.place:
        case InBundle(hour):
            retrieval.provide(hour)
        case InBase(day):
            retrieval.provide(day)
