"""A stage that meets numbers that are not finite goes back to its last good checkpoint, and on without that data."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from modelchain.artifacts import Manifest, PassedOver, Progress
from modelchain.commit import verify_stage
from modelchain.resolved import ResolvedStage
from modelchain.store.folder import FolderStore
from modelchain_trainer.roll_back import MOST_ROLL_BACKS
from modelchain_trainer.step import MOST_SKIPPED_STEPS, DivergedError
from modelchain_trainer.tasks.contrastive import ContrastiveObjective

StageOf = Callable[..., ResolvedStage]
Train = Callable[..., Any]

CHECKPOINT, STEPS = 6, 12  # the only steps with checkpoints
BAD = range(7, 8 + MOST_SKIPPED_STEPS)  # batches whose loss overflows
PASSED_OVER = (PassedOver(step=CHECKPOINT, batches=BAD.stop - CHECKPOINT),)
SEEN = list(range(BAD.stop + STEPS - CHECKPOINT))


class CutOffError(Exception):
    pass


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The batches that are trained on, by their place in the data. The loss of bad ones overflows."""
    batches: list[int] = []
    accumulate = ContrastiveObjective.accumulate

    def overflowing(self: ContrastiveObjective, batch: Any, *, weight: float, taught: bool) -> Tensor:
        batches.append(batch.step)
        losses = accumulate(self, batch, weight=weight, taught=taught)
        return losses + torch.inf if batch.step in BAD else losses

    monkeypatch.setattr(ContrastiveObjective, "accumulate", overflowing)
    return batches


def bad_data_stage(stage_in: StageOf, store: Path, **training: Any) -> ResolvedStage:
    return stage_in(store, "bad-data", training={"checkpointEverySteps": CHECKPOINT, **training})


def published(stage: ResolvedStage) -> tuple[Manifest, dict[str, Tensor]]:
    manifest = verify_stage(FolderStore(Path(stage.store.uri)), stage.folder, stage.digest)
    assert manifest is not None
    return manifest, load_file(Path(stage.store.uri) / stage.folder / manifest.weights)


def test_bad_data_is_passed_over_from_the_last_good_checkpoint(
    stage_in: StageOf, train: Train, seen: list[int], tmp_path: Path
) -> None:
    stage = bad_data_stage(stage_in, tmp_path)
    train(stage)

    assert seen == SEEN
    manifest, _ = published(stage)
    assert manifest.passed_over == PASSED_OVER
    assert manifest.steps == STEPS
    attempt = tmp_path / stage.folder / "attempts" / manifest.attempt
    assert Progress.model_validate_json((attempt / "progress.json").read_bytes()).passed_over == PASSED_OVER
    files = sorted(attempt.glob("metrics-*.jsonl"))
    lines = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    trained = [(line["step"], line.get("passedOverBatches")) for line in lines if line["kind"] == "train"]
    shift = PASSED_OVER[0].batches
    assert trained == [(step, shift if step > CHECKPOINT else None) for step in range(1, STEPS + 1)]
    assert [line["step"] for line in lines if line["kind"] == "evaluation"] == [0, CHECKPOINT, STEPS]


def test_an_attempt_that_is_cut_off_behind_bad_data_comes_to_the_same_weights(
    stage_in: StageOf, train: Train, seen: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calm = bad_data_stage(stage_in, tmp_path / "calm")
    train(calm)
    seen.clear()

    stage, last = bad_data_stage(stage_in, tmp_path / "cut"), SEEN[-1]
    accumulate = ContrastiveObjective.accumulate

    def cut_off(self: ContrastiveObjective, batch: Any, *, weight: float, taught: bool) -> Tensor:
        if batch.step == last and last not in seen:
            seen.append(last)
            raise CutOffError
        return accumulate(self, batch, weight=weight, taught=taught)

    monkeypatch.setattr(ContrastiveObjective, "accumulate", cut_off)
    with pytest.raises(CutOffError):
        train(stage, "uid-1-first")
    train(stage, "uid-2-second")

    assert seen == [*SEEN, *SEEN[CHECKPOINT:]]
    (manifest, weights), (_, expected) = published(stage), published(calm)
    assert manifest.passed_over == PASSED_OVER
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], tensor) for name, tensor in expected.items())


def test_a_stage_that_diverges_whatever_the_data_fails(
    stage_in: StageOf, train: Train, tmp_path: Path
) -> None:
    stage = bad_data_stage(stage_in, tmp_path, learningRate=1e30, warmupSteps=0)
    with pytest.raises(DivergedError, match=rf"lower training.learningRate.*, {MOST_ROLL_BACKS} times"):
        train(stage)
