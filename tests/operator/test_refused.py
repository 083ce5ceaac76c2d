"""Chains that the operator refuses cost nobody anything: not the operator, not the chains beside them."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.operator.chains import ClusterChain
from tests.operator.operator_process import OperatorProcess
from tests.operator.test_invalid_manifests import FILES, expectation
from tests.processes import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("control-plane")]

FIXED_BY_DEFAULTS = {"image-missing"}  # the operator of the tests has a default image
REFUSED = [
    file for file in FILES if expectation(file).by == "accepted" and file.stem not in FIXED_BY_DEFAULTS
]
REST_SECONDS = 4.0


def test_refused_chains_are_told_once_and_never_written_again(
    chain: ClusterChain, operator: OperatorProcess, tmp_path: Path
) -> None:
    assert len(REFUSED) >= 20
    operator.start()
    for file in REFUSED:
        chain.plane.kubectl("create", "-n", chain.namespace, "-f", str(file))
    chain.apply()
    wait_until(lambda: len(chain.jobs()) == 1, "the valid chain beside them starts", pause=0.3)
    wait_until(
        lambda: all(_reason(one) == "Invalid" for one in _others(chain)),
        "each is refused",
        pause=0.3,
    )
    before = {one["metadata"]["name"]: one["metadata"]["resourceVersion"] for one in _others(chain)}
    assert len(before) == len(REFUSED)
    time.sleep(REST_SECONDS)
    assert before == {one["metadata"]["name"]: one["metadata"]["resourceVersion"] for one in _others(chain)}

    def told() -> Counter[tuple[str, str, str, int]]:
        return Counter(
            (event["involvedObject"]["name"], event["type"], event["reason"], event.get("count", 1))
            for event in _get(chain, "api/v1/events")
            if event["involvedObject"]["name"] in before
        )

    wait_until(lambda: told().total() >= len(before), "each refusal is told", pause=0.3)
    assert told() == Counter((name, "Warning", "Refused", 1) for name in before)
    assert len(chain.jobs()) == len(_get(chain, "apis/kubeflow.org/v1/pytorchjobs")), (
        "a refused chain has a job"
    )
    assert operator.is_ready()
    assert "Traceback" not in operator.said()


def _others(chain: ClusterChain) -> list[dict[str, Any]]:
    return [
        one
        for one in _get(chain, "apis/modelchain.dev/v1alpha1/modelchains")
        if one["metadata"]["name"] != chain.name
    ]


def _get(chain: ClusterChain, kind: str) -> list[dict[str, Any]]:
    return chain.plane.read(kind, chain.namespace)["items"]


def _reason(one: dict[str, Any]) -> str:
    """Why it is not accepted; empty as long as nobody has said."""
    for condition in one.get("status", {}).get("conditions", []):
        if condition["type"] == "Accepted" and condition["status"] == "False":
            return condition["reason"]
    return ""
