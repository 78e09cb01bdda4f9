"""What must be confirmed off-site waits for that; and the rule for the store is as long as what is kept."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from pitr_pipelines.catalog.inventory import read_inventory
from pitr_pipelines.catalog.manifest import read_manifest
from pitr_pipelines.catalog.records import to_json
from pitr_pipelines.catalog.retention import Keep, Verdict
from pitr_pipelines.errors import BadRequest
from pitr_pipelines.offsite import budget
from pitr_pipelines.offsite.budget import CallObject, CallState
from pitr_pipelines.offsite.delivered import envelope_key, keep_index
from pitr_pipelines.offsite.lifecycle import lifecycle_notes, lifecycle_rules
from pitr_pipelines.offsite.retention import carry_out_retention, propose_retention
from pitr_pipelines.settings import Settings
from pitr_pipelines_tests.catalog.test_expiry import NOW, fill
from pitr_pipelines_tests.offsite.scenes import TODAY, plan_of
from pitr_pipelines_tests.wal_files import DATABASE, Store, at, make_settings

STORE = {"bucket": "backups", "prefix": "production"}
KEEP = {"hourly_days": 1, "daily": 3, "weekly": 0, "monthly": 0}


def settings_of(root: Path, *, require: bool = True, **store: object) -> Settings:
    return make_settings(
        root,
        retention={"keep": KEEP, "require_offsite": require},
        offsite={"store": {**STORE, **store}, "unencrypted": True},
    )


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path)
    store.settings = settings_of(tmp_path)
    fill(store)
    return store


def deliver(store: Store, state: CallState = CallState.CONFIRMED) -> None:
    """Put into the ledger that everything there is was sent, and how that ended."""
    place = store.settings.offsite_copy().store
    plan = plan_of(store.layout)
    store.layout.ledger.mkdir(exist_ok=True)
    text = to_json(plan.index.model_dump(mode="json", exclude_none=True)).encode()
    keep_index(store.layout, plan.index, text)
    claimed = budget.claim(store.layout.ledger, TODAY, at=at(4))
    carries = CallObject(
        endpoint_url=place.endpoint_url,
        bucket=place.bucket,
        key=envelope_key(place, TODAY),
        size_bytes=plan.index.size_bytes,
    )
    budget.send(claimed, carries, at=at(4))
    budget.end(store.layout.ledger, TODAY, state, at=at(4), said="200")


def test_nothing_goes_that_was_not_delivered(store: Store) -> None:
    done = carry_out_retention(store.settings, DATABASE, now=NOW)
    assert not done.removed
    assert not done.retention.bases(Verdict.REMOVE)
    assert done.retention.bases(Verdict.WAIT) == [at(0).date(), at(24).date()]
    assert len(done.retention.hours(Verdict.WAIT)) == 11
    assert len(read_inventory(store.layout, DATABASE).bases) == 5


@pytest.mark.parametrize("state", [CallState.UNKNOWN, CallState.REFUSED])
def test_a_call_that_is_not_known_to_have_been_stored_delivered_nothing(
    store: Store, state: CallState
) -> None:
    deliver(store, state)
    assert not carry_out_retention(store.settings, DATABASE, now=NOW).removed


def test_what_was_delivered_goes_and_the_manifest_follows(store: Store) -> None:
    deliver(store)
    done = carry_out_retention(store.settings, DATABASE, now=NOW)
    assert done.removed
    assert done.retention.bases(Verdict.REMOVE) == [at(0).date(), at(24).date()]
    assert not done.retention.bases(Verdict.WAIT)
    assert [base.day for base in read_manifest(store.layout).databases[DATABASE].bases] == [
        at(24 * day).date() for day in (2, 3, 4)
    ]


def test_an_artifact_that_was_made_again_since_waits_for_its_new_self(store: Store) -> None:
    deliver(store)
    record = store.layout.base_record(DATABASE, at(0).date())
    record.write_text(record.read_text().replace('"uncompressed_bytes": 1000', '"uncompressed_bytes": 1001'))
    done = carry_out_retention(store.settings, DATABASE, now=NOW)
    assert done.retention.bases(Verdict.WAIT) == [at(0).date()]
    assert done.retention.bases(Verdict.REMOVE) == [at(24).date()]


def test_another_bucket_has_nothing_of_it(store: Store, tmp_path: Path) -> None:
    deliver(store)
    moved = settings_of(tmp_path, bucket="another")
    assert not carry_out_retention(moved, DATABASE, now=NOW).removed


def test_without_that_condition_nothing_waits(store: Store, tmp_path: Path) -> None:
    assert carry_out_retention(settings_of(tmp_path, require=False), DATABASE, now=NOW).removed


def test_without_settings_nothing_is_decided(store: Store, tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="nothing is ever removed"):
        propose_retention(make_settings(tmp_path), DATABASE, now=datetime.now(UTC))


def test_the_rule_keeps_an_envelope_for_as_long_as_anything_in_it_is_kept(tmp_path: Path) -> None:
    settings = settings_of(tmp_path)
    assert settings.retention is not None
    keep = settings.retention.keep.model_copy(update={"daily": 14, "weekly": 5, "monthly": 12})
    rules = lifecycle_rules(keep, settings.offsite_copy())["Rules"]
    assert rules[0]["Filter"] == {"Prefix": "production/20"}
    assert rules[0]["Expiration"] == {"Days": 12 * 31 + 8}
    assert envelope_key(settings.offsite_copy().store, TODAY).startswith(rules[0]["Filter"]["Prefix"])
    assert json.loads(json.dumps(rules)) == rules
    assert Keep.of(keep).window == timedelta(days=1)


def test_a_lock_that_outlasts_the_rule_is_named(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, object_lock={"mode": "COMPLIANCE", "days": 40})
    assert settings.retention is not None
    notes = lifecycle_notes(settings.retention.keep, settings.offsite_copy())
    assert any(note.startswith("CAREFUL: object_lock keeps each envelope 40 days") for note in notes)
    assert any("REPLACES every rule" in note for note in notes)
