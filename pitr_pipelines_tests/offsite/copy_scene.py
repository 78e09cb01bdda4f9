"""The day's call in tests: its clock, its settings, what it says, and what lies in the store afterwards."""

from __future__ import annotations

from collections.abc import Callable, Generator
from datetime import UTC, date, datetime, timedelta
from typing import Any

from pitr_pipelines.catalog.layout import Layout
from pitr_pipelines.offsite.budget import CallState, read_entry
from pitr_pipelines.offsite.copy import make_copy
from pitr_pipelines.offsite.copy_report import CopyReport
from pitr_pipelines.offsite.delivered import envelope_key
from pitr_pipelines.offsite.object_store import ObjectStore
from pitr_pipelines.settings import Settings
from pitr_pipelines_tests.offsite.scenes import TODAY

TOMORROW = TODAY + timedelta(days=1)
MakeSettings = Callable[..., Settings]


def clock_at(hour: int, minute: int = 10, *, day: date = TODAY) -> Callable[[], datetime]:
    """A clock that goes on by a second at each look."""
    ticks = iter(range(10**6))
    start = datetime(day.year, day.month, day.day, hour, minute, tzinfo=UTC)
    return lambda: start + timedelta(seconds=next(ticks))


def copied(settings: Settings, **options: Any) -> CopyReport:
    return make_copy(settings, **{"clock": clock_at(5), "looks_s": (0.0,), **options})


def layout_of(settings: Settings) -> Layout:
    return Layout(settings.backup_root)


def state_of(settings: Settings, day: date = TODAY) -> CallState | None:
    entry = read_entry(layout_of(settings).ledger, day)
    return entry.state if entry else None


class Held:
    """A stored envelope as ranges of it, read through `store` if it is given."""

    def __init__(self, settings: Settings, day: date = TODAY, *, store: ObjectStore | None = None) -> None:
        place = settings.offsite_copy().store
        self.store = store or ObjectStore(place)
        self.name = envelope_key(place, day)

    def get_range(self, offset: int, length: int) -> Generator[bytes, None, None]:
        head = self.store.head(self.name)
        assert head is not None
        yield from self.store.get_range(self.name, offset, min(length, head.size_bytes - offset))
