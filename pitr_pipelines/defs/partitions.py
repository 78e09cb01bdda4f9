"""Days, hours and weeks as partitions, in UTC, whatever the configured time zone.

All go up to the present one, so that today's base backup can be taken today and the running hour
bundled early.
"""

from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

import dagster as dg

from pitr_pipelines.wal.hours import KEY_FORMAT


@dataclass(frozen=True)
class Partitions:
    """The partitions that the assets of every database share."""

    days: dg.DailyPartitionsDefinition
    hours: dg.HourlyPartitionsDefinition
    weeks: dg.WeeklyPartitionsDefinition

    @classmethod
    def since(cls, first_day: date) -> "Partitions":
        return cls(
            dg.DailyPartitionsDefinition(start_date=first_day.isoformat(), timezone="UTC", end_offset=1),
            dg.HourlyPartitionsDefinition(
                start_date=f"{first_day.isoformat()}-00", fmt=KEY_FORMAT, timezone="UTC", end_offset=1
            ),
            dg.WeeklyPartitionsDefinition(
                start_date=_sunday(first_day).isoformat(), timezone="UTC", end_offset=1
            ),
        )

    @staticmethod
    def week_of(moment: datetime) -> str:
        """Return the key of the week that holds a moment: the day of its Sunday."""
        return _sunday(moment.astimezone(UTC).date()).isoformat()


def _sunday(day: date) -> date:
    return day - timedelta(days=day.isoweekday() % 7)
