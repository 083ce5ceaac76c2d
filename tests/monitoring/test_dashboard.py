"""The dashboard shows what the operator exports, all of it, and Grafana and Prometheus can read it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import yaml

from charts import dashboard
from modelchain.status import ChainPhase, StagePhase
from tests.monitoring.conftest import Promtool
from tests.monitoring.exported import Labels, check
from tests.monitoring.promql import names

Object = dict[str, Any]

BOARD: Object = json.loads(dashboard.PATH.read_text())
PANELS: list[Object] = [panel for panel in BOARD["panels"] if panel["type"] != "row"]
# What Grafana puts in for its variables.
VARIABLES = {
    "$__rate_interval": "2m",
    "$__interval": "2m",
    "$__range": "6h",
    "$namespace": ".*",
    "$chain": "a|b",
}
# Metrics that no panel shows, each with the reason.
LEFT_OUT: frozenset[str] = frozenset()


def queries() -> Iterator[tuple[Object, Object]]:
    """Every panel with each of its queries."""
    for panel in PANELS:
        for target in panel["targets"]:
            yield panel, target


def test_the_file_in_the_chart_is_what_its_source_says() -> None:
    assert dashboard.PATH.read_text() == dashboard.text(), "run: python -m charts.dashboard"


def test_every_query_names_what_the_operator_exports(exported: Labels) -> None:
    for panel, target in queries():
        found = check(target["expr"], exported)
        available = (
            found.kept if found.kept is not None else frozenset().union(*exported.values()) | {"instance"}
        )
        wanted = set(re.findall(r"{{(\w+)}}", target["legendFormat"]))
        assert wanted <= available, f"{panel['title']}: the legend names {wanted - available}"


def test_everything_that_the_operator_exports_is_shown(exported: Labels) -> None:
    shown = {selector.metric for _, target in queries() for selector in names(target["expr"]).selectors}
    families = {
        re.sub(r"_(bucket|count|sum)$", "", name) for name in exported if name.startswith("modelchain_")
    }
    seen = {re.sub(r"_(bucket|count|sum)$", "", name) for name in shown}
    assert families - seen == LEFT_OUT


def test_the_variables_ask_for_labels_that_exist(exported: Labels) -> None:
    variables = {variable["name"]: variable for variable in BOARD["templating"]["list"]}
    assert variables["datasource"] | {"type": "datasource", "query": "prometheus"} == variables["datasource"]
    for name in ("namespace", "chain"):
        found = re.fullmatch(r"label_values\((.*), (\w+)\)", variables[name]["query"]["query"])
        assert found is not None
        (selector,) = check(found[1], exported).selectors
        assert found[2] in exported[selector.metric]
        assert variables[name]["multi"] and variables[name]["includeAll"]


def test_metrics_of_chains_heed_the_variables(exported: Labels) -> None:
    for panel, target in queries():
        if panel["title"] == "Complete chains: planned speed-up":
            continue  # a filter of the filtered
        for selector in names(target["expr"]).selectors:
            for label in ("namespace", "chain"):
                if label in exported[selector.metric]:
                    assert selector.matchers.get(label) == f"${label}", f"{panel['title']}: {selector}"


def test_the_datasource_is_the_variable_everywhere() -> None:
    source = {"type": "prometheus", "uid": "${datasource}"}
    for panel, target in queries():
        assert panel["datasource"] == target["datasource"] == source
    for variable in BOARD["templating"]["list"]:
        assert variable["type"] == "datasource" or variable["datasource"] == source
    assert "DS_PROMETHEUS" not in dashboard.PATH.read_text(), "an import would ask for it, a sidecar does not"


def test_panels_have_names_units_explanations_and_places_of_their_own() -> None:
    assert BOARD["uid"] == "modelchain"
    ids = [panel["id"] for panel in BOARD["panels"]]
    assert len(set(ids)) == len(ids)
    for panel in PANELS:
        assert panel["title"] and panel["description"].endswith(".")
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        letters = [target["refId"] for target in panel["targets"]]
        assert len(set(letters)) == len(letters)
    cells: dict[tuple[int, int], str] = {}
    for panel in BOARD["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= dashboard.COLUMNS
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                assert (x, y) not in cells, f"{panel['title']} lies over {cells[x, y]}"
                cells[x, y] = panel["title"]
    rows = {y for _, y in cells}
    assert len(cells) == dashboard.COLUMNS * len(rows) == dashboard.COLUMNS * (max(rows) + 1), (
        "there are holes"
    )


def test_values_of_now_are_asked_for_now() -> None:
    for panel, target in queries():
        assert bool(target.get("instant")) == (panel["type"] != "timeseries"), panel["title"]


def test_every_phase_has_a_colour_of_its_own() -> None:
    assert dashboard.PHASE_COLOURS.keys() == {phase.value for phase in (*ChainPhase, *StagePhase)}
    assert all(one != other for one, other in combinations(dashboard.PHASE_COLOURS.values(), 2))


@pytest.mark.long
def test_prometheus_understands_every_query(promtool: Promtool, tmp_path: Path) -> None:
    rules = []
    for panel, target in queries():
        expression = target["expr"]
        for name, value in VARIABLES.items():
            expression = expression.replace(name, value)
        assert "$" not in expression, f"{panel['title']}: a variable is not known here: {expression}"
        rules.append({"record": f"panel:{panel['id']}:{target['refId'].lower()}", "expr": expression})
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    said = promtool("check", "rules", "rules.yaml", folder=tmp_path)
    assert f"SUCCESS: {len(rules)} rules found" in said
