"""docs/settings.md and the example pitr.yaml name exactly the settings that there are."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

import pitr_pipelines
from pitr_pipelines.settings import Settings, parse_settings
from pitr_pipelines.settings_reference import all_keys, reference

ROOT = Path(pitr_pipelines.__file__).parent.parent

_EXAMPLE_LINE = re.compile(r"(\s*)(?:# ?)?(\s*(?:- )?[a-z0-9_-]+:(?: .*)?|\s*- \S+(?:\s+#.*)?)")
"""A key, or an entry of a list, whether it is commented out or not; sentences begin otherwise."""


def example() -> dict[str, Any]:
    """Return the example pitr.yaml with every line in force that is commented out."""
    lines = (ROOT / "pitr.yaml").read_text().splitlines()
    found = [_EXAMPLE_LINE.fullmatch(line) for line in lines]
    loaded = yaml.safe_load("\n".join(line[1] + line[2] for line in found if line))
    assert isinstance(loaded, dict)
    return loaded


def paths(value: Any, within: str = "") -> set[str]:
    """Return the keys in `value` as `all_keys` names them: `databases.NAME.drill_checks[].query`."""
    known = {key.path for key in all_keys()}
    found: set[str] = set()
    if isinstance(value, list):
        return found.union(*(paths(entry, f"{within}[]") for entry in value if isinstance(entry, dict)))
    for name, below in value.items():
        path = f"{within}.{name}" if within else str(name)
        if path not in known and within in ("databases", "binaries", "offsite.store.tags"):
            path = f"{within}.NAME"
        elif within == "offsite.store.proxies":
            continue
        else:
            found.add(path)
        if isinstance(below, dict | list):
            found |= paths(below, path)
    return found


def test_the_page_of_settings_is_current() -> None:
    assert (ROOT / "docs/settings.md").read_text() == reference(), (
        "write it anew: python -m pitr_pipelines.settings_reference > docs/settings.md"
    )


def test_every_setting_is_described() -> None:
    assert [key.path for key in all_keys() if not key.meaning or not key.takes] == []


def test_the_example_names_every_setting_and_no_other() -> None:
    assert paths(example()) == {key.path for key in all_keys()}


def test_the_example_with_everything_in_force_is_valid() -> None:
    assert isinstance(parse_settings(example(), source=Path("/etc/pitr/pitr.yaml")), Settings)


def test_the_example_as_it_stands_is_valid() -> None:
    text = (ROOT / "pitr.yaml").read_text()
    settings = parse_settings(yaml.safe_load(text), source=Path("/etc/pitr/pitr.yaml"))
    assert sorted(settings.databases) == ["inventory-db", "order-db"]
