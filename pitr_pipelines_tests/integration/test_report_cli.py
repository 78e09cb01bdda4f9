"""The report and the metrics of a real server's backups, from `pitr backup` to `pitr drill`."""

from __future__ import annotations

import re

import pytest
from prometheus_client.parser import text_string_to_metric_families

from pitr_pipelines.catalog.layout import Layout
from pitr_pipelines_tests.html_pages import parse_page
from pitr_pipelines_tests.integration.test_cli import Terminal
from pitr_pipelines_tests.servers import MAJORS, ServerFactory, SettingsMaker

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("major", MAJORS[:1] + MAJORS[-1:])
def test_what_the_commands_made_is_what_the_page_and_the_metrics_tell(
    server_factory: ServerFactory, pitr_settings: SettingsMaker, major: int
) -> None:
    server = server_factory(major=major)
    settings = pitr_settings(server)
    terminal = Terminal(pitr_settings.file)
    terminal.run("backup")
    server.execute("CREATE TABLE rows AS SELECT generate_series(1, 1000) AS id")
    terminal.run("bundle", "--now")
    terminal.run("drill", "order-db")

    terminal.run("report")
    page = parse_page(Layout(settings.backup_root).report.read_text())
    section = page.by_id("db-order-db")
    (verdict,) = section.all("p", "verdict")
    assert re.fullmatch(
        r"All is well order-db can be restored to any moment from .* ago; nothing is wrong\.", verdict.text
    )
    (picture,) = section.all("svg", "timeline")
    for mark in ("base", "passed", "open", "restorable"):
        assert picture.all(class_=mark), mark
    assert "1 base backup, the newest of" in section.text

    families = text_string_to_metric_families(terminal.run("metrics"))
    found = {s.name: s.value for f in families for s in f.samples if s.labels.get("database") == "order-db"}
    assert found["pitr_drill_last_passed"] == 1
    assert found["pitr_drill_last_success_duration_seconds"] > 0
    assert found["pitr_windows"] == found["pitr_base_backups"] == found["pitr_bundles_open"] == 1
    assert found["pitr_base_backup_last_size_bytes"] > 10**6
    assert found["pitr_window_end_timestamp_seconds"] > found["pitr_base_backup_last_timestamp_seconds"]
