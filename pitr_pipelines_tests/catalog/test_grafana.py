"""The examples for Prometheus and Grafana can be read, and ask only for metrics that there are."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

from pitr_pipelines.catalog.metrics import exposition, first_call_day, take_snapshot
from pitr_pipelines.offsite.call_days import read_calls
from pitr_pipelines_tests.catalog.fortnight import NOW, make_fortnight

GRAFANA = Path(__file__).parents[2] / "docs" / "grafana"
_METRIC = re.compile(r"\bpitr_[a-z_]+")


@pytest.fixture(scope="module")
def metrics(tmp_path_factory: pytest.TempPathFactory) -> frozenset[str]:
    store = make_fortnight(tmp_path_factory.mktemp("fortnight"))
    calls = read_calls(store.settings, now=NOW, since=first_call_day(NOW))
    text = exposition(take_snapshot(store.settings, now=NOW, calls=calls)).decode()
    return frozenset(re.findall(r"^# TYPE (\w+) gauge$", text, flags=re.M))


def test_every_alert_asks_for_metrics_that_there_are(metrics: frozenset[str]) -> None:
    held = yaml.safe_load((GRAFANA / "alerts.yaml").read_text())
    rules = [rule for group in held["groups"] for rule in group["rules"]]
    assert len({rule["alert"] for rule in rules}) == len(rules) > 10
    for rule in rules:
        assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}
        asked = set(_METRIC.findall(rule["expr"]))
        assert asked
        assert asked <= metrics, rule["alert"]
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert set(rule["annotations"]) == {"summary", "description"}
        assert re.fullmatch(r"\d+[mhd]", rule.get("for", "1m"))


def test_every_panel_asks_for_metrics_that_there_are(metrics: frozenset[str]) -> None:
    held = json.loads((GRAFANA / "dashboard.json").read_text())
    panels = held["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    for panel in panels:
        assert panel["title"]
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        for target in panel["targets"]:
            asked = set(_METRIC.findall(target["expr"]))
            assert asked
            assert asked <= metrics, panel["title"]
    for variable in held["templating"]["list"]:
        assert set(_METRIC.findall(variable.get("definition", ""))) <= metrics


def test_no_two_panels_lie_on_each_other() -> None:
    panels = json.loads((GRAFANA / "dashboard.json").read_text())["panels"]
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        squares = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not squares & taken, panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= squares


def test_the_page_about_metrics_names_only_those_that_there_are(metrics: frozenset[str]) -> None:
    text = (GRAFANA.parent / "metrics.md").read_text()
    assert {name for name in _METRIC.findall(text) if name != "pitr_pipelines"} <= metrics | {"pitr_"}
