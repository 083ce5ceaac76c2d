"""docs/monitoring.md tells of every metric and of every alert."""

from __future__ import annotations

from pathlib import Path

from modelchain.explanation import ADVICE
from modelchain_operator.telemetry.chain_metrics import ATTENTION
from tests.monitoring.life import families, whole_life
from tests.monitoring.reference import PAGE, page_with
from tests.monitoring.test_alerts import ALERTS


def test_the_table_of_metrics_is_that_of_the_operator(tmp_path: Path) -> None:
    expected = page_with(families(whole_life(tmp_path)).values())
    assert PAGE.read_text() == expected, "run: python -m tests.monitoring.reference"


def test_every_alert_is_listed_with_its_severity_and_its_runbook() -> None:
    text = PAGE.read_text()
    for name, alert in ALERTS.items():
        assert f"| [{name}](runbooks.md#{name.lower()}) | {alert['labels']['severity']} |" in text, name


def test_every_reason_for_attention_is_explained() -> None:
    text = PAGE.read_text()
    for reason in ATTENTION:
        assert f"`{reason}`" in text, reason


def test_what_an_alert_calls_somebody_for_is_explained_with_what_to_do() -> None:
    advised = {reason for advice in ADVICE for reason in advice.reasons}
    told_otherwise = {"Refused", "Failed", "Unresponsive", "ArtifactsMissing", "Other"}  # by the chain itself
    assert ATTENTION - told_otherwise <= advised
