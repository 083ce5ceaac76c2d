"""A checkpoint of a GPU's training, through real files, and a whole stage that is killed and goes on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from modelchain.commit import verify_stage
from modelchain.resolved import ResolvedStage
from modelchain.store import open_store
from modelchain.store.folder import FolderStore
from modelchain_trainer.checkpoint import (
    CheckpointState,
    CheckpointWriter,
    restore_latest,
    restore_random,
    take_snapshot,
)
from modelchain_trainer.environment import DEVICE_VARIABLE
from modelchain_trainer.failpoints import FAILPOINT_VARIABLE
from tests.gpu.steps import batch, relative_error, stage, train_step
from tests.squares import COLOURS, SAMPLES, write_squares
from tests.trainer.stages import smallest_stage

pytestmark = pytest.mark.gpu


def test_a_checkpoint_gives_weights_moments_and_generators_back_bit_for_bit(
    device: torch.device, tmp_path: Path
) -> None:
    made_for = stage()
    straight = train_step(device, made_for)
    for step in range(2):
        straight.step.run(batch(step), step).read()
    state = CheckpointState(
        step=2, train_seconds=1.0, started_at="2026-01-01T00:00:00Z", corrupt_samples={}, attempts=("a",)
    )
    store = FolderStore(tmp_path / "store")
    writer = CheckpointWriter(
        store,
        made_for,
        "a",
        tmp_path,
        world_size=1,
        before_commit=lambda: None,
        committed=lambda _step: None,
    )
    writer.start(take_snapshot(state, straight.model.state_dict(), straight.step.state_dict()))
    drawn = torch.rand(4, device=device)  # right after the snapshot
    writer.wait()

    restored = restore_latest(store, made_for, tmp_path)
    assert restored is not None
    resumed = train_step(device, made_for)
    resumed.model.load_state_dict(restored.model)
    resumed.step.load_state_dict(restored.optimizer)
    assert all(torch.equal(weight, resumed.weights()[name]) for name, weight in straight.weights().items())
    moments = resumed.step.state_dict()
    assert all(torch.equal(tensor, moments[name]) for name, tensor in straight.step.state_dict().items())
    restore_random(restored.random)
    assert torch.equal(torch.rand(4, device=device), drawn)

    expected, found = (each.step.run(batch(2), 2).read() for each in (straight, resumed))
    # Not bit for bit: a GPU adds up the gradients of embeddings and of attention in any order.
    assert found.loss == pytest.approx(expected.loss, rel=1e-6)
    assert relative_error(resumed.weights(), straight.weights()) < 1e-4


def test_a_grown_and_taught_stage_is_killed_and_goes_on_from_its_checkpoint(
    device: torch.device, tmp_path: Path
) -> None:
    data, store = tmp_path / "data", tmp_path / "store"
    data.mkdir()
    shards = write_squares(data)
    small = _stage(store, shards, "small", width=64, embed_dim=32)
    large = _stage(store, shards, "large", width=128, embed_dim=64, predecessor=small)
    assert _train(small, tmp_path, device) == 0
    assert _train(large, tmp_path, device, failpoint="checkpoint-committed") != 0
    assert verify_stage(open_store(large.store), large.folder, large.digest) is None
    assert _train(large, tmp_path, device) == 0

    manifest = verify_stage(open_store(large.store), large.folder, large.digest)
    assert manifest is not None
    metrics = store / large.folder / "attempts" / manifest.attempt
    lines = [
        json.loads(line) for path in metrics.glob("metrics-*.jsonl") for line in path.read_text().splitlines()
    ]
    steps = [line["step"] for line in lines if line["kind"] == "train"]
    assert sorted(set(steps)) == list(range(1, large.training.steps + 1))
    evaluations = [line["metrics"] for line in lines if line["kind"] == "evaluation"]
    assert evaluations[-1]["squares/top1"] > 0.5  # four colours
    weights = load_file(next((store / large.folder).rglob("open_clip_model.safetensors")))
    assert all(bool(tensor.isfinite().all()) for tensor in weights.values())
    output = (tmp_path / "large-1.log").read_text()
    assert "going on from step 4" in output


def _stage(
    store: Path,
    shards: str,
    name: str,
    *,
    width: int,
    embed_dim: int,
    predecessor: ResolvedStage | None = None,
) -> ResolvedStage:
    changes: dict[str, object] = {}
    if predecessor is not None:
        changes["predecessor"] = changes["teacher"] = {
            "name": predecessor.name,
            "digest": predecessor.digest,
            "folder": predecessor.folder,
            "modelConfig": predecessor.model_config_.model_dump(by_alias=True),
        }
    digest = f"{embed_dim:064x}"
    epochs, batch_size = 4, 16
    return ResolvedStage.model_validate(
        smallest_stage(
            name=name,
            digest=digest,
            folder=f"stages/{name}-{digest[:16]}",
            model=name,
            modelConfig={
                "embedDim": embed_dim,
                "vision": {"imageSize": 32, "patchSize": 8, "width": width, "layers": 2, "headWidth": 64},
                "text": {"contextLength": 16, "width": width, "layers": 2, "heads": width // 64},
            },
            store={"uri": str(store)},
            data={"shards": [shards], "samples": SAMPLES, "blockMebibytes": 1},
            evaluation=[
                {
                    "name": "squares",
                    "type": "ZeroShot",
                    "data": {"shards": [shards]},
                    "classes": list(COLOURS),
                    "templates": ["a {} square"],
                }
            ],
            training={
                "epochs": epochs,
                "globalBatchSize": batch_size,
                "precision": "Bf16",
                "learningRate": 1e-3,
                "warmupSteps": 2,
                "checkpointEverySteps": 4,
                "logEverySteps": 1,
                "dataWorkers": 2,
                "stepsPerEpoch": SAMPLES // batch_size,
                "steps": epochs * (SAMPLES // batch_size),
            },
            retry={"leaseSeconds": 2},
            **changes,
        )
    )


def _train(stage: ResolvedStage, folder: Path, device: torch.device, *, failpoint: str = "") -> int:
    """The trainer as a job starts it. Its exit code; what it said is in NAME-<launch>.log."""
    number = len(list(folder.glob(f"{stage.name}-*.log")))
    path = folder / f"{stage.name}.json"
    path.write_text(stage.to_json())
    environment = os.environ | {DEVICE_VARIABLE: device.type, FAILPOINT_VARIABLE: failpoint}
    with (folder / f"{stage.name}-{number}.log").open("w") as log:
        done = subprocess.run(
            [sys.executable, "-m", "modelchain_trainer", "--stage", str(path)],
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            check=False,
        )
    return done.returncode
