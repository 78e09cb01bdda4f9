"""The rooms of the house: who may import what. Checked in the source, and in a fresh interpreter."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import pitr_pipelines

ROOT = Path(pitr_pipelines.__file__).parent
MODULES = sorted(ROOT.rglob("*.py"))

MUST_NOT_IMPORT = {
    "wal": {"restore", "offsite", "watch", "defs", "definitions", "demo", "cli"},
    "postgres": {"restore", "offsite", "watch", "defs", "definitions", "demo", "cli"},
    "catalog": {"restore", "offsite", "watch", "defs", "definitions", "demo", "cli"},
    "restore": {"watch", "defs", "definitions", "demo", "cli"},
    "offsite": {"watch", "defs", "definitions", "demo", "cli"},
    "watch": {"defs", "definitions", "demo", "cli"},
    "defs": {"definitions", "demo", "cli"},
}
"""Nothing imports upward: the rooms on the right build on those on the left."""

LEAVES = {
    "errors.py",
    "units.py",
    "progress.py",
    "durable.py",
    "settings.py",
    "offsite_settings.py",
    "alert_settings.py",
    "settings_reference.py",
    "cron_gap.py",
}
"""What everybody may use, and which therefore uses none of the rooms."""


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def _imported(path: Path) -> Iterator[str]:
    """Yield every module that a file imports anywhere in it, lazily too, as an absolute name."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{_name(path)}: relative imports hide where they lead"
            assert node.module
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _knows_dagster(path: Path) -> bool:
    return path.is_relative_to(ROOT / "defs") or path == ROOT / "definitions.py"


@pytest.mark.parametrize("path", MODULES, ids=_name)
def test_only_defs_and_definitions_import_dagster(path: Path) -> None:
    if not _knows_dagster(path):
        assert not [name for name in _imported(path) if name.split(".")[0].startswith("dagster")]


@pytest.mark.parametrize("path", MODULES, ids=_name)
def test_no_room_imports_upward(path: Path) -> None:
    room = path.relative_to(ROOT).parts[0]
    forbidden = MUST_NOT_IMPORT.get(room, set())
    if room in LEAVES:
        forbidden = {*MUST_NOT_IMPORT, "definitions", "demo", "cli"}
    rooms = {name.split(".")[1] for name in _imported(path) if name.startswith("pitr_pipelines.")}
    assert not rooms & forbidden


@pytest.mark.parametrize(
    ("package", "module"), [("pandas", "catalog/frames.py"), ("prometheus_client", "catalog/metrics.py")]
)
def test_what_is_slow_to_load_has_one_module_that_imports_it(package: str, module: str) -> None:
    importing = [_name(path) for path in MODULES if any(n.split(".")[0] == package for n in _imported(path))]
    assert importing == [module]


def test_a_fresh_interpreter_loads_no_dagster_with_the_core() -> None:
    modules = [
        ".".join(("pitr_pipelines", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__")
        for path in MODULES
        if not _knows_dagster(path) and path.name != "__main__.py"
    ]
    code = (
        "import importlib, sys\n"
        f"for name in {modules!r}: importlib.import_module(name)\n"
        "print(sorted({name.split('.')[0] for name in sys.modules if name.startswith('dagster')}))"
    )

    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT.parent)},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


def test_status_loads_nothing_that_is_slow_to_load(tmp_path: Path) -> None:
    settings = tmp_path / "pitr.yaml"
    settings.write_text(
        f"backup_root: {tmp_path}\nrestore_root: {tmp_path}\ndatabases: {{order-db: {{dsn: user=pitr}}}}\n"
    )
    code = (
        "import sys\nfrom pitr_pipelines.cli import main\n"
        "main(['status'], standalone_mode=False)\n"
        "slow = {'dagster', 'psycopg', 'pandas', 'prometheus_client', 'boto3', 'rich', 'zstandard'}\n"
        "slow |= {'asyncio'}\n"
        "print(sorted(slow & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT.parent,
        env={**os.environ, "PITR_CONFIG": str(settings)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
