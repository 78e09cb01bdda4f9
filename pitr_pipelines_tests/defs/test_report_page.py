"""The page is made with the asset `restore_points`, and never stands in the manifest's way."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import unquote, urlsplit

import dagster as dg

from pitr_pipelines.catalog.layout import Layout
from pitr_pipelines.catalog.manifest import read_manifest
from pitr_pipelines.defs.build import build_definitions
from pitr_pipelines.settings import Settings
from pitr_pipelines.wal.hours import Hour
from pitr_pipelines_tests.defs.storage import put_base, put_bundle
from pitr_pipelines_tests.html_pages import parse_page


def _refresh(settings: Settings, instance: dg.DagsterInstance) -> dg.ExecuteInProcessResult:
    job = build_definitions(settings).resolve_job_def("refresh_restore_points")
    return job.execute_in_process(instance=instance, raise_on_error=False)


def test_the_page_is_written_and_its_place_is_told(
    settings: Settings, layout: Layout, instance: dg.DagsterInstance
) -> None:
    hour = Hour.containing(datetime.now(UTC)).preceding()
    put_base(layout, "order-db", hour.start.date(), ended_at=hour.start + timedelta(minutes=1))
    put_bundle(layout, "order-db", hour, number=1)

    result = _refresh(settings, instance)

    assert result.success
    (event,) = result.get_asset_materialization_events()
    metadata = event.materialization.metadata
    page = Path(str(metadata["report"].value))
    assert page == layout.report.resolve()
    assert Path(unquote(urlsplit(str(metadata["report_url"].value)).path)) == page
    document = parse_page(page.read_text())
    assert "order-db can be restored to any moment from" in document.by_id("db-order-db").text
    assert "Nothing of inventory-db can be restored" in document.by_id("db-inventory-db").text


def test_a_page_that_cannot_be_written_does_not_fail_the_manifest(
    settings: Settings, layout: Layout, instance: dg.DagsterInstance
) -> None:
    layout.report.mkdir(parents=True)

    result = _refresh(settings, instance)

    assert result.success
    assert set(read_manifest(layout).databases) == {"order-db", "inventory-db"}
    (event,) = result.get_asset_materialization_events()
    assert "report" not in event.materialization.metadata
