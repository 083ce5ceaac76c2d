"""What the dashboard and the alerts ask for is what an operator at work exports."""

from __future__ import annotations

from pathlib import Path

import pytest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from tests.control_plane.fixtures import control_plane, namespace, pod_runner
from tests.control_plane.pods import PodRunner
from tests.monitoring.exported import check, labels_of
from tests.monitoring.life import families as of_life
from tests.monitoring.life import whole_life
from tests.monitoring.test_alerts import ALERTS
from tests.monitoring.test_dashboard import queries
from tests.operator.chains import ClusterChain
from tests.operator.conftest import chain, operator
from tests.operator.operator_process import OperatorProcess
from tests.processes import wait_until

__all__ = ["chain", "control_plane", "namespace", "operator", "pod_runner"]

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("control-plane")]

GPUS = 2  # asked for; the pods of this control plane run without

LATE = {  # what a stage tells of itself only after a while
    "modelchain_stage_eta_seconds",
    "modelchain_stage_samples_per_second",
    "modelchain_stage_top1_ratio",
    "modelchain_stage_unsaved_seconds",
}


def test_an_operator_whose_chain_trains_exports_all_that_is_shown(
    chain: ClusterChain, operator: OperatorProcess, pod_runner: PodRunner, tmp_path: Path
) -> None:
    spec = chain.document["spec"]
    spec["job"] |= {"gpusPerNode": GPUS, "processesPerNode": 1}
    spec["training"]["epochs"] = 2000  # it trains for as long as the test looks
    chain.apply(store=spec["store"] | {"secretRef": {"name": "missing"}})
    operator.start()
    wait_until(lambda: 'reason="StoreForbidden"' in operator.metrics(), "the chain needs attention")
    blocked = _families(operator)
    chain.apply(store=spec["store"])
    wait_until(
        lambda: _with_samples(operator) >= LATE,
        "a stage trains and was evaluated",
        pause=0.5,
    )
    families = _families(operator)
    compared = [  # no chain of this test is
        one
        for name, one in of_life(whole_life(tmp_path)).items()
        if name.startswith(("modelchain_chain_measured_", "modelchain_chain_baseline_"))
    ]
    exported = labels_of([*blocked, *families, *compared])
    for _, target in queries():
        check(target["expr"], exported)
    for alert in ALERTS.values():
        check(alert["expr"], exported)
    values = {sample.name: sample.value for family in families for sample in family.samples}
    assert values["modelchain_chain_gpu_seconds_total"] > 0
    assert values["modelchain_chain_spent_macs"] > 0
    assert 0 < values["modelchain_chain_progress_ratio"] < 1


def _with_samples(operator: OperatorProcess) -> set[str]:
    return {family.name for family in _families(operator) if family.samples}


def _families(operator: OperatorProcess) -> list[Metric]:
    return list(text_string_to_metric_families(operator.metrics()))
