"""The longest pause of a schedule, as far as it can be told."""

from __future__ import annotations

from datetime import timedelta

import pytest

from pitr_pipelines.cron_gap import longest_gap


@pytest.mark.parametrize(
    ("expression", "gap"),
    [
        ("1 * * * *", timedelta(hours=1)),
        ("*/15 * * * *", timedelta(minutes=15)),
        ("0 3 * * *", timedelta(days=1)),
        ("30 */6 * * *", timedelta(hours=6)),
        ("0 8,12,20 * * *", timedelta(hours=12)),
        ("0 9-17 * * *", timedelta(hours=16)),
        ("0 5 * * 0", timedelta(days=7)),
        ("0 5 * * 7", timedelta(days=7)),
        ("0 5 * * 1-5", timedelta(days=3)),
        ("0 0 1 * *", timedelta(days=31)),
        ("0 0 1 1 *", timedelta(days=366)),
        ("0 0 1,15 * 1", timedelta(days=7)),
        ("0 5 * * mon", None),
        ("0 5 L * *", None),
        ("61 * * * *", None),
        ("*/0 * * * *", None),
        ("0 0 30 2 *", None),
        ("hourly", None),
    ],
)
def test_the_longest_pause_between_two_ticks(expression: str, gap: timedelta | None) -> None:
    assert longest_gap(expression) == gap
