"""The ledger as it is shown: every day of it, also those that cannot be read, and never a call."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from pitr_pipelines.catalog.calls import CallOutcome
from pitr_pipelines.offsite import delivered
from pitr_pipelines.offsite.budget import CallState
from pitr_pipelines.offsite.call_days import read_calls
from pitr_pipelines.offsite.envelope_index import EnvelopeIndex, IndexEntry
from pitr_pipelines_tests.catalog.fortnight import LEDGER, NOW, SAID, day_at, make_fortnight
from pitr_pipelines_tests.wal_files import Store, make_settings


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return make_fortnight(tmp_path)


def test_each_day_is_shown_as_the_ledger_has_it(store: Store) -> None:
    calls = read_calls(store.settings, now=NOW, since=day_at(-13))
    assert calls is not None
    assert calls.today == day_at(0)
    for offset, state in LEDGER.items():
        if offset >= -13:
            assert calls.of(day_at(offset)).outcome == state.value
    assert calls.of(day_at(-3)).outcome is CallOutcome.UNREADABLE
    assert calls.of(day_at(-8)).outcome is CallOutcome.NONE
    refused = calls.of(day_at(-10))
    assert (refused.said, refused.size_bytes) == (SAID, 1_200_000_000)
    assert calls.last_confirmed is not None
    assert calls.last_confirmed.day == day_at(-1)


def test_the_last_confirmed_day_is_found_beyond_those_that_are_shown(store: Store) -> None:
    for offset, state in LEDGER.items():
        if state is CallState.CONFIRMED and offset > -20:
            (store.layout.ledger / f"{day_at(offset)}.json").unlink()
    calls = read_calls(store.settings, now=NOW, since=day_at(-2))
    assert calls is not None
    assert [call.day for call in calls.days] == [day_at(-20), day_at(0)]
    assert calls.last_confirmed is not None
    assert calls.last_confirmed.day == day_at(-20)


def test_it_is_known_of_which_databases_a_day_carried_something(store: Store) -> None:
    index = EnvelopeIndex(
        day=day_at(-1),
        made_at=NOW,
        encrypted=False,
        size_bytes=10_240,
        members=(
            IndexEntry.model_validate(
                {
                    "artifact": {
                        "path": "base/order-db/2026-01-28/base.tar",
                        "kind": "base_backup",
                        "database": "order-db",
                        "unit": "x",
                        "size_bytes": 1,
                        "sha256": "0" * 64,
                    },
                    "offset": 512,
                    "length": 1024,
                }
            ),
        ),
    )
    delivered.keep_index(store.layout, index, index.model_dump_json().encode())
    calls = read_calls(store.settings, now=NOW, since=day_at(-13))
    assert calls is not None
    assert calls.of(day_at(-1)).databases == frozenset({"order-db"})
    assert calls.of(day_at(-2)).databases is None


def test_days_are_counted_as_the_provider_counts_them(tmp_path: Path) -> None:
    offsite = {
        "store": {"bucket": "backups"},
        "unencrypted": True,
        "api_calls": {"day_in": "Asia/Tokyo"},
    }
    settings = make_settings(tmp_path, offsite=offsite)
    late = datetime(2026, 1, 29, 23, tzinfo=UTC)
    calls = read_calls(settings, now=late, since=late.date())
    assert calls is not None
    assert (calls.today, calls.zone) == (late.date() + timedelta(days=1), "Asia/Tokyo")


def test_without_an_off_site_copy_there_are_no_calls(tmp_path: Path) -> None:
    assert read_calls(make_settings(tmp_path), now=NOW, since=day_at(0)) is None
