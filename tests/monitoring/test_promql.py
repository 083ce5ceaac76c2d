"""Names are found in expressions as the dashboard and the alerts write them."""

from __future__ import annotations

import pytest

from tests.monitoring.exported import check
from tests.monitoring.promql import Selector, names

EXPORTED = {"up": frozenset({"a"}), "errors_total": frozenset({"reason", "le"})}


def test_metrics_matchers_and_groups_are_found() -> None:
    found = names(
        'histogram_quantile(0.99, sum by (le) (rate(errors_total{reason!="a,b}",le=~"x"}[5m:1m] offset 1h)))'
        ' / on (instance) group_left up{a="1"} >= 1e3 or vector(0)'
    )
    assert found.selectors == (
        Selector("errors_total", {"reason": "a,b}", "le": "x"}, frozenset()),
        Selector("up", {"a": "1"}, frozenset({"a"})),
    )
    assert found.labels == {"le", "instance"}
    assert found.kept == {"le"}


@pytest.mark.parametrize(
    ("expression", "complaint"),
    [
        ("down", "nobody exports down"),
        ('up{b="1"}', "up has no label {'b'}"),
        ("sum by (b) (up)", "no metric in it has .*'b'"),
        ("vector(1)", "no metric is named"),
        ("up ; up", "what is"),
    ],
)
def test_what_is_not_exported_is_found_out(expression: str, complaint: str) -> None:
    with pytest.raises(AssertionError, match=complaint):
        check(expression, EXPORTED)
