"""What the loop decides, and what it says of a GPU that is too small."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from modelchain.errors import ExitCode
from modelchain.resolved import ResolvedStage, ResolvedTraining
from modelchain_trainer import loop
from modelchain_trainer.ending import out_of_memory
from modelchain_trainer.step import StepReading, StepResult
from modelchain_trainer.stopping import steps_between_agreements
from tests.clock import Clock
from tests.trainer.results import manifest_of


def test_the_wait_for_the_device_before_a_checkpoint_is_time_of_training(
    stage_of: Callable[..., ResolvedStage], train: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a clock that the loop's first look at a step moves, as it waits for a GPU; on a CPU the step has looked."""
    clock, read = Clock(), StepResult.read
    looks: Counter[int] = Counter()

    def waiting(result: StepResult) -> StepReading:
        looks[result.step] += 1
        clock.now += 10 if looks[result.step] == 2 else 0
        return read(result)

    monkeypatch.setattr(StepResult, "read", waiting)
    monkeypatch.setattr(loop, "time", SimpleNamespace(perf_counter=clock, time=time.time))
    stage = stage_of("saved", training={"logEverySteps": 12, "checkpointEverySteps": 4})
    train(stage)
    manifest = manifest_of(stage)
    assert manifest is not None
    assert manifest.train_seconds == 30


@pytest.mark.parametrize(("seconds", "steps"), [(0.0, 8), (1.0, 8), (2.0, 5), (9.0, 1), (600.0, 1)])
def test_ranks_agree_often_enough_to_stop_within_a_grace_period(seconds: float, steps: int) -> None:
    assert steps_between_agreements(seconds) == steps


def training(**fields: Any) -> ResolvedTraining:
    plain = ResolvedTraining(epochs=1, warmup_steps=0, checkpoint_every_steps=1, steps_per_epoch=1, steps=1)
    return plain.model_copy(update=fields)


@pytest.mark.parametrize(
    ("share", "fields", "remedy"),
    [
        (1024, {}, "write training.microBatchSize: 512 or Auto, which"),
        (1024, {"micro_batch_size": 96}, "write training.microBatchSize: 32 or Auto, which"),
        (1, {}, "; set training.gradientCheckpointing ("),
        (1, {"gradient_checkpointing": True}, "; take a larger GPU, or shard the model"),
    ],
)
def test_a_gpu_that_is_too_small_is_not_tried_again_and_a_smaller_micro_batch_is_named(
    share: int, fields: dict[str, Any], remedy: str
) -> None:
    error = out_of_memory(share, training(**fields), torch.OutOfMemoryError("CUDA out of memory"))
    assert remedy in str(error)
    assert "CUDA out of memory" in str(error)
    assert error.exit_code is ExitCode.CONFIG, "permanent"
