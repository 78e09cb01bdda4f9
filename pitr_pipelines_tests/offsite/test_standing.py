"""The checks of the off-site copy tell what is true, at every time of the day."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from pitr_pipelines.catalog.layout import Layout
from pitr_pipelines.offsite.artifacts import find_artifacts
from pitr_pipelines.offsite.budget import CallObject, CallState, claim, end, send
from pitr_pipelines.offsite.delivered import envelope_key, keep_index
from pitr_pipelines.offsite.envelope import plan_envelope
from pitr_pipelines.offsite.standing import look_at_standing
from pitr_pipelines.settings import Settings, parse_settings
from pitr_pipelines_tests.offsite.scenes import MADE_AT, TODAY, fill, put_base
from pitr_pipelines_tests.wal_files import at

YESTERDAY = TODAY - timedelta(days=1)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    fill(Layout(tmp_path / "backup"), ["order-db", "users"])
    return parse_settings(
        {
            "backup_root": str(tmp_path / "backup"),
            "restore_root": str(tmp_path / "restore"),
            "databases": {name: {"dsn": "host=127.0.0.1 port=1"} for name in ("order-db", "users")},
            "offsite": {"store": {"bucket": "backups"}, "unencrypted": True, "deadline": "12:00"},
        },
        source=tmp_path / "pitr.yaml",
    )


def call(settings: Settings, state: CallState, *, databases: tuple[str, ...] = ("order-db", "users")) -> None:
    """Put a call of today on the ledger that carried everything of some databases."""
    layout, place = Layout(settings.backup_root), settings.offsite_copy().store
    plan = plan_envelope(find_artifacts(layout, databases).artifacts, day=TODAY, made_at=MADE_AT)
    claimed = claim(layout.ledger, TODAY, at=MADE_AT)
    if state is CallState.CLAIMED:
        return
    keep_index(layout, plan.index, plan.index_text)
    carries = CallObject(bucket=place.bucket, key=envelope_key(place, TODAY), size_bytes=plan.size_bytes)
    send(claimed, carries, at=MADE_AT)
    if state is not CallState.SENT:
        end(layout.ledger, TODAY, state, at=MADE_AT, said="so it was")


def at_hour(hour: int, **more: int) -> datetime:
    return datetime(2026, 1, 29, hour, tzinfo=UTC) + timedelta(**more)


def found(settings: Settings, now: datetime) -> dict[str, Any]:
    standing = look_at_standing(settings, now=now)
    return {
        "day": standing.day,
        "delivery": [one.problem for one in standing.delivery],
        "missing": standing.missing if standing.completeness else (),
    }


def test_before_the_first_deadline_nothing_is_due(settings: Settings) -> None:
    assert found(settings, at_hour(6)) == {"day": None, "delivery": [], "missing": ()}


def test_after_the_deadline_a_copy_that_was_not_made_is_a_failure(settings: Settings) -> None:
    assert found(settings, at_hour(12)) == {
        "day": TODAY,
        "delivery": [f"no off-site copy was made on {TODAY}"],
        "missing": (),
    }


def test_a_confirmed_copy_with_every_base_is_well(settings: Settings) -> None:
    call(settings, CallState.CONFIRMED)

    assert found(settings, at_hour(6)) == {"day": TODAY, "delivery": [], "missing": ()}


def test_until_the_next_deadline_yesterdays_copy_counts(settings: Settings) -> None:
    call(settings, CallState.CONFIRMED)

    assert found(settings, at_hour(11, days=1))["day"] == TODAY
    assert found(settings, at_hour(12, days=1))["delivery"] == [
        f"no off-site copy was made on {TODAY + timedelta(days=1)}"
    ]


def test_a_database_that_is_not_in_it_is_named(settings: Settings) -> None:
    call(settings, CallState.CONFIRMED, databases=("order-db",))

    assert found(settings, at_hour(6))["missing"] == ("users",)


def test_a_base_that_was_replaced_after_the_copy_is_not_off_site(settings: Settings) -> None:
    call(settings, CallState.CONFIRMED)
    put_base(Layout(settings.backup_root), "users", at(8), b"taken again")

    assert found(settings, at_hour(9))["missing"] == ("users",)


@pytest.mark.parametrize("state", [CallState.SENT, CallState.UNKNOWN])
def test_a_call_of_which_nothing_is_known_fails_the_check_and_says_how_to_find_out(
    settings: Settings, state: CallState
) -> None:
    call(settings, state)

    (finding,) = look_at_standing(settings, now=at_hour(6)).delivery

    assert "not known what became of the backup call of 2026-01-29" in finding.problem
    assert "pitr offsite budget --settle" in finding.remedy


@pytest.mark.parametrize("state", [CallState.CLAIMED, CallState.REFUSED])
def test_a_call_that_delivered_nothing_fails_the_check(settings: Settings, state: CallState) -> None:
    call(settings, state)

    (finding,) = look_at_standing(settings, now=at_hour(6)).delivery

    assert f"and is {state}" in finding.problem
    assert "goes with the next day's" in finding.remedy
