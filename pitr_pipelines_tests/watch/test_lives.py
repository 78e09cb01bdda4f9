"""Once when it begins, at each reminder, once when it is over: whatever flaps, fails or is restarted."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from pitr_pipelines.watch.incidents import Findings, Incident, Kind, Scope, Severity
from pitr_pipelines.watch.lives import Life, News, Told, advance, after_telling, news_for

NOW = datetime(2026, 3, 10, 14, tzinfo=UTC)
QUIET = timedelta(minutes=5)
REMINDER = timedelta(hours=24)
SUBJECTS = {"order-db", "inventory-db"}
DOWN = Incident(Kind.SERVER_DOWN, "order-db", Scope.REACH, "it is down", "Start it.")
FAILING = Incident(Kind.ARCHIVE_FAILING, "order-db", Scope.SERVER, "archiving fails", "Look.")
PROMOTED = Incident(
    Kind.TIMELINE_CHANGED, "order-db", Scope.SERVER, "on 2", "", Severity.WARNING, detail="2", once=True
)
EVERYWHERE = frozenset((subject, scope) for subject in SUBJECTS for scope in Scope)


class Story:
    """One recipient, who is told at every look what he does not know."""

    def __init__(self, *, quiet: timedelta = QUIET) -> None:
        self.now = NOW
        self.quiet = quiet
        self.lives: dict[str, Life] = {}
        self.told: dict[str, Told] = {}

    def look(
        self,
        *incidents: Incident,
        minutes: float = 2,
        looked: frozenset[tuple[str, Scope]] = EVERYWHERE,
        arrives: bool = True,
    ) -> dict[str, list[str]]:
        self.now += timedelta(minutes=minutes)
        found = Findings(incidents, looked)
        self.lives = advance(self.lives, found, now=self.now, quiet=self.quiet, subjects=SUBJECTS)
        news = news_for(self.told, self.lives, now=self.now, reminder=REMINDER)
        if arrives:
            self.told = after_telling(self.told, news, self.lives, now=self.now)
        return _keys(news)


def _keys(news: News) -> dict[str, list[str]]:
    parts = {"new": news.opened, "still": news.reminded, "over": news.over}
    return {name: [life.incident.key for life in lives] for name, lives in parts.items() if lives}


def test_an_incident_is_told_once_reminded_of_and_told_when_over() -> None:
    story = Story()
    assert story.look(DOWN) == {"new": ["order-db/server-down"]}
    assert story.look(DOWN) == {}
    assert story.look(DOWN, minutes=24 * 60) == {"still": ["order-db/server-down"]}
    assert story.look(DOWN, minutes=60) == {}
    assert story.look() == {}
    assert story.look(minutes=5) == {"over": ["order-db/server-down"]}
    assert story.look() == {}


def test_what_comes_back_within_its_quiet_time_is_the_same_incident() -> None:
    story = Story()
    story.look(DOWN)
    for _ in range(20):
        assert story.look() == {}
        assert story.look(DOWN) == {}


def test_what_comes_and_goes_slowly_is_quiet_for_longer_each_time() -> None:
    story = Story()
    told: Counter[str] = Counter()
    for minute in range(24 * 60):
        down = minute // 15 % 2 == 0
        for kind in story.look(*([DOWN] if down else []), minutes=1):
            told[kind] += 1

    assert told["new"] <= 4
    assert told["over"] <= 4


def test_what_was_not_looked_at_is_not_over() -> None:
    story = Story()
    story.look(FAILING)
    without = EVERYWHERE - {("order-db", Scope.SERVER)}
    for _ in range(10):
        assert story.look(minutes=30, looked=without) == {}
    assert story.look(minutes=1) == {}
    assert story.look(minutes=5) == {"over": ["order-db/archive-failing"]}


def test_an_event_is_told_once_and_is_never_over() -> None:
    story = Story()
    assert story.look(PROMOTED) == {"new": ["order-db/timeline-changed/2"]}
    assert story.look(PROMOTED, minutes=25 * 60) == {}
    for _ in range(3):
        assert story.look(minutes=60) == {}


def test_what_could_not_be_sent_is_news_until_it_is() -> None:
    story = Story()
    assert story.look(DOWN, arrives=False) == {"new": ["order-db/server-down"]}
    assert story.look(DOWN, arrives=False) == {"new": ["order-db/server-down"]}
    assert story.look(DOWN) == {"new": ["order-db/server-down"]}
    assert story.look(DOWN) == {}
    story.look()
    assert story.look(minutes=5, arrives=False) == {"over": ["order-db/server-down"]}
    assert story.look() == {"over": ["order-db/server-down"]}
    assert story.look() == {}


def test_what_is_over_before_it_could_be_told_is_not_told() -> None:
    story = Story()
    story.look(DOWN, arrives=False)
    assert story.look() == {}
    assert story.look(minutes=10) == {}


def test_a_clock_that_was_set_back_silences_nothing() -> None:
    story = Story()
    story.look(DOWN, minutes=365 * 24 * 60)
    story.now = NOW
    assert story.look(DOWN) == {"still": ["order-db/server-down"]}
    assert story.look(DOWN) == {}
    story.now = NOW + timedelta(days=365)
    story.look()
    story.now = NOW + timedelta(hours=1)
    story.look()
    assert story.look(minutes=5) == {"over": ["order-db/server-down"]}


def test_a_new_recipient_is_told_of_what_is_open() -> None:
    story = Story()
    story.look(DOWN)
    assert _keys(news_for({}, story.lives, now=story.now, reminder=REMINDER)) == {
        "new": ["order-db/server-down"]
    }


def test_a_database_that_is_no_longer_configured_is_forgotten() -> None:
    story = Story()
    story.look(DOWN)
    lives = advance(story.lives, Findings(), now=story.now, quiet=QUIET, subjects={"inventory-db"})
    assert lives == {}
    assert after_telling(story.told, News(), lives, now=story.now) == {}


def test_an_end_that_nobody_told_and_a_new_beginning_are_told_as_a_beginning() -> None:
    story = Story()
    story.look(DOWN)
    story.look()
    story.look(minutes=5, arrives=False)
    assert story.look(DOWN, minutes=60) == {"new": ["order-db/server-down"]}


LOOKS = st.lists(
    st.tuples(
        st.sets(st.sampled_from([DOWN, FAILING, PROMOTED])),
        st.integers(min_value=1, max_value=600),
        st.booleans(),
        st.sampled_from([EVERYWHERE, EVERYWHERE - {("order-db", Scope.SERVER)}, frozenset()]),
    ),
    max_size=40,
)


@given(LOOKS)
def test_every_recipient_hears_a_story_that_makes_sense(
    looks: list[tuple[set[Incident], int, bool, frozenset[tuple[str, Scope]]]],
) -> None:
    """Begin, remind, end, in this order; never twice the same; and what is open is known at last."""
    story = Story()
    open_now: set[str] = set()
    last_told: dict[str, datetime] = {}
    for incidents, minutes, arrives, looked in looks:
        news = story.look(*incidents, minutes=minutes, looked=looked, arrives=arrives)
        if not arrives:
            continue
        for key in news.get("new", []):
            reopened = story.lives[key].opened_at > last_told.get(key, NOW)
            assert key not in open_now or reopened or "timeline" in key
            open_now.add(key)
            last_told[key] = story.now
        for key in news.get("still", []):
            assert key in open_now
            assert story.now - last_told[key] >= REMINDER
            assert "timeline" not in key
            last_told[key] = story.now
        for key in news.get("over", []):
            assert key in open_now
            assert "timeline" not in key
            open_now.remove(key)
        seen = {incident.key for incident in incidents}
        assert seen <= open_now
        assert len(story.lives) <= 3


@given(LOOKS)
def test_a_crash_between_two_looks_loses_nothing(
    looks: list[tuple[set[Incident], int, bool, frozenset[tuple[str, Scope]]]],
) -> None:
    story = Story()
    for incidents, minutes, arrives, looked in looks:
        story.look(*incidents, minutes=minutes, looked=looked, arrives=arrives)
        story.lives = {
            key: Life.model_validate_json(one.model_dump_json()) for key, one in story.lives.items()
        }
        story.told = {key: Told.model_validate_json(one.model_dump_json()) for key, one in story.told.items()}
    story.look(DOWN, FAILING)
    assert {"order-db/server-down", "order-db/archive-failing"} <= story.told.keys()
