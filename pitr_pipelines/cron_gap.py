"""How long the longest pause between two ticks of a cron expression is.

Good enough to derive a promise from a schedule: it knows numbers, ranges, lists and steps. What it
does not know (names, `L`, `#`) it says, so that the caller takes a default instead of a wrong number.
"""

from __future__ import annotations

from datetime import date, timedelta
from functools import cache
from itertools import pairwise

_LIMITS = ((0, 59), (0, 23), (1, 31), (1, 12), (0, 7))
_START = date(2023, 12, 31)
_DAYS = 800
"""Long enough to hold a leap day and two of every yearly tick."""


@cache
def longest_gap(expression: str) -> timedelta | None:
    """Return the longest time between two ticks, or None if that cannot be told."""
    fields = expression.split()
    if len(fields) != len(_LIMITS):
        return None
    try:
        minutes, hours, days, months, weekdays = (
            _values(field, *limits) for field, limits in zip(fields, _LIMITS, strict=True)
        )
    except ValueError:
        return None
    weekdays = {day % 7 for day in weekdays}
    # As cron has it: if both the day of the month and that of the week are restricted, either will do.
    either = not fields[2].startswith("*") and not fields[4].startswith("*")
    of_a_day = sorted(hour * 60 + minute for hour in hours for minute in minutes)
    within = max((b - a for a, b in pairwise(of_a_day)), default=0)
    longest, last = 0, None
    for number in range(_DAYS):
        day = _START + timedelta(days=number)
        fits = (day.day in days, day.isoweekday() % 7 in weekdays)
        if day.month not in months or not (any(fits) if either else all(fits)):
            continue
        if last is not None:
            longest = max(longest, (number - last) * 1440 + of_a_day[0] - of_a_day[-1])
        last = number
    return timedelta(minutes=max(longest, within)) if longest else None


def _values(field: str, low: int, high: int) -> set[int]:
    """Return what one field allows. Raises ValueError for what is not understood."""
    found: set[int] = set()
    for part in field.split(","):
        span, _, step = part.partition("/")
        if span == "*":
            first, last = low, high
        else:
            first_text, _, last_text = span.partition("-")
            first = int(first_text)
            last = int(last_text) if last_text else high if step else first
        every = int(step) if step else 1
        if not low <= first <= last <= high or every < 1:
            raise ValueError(field)
        found.update(range(first, last + 1, every))
    return found
