"""What is an incident and what is not, by the numbers of a look and of those before it."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from pitr_pipelines.alert_settings import AlertSettings
from pitr_pipelines.errors import PitrError, ServerUnavailable
from pitr_pipelines.postgres.archiver import ArchiverState
from pitr_pipelines.wal.lsn import Lsn, SegmentName
from pitr_pipelines.watch.incidents import Findings, Severity
from pitr_pipelines.watch.judge_database import judge_database
from pitr_pipelines.watch.judge_storage import judge_storage
from pitr_pipelines.watch.memory import Memory, SpaceMemory, remember, sample
from pitr_pipelines.watch.observation import Observation, Space, StoredState
from pitr_pipelines.watch.promises import Promises

NOW = datetime(2026, 3, 10, 14, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
SIZE = 16 * 1024 * 1024
ALERTS = AlertSettings()
PROMISES = Promises(timedelta(hours=2), timedelta(hours=30), None)
OURS = "archive it"
DOWN = ServerUnavailable("order-db does not answer", remedy="Start it.")

SERVER = ArchiverState(
    now=NOW,
    system_identifier="7",
    timeline=1,
    wal_segment_size=SIZE,
    in_recovery=False,
    settings={
        "archive_mode": "on",
        "archive_command": "theirs",
        "archive_library": "",
        "archive_timeout": "60",
        "wal_level": "replica",
        "max_wal_senders": "5",
        "full_page_writes": "on",
    },
    archived_count=10,
    failed_count=0,
    last_archived_wal="000000010000000000000009",
    last_archived_at=NOW - MINUTE,
    last_failed_wal=None,
    last_failed_at=None,
    current_lsn=Lsn(10 * SIZE + 100),
    ready_backlog=0,
    oldest_ready_at=None,
    pg_wal_bytes=4 * SIZE,
)
STORED = StoredState(
    raw_files=1,
    raw_bytes=SIZE,
    newest_segment=SegmentName.parse("000000010000000000000009"),
    newest_at=NOW - MINUTE,
    archive_owner="7",
    base_ended_at=NOW - timedelta(hours=11),
    last_drill=None,
    last_good_drill=None,
    present=frozenset({"000000010000000000000009"}),
)


class Looks:
    """Looks at one database, one after the other."""

    def __init__(self) -> None:
        self.now = NOW - MINUTE
        self.memory: Memory | None = None

    def __call__(
        self,
        server: ArchiverState | PitrError = SERVER,
        stored: StoredState | None = STORED,
        *,
        after: timedelta = MINUTE,
        alerts: AlertSettings = ALERTS,
    ) -> set[str]:
        return {
            incident.key for incident in self.findings(server, stored, after=after, alerts=alerts).incidents
        }

    def findings(
        self,
        server: ArchiverState | PitrError = SERVER,
        stored: StoredState | None = STORED,
        *,
        after: timedelta = MINUTE,
        alerts: AlertSettings = ALERTS,
    ) -> Findings:
        self.now += after
        seen = Observation("order-db", self.now, server, stored, Space(50, 100))
        self.memory = remember(self.memory, seen, expected_command=OURS)
        return judge_database(
            seen,
            self.memory,
            alerts=alerts,
            promises=PROMISES,
            drill_age=timedelta(days=8),
            archive=Path("/backup/wal/order-db"),
        )


def with_settings(**changed: str) -> ArchiverState:
    return replace(SERVER, settings={**SERVER.settings, **changed})


def waiting(minutes: float, backlog: int = 1) -> ArchiverState:
    return replace(SERVER, ready_backlog=backlog, oldest_ready_at=NOW - timedelta(minutes=minutes))


def failing(count: int) -> ArchiverState:
    return replace(
        SERVER, failed_count=count, last_failed_wal="00000001000000000000000A", last_failed_at=SERVER.now
    )


def test_a_well_database_is_no_incident() -> None:
    look = Looks()
    assert look() == set()
    assert look() == set()


def test_a_restart_is_no_incident_and_an_absence_is_one_after_its_grace() -> None:
    look = Looks()
    look()
    assert [look(DOWN), look(DOWN), look(DOWN)] == [set(), set(), set()]
    assert look(DOWN) == {"order-db/server-down"}
    assert look() == set()
    assert look(DOWN) == set()
    assert look(DOWN, after=timedelta(hours=1)) == {"order-db/server-down"}


def test_a_server_that_is_down_is_told_although_the_clock_was_set_back() -> None:
    look = Looks()
    look(DOWN, after=timedelta(days=365))
    look.now = NOW
    told = [look(DOWN, None) for _ in range(4)]
    assert told == [set()] * 3 + [{"order-db/server-down"}]


def test_of_a_server_that_is_down_nothing_is_known_and_the_storage_is_judged_all_the_same() -> None:
    look = Looks()
    old = replace(STORED, newest_at=NOW - timedelta(hours=3))
    found = look.findings(DOWN, old)
    assert {incident.key for incident in found.incidents} == {"order-db/recovery-point-old"}
    assert {scope.value for _, scope in found.looked} == {"reach", "storage"}


def test_an_idle_server_is_never_stalled() -> None:
    look = Looks()
    idle = replace(SERVER, last_archived_at=NOW - timedelta(days=3), current_lsn=Lsn(10 * SIZE + 100))
    assert look(idle, replace(STORED, newest_at=NOW - timedelta(minutes=59))) == set()


@pytest.mark.parametrize(("minutes", "stalled"), [(0, False), (5.9, False), (6.1, True)])
def test_finished_wal_may_wait_for_the_timeout_and_the_slack(minutes: float, stalled: bool) -> None:
    assert Looks()(waiting(minutes)) == ({"order-db/archive-stalled"} if stalled else set())


def test_a_role_that_may_not_see_what_waits_judges_by_what_was_written() -> None:
    blind = replace(SERVER, ready_backlog=None, last_archived_at=NOW - timedelta(hours=1))
    assert Looks()(blind) == set()
    assert Looks()(replace(blind, current_lsn=Lsn(13 * SIZE))) == {"order-db/archive-stalled"}


def test_one_failed_attempt_is_no_incident_and_two_are() -> None:
    look = Looks()
    look()
    assert look(failing(3)) == set()
    assert look(failing(6)) == {"order-db/archive-failing"}
    assert look(replace(failing(6), last_archived_at=SERVER.now + MINUTE)) == set()


def test_a_pile_is_told_and_so_is_a_smaller_one_that_grows() -> None:
    assert Looks()(waiting(0, 64)) == {"order-db/archive-backlog"}
    look = Looks()
    told = [look(waiting(0, backlog)) for backlog in range(14, 21)]
    assert told == [set()] * 5 + [{"order-db/archive-backlog"}] * 2
    assert look(waiting(0, 19)) == set()


def test_what_was_said_to_be_archived_and_is_not_there_is_told_after_a_while() -> None:
    look = Looks()
    lost = replace(SERVER, last_archived_wal="00000001000000000000000A")
    look(lost)
    assert look(lost) == set()
    assert look(lost, after=2 * MINUTE) == {"order-db/archive-elsewhere"}
    assert look() == {"order-db/archive-elsewhere"}  # what it said at the look before is still missing
    assert look() == set()


def test_a_history_file_that_was_archived_last_says_nothing() -> None:
    look = Looks()
    for _ in range(5):
        assert look(replace(SERVER, last_archived_wal="00000002.history")) == set()


@pytest.mark.parametrize(
    "changed",
    [
        {"archive_command": "another"},
        {"archive_library": "basic_archive"},
        {"archive_timeout": "0"},
        {"full_page_writes": "off"},
        {"max_wal_senders": "3"},
        {"archive_mode": "always"},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_a_setting_that_was_changed_is_told_until_it_is_set_back(changed: dict[str, str]) -> None:
    look = Looks()
    look()
    assert look(with_settings(**changed)) == {"order-db/settings-changed"}
    assert look(with_settings(**changed)) == {"order-db/settings-changed"}
    assert look() == set()


@pytest.mark.parametrize("changed", [{"archive_command": OURS}, {"max_wal_senders": "20"}])
def test_a_change_for_the_better_needs_nobodys_word(changed: dict[str, str]) -> None:
    look = Looks()
    look()
    assert look(with_settings(**changed)) == set()
    assert look() == {"order-db/settings-changed"}


@pytest.mark.parametrize(
    "changed", [{"archive_mode": "off"}, {"archive_command": ""}, {"wal_level": "minimal"}]
)
def test_archiving_that_is_off_is_told_at_once(changed: dict[str, str]) -> None:
    assert Looks()(with_settings(**changed)) == {"order-db/archiving-off"}


def test_another_cluster_or_a_standby_is_told_and_nothing_else_of_it() -> None:
    look = Looks()
    look()
    assert look(replace(failing(9), system_identifier="8")) == {"order-db/cluster-changed"}
    assert look(replace(waiting(60), in_recovery=True, current_lsn=None)) == {"order-db/not-primary"}
    assert look() == set()


def test_a_new_cluster_whose_archive_was_made_for_it_is_no_incident() -> None:
    look = Looks()
    look()
    assert look(replace(SERVER, system_identifier="8"), replace(STORED, archive_owner="8")) == set()


def test_a_new_timeline_is_news_for_a_day_and_one_that_goes_back_an_alarm() -> None:
    look = Looks()
    look()
    found = look.findings(replace(SERVER, timeline=2))
    assert [(one.key, one.severity, one.once) for one in found.incidents] == [
        ("order-db/timeline-changed/2", Severity.WARNING, True)
    ]
    back = look.findings()
    assert [(one.key, one.severity) for one in back.incidents] == [
        ("order-db/timeline-changed/1", Severity.CRITICAL)
    ]
    recent = replace(
        STORED, newest_at=look.now + timedelta(days=1), base_ended_at=look.now + timedelta(days=1)
    )
    assert look(SERVER, recent, after=timedelta(days=1)) == set()


@pytest.mark.parametrize(
    ("stored", "told"),
    [
        ({"newest_at": NOW - timedelta(minutes=119)}, set()),
        ({"newest_at": NOW - timedelta(minutes=121)}, {"order-db/recovery-point-old"}),
        ({"base_ended_at": NOW - timedelta(hours=29)}, set()),
        ({"base_ended_at": NOW - timedelta(hours=31)}, {"order-db/base-old"}),
        ({"base_ended_at": None, "newest_at": None, "newest_segment": None}, set()),
    ],
)
def test_ages_are_held_against_the_promises(stored: dict[str, Any], told: set[str]) -> None:
    assert Looks()(SERVER, replace(STORED, **stored)) == told


def test_a_new_database_gets_the_time_that_its_promises_give_it() -> None:
    look = Looks()
    nothing = replace(STORED, newest_at=None, newest_segment=None, base_ended_at=None, present=frozenset())
    fresh = replace(SERVER, last_archived_wal=None, last_archived_at=None)
    assert look(fresh, nothing) == set()
    assert look(fresh, nothing, after=timedelta(hours=3)) == {"order-db/recovery-point-old"}
    assert look(fresh, nothing, after=timedelta(hours=28)) == {
        "order-db/recovery-point-old",
        "order-db/base-old",
    }
    assert "order-db/drill-old" in look(fresh, nothing, after=timedelta(days=8))


def test_space_in_pg_wal_is_watched_where_it_is_visible() -> None:
    assert Looks()(replace(SERVER, pg_wal_free_bytes=9, pg_wal_size_bytes=100)) == {"order-db/pg-wal-full"}
    assert Looks()(replace(SERVER, pg_wal_free_bytes=11, pg_wal_size_bytes=100)) == set()


def storage(free: int, memory: SpaceMemory | None = None, **alerts: Any) -> set[str]:
    settings = AlertSettings.model_validate(alerts)
    found = judge_storage(
        Path("/backup"), Space(free, 1000), memory or SpaceMemory(), {}, settings, NOW + timedelta(days=1)
    )
    return {incident.key for incident in found.incidents}


@pytest.mark.parametrize(
    ("free", "alerts", "told"),
    [
        (101, {}, set()),
        (99, {}, {"storage/storage-full"}),
        (99, {"min_free_percent": 5}, set()),
        (99, {"min_free_percent": 5, "min_free_bytes": 100}, {"storage/storage-full"}),
    ],
)
def test_free_space_is_held_against_the_larger_of_both_limits(
    free: int, alerts: dict[str, Any], told: set[str]
) -> None:
    assert storage(free, **alerts) == told


@pytest.mark.parametrize(
    ("free_before", "told"), [(500, set()), (600, set()), (900, {"storage/storage-filling"})]
)
def test_a_storage_that_will_be_full_in_two_days_is_told_before(free_before: int, told: set[str]) -> None:
    memory = SpaceMemory()
    for hour in range(24):
        memory = sample(memory, NOW + timedelta(hours=hour), free_before - (free_before - 500) * hour // 24)
        memory = sample(memory, NOW + timedelta(hours=hour, minutes=10), 1)
    assert storage(500, memory) == told
    assert storage(500, SpaceMemory(samples=memory.samples[-4:])) == set()


def test_a_clock_that_was_set_back_makes_no_forecast() -> None:
    ahead = sample(SpaceMemory(), NOW + timedelta(days=30), 900)
    assert len(sample(ahead, NOW, 800).samples) == 1
