"""The metrics say what the storage says, in Prometheus's format, whatever is wrong there."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from pitr_pipelines.catalog.calls import Calls
from pitr_pipelines.catalog.metrics import Snapshot, exposition, first_call_day, take_snapshot
from pitr_pipelines.catalog.report_facts import DatabaseFacts, Level, Problem
from pitr_pipelines.offsite.call_days import read_calls
from pitr_pipelines_tests.catalog.fortnight import DATABASES, NOW, make_fortnight
from pitr_pipelines_tests.wal_files import Store, at

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def parse(text: bytes) -> tuple[list[Metric], Samples]:
    families = list(text_string_to_metric_families(text.decode()))
    samples: Samples = {}
    for family in families:
        for sample in family.samples:
            key = (sample.name, frozenset(sample.labels.items()))
            assert key not in samples, f"{key} twice"
            samples[key] = sample.value
    return families, samples


def metrics_of(store: Store) -> tuple[list[Metric], Samples]:
    calls = read_calls(store.settings, now=NOW, since=first_call_day(NOW))
    return parse(exposition(take_snapshot(store.settings, now=NOW, calls=calls)))


@pytest.fixture(scope="module")
def fortnight(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return make_fortnight(tmp_path_factory.mktemp("fortnight"))


@pytest.fixture(scope="module")
def found(fortnight: Store) -> Samples:
    return metrics_of(fortnight)[1]


def value(found: Samples, name: str, **labels: str) -> float | None:
    return found.get((name, frozenset(labels.items())))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("pitr_database_readable", 1),
        ("pitr_windows", 2),
        ("pitr_window_start_timestamp_seconds", at(-2 * 24 + 3, 10).timestamp()),
        ("pitr_window_end_timestamp_seconds", at(14, 18, 59).timestamp()),
        ("pitr_base_backups", 13),
        ("pitr_base_backup_last_timestamp_seconds", at(3, 10).timestamp()),
        ("pitr_base_backup_last_duration_seconds", 240),
        ("pitr_base_backup_last_size_bytes", 817_000_000),
        ("pitr_bundles", 319),
        ("pitr_bundle_last_timestamp_seconds", at(14).timestamp()),
        ("pitr_bundles_missing", 5),
        ("pitr_bundles_open", 1),
        ("pitr_archive_last_segment_timestamp_seconds", at(14, 19).timestamp()),
        ("pitr_archive_files", 1),
        ("pitr_gaps", 1),
        ("pitr_gaps_uncured", 0),
        ("pitr_drill_last_passed", 0),
        ("pitr_drill_last_success_duration_seconds", 140),
        ("pitr_drill_last_success_timestamp_seconds", at(-5 * 24 + 5, 2, 50).timestamp()),
    ],
)
def test_a_database_is_told_in_numbers(found: Samples, name: str, expected: float) -> None:
    assert value(found, name, database="order-db") == expected


def test_problems_are_counted_by_severity(found: Samples) -> None:
    counted = {
        (database, severity): value(found, "pitr_problems", database=database, severity=severity)
        for database in DATABASES
        for severity in ("act", "look")
    }
    assert counted[("order-db", "act")] == 1
    assert counted[("order-db", "look")] == 2
    assert counted[("empty-db", "act")] == 1
    assert counted[("calm-db", "act")] == counted[("calm-db", "look")] == 0


def test_what_is_not_known_has_no_sample(found: Samples) -> None:
    assert value(found, "pitr_windows", database="empty-db") == 0
    assert value(found, "pitr_window_end_timestamp_seconds", database="empty-db") is None
    assert value(found, "pitr_drill_last_passed", database="young-db") is None
    assert value(found, "pitr_bundle_last_timestamp_seconds", database="young-db") is None


def test_the_off_site_copy_is_told(found: Samples) -> None:
    assert value(found, "pitr_offsite_last_confirmed_timestamp_seconds") == at(-24 + 4, 36).timestamp()
    assert value(found, "pitr_offsite_last_confirmed_size_bytes") == 1_290_000_000
    assert value(found, "pitr_offsite_today", state="sent") == 1
    assert value(found, "pitr_offsite_today", state="confirmed") == 0
    assert value(found, "pitr_offsite_calls", state="confirmed") == 8
    assert value(found, "pitr_offsite_calls", state="unreadable") == 1
    assert sum(v for (name, _), v in found.items() if name == "pitr_offsite_calls") == 30


def test_without_an_off_site_copy_there_is_nothing_of_it(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert not [name for name, _ in metrics_of(store)[1] if name.startswith("pitr_offsite")]


def test_names_and_help_keep_to_prometheus_conventions(fortnight: Store) -> None:
    """https://prometheus.io/docs/practices/naming/: a prefix, base units at the end, a help for each."""
    families, _ = metrics_of(fortnight)
    names = [family.name for family in families]
    assert len(names) == len(set(names))
    for family in families:
        assert family.name.startswith("pitr_")
        assert family.type == "gauge"
        assert family.documentation.endswith(".")
        for unit in ("milliseconds", "minutes", "hours", "days", "kib", "mib", "percent", "ago", "age"):
            assert unit not in family.name.split("_")
        if any(word in family.name.split("_") for word in ("timestamp", "duration")):
            assert family.name.endswith("_seconds")
        if "size" in family.name.split("_"):
            assert family.name.endswith("_bytes")


def test_a_database_that_cannot_be_read_does_not_hide_the_others(tmp_path: Path) -> None:
    store = make_fortnight(tmp_path)
    store.layout.bundles("calm-db").rename(tmp_path / "elsewhere")
    store.layout.bundles("calm-db").write_text("no directory")
    _, found = metrics_of(store)
    assert value(found, "pitr_database_readable", database="calm-db") == 0
    assert value(found, "pitr_problems", database="calm-db", severity="act") == 1
    assert value(found, "pitr_windows", database="calm-db") is None
    assert value(found, "pitr_windows", database="order-db") == 2


def test_an_absent_storage_is_told_and_raises_nothing(tmp_path: Path) -> None:
    _, found = metrics_of(Store(tmp_path))
    assert value(found, "pitr_storage_available") == 0
    assert value(found, "pitr_storage_free_bytes") is None
    assert value(found, "pitr_windows", database="order-db") == 0


def test_a_ledger_that_cannot_be_read_is_told() -> None:
    _, found = parse(exposition(Snapshot(NOW, [], None, None, "Permission denied")))
    assert value(found, "pitr_offsite_ledger_readable") == 0
    none = Calls.on(NOW.date(), "UTC", [])
    _, found = parse(exposition(Snapshot(NOW, [], None, none)))
    assert value(found, "pitr_offsite_ledger_readable") == 1
    assert value(found, "pitr_offsite_today", state="none") == 1
    assert value(found, "pitr_offsite_last_confirmed_timestamp_seconds") is None


@settings(deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1))
def test_any_name_comes_through_as_it_is(database: str) -> None:
    facts = DatabaseFacts(database, True, NOW, (Problem(Level.ACT, "x", "y"),))
    _, found = parse(exposition(Snapshot(NOW, [facts], None, None)))
    assert value(found, "pitr_windows", database=database) == 0
