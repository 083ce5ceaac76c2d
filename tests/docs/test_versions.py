"""The pages name the versions that the tests build and run."""

from __future__ import annotations

import re

import pytest
import yaml

from tests.control_plane.binaries import (
    ETCD_MODULE,
    JOBSET_MODULE,
    KUBERNETES_MODULE,
    KUEUE_MODULE,
    TRAINER_MODULE,
    TRAINING_OPERATOR_MODULE,
    version_of,
)
from tests.docs.markdown import DOCS, ROOT

PAGE = DOCS / "backends.md"
CHART = ROOT / "charts" / "modelchain"
KUBERNETES = ("kubernetes_oldest", "kubernetes", "kubernetes_newest")


def versions(module: str, *tools: str) -> list[str]:
    """Which versions of a module the folders of `tests/control_plane/tools` require, without their `v`."""
    return [version_of(tool, module).removeprefix("v") for tool in tools]


def minor(version: str) -> str:
    """Without the patch."""
    return version.rpartition(".")[0]


@pytest.mark.parametrize(
    ("component", "module", "tools"),
    [
        ("Kubernetes", KUBERNETES_MODULE, KUBERNETES),
        ("etcd", ETCD_MODULE, ("kubernetes", "kubernetes_newest")),
        (
            "Kubeflow training operator",
            TRAINING_OPERATOR_MODULE,
            ("training_operator_oldest", "training_operator"),
        ),
        ("Kubeflow Trainer", TRAINER_MODULE, ("trainer",)),
        ("JobSet", JOBSET_MODULE, ("jobset",)),
        ("Kueue", KUEUE_MODULE, ("kueue",)),
    ],
)
def test_the_table_of_what_was_tested_names_what_is_built(
    component: str, module: str, tools: tuple[str, ...]
) -> None:
    (row,) = [line for line in PAGE.read_text().splitlines() if line.startswith(f"| {component} | ")]
    assert set(re.findall(r"\d+\.\d+\.\d+", row)) == set(versions(module, *tools))


def test_the_chart_asks_for_the_oldest_and_says_which_are_tested() -> None:
    oldest, *newer = map(minor, versions(KUBERNETES_MODULE, *KUBERNETES))
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["kubeVersion"] == f">={oldest}.0-0"
    told = f"Needs Kubernetes {oldest} or newer (tested with {oldest}, {' and '.join(newer)})"
    assert told in (CHART / "README.md").read_text()
