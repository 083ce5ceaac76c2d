"""`kubectl apply -f chain.yaml` on a real control plane, to weights that stock open_clip loads."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from modelchain.commit import download_verified, verify_stage
from modelchain.cost import stage_macs
from tests.control_plane.plane import ControlPlane
from tests.control_plane.pods import PodRunner
from tests.operator.chains import EPOCHS, ClusterChain
from tests.operator.operator_process import OperatorProcess

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("control-plane")]

CHAIN_SECONDS = 400.0


@pytest.fixture
def started_pods(control_plane: ControlPlane, namespace: str, tmp_path: Path) -> Iterator[PodRunner]:
    """Runs the pods of the test's namespace, each from its first instruction on."""
    runner = PodRunner(control_plane, tmp_path / "pods", namespace=namespace, preloaded=False)
    runner.start()
    yield runner
    runner.close()


def test_apply_to_weights(
    chain: ClusterChain, operator: OperatorProcess, started_pods: PodRunner, tmp_path: Path
) -> None:
    operator.start()
    chain.document["spec"]["job"]["nodes"] = 2
    chain.apply()
    chain.wait("Complete", seconds=CHAIN_SECONDS)
    status = chain.status()
    assert status["phase"] == "Complete"
    assert [stage["phase"] for stage in status["stages"]] == ["Complete", "Complete"]
    assert [stage["attempt"] for stage in status["stages"]] == [1, 1]
    assert [stage["failures"] for stage in status["stages"]] == [0, 0]
    chain.wait_until_told("Accepted", "JobCreated", "StageRunning", "StageComplete", "Complete")
    columns = chain.plane.kubectl("get", "mc", chain.name, "-n", chain.namespace).stdout.splitlines()
    assert columns[0].split() == [
        "NAME",
        "PHASE",
        "REASON",
        "STAGE",
        "PROGRESS",
        "ETA",
        "TOP-1",
        "SPEEDUP",
        "AGE",
    ]
    chain.wait_at_rest(5)
    for stage in chain.resolved().stages:
        manifest = verify_stage(chain.store, stage.folder, stage.digest)
        assert manifest is not None
        for entry in manifest.files:
            download_verified(chain.store, stage.folder, entry, tmp_path / stage.name / Path(entry.path).name)
    loaded = subprocess.run(
        [sys.executable, "-c", _LOAD, str(tmp_path / "small")], check=True, capture_output=True, text=True
    )
    assert json.loads(loaded.stdout) == [32, 2]


def test_models_are_trained_alone_after_the_chain_and_the_speedup_is_measured(
    chain: ClusterChain, operator: OperatorProcess, pod_runner: PodRunner
) -> None:
    operator.start()
    chain.apply(baseline={"train": ["all"], "epochs": EPOCHS})
    chain.wait("Complete", seconds=CHAIN_SECONDS)
    columns = chain.plane.kubectl("get", "mc", chain.name, "-n", chain.namespace).stdout.splitlines()
    assert chain.status().get("speedupMeasured") is None, "nothing was measured yet"
    assert chain.status()["columns"]["speedupPlanned"] not in columns[1], "what is planned is no fact"
    wide = chain.plane.kubectl("get", "mc", chain.name, "-n", chain.namespace, "-o", "wide").stdout
    assert "PLANNED" in wide and chain.status()["columns"]["speedupPlanned"] in wide
    chain.wait("BaselineComplete", seconds=CHAIN_SECONDS)
    status = chain.status()
    assert status["phase"] == "Complete"
    (alone,) = status["baselines"]
    assert (alone["name"], alone["phase"], alone["attempt"]) == ("small-alone", "Complete", 1)
    assert alone["startedAt"] >= max(stage["completedAt"] for stage in status["stages"]), "it came last"
    measured = status["measurement"]
    assert [model["name"] for model in measured["models"]] == ["tiny", "small"]
    spent = sum(stage_macs(stage) for stage in chain.resolved().stages)
    assert measured["chainMacs"] == pytest.approx(spent)
    assert status["columns"]["speedupMeasured"].endswith(f"{status['speedupMeasured']:.2f}x")
    columns = chain.plane.kubectl("get", "mc", chain.name, "-n", chain.namespace).stdout.splitlines()
    assert status["columns"]["speedupMeasured"] in columns[1]
    chain.wait_until_told("BaselineMeasured")
    chain.wait_at_rest(5)


_LOAD = """
import json, sys, open_clip
model, _, _ = open_clip.create_model_and_transforms(f"local-dir:{sys.argv[1]}")
print(json.dumps([model.visual.transformer.width, model.visual.transformer.layers]))
"""
