"""What the operator exports: metrics with their labels."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping

from prometheus_client.metrics_core import Metric

from tests.monitoring.promql import Names, names

SCRAPED = frozenset({"instance", "job"})  # labels that Prometheus adds
Labels = Mapping[str, frozenset[str]]  # by name of the samples


def labels_of(families: Iterable[Metric]) -> Labels:
    """The labels of all samples."""
    found: dict[str, set[str]] = defaultdict(set)
    for family in families:
        for sample in family.samples:
            found[sample.name] |= sample.labels.keys()
    return {name: frozenset(labels) for name, labels in found.items()}


def check(expression: str, exported: Labels) -> Names:
    """Fail if the expression names a metric that nobody exports, or a label that none of its metrics has."""
    found = names(expression)
    assert found.selectors, f"{expression}: no metric is named"
    all_labels: set[str] = set(SCRAPED)
    for selector in found.selectors:
        assert selector.metric in exported, f"{expression}: nobody exports {selector.metric}"
        labels = exported[selector.metric] | SCRAPED
        unknown = selector.matchers.keys() - labels
        assert not unknown, f"{expression}: {selector.metric} has no label {unknown}"
        all_labels |= labels
    unknown = found.labels - all_labels
    assert not unknown, f"{expression}: no metric in it has the labels {unknown}"
    return found
