"""Targets: the moment a restore asks for, and how a person writes it.

A time without an offset is read in the configured time zone; one that the zone's clocks show twice,
or never, is refused. What PostgreSQL gets always carries an offset.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

from pitr_pipelines.errors import BadRequest
from pitr_pipelines.wal.hours import Hour


@dataclass(frozen=True, slots=True)
class TimeTarget:
    """Everything committed up to and including `moment`, and nothing later."""

    moment: datetime

    def __str__(self) -> str:
        return f"the time {self.moment.isoformat(sep=' ')}"


@dataclass(frozen=True, slots=True)
class HourTarget:
    """The restore point at the end of an hour."""

    hour: Hour

    @property
    def moment(self) -> datetime:
        return self.hour.end

    def __str__(self) -> str:
        return f"the end of the hour {self.hour} ({self.moment.isoformat(sep=' ')})"


@dataclass(frozen=True, slots=True)
class LatestTarget:
    """Everything there is: the end of the archive, without a gap."""

    def __str__(self) -> str:
        return "the latest moment there is"


Target = TimeTarget | HourTarget | LatestTarget
"""Further kinds (LSN, restore point name, xid, immediate) join here; the planner dispatches on it."""


def parse_moment(text: str, zone: ZoneInfo) -> datetime:
    """Read a time as a person writes it, such as `2026-01-29 14:30:00` or with `+01:00` or `Z`.

    Returns it in `zone` if it had no offset, else with its own. Raises BadRequest.
    """
    try:
        moment = datetime.fromisoformat(text.strip())
    except ValueError:
        raise BadRequest(
            f"{text!r} is not a time",
            remedy="Write it as '2026-01-29 14:30:00', with an offset (+01:00 or Z) if it is not in the "
            f"configured time zone ({zone.key}).",
        ) from None
    if moment.tzinfo is not None:
        return moment
    first, second = moment.replace(tzinfo=zone, fold=0), moment.replace(tzinfo=zone, fold=1)
    if first.utcoffset() == second.utcoffset():
        return first
    exists = first.astimezone(UTC).astimezone(zone).replace(tzinfo=None) == moment
    readings = " or ".join(f"'{reading.isoformat(sep=' ')}'" for reading in (first, second))
    raise BadRequest(
        f"the clocks of {zone.key} {'show ' + text + ' twice' if exists else 'never show ' + text}, "
        "because of a change to or from daylight-saving time",
        remedy=f"Write the time with its offset: {readings}.",
    )


def show_moment(moment: datetime, zone: ZoneInfo) -> str:
    """Return a moment in the configured zone, with its offset."""
    return moment.astimezone(zone).isoformat(sep=" ")


def parse_target(
    zone: ZoneInfo, *, time: str | None = None, hour: str | None = None, latest: bool = False
) -> Target:
    """Return the one target that was asked for. Raises BadRequest for none or several."""
    asked = [name for name, given in (("a time", time), ("an hour", hour), ("latest", latest)) if given]
    if len(asked) != 1:
        raise BadRequest(
            "no target is given" if not asked else f"several targets are given: {', '.join(asked)}",
            remedy="Give one: a time ('2026-01-29 14:30:00'), an hour (2026-01-29-14), or latest.",
        )
    if time is not None:
        return TimeTarget(parse_moment(time, zone))
    if hour is not None:
        try:
            return HourTarget(Hour.parse(hour))
        except ValueError as error:
            raise BadRequest(str(error), remedy="Hours are in UTC; `pitr status` lists them.") from None
    return LatestTarget()
