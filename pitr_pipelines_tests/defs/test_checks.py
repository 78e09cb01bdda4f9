"""The checks pass on storage that is as it should be, and name whatever is not; run by Dagster itself."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
import pytest

from pitr_pipelines.alert_settings import Objectives
from pitr_pipelines.catalog.layout import Layout
from pitr_pipelines.catalog.manifest import refresh_manifest
from pitr_pipelines.catalog.records import FileDigest, write_record
from pitr_pipelines.defs.build import build_definitions
from pitr_pipelines.defs.checks import build_checks
from pitr_pipelines.settings import Settings
from pitr_pipelines.wal.bundles import make_bundle
from pitr_pipelines.wal.hours import Hour
from pitr_pipelines_tests.defs.storage import age
from pitr_pipelines_tests.wal_files import base_record, make_settings, put_segment, segment

ORDER, INVENTORY = "order-db", "inventory-db"
VERIFIED, INTACT, CONTINUOUS = "base_backup:verified", "wal_bundle:intact", "wal_bundle:wal_continuous"
MATCHES, COVERS = "restore_points:matches_records", "restore_points:window_covers"
OF_DATABASE = (VERIFIED, INTACT, CONTINUOUS)
EVERY = {f"{database}/{check}" for database in ("order_db", "inventory_db") for check in OF_DATABASE}
EVERY |= {MATCHES, COVERS}

Results = dict[str, dg.AssetCheckEvaluation]


class Backups:
    """Two databases: a base five hours ago, three bundled hours, and raw WAL up to a moment ago."""

    def __init__(self, root: Path) -> None:
        self.settings = make_settings(root, (ORDER, INVENTORY))
        self.layout = Layout(self.settings.backup_root)
        self.now = datetime.now(UTC)
        self.first = Hour.containing(self.now - timedelta(hours=5))
        self.hours = [Hour(self.first.start + timedelta(hours=number)) for number in range(3)]
        for database in (ORDER, INVENTORY):
            self._fill(database)
        refresh_manifest(self.settings)

    def _fill(self, database: str) -> None:
        number, closed_at = 1, self.first.start + timedelta(minutes=10)
        while closed_at < self.now:
            put_segment(self.layout.wal(database), segment(number), closed_at)
            self.newest = segment(number)
            number, closed_at = number + 1, closed_at + timedelta(minutes=20)
        self.add_base(database, self.first.start + timedelta(minutes=5), 1)
        for hour in self.hours:
            make_bundle(self.settings, database, hour, now=self.now, seal=False)

    def add_base(self, database: str, ended_at: datetime, number: int) -> Path:
        """Put a base with a real file, and return that file."""
        content = f"{database} {ended_at}".encode() * 100
        file = FileDigest(
            name="base.tar", size_bytes=len(content), sha256=hashlib.sha256(content).hexdigest()
        )
        record = base_record(number, number, ended_at, database=database).model_copy(
            update={"files": (file,)}
        )
        path = self.layout.base(database, record.day) / file.name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        write_record(self.layout.base_record(database, record.day), record)
        return path

    @property
    def day(self) -> Path:
        return self.layout.base(ORDER, self.first.start.date())

    def raw(self, number: int) -> Path:
        return self.layout.wal(ORDER) / str(segment(number))


@pytest.fixture
def backups(tmp_path: Path) -> Backups:
    return Backups(tmp_path)


def _run(settings: Settings, instance: dg.DagsterInstance) -> Results:
    job = build_definitions(settings).resolve_job_def("check_artifacts")
    result = job.execute_in_process(instance=instance, raise_on_error=False)
    assert result.success
    return _told(result)


def _told(result: dg.ExecuteInProcessResult) -> Results:
    return {
        f"{told.asset_key.to_user_string()}:{told.check_name}": told
        for told in result.get_asset_check_evaluations()
    }


def _failed(results: Results) -> set[str]:
    return {name for name, told in results.items() if not told.passed}


def _value(told: dg.AssetCheckEvaluation, key: str) -> object:
    return told.metadata[key].value


def test_all_pass_on_good_storage_and_say_what_they_looked_at(
    backups: Backups, instance: dg.DagsterInstance
) -> None:
    results = _run(backups.settings, instance)

    assert set(results) == EVERY
    assert _failed(results) == set(), [told.description for told in results.values()]
    base, bundle = results[f"order_db/{VERIFIED}"], results[f"order_db/{INTACT}"]
    assert str(backups.first.start.date()) in str(base.description)
    assert 3.9 < float(str(_value(base, "age_h"))) < 6
    assert _value(bundle, "bundles") == 3
    assert _value(bundle, "raw_bytes") == 9 * 1024 * 1024
    chain = results[f"order_db/{CONTINUOUS}"]
    assert _value(chain, "first_segment") == str(segment(1))
    assert _value(chain, "last_segment") == str(backups.newest)
    assert _value(chain, "segments") == backups.newest.number(1024 * 1024)
    assert _value(results[COVERS], "covered") == 2
    assert float(str(_value(results[COVERS], "furthest_behind_h"))) < 0.5
    assert "2 databases" in str(results[MATCHES].description)


def lose_a_base_file(backups: Backups) -> tuple[str, str]:
    (backups.day / "base.tar").unlink()
    return "base.tar", VERIFIED


def flip_a_byte_of_a_base(backups: Backups) -> tuple[str, str]:
    path = backups.day / "base.tar"
    path.write_bytes(b"?" + path.read_bytes()[1:])
    return "base.tar", VERIFIED


def flip_a_byte_of_a_bundle(backups: Backups) -> tuple[str, str]:
    path = backups.layout.bundle(ORDER, backups.hours[1])
    content = bytearray(path.read_bytes())
    content[1000] ^= 1
    path.write_bytes(content)
    return path.name, INTACT


def lose_a_bundle(backups: Backups) -> tuple[str, str]:
    path = backups.layout.bundle(ORDER, backups.hours[1])
    path.unlink()
    return path.name, INTACT


def lose_a_raw_segment(backups: Backups) -> tuple[str, str]:
    backups.raw(11).unlink()
    return f"{segment(11)} of {ORDER} is neither in the archive nor in a bundle", CONTINUOUS


@pytest.mark.parametrize(
    "spoil",
    [
        lose_a_base_file,
        flip_a_byte_of_a_base,
        flip_a_byte_of_a_bundle,
        lose_a_bundle,
        lose_a_raw_segment,
    ],
)
def test_damage_fails_its_check_which_names_it_and_no_other_databases(
    backups: Backups, instance: dg.DagsterInstance, spoil: Callable[[Backups], tuple[str, str]]
) -> None:
    named, check = spoil(backups)

    results = _run(backups.settings, instance)

    told = results[f"order_db/{check}"]
    assert not told.passed
    assert told.severity is dg.AssetCheckSeverity.ERROR
    assert named in str(told.description)
    assert named in str(_value(told, "findings"))
    assert _failed(results) <= {f"order_db/{check}", COVERS}


@pytest.mark.parametrize("artifact", ["base", "bundle"])
def test_a_record_that_cannot_be_read_fails_the_artifact_and_the_manifest(
    backups: Backups, instance: dg.DagsterInstance, artifact: str
) -> None:
    path = backups.day / "backup.json"
    if artifact == "bundle":
        path = backups.layout.bundle_record(ORDER, backups.hours[1])
    path.write_text("{")

    results = _run(backups.settings, instance)

    for name in (f"order_db/{VERIFIED if artifact == 'base' else INTACT}", MATCHES):
        assert not results[name].passed
        assert str(path) in str(results[name].description)
    assert results[f"inventory_db/{VERIFIED}"].passed
    assert results[f"inventory_db/{INTACT}"].passed


def test_a_bundle_without_its_record_is_named_with_the_command_that_mends_it(
    backups: Backups, instance: dg.DagsterInstance
) -> None:
    backups.layout.bundle_record(ORDER, backups.hours[1]).unlink()

    told = _run(backups.settings, instance)[f"order_db/{INTACT}"]

    assert not told.passed
    assert f"pitr bundle {ORDER} --hour {backups.hours[1]}" in str(told.description)


def test_only_bundles_of_the_last_day_are_read_again(backups: Backups, instance: dg.DagsterInstance) -> None:
    old = Hour.containing(backups.now - timedelta(hours=30))
    (backups.layout.bundles(ORDER) / f"{old}.tar.gz").write_bytes(b"no record")

    assert _run(backups.settings, instance)[f"order_db/{INTACT}"].passed


def test_every_gap_is_named_also_behind_another(backups: Backups, instance: dg.DagsterInstance) -> None:
    for number in (10, 12):
        backups.raw(number).unlink()

    results = _run(backups.settings, instance)

    chain = results[f"order_db/{CONTINUOUS}"]
    assert _value(chain, "gaps") == 2
    assert str(segment(10)) in str(chain.description)
    assert str(segment(12)) in str(chain.description)
    assert f"pitr backup --replace {ORDER}" in str(chain.description)


def test_a_gap_before_a_newer_base_is_a_warning_that_names_the_base(
    backups: Backups, instance: dg.DagsterInstance
) -> None:
    backups.raw(10).unlink()
    later = backups.first.start + timedelta(minutes=10 + 20 * 11, days=1)
    record = base_record(12, 12, later - timedelta(days=1), database=ORDER, day=later.date())
    path = backups.layout.base_record(ORDER, record.day)
    path.parent.mkdir()
    write_record(path, record)

    told = _run(backups.settings, instance)[f"order_db/{CONTINUOUS}"]

    assert not told.passed
    assert told.severity is dg.AssetCheckSeverity.WARN
    assert f"the base backup of {later.date()}" in str(told.description)


def test_a_window_that_ends_early_is_named_with_its_end(
    backups: Backups, instance: dg.DagsterInstance
) -> None:
    for path in backups.layout.wal(ORDER).iterdir():
        path.unlink()

    told = _run(backups.settings, instance)[COVERS]

    assert not told.passed
    assert told.severity is dg.AssetCheckSeverity.WARN
    assert f"{ORDER} can be restored only up to" in str(told.description)
    assert f"pitr check {ORDER}" in str(told.description)
    assert INVENTORY not in str(told.description)
    assert _value(told, "covered") == 1


def test_a_window_is_held_against_what_is_promised_for_its_own_database(
    backups: Backups, instance: dg.DagsterInstance
) -> None:
    def told(**objectives: float) -> dg.AssetCheckEvaluation:
        promised = Objectives.model_validate(objectives)
        entry = backups.settings.database(ORDER).model_copy(update={"objectives": promised})
        databases = {**backups.settings.databases, ORDER: entry}
        return _run(backups.settings.model_copy(update={"databases": databases}), instance)[COVERS]

    assert told(recovery_point_s=86400).passed
    short = told(window_days=3650)
    assert not short.passed
    assert short.severity is dg.AssetCheckSeverity.WARN
    assert f"{ORDER} can be restored only back to" in str(short.description)
    assert INVENTORY not in str(short.description)
    for path in backups.layout.wal(ORDER).iterdir():
        path.unlink()
    assert not told().passed
    assert told(recovery_point_s=10**6).passed


def test_a_database_without_a_base_fails_and_says_what_to_run(
    backups: Backups, instance: dg.DagsterInstance
) -> None:
    shutil.rmtree(backups.layout.bases(ORDER))

    results = _run(backups.settings, instance)

    for check in (VERIFIED, CONTINUOUS):
        assert f"pitr backup {ORDER}" in str(results[f"order_db/{check}"].description)
    assert f"no moment of {ORDER} can be restored" in str(results[COVERS].description)
    assert _failed(results) == {f"order_db/{VERIFIED}", f"order_db/{CONTINUOUS}", COVERS, MATCHES}


def test_wal_on_a_timeline_that_no_base_leads_to_is_named(
    backups: Backups, instance: dg.DagsterInstance
) -> None:
    put_segment(backups.layout.wal(ORDER), segment(20, timeline=2), backups.now)

    told = _run(backups.settings, instance)[f"order_db/{CONTINUOUS}"]

    assert not told.passed
    assert "00000002.history" in str(told.description)


def test_a_manifest_that_is_missing_damaged_or_different_is_named(
    backups: Backups, instance: dg.DagsterInstance
) -> None:
    path = backups.layout.manifest
    good = path.read_text()
    for content, named in [
        (good.replace('"kind": "hour"', '"kind": "early"', 1), f"differs from the records of {ORDER}"),
        ("{", "restore-points.json cannot be used"),
        (None, "restore-points.json is missing"),
    ]:
        path.unlink()
        if content is not None:
            path.write_text(content)
        results = _run(backups.settings, instance)
        assert _failed(results) == {MATCHES}
        assert named in str(results[MATCHES].description)
        assert "pitr manifest rebuild" in str(results[MATCHES].description)


def test_a_manifest_that_is_about_to_follow_a_new_record_is_no_failure_until_it_is_late(
    backups: Backups, instance: dg.DagsterInstance
) -> None:
    age(backups.layout.manifest, 7200)
    hour = backups.hours[-1].following()
    make_bundle(backups.settings, ORDER, hour, now=backups.now, seal=False)
    assert _run(backups.settings, instance)[MATCHES].passed

    for record in [*backups.layout.bundles(ORDER).glob("*.json"), backups.day / "backup.json"]:
        age(record, 3600)

    assert f"differs from the records of {ORDER}" in str(
        _run(backups.settings, instance)[MATCHES].description
    )


def test_a_database_whose_storage_cannot_be_read_hides_no_other(
    backups: Backups, instance: dg.DagsterInstance
) -> None:
    shutil.rmtree(backups.layout.wal(ORDER))
    backups.layout.wal(ORDER).symlink_to(ORDER)  # leads to itself

    results = _run(backups.settings, instance)

    assert not results[f"order_db/{CONTINUOUS}"].passed
    assert str(backups.layout.wal(ORDER)) in str(results[f"order_db/{CONTINUOUS}"].description)
    assert not [name for name in _failed(results) if name.startswith("inventory_db")]
    assert INVENTORY in str(_value(results[COVERS], "windows"))


def test_missing_storage_fails_every_check_and_says_so(
    backups: Backups, instance: dg.DagsterInstance
) -> None:
    shutil.rmtree(backups.settings.backup_root)

    results = _run(backups.settings, instance)

    assert _failed(results) == EVERY
    for told in results.values():
        assert f"{backups.settings.backup_root} is not there" in str(told.description)
        assert "Is the volume mounted?" in str(told.description)
    assert not backups.settings.backup_root.exists()


def test_one_check_can_be_run_alone(backups: Backups, instance: dg.DagsterInstance) -> None:
    key = dg.AssetCheckKey(dg.AssetKey(["order_db", "wal_bundle"]), "intact")

    result = dg.materialize(
        build_checks(backups.settings), instance=instance, selection=dg.AssetSelection.checks(key)
    )

    assert set(_told(result)) == {f"order_db/{INTACT}"}


@pytest.mark.parametrize("job", ["daily_base_backups", "hourly_bundles", "refresh_restore_points"])
def test_what_makes_artifacts_does_not_wait_for_checks(settings: Settings, job: str) -> None:
    definition = build_definitions(settings).resolve_job_def(job)
    assert not [node.name for node in definition.nodes if node.name.endswith("__checks")]


def test_the_schedule_asks_for_every_check(settings: Settings, instance: dg.DagsterInstance) -> None:
    definitions = build_definitions(settings)
    context = dg.build_schedule_context(
        instance=instance,
        scheduled_execution_time=datetime(2026, 3, 10, 6, 30, tzinfo=UTC),
        repository_def=definitions.get_repository_def(),
    )

    (request,) = definitions.resolve_schedule_def("check_schedule").evaluate_tick(context).run_requests or ()

    assert request.asset_check_keys is None  # all of its job
    nodes = {node.name for node in definitions.resolve_job_def("check_artifacts").nodes}
    assert nodes == {"order_db__checks", "inventory_db__checks", "restore_points__checks"}
