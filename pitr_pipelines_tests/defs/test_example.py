"""The example pitr.yaml loads as it is, and shows every setting there is with its true default."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

import pitr_pipelines
from pitr_pipelines.defs.build import build_definitions
from pitr_pipelines.settings import (
    BaseBackupSettings,
    BundleSettings,
    DatabaseSettings,
    DrillCheck,
    DrillSettings,
    Schedules,
    Settings,
    load_settings,
)

EXAMPLE = Path(pitr_pipelines.__file__).parents[1] / "pitr.yaml"


def test_it_is_what_dagster_loads_from_the_repository_root() -> None:
    settings = load_settings(EXAMPLE)
    assert list(settings.databases) == ["order-db", "inventory-db"]
    assert settings.backup_root == Path("/backup")
    build_definitions(settings).get_repository_def()


@pytest.mark.parametrize(
    "model",
    [
        Settings,
        DatabaseSettings,
        DrillCheck,
        Schedules,
        BaseBackupSettings,
        BundleSettings,
        DrillSettings,
    ],
    ids=lambda m: m.__name__,
)
def test_it_shows_every_setting(model: type[Settings]) -> None:
    keys = {line.lstrip(" #-").partition(":")[0] for line in EXAMPLE.read_text().splitlines()}
    assert set(model.model_fields) <= keys


@pytest.mark.parametrize(
    ("section", "model"),
    [
        ("schedules", Schedules),
        ("base_backup", BaseBackupSettings),
        ("bundle", BundleSettings),
        ("drills", DrillSettings),
    ],
)
def test_what_is_commented_out_is_the_default(
    section: str, model: type[Schedules | BaseBackupSettings | BundleSettings | DrillSettings]
) -> None:
    lines = iter(EXAMPLE.read_text().splitlines())
    assert f"# {section}:" in lines  # goes on after that line
    shown = []
    for line in lines:
        if not line.startswith("#   "):
            break
        shown.append(line.removeprefix("# "))
    values = yaml.safe_load("\n".join(shown))
    for key, default in model().model_dump().items():
        if default is not None:  # such as "every core", for which the example shows a number
            assert values[key] == default
