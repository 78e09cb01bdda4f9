"""The lives of incidents: when each was first seen, whether it is over, and who knows of it.

Pure. The invariants: an incident is over only when a look at where it would be did not find it for
its whole quiet time, so one that flaps stays one incident, the longer the more often it came back;
and each recipient is told once that it began, at each reminder, and once that it is over. What a
recipient knows is his own affair: one that cannot be reached delays nobody else.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from pydantic import BaseModel, ConfigDict

from pitr_pipelines.catalog.records import Moment
from pitr_pipelines.watch.incidents import Findings, Incident, Kind, Scope, Severity

_REMEMBERED = timedelta(days=1)
"""How long what is over is remembered, to know it again when it comes back."""
_LONGEST_QUIET = timedelta(hours=8)


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Life(_Part):
    """One incident from its first sight on. `gone_since`: not seen from then on, and not over yet.

    `openings` are the moments within a day at which it began; more than one means that it comes and goes.
    """

    kind: Kind
    subject: str
    scope: Scope
    detail: str | None = None
    what: str
    remedy: str
    severity: Severity
    once: bool = False
    opened_at: Moment
    seen_at: Moment
    gone_since: Moment | None = None
    over_at: Moment | None = None
    openings: tuple[Moment, ...] = ()

    @property
    def incident(self) -> Incident:
        return Incident(
            self.kind, self.subject, self.scope, self.what, self.remedy, self.severity, self.detail, self.once
        )

    @property
    def is_open(self) -> bool:
        return self.over_at is None


class Told(_Part):
    """What a recipient was told last of the incident that began at `opened_at`."""

    opened_at: Moment
    at: Moment
    times: int = 1


@dataclass(frozen=True, slots=True)
class News:
    """What a recipient is to be told now: in one message."""

    opened: tuple[Life, ...] = ()
    reminded: tuple[Life, ...] = ()
    over: tuple[Life, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.opened or self.reminded or self.over)


def advance(
    lives: Mapping[str, Life],
    found: Findings,
    *,
    now: datetime,
    quiet: timedelta,
    subjects: Collection[str],
) -> dict[str, Life]:
    """Return the lives after a look at `now`. Of subjects that are no longer watched, nothing is kept."""
    after: dict[str, Life] = {}
    seen = {incident.key: incident for incident in found.incidents}
    for key, incident in seen.items():
        known = lives.get(key)
        if known is not None and known.is_open:
            after[key] = _opened(incident, known.opened_at, now, known.openings)
        else:
            earlier = known.openings if known else ()
            openings = (*(at for at in earlier if now - at < _REMEMBERED), now)
            after[key] = _opened(incident, now, now, openings)
    for key, life in lives.items():
        if key in seen or life.subject not in subjects:
            continue
        if not life.is_open:
            if life.over_at is not None and now - life.over_at < _REMEMBERED:
                after[key] = life
        elif (life.subject, life.scope) not in found.looked:
            after[key] = life  # nobody knows
        else:
            after[key] = _not_seen(life, now, quiet)
    return after


def news_for(
    told: Mapping[str, Told], lives: Mapping[str, Life], *, now: datetime, reminder: timedelta
) -> News:
    """Return what somebody who was told `told` does not know yet, or is to be reminded of."""
    opened, reminded, over = [], [], []
    for key, life in lives.items():
        known = told.get(key)
        knows = known is not None and known.opened_at == life.opened_at
        if not life.is_open:
            if knows and not life.once:
                over.append(life)
        elif life.gone_since is not None:
            continue  # perhaps over; then that is told
        elif not knows:
            opened.append(life)
        elif known is not None and not life.once and not timedelta(0) <= now - known.at < reminder:
            reminded.append(life)
    return News(_in_order(opened), _in_order(reminded), _in_order(over))


def after_telling(
    told: Mapping[str, Told], news: News, lives: Mapping[str, Life], *, now: datetime
) -> dict[str, Told]:
    """Return what somebody knows after he was told `news`; what no longer exists is forgotten."""
    over = {life.incident.key for life in news.over}
    after = {key: one for key, one in told.items() if key in lives and key not in over}
    for life in (*news.opened, *news.reminded):
        key = life.incident.key
        before = after.get(key)
        times = before.times + 1 if before and before.opened_at == life.opened_at else 1
        after[key] = Told(opened_at=life.opened_at, at=now, times=times)
    return after


def _opened(incident: Incident, opened_at: datetime, now: datetime, openings: tuple[datetime, ...]) -> Life:
    return Life(
        kind=incident.kind,
        subject=incident.subject,
        scope=incident.scope,
        detail=incident.detail,
        what=incident.what,
        remedy=incident.remedy,
        severity=incident.severity,
        once=incident.once,
        opened_at=opened_at,
        seen_at=now,
        openings=openings,
    )


def _not_seen(life: Life, now: datetime, quiet: timedelta) -> Life:
    # A clock that was set back must not make anything wait for the moment that it showed.
    gone_since = min(life.gone_since or now, now)
    needed = min(quiet * 2 ** (max(1, len(life.openings)) - 1), max(quiet, _LONGEST_QUIET))
    over_at = now if now - gone_since >= needed else None
    return life.model_copy(update={"gone_since": gone_since, "over_at": over_at})


def _in_order(lives: Iterable[Life]) -> tuple[Life, ...]:
    return tuple(sorted(lives, key=lambda life: (life.severity is not Severity.CRITICAL, life.incident.key)))
