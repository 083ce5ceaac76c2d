"""Alerts fire on metrics that the operator exports, and lead to a page that says what to do."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from modelchain_operator.telemetry.chain_metrics import ATTENTION
from tests.monitoring.conftest import Promtool
from tests.monitoring.exported import Labels, check
from tests.monitoring.promql import names

ROOT = Path(__file__).parents[2]
RULES = ROOT / "charts/modelchain/files/alerts.yaml"
TESTS = Path(__file__).parent / "alerts_test.yaml"
RUNBOOKS = ROOT / "docs/runbooks.md"

Object = dict[str, Any]
ALERTS: dict[str, Object] = {
    rule["alert"]: rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]
}
alerts = pytest.mark.parametrize("name", ALERTS)


@alerts
def test_an_alert_says_what_it_is_and_what_to_do(name: str) -> None:
    alert = ALERTS[name]
    assert alert["labels"]["severity"] in {"warning", "critical"}
    assert re.fullmatch(r"\d+[mh]", alert["for"])
    annotations = alert["annotations"]
    assert annotations.keys() == {"summary", "description", "runbook_url"}
    assert len(annotations["description"]) > 40
    assert annotations["runbook_url"] == f"https://modelchain.dev/runbooks/#{name.lower()}"


@alerts
def test_an_alert_names_what_the_operator_exports(name: str, exported: Labels) -> None:
    alert = ALERTS[name]
    found = check(alert["expr"], exported)
    used = set(re.findall(r"\$labels\.(\w+)", str(alert["annotations"])))
    kept = found.kept if found.kept is not None else {"instance", "job"}
    assert used <= kept, f"its text names labels that the alert does not have: {used - kept}"


def test_every_reason_for_attention_has_an_alert() -> None:
    patterns = [
        (selector.matchers["reason"], "reason" in selector.equal)
        for name, alert in ALERTS.items()
        for selector in names(alert["expr"]).selectors
        if selector.metric == "modelchain_chain_needs_attention" and name != "ModelChainLastRetry"
    ]
    named = {pattern for pattern, equal in patterns if equal}
    (others,) = {pattern for pattern, equal in patterns if not equal}
    assert set(others.split("|")) == named < ATTENTION, "ModelChainBlocked is about all the others"


def test_every_alert_is_tested_to_fire_and_to_be_silent() -> None:
    cases = yaml.safe_load(TESTS.read_text())["tests"]
    for name in ALERTS:
        mine = [case["promql_expr_test"] for case in cases if case["name"].split()[0] == name]
        expected = [bool(test["exp_samples"]) for tests in mine for test in tests]
        assert True in expected and False in expected, name
        for tests in mine:
            for test in tests:
                assert test["expr"] == f'ALERTS{{alertname="{name}",alertstate="firing"}}'
    assert {case["name"].split()[0] for case in cases} == ALERTS.keys()


def test_runbooks_have_a_heading_for_each_alert_and_no_other() -> None:
    headings = re.findall(r"^## (\w+)$", RUNBOOKS.read_text(), re.MULTILINE)
    assert sorted(headings) == sorted(ALERTS)


@pytest.mark.long
def test_prometheus_takes_the_rules(promtool: Promtool, tmp_path: Path) -> None:
    shutil.copy(RULES, tmp_path / "alerts.yaml")
    said = promtool("check", "rules", "--lint-fatal", "alerts.yaml", folder=tmp_path)
    assert f"SUCCESS: {len(ALERTS)} rules found" in said


@pytest.mark.long
def test_alerts_fire_when_they_should_and_at_no_other_time(promtool: Promtool, tmp_path: Path) -> None:
    for file in (RULES, TESTS):
        shutil.copy(file, tmp_path / file.name)
    assert "SUCCESS" in promtool("test", "rules", TESTS.name, folder=tmp_path)
