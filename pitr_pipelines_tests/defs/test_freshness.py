"""Each asset is fresh for as long as its database's promises say."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from pitr_pipelines.defs.build import build_definitions
from pitr_pipelines_tests.defs.storage import make_settings

DSN = "host=127.0.0.1 port=1"


def policies(directory: Path, **keys: Any) -> dict[str, Any]:
    graph = build_definitions(make_settings(directory, **keys)).resolve_asset_graph()
    return {key.to_user_string(): graph.get(key).freshness_policy for key in graph.get_all_asset_keys()}


def window(policy: Any) -> timedelta:
    assert policy is not None
    found = policy.fail_window.to_timedelta()
    assert isinstance(found, timedelta)
    return found


def test_without_objectives_the_schedules_say_how_old_things_may_be(tmp_path: Path) -> None:
    found = policies(tmp_path)
    assert window(found["order_db/wal_bundle"]) == timedelta(hours=2)
    assert window(found["order_db/base_backup"]) == timedelta(hours=30)
    assert window(found["order_db/restore_drill"]) == timedelta(days=8)
    assert window(found["restore_points"]) == timedelta(hours=2)
    assert found["order_db/wal_archive"] is None
    assert found["order_db/restored_cluster"] is None


def test_each_database_has_its_own(tmp_path: Path) -> None:
    found = policies(
        tmp_path,
        databases={
            "order-db": {"dsn": DSN, "objectives": {"recovery_point_s": 5400, "base_age_h": 12}},
            "inventory-db": {"dsn": DSN},
        },
        schedules={"bundle": "0 */4 * * *", "base_backup": "0 3 * * 0"},
    )
    assert window(found["order_db/wal_bundle"]) == timedelta(minutes=90)
    assert window(found["order_db/base_backup"]) == timedelta(hours=12)
    assert window(found["inventory_db/wal_bundle"]) == timedelta(hours=5)
    assert window(found["inventory_db/base_backup"]) == timedelta(days=7, hours=6)
    assert window(found["restore_points"]) == timedelta(hours=5)


@pytest.mark.parametrize(
    ("deadline", "cron", "since"),
    [
        ("12:00", "0 13 * * *", timedelta(hours=13)),
        ("00:00", "0 1 * * *", timedelta(hours=1)),
        ("23:30", "59 23 * * *", timedelta(hours=23, minutes=59)),
    ],
)
def test_the_offsite_copy_is_due_an_hour_after_its_deadline(
    tmp_path: Path, deadline: str, cron: str, since: timedelta
) -> None:
    offsite = {
        "store": {"bucket": "backups"},
        "unencrypted": True,
        "deadline": deadline,
        "api_calls": {"day_in": "America/New_York"},
    }
    policy = policies(tmp_path, offsite=offsite)["offsite_copy"]
    assert (policy.deadline_cron, policy.lower_bound_delta) == (cron, since)
    assert policy.timezone == "America/New_York"
