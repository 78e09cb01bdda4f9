"""A message says the worst first, and stays short however much is wrong."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from pitr_pipelines.watch.incidents import Findings, Incident, Kind, Scope, Severity
from pitr_pipelines.watch.lives import Life, News, advance
from pitr_pipelines.watch.message import BODY_LIMIT, Tone, write_message

NOW = datetime(2026, 3, 10, 14, tzinfo=UTC)


def life(name: str = "order-db", kind: Kind = Kind.SERVER_DOWN, *, warning: bool = False) -> Life:
    severity = Severity.WARNING if warning else Severity.CRITICAL
    incident = Incident(kind, name, Scope.REACH, "it does not answer", "Start it.", severity)
    lives = advance(
        {}, Findings((incident,)), now=NOW - timedelta(hours=3), quiet=timedelta(0), subjects={name}
    )
    return lives[incident.key]


def test_a_message_says_what_since_when_what_to_do_and_where_more_is_written() -> None:
    message = write_message(News(opened=(life(),)), now=NOW, place="backup-1")

    assert message.title == "pitr on backup-1: order-db/server-down"
    assert message.body.splitlines() == [
        "NEW",
        "order-db/server-down: it does not answer",
        "  since 2026-03-10 11:00:00+00:00, 3 h 0 min ago",
        "  Start it.",
        "  docs/operate.md#server-down",
    ]
    assert message.tone is Tone.FAILURE


def test_what_is_over_says_how_long_it_lasted() -> None:
    over = life().model_copy(update={"gone_since": NOW - timedelta(hours=1), "over_at": NOW})
    message = write_message(News(over=(over,)), now=NOW, place="backup-1")

    assert message.title == "pitr on backup-1: over: order-db/server-down"
    assert "order-db/server-down, after 2 h 0 min" in message.body
    assert message.tone is Tone.SUCCESS


@pytest.mark.parametrize("count", [1, 6, 100])
def test_a_hundred_at_once_are_one_short_message_that_counts_them(count: int) -> None:
    news = News(opened=tuple(life(f"db-{number}") for number in range(count)))
    message = write_message(news, now=NOW, place="backup-1")

    assert len(message.body) <= BODY_LIMIT
    assert len(message.title) < 120
    if count > 5:
        assert f"and {count - 5} more" in message.body


def test_a_warning_alone_is_no_alarm() -> None:
    news = News(reminded=(life(warning=True),))
    message = write_message(news, now=NOW, place="x")
    assert message.tone is Tone.WARNING
    assert message.title == "pitr on x: still: order-db/server-down"
