"""Whether retention does what the settings say: nothing overdue, nothing waiting for ever, nothing in doubt.

Decides from a proposal, and from when retention ran last; nothing is read and nothing is changed.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, time, timedelta

from pitr_pipelines.catalog.health import Finding
from pitr_pipelines.catalog.retention import Retention, Verdict
from pitr_pipelines.units import show_bytes, show_duration

OVERDUE = timedelta(days=2)
"""How long ago retention may have run: it does every day, and a run may be skipped or fail."""
WAITS = timedelta(days=3)
"""How old something that waits for the off-site copy may be: a day's call, and two that failed."""


def check_retention(found: Retention, last_run: datetime | None, *, now: datetime) -> Iterator[Finding]:
    """Yield what is wrong with the retention of one database, which was last carried out at `last_run`."""
    may_go = found.size_bytes(Verdict.REMOVE)
    if may_go and (last_run is None or now - last_run > OVERDUE):
        when = f"ran {show_duration(now - last_run)} ago" if last_run is not None else "has not run yet"
        yield Finding(
            f"{show_bytes(may_go)} of {found.database} may go, and retention {when}",
            f"Is `retention_schedule` on? `pitr retention {found.database}` does it, or says why it cannot.",
            lost=False,
        )
    waiting = _oldest(found, Verdict.WAIT)
    if waiting is not None and now - waiting > WAITS:
        yield Finding(
            f"{show_bytes(found.size_bytes(Verdict.WAIT))} of {found.database} wait to be confirmed "
            f"off-site, the oldest is from {waiting:%Y-%m-%d %H:%M} UTC",
            "Look at the `offsite_copy` asset: what it delivers can go. Until then the disk fills.",
            lost=False,
        )
    for note in found.notes:
        remedy = "docs/retention.md says what is kept, and why."
        yield Finding(f"{found.database}: {note}", remedy, lost=False)


def _oldest(found: Retention, verdict: Verdict) -> datetime | None:
    """Return the age of the oldest artifact with a verdict, by the end of its hour or day."""
    moments = [hour.end for hour in found.hours(verdict)[:1]]
    moments += [datetime.combine(day, time.max, UTC) for day in found.bases(verdict)[:1]]
    return min(moments, default=None)
