"""Chains of other tasks than Clip, applied to a cluster and trained to their weights."""

from __future__ import annotations

from typing import Any

import pytest

from modelchain.commit import verify_stage
from tests.control_plane.pods import PodRunner
from tests.operator.chains import ClusterChain
from tests.operator.operator_process import OperatorProcess
from tests.squares import SAMPLES

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("control-plane")]

CHAIN_SECONDS = 400.0
TOKENS = 1639  # of the captions in the shards, and an end of each
VISION = {"imageSize": 8, "patchSize": 4, "width": 16, "layers": 1, "headWidth": 16}
WORDS = {"contextLength": 16, "vocabularySize": 257, "width": 16, "layers": 1, "heads": 1}
# By task: its data, the type of its evaluation, its models, and the metrics that its status shows.
TASKS: dict[str, tuple[dict[str, Any], str, list[dict[str, Any]], set[str]]] = {
    "Classification": (
        {"samples": SAMPLES},
        "Accuracy",
        [{"classifierConfig": {"classes": 4, "vision": VISION | {"width": width}}} for width in (16, 32)],
        {"squares/loss", "squares/top1"},
    ),
    "LanguageModel": (
        {"tokens": TOKENS},
        "Perplexity",
        [{"languageModelConfig": WORDS | {"width": width, "heads": width // 16}} for width in (16, 32)],
        {"squares/loss", "squares/perplexity"},
    ),
}


@pytest.mark.parametrize("task", TASKS)
def test_a_chain_of_another_task_is_trained_to_its_weights(
    chain: ClusterChain, operator: OperatorProcess, pod_runner: PodRunner, task: str
) -> None:
    data, evaluation, models, metrics = TASKS[task]
    shards = chain.document["spec"]["data"]["shards"]
    operator.start()
    chain.apply(
        task=task,
        data={"shards": shards, **data},
        evaluation=[{"name": "squares", "type": evaluation, "data": {"shards": shards}}],
        training={"epochs": 1, "globalBatchSize": 16, "logEverySteps": 1},
        stages=[{"name": name, **model} for name, model in zip(("small", "large"), models, strict=True)],
    )
    chain.wait("Complete", seconds=CHAIN_SECONDS)
    assert chain.status()["phase"] == "Complete"
    for stage in chain.resolved().stages:
        manifest = verify_stage(chain.store, stage.folder, stage.digest)
        assert manifest is not None
        assert manifest.weights.endswith("/model.safetensors")
        assert manifest.metrics.keys() == metrics
        assert chain.stage(stage.name)["metrics"].keys() == metrics
