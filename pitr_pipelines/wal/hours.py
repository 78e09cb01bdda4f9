"""Hours in UTC: the unit in which WAL is bundled, and the key of a bundle's partition."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema

from pitr_pipelines.wal.lsn import schema_as_text

KEY_FORMAT = "%Y-%m-%d-%H"
"""How an hour is written in file names and partition keys, always in UTC."""

_HOUR = timedelta(hours=1)


@dataclass(frozen=True, order=True, slots=True)
class Hour:
    """One hour of UTC, from `start` (included) to `end` (excluded)."""

    start: datetime

    def __post_init__(self) -> None:
        if self.start.tzinfo is None:
            raise ValueError("an hour starts at an aware time")
        start = self.start.astimezone(UTC)
        if start != start.replace(minute=0, second=0, microsecond=0):
            raise ValueError(f"{self.start.isoformat()} is not the start of an hour")
        object.__setattr__(self, "start", start)

    @classmethod
    def parse(cls, key: str) -> Hour:
        """Read a key such as `2026-01-29-14`. Raises ValueError for anything else."""
        try:
            hour = cls(datetime.strptime(key, KEY_FORMAT).replace(tzinfo=UTC))
        except ValueError:
            hour = None
        if hour is None or str(hour) != key:
            raise ValueError(f"{key!r} is not an hour; write it as 2026-01-29-14 (UTC)")
        return hour

    @classmethod
    def containing(cls, moment: datetime) -> Hour:
        """Return the hour that holds an aware `moment`."""
        return cls(moment.astimezone(UTC).replace(minute=0, second=0, microsecond=0))

    @property
    def end(self) -> datetime:
        return self.start + _HOUR

    def following(self) -> Hour:
        return Hour(self.end)

    def preceding(self) -> Hour:
        return Hour(self.start - _HOUR)

    def until(self, last: Hour) -> Iterator[Hour]:
        """Yield this hour and every later one up to and including `last`."""
        hour = self
        while hour <= last:
            yield hour
            hour = hour.following()

    def __str__(self) -> str:
        return self.start.strftime(KEY_FORMAT)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return schema_as_text(cls, cls.parse)
