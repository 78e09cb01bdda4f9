"""Targets: the moment a restore asks for, and how a person writes it.

`inclusive` means what PostgreSQL's recovery_target_inclusive means: whether the transaction, or the
record, that is exactly at the target is still replayed.

A time without an offset is read in the configured time zone; one that the zone's clocks show twice,
or never, is refused. What PostgreSQL gets always carries an offset.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, date, datetime
from zoneinfo import ZoneInfo

from pitr_pipelines.errors import BadRequest
from pitr_pipelines.wal.hours import Hour
from pitr_pipelines.wal.lsn import Lsn

_FIRST_NORMAL_XID = 3
_XIDS = 1 << 32


@dataclass(frozen=True, slots=True)
class TimeTarget:
    """Everything committed up to and including `moment`, and nothing later.

    If not `inclusive`, what was committed at exactly that moment is left out too.
    """

    moment: datetime
    inclusive: bool = True

    def __str__(self) -> str:
        return f"the time {self.moment.isoformat(sep=' ')}{_exclusive(self.inclusive)}"


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


@dataclass(frozen=True, slots=True)
class LsnTarget:
    """Every record that begins before `lsn`; if `inclusive`, also the first that begins there or later."""

    lsn: Lsn
    inclusive: bool = True

    def __str__(self) -> str:
        return f"the LSN {self.lsn}{_exclusive(self.inclusive)}"


@dataclass(frozen=True, slots=True)
class NameTarget:
    """Everything up to a named restore point; the newest, if the name was given more than once."""

    name: str

    def __str__(self) -> str:
        return f"the restore point {self.name!r}"


@dataclass(frozen=True, slots=True)
class XidTarget:
    """Everything up to the end of transaction `xid`, in WAL order; with it, if `inclusive`."""

    xid: int
    inclusive: bool = True

    def __str__(self) -> str:
        return f"the transaction {self.xid}{_exclusive(self.inclusive)}"


@dataclass(frozen=True, slots=True)
class ImmediateTarget:
    """What a base backup alone holds, as soon as it is consistent: that of a day, or the newest."""

    base: date | None = None

    def __str__(self) -> str:
        return (
            f"the end of the {'newest base backup' if self.base is None else f'base backup of {self.base}'}"
        )


Target = TimeTarget | HourTarget | LatestTarget | LsnTarget | NameTarget | XidTarget | ImmediateTarget


def moment_of(target: Target) -> datetime | None:
    """Return the moment that was asked for, or None if the target is of another kind."""
    return target.moment if isinstance(target, TimeTarget | HourTarget) else None


def _exclusive(inclusive: bool) -> str:
    return "" if inclusive else ", exclusive"


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
    zone: ZoneInfo,
    *,
    time: str | None = None,
    hour: str | None = None,
    latest: bool = False,
    lsn: str | None = None,
    name: str | None = None,
    xid: str | None = None,
    immediate: bool = False,
    base: str | None = None,
    exclusive: bool = False,
) -> Target:
    """Return the one target that was asked for.

    `base` is the day of the base backup for `immediate`; `exclusive` leaves out what is exactly at a
    time, LSN or xid. Raises BadRequest for no target, several, or one that cannot be read.
    """
    given = {
        "a time": time,
        "an hour": hour,
        "latest": latest,
        "an LSN": lsn,
        "a restore point's name": name,
        "an xid": xid,
        "immediate": immediate,
    }
    asked = [kind for kind, value in given.items() if value]
    if len(asked) != 1:
        raise BadRequest(
            "no target is given" if not asked else f"several targets are given: {', '.join(asked)}",
            remedy="Give one: a time ('2026-01-29 14:30:00'), an hour (2026-01-29-14), an LSN (0/3000028), "
            "the name of a restore point, an xid, immediate, or latest.",
        )
    if exclusive and not (time or lsn or xid):
        raise BadRequest(
            f"exclusive does not go with {asked[0]}",
            remedy="PostgreSQL can leave out what is exactly at a time, an LSN or an xid.",
        )
    if base and not immediate:
        raise BadRequest(
            f"a base backup is chosen, but the target is {asked[0]}",
            remedy="Only immediate restores a base backup alone; else the best one is chosen for the target.",
        )
    if time:
        return TimeTarget(parse_moment(time, zone), not exclusive)
    if hour:
        try:
            return HourTarget(Hour.parse(hour))
        except ValueError as error:
            raise BadRequest(str(error), remedy="Hours are in UTC; `pitr status` lists them.") from None
    if lsn:
        return LsnTarget(_parse_lsn(lsn), not exclusive)
    if name:
        return NameTarget(name)
    if xid:
        return XidTarget(_parse_xid(xid), not exclusive)
    if immediate:
        return ImmediateTarget(_parse_day(base) if base else None)
    return LatestTarget()


def _parse_lsn(text: str) -> Lsn:
    try:
        return Lsn.parse(text)
    except ValueError as error:
        raise BadRequest(str(error), remedy="pg_current_wal_insert_lsn() shows the server's.") from None


def _parse_xid(text: str) -> int:
    """Read a transaction id, with or without its epoch, which WAL records do not have."""
    xid = int(text) % _XIDS if text.strip().isdecimal() else 0
    if xid < _FIRST_NORMAL_XID:
        raise BadRequest(
            f"{text!r} is not a transaction id",
            remedy="Give a number as pg_current_xact_id() or a row's xmin shows it.",
        )
    return xid


def _parse_day(text: str) -> date:
    try:
        return date.fromisoformat(text.strip())
    except ValueError:
        raise BadRequest(
            f"{text!r} is not a day", remedy="Write it as 2026-01-29; `pitr status` lists the base backups."
        ) from None
