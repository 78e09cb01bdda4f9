"""The dagster.yaml in the docs is one that Dagster takes, and means what is said there."""

from __future__ import annotations

import re
from pathlib import Path

import dagster as dg
from dagster._core.definitions.run_request import InstigatorType
from dagster._core.scheduler.instigation import TickStatus

import pitr_pipelines

DOCS = Path(pitr_pipelines.__file__).parents[1] / "docs" / "dagster.md"


def test_the_instance_that_the_docs_describe(tmp_path: Path) -> None:
    found = re.search(r"<!-- dagster-yaml -->\n```yaml\n(.*?)```", DOCS.read_text(), re.DOTALL)
    assert found is not None
    (tmp_path / "dagster.yaml").write_text(found[1])

    with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
        assert not instance.telemetry_enabled
        assert not instance.run_retries_enabled
        assert instance.run_monitoring_enabled
        assert instance.run_monitoring_max_runtime_seconds == 0, "a restore may take its time"
        kept = instance.get_tick_retention_settings(InstigatorType.SENSOR)
        assert kept[TickStatus.SKIPPED] == 2
        assert instance.get_tick_retention_settings(InstigatorType.SCHEDULE)[TickStatus.SUCCESS] == 90
