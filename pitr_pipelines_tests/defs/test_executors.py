"""Base backups of several databases are taken in processes of the run, or each in a pod: a setting."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import dagster as dg
import pytest
import yaml

from pitr_pipelines.defs.build import build_definitions
from pitr_pipelines.defs.names import DAILY_BASE_BACKUPS, HOURLY_BUNDLES
from pitr_pipelines.errors import SettingsError
from pitr_pipelines.settings import DagsterSettings, Settings


def in_pods(settings: Settings) -> Settings:
    return settings.model_copy(update={"dagster": DagsterSettings(executor="k8s")})


def executor_of(settings: Settings, job: str) -> str:
    return build_definitions(settings).resolve_job_def(job).executor_def.name


def test_a_run_takes_base_backups_in_processes_unless_told_otherwise(settings: Settings) -> None:
    assert executor_of(settings, DAILY_BASE_BACKUPS) == "multiprocess"


def test_each_base_backup_gets_a_pod_where_that_is_asked_for(settings: Settings) -> None:
    settings = in_pods(settings)
    assert executor_of(settings, DAILY_BASE_BACKUPS) == "k8s"
    # A pod takes longer to start than a bundle to make.
    assert executor_of(settings, HOURLY_BUNDLES) == "in_process"
    job = build_definitions(settings).resolve_job_def(DAILY_BASE_BACKUPS)
    assert dg.validate_run_config(job) is not None


def test_a_missing_package_is_named_with_what_to_install(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "dagster_k8s", None)
    with pytest.raises(SettingsError, match="needs the package dagster-k8s") as caught:
        build_definitions(in_pods(settings))
    assert "requirements/kubernetes.txt" in caught.value.remedy


def test_nobody_else_loads_a_client_of_kubernetes(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "pitr.yaml").write_text(
        yaml.safe_dump(
            {
                "backup_root": "b",
                "restore_root": "r",
                "databases": {"order-db": {"dsn": "host=nowhere.invalid"}},
            }
        )
    )
    program = (
        "import sys; from pitr_pipelines.defs.build import build_definitions\n"
        "from pitr_pipelines.settings import load_settings\n"
        "build_definitions(load_settings(sys.argv[1]))\n"
        "assert not {'kubernetes', 'dagster_k8s'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", program, tmp_path / "pitr.yaml"], check=True)
