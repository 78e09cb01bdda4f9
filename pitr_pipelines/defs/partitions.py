"""Days and hours as partitions, in UTC, whatever the configured time zone.

Both go up to the present one, so that today's base backup can be taken today and the running hour
bundled early.
"""

from dataclasses import dataclass
from datetime import date

import dagster as dg

from pitr_pipelines.wal.hours import KEY_FORMAT


@dataclass(frozen=True)
class Partitions:
    """The partitions that the assets of every database share."""

    days: dg.DailyPartitionsDefinition
    hours: dg.HourlyPartitionsDefinition

    @classmethod
    def since(cls, first_day: date) -> "Partitions":
        return cls(
            dg.DailyPartitionsDefinition(start_date=first_day.isoformat(), timezone="UTC", end_offset=1),
            dg.HourlyPartitionsDefinition(
                start_date=f"{first_day.isoformat()}-00", fmt=KEY_FORMAT, timezone="UTC", end_offset=1
            ),
        )
