"""What the trainer tells of its progress is what the API of TrainJobs takes."""

from __future__ import annotations

import json

import pytest

from modelchain.artifacts import Progress
from modelchain_trainer.telemetry.trainjob_status import trainer_status
from tests.control_plane.trainer import TrainerStack

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("trainer")]


def test_the_status_of_a_trainjob_takes_what_the_trainer_tells(stack: TrainerStack, namespace: str) -> None:
    metadata = {"name": "told", "namespace": namespace}
    spec = {"runtimeRef": {"name": "modelchain"}, "suspend": True}
    stack.plane.apply(
        {
            "apiVersion": "trainer.kubeflow.org/v1alpha1",
            "kind": "TrainJob",
            "metadata": metadata,
            "spec": spec,
        }
    )
    progress = Progress(
        phase="Training",
        step=9,
        steps=30,
        sequence=4,
        loss={"total": 0.2347},
        metrics={"digits/top1": 0.9},
        eta_seconds=3.5,
        updated_at="2026-11-26T09:00:00.000Z",
    )
    patch = json.dumps({"status": {"trainerStatus": trainer_status(progress)}})
    arguments = (
        "patch",
        "trainjob",
        "told",
        "-n",
        namespace,
        "--subresource=status",
        "--type=merge",
        "-p",
        patch,
    )
    stack.plane.kubectl(*arguments)
    answer = stack.plane.kubectl("get", "trainjob", "told", "-n", namespace, "-o", "json").stdout
    taken = json.loads(answer)["status"]["trainerStatus"]
    assert (taken["progressPercentage"], taken["estimatedRemainingSeconds"]) == (30, 4)
    assert {"name": "loss/total", "value": "0.2347"} in taken["metrics"]
