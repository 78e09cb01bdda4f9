"""Every alert leads to a section that exists, and the example's alerts are those that the code takes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from pitr_pipelines.alert_settings import AlertSettings, Objectives
from pitr_pipelines.watch.incidents import RUNBOOKS, Kind

ROOT = Path(__file__).parents[2]
RUNBOOK = (ROOT / RUNBOOKS).read_text()


def section(kind: Kind) -> str:
    found = re.search(rf"^## {kind}\n(.*?)(?=^## |\Z)", RUNBOOK, re.MULTILINE | re.DOTALL)
    assert found, f"docs/operate.md has no section {kind}"
    return found[1]


@pytest.mark.parametrize("kind", Kind)
def test_every_alert_has_a_section_that_says_what_to_do(kind: Kind) -> None:
    text = section(kind)
    assert "Critical" in text or "A warning" in text
    assert "**Do**" in text or "to be\ndone" in text
    assert "**Over**" in text or "told once" in text


def test_no_section_is_about_an_alert_that_there_is_not() -> None:
    headings = re.findall(r"^## (.+)$", RUNBOOK.partition("# The alerts")[2], re.MULTILINE)
    assert headings == [kind.value for kind in Kind]


@pytest.mark.parametrize(("key", "model"), [("alerts", AlertSettings), ("objectives", Objectives)])
def test_the_example_shows_every_key_with_its_default(
    key: str, model: type[AlertSettings | Objectives]
) -> None:
    lines = (ROOT / "pitr.yaml").read_text().splitlines()
    start = next(number for number, line in enumerate(lines) if re.match(rf"\s*# {key}:", line))
    indent = len(lines[start]) - len(lines[start].lstrip())
    block = [lines[start][indent + 2 :]]
    for line in lines[start + 1 :]:
        if not line[indent:].startswith("#   "):
            break
        block.append(line[indent + 2 :])
    shown = yaml.safe_load("\n".join(block))[key]
    assert shown.keys() == model.model_fields.keys()
    defaults = model().model_dump()
    for name, value in shown.items():
        if defaults[name] not in (None, ()):
            assert value == defaults[name], name
