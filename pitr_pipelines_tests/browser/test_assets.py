"""The pages of assets: lineage, a bundle by a click, a backfill, the base backup of a past day."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Any

from playwright.sync_api import expect

from pitr_pipelines.catalog.layout import Layout
from pitr_pipelines.catalog.records import BundleRecord, BundleState, read_record
from pitr_pipelines.demo.servers import DATABASES, INVENTORY_DB, ORDER_DB
from pitr_pipelines.settings import asset_name
from pitr_pipelines.wal.hours import Hour
from pitr_pipelines_tests.browser.pages import RunPage, Ui
from pitr_pipelines_tests.browser.scene import RUN_S, Scene
from pitr_pipelines_tests.servers import wait_for

_ASSETS = ("base_backup", "restore_drill", "restored_cluster", "wal_archive", "wal_bundle")


def _runs(stage: Scene, asset: list[str], tags: dict[str, str]) -> list[str]:
    """Return the runs that a click on the page of an asset has launched."""
    found: list[dict[str, Any]] = stage.dagster.api.ask(_RUNS_OF_CLICKS)["runsOrError"]["results"]
    return [
        run["runId"]
        for run in found
        if tags.items() <= {tag["key"]: tag["value"] for tag in run["tags"]}.items()
        and [selected["path"] for selected in run["assetSelection"] or []] == [asset]
    ]


_RUNS_OF_CLICKS = """
{ runsOrError(filter: {pipelineName: "__ASSET_JOB"}, limit: 100) { ... on Runs {
  results { runId tags { key value } assetSelection { path } } } } }
"""


def _run(stage: Scene, asset: list[str], tags: dict[str, str]) -> str:
    """Wait for the run that was launched, and return it; it must be the only one."""
    wait_for(lambda: _runs(stage, asset, tags), timeout_s=RUN_S, what="the run")
    (run_id,) = _runs(stage, asset, tags)
    return run_id


def test_the_lineage_shows_the_assets_of_each_database(stage: Scene, ui: Ui) -> None:
    ui.page.goto("/overview")
    ui.page.get_by_role("navigation").get_by_role("link", name="Lineage").click()
    for database in DATABASES:
        expect(ui.button(asset_name(database))).to_be_visible()
    ui.shoot("lineage")
    for database in DATABASES:
        group = ui.button(asset_name(database))
        group.locator("xpath=preceding::button[1]").click()
    for name in _ASSETS:
        expect(ui.button(name)).to_have_count(len(DATABASES))
    ui.button("base_backup").first.click()
    ui.sees("A whole, verified")
    ui.shoot("lineage-opened")


def test_a_bundle_is_made_from_the_page_of_its_asset(stage: Scene, ui: Ui) -> None:
    stage.insert()
    # A running hour can end while it is bundled: then it is closed and not open, and made all the same.
    hour = Hour.containing(datetime.now(UTC))
    ui.open_asset("order_db", "wal_bundle")
    ui.materialize(str(hour), 1, shot="bundle-dialog")
    run_id = _run(stage, ["order_db", "wal_bundle"], {"dagster/partition": str(hour)})

    ui.page.goto(f"/runs/{run_id}")
    RunPage(ui).ends("Success")
    ui.shoot("bundle-run")

    record = read_record(Layout(stage.plan.settings.backup_root).bundle_record(ORDER_DB, hour), BundleRecord)
    assert record.segments
    assert record.seal is not None
    ui.page.goto(f"/assets/order_db/wal_bundle?view=partitions&partition={hour}")
    ui.sees(record.seal.restore_point)
    ui.shoot("bundle-partition")


def test_a_backfill_of_bundles_over_a_range_is_one_run(stage: Scene, ui: Ui) -> None:
    last = Hour.containing(datetime.now(UTC) - timedelta(hours=30))
    first = Hour(last.start - timedelta(hours=5))
    ui.open_asset("inventory_db", "wal_bundle")
    ui.materialize(f"[{first}...{last}]", 6, shot="backfill-dialog")
    run_id = _run(
        stage,
        ["inventory_db", "wal_bundle"],
        {"dagster/asset_partition_range_start": str(first), "dagster/asset_partition_range_end": str(last)},
    )

    ui.page.goto(f"/runs/{run_id}")
    RunPage(ui).ends("Success")
    ui.shoot("backfill-run")

    layout = Layout(stage.plan.settings.backup_root)
    for hour in first.until(last):
        record = read_record(layout.bundle_record(INVENTORY_DB, hour), BundleRecord)
        assert record.state is BundleState.CLOSED
    ui.page.goto("/assets/inventory_db/wal_bundle?view=partitions")
    ui.sees(re.compile(r"Materialized \(\d+\)"))
    ui.shoot("backfill-partitions")


def test_a_base_backup_of_a_past_day_says_why_not_and_what_to_do_instead(stage: Scene, ui: Ui) -> None:
    day = (datetime.now(UTC) - timedelta(days=1)).date()
    ui.open_asset("order_db", "base_backup")
    ui.sees("Only today's can be taken")
    ui.materialize(str(day), 1, shot="past-base-dialog")
    run_id = _run(stage, ["order_db", "base_backup"], {"dagster/partition": str(day)})

    ui.page.goto(f"/runs/{run_id}")
    RunPage(ui).ends("Failure")
    ui.sees("a base backup of a past day cannot be taken from the server")
    ui.sees("restore from an older base backup and the WAL after it")
    ui.sees("or the job restore in Dagster")
    ui.shoot("past-base-run")
    assert not Layout(stage.plan.settings.backup_root).base(ORDER_DB, day).exists()


def test_a_restored_cluster_says_which_job_makes_it(ui: Ui) -> None:
    ui.page.goto("/assets/order_db/restored_cluster")
    ui.sees("choose the hour as its partition")
    ui.shoot("restored-cluster")
