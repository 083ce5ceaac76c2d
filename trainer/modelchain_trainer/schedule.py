"""How the learning rate and the weight of distillation change over a stage. Pure functions of the step."""

from __future__ import annotations

import math

from modelchain.resolved import ResolvedDistillation, ResolvedTraining
from modelchain.spec import DistillationScheduleType, LearningRateScheduleType


def learning_rate(training: ResolvedTraining, step: int) -> float:
    """Learning rate of `step` (0 .. training.steps - 1).

    Rises linearly over the warm-up, `learning_rate` at its last step. Then it falls to
    `minimum_learning_rate` at the last step of the stage: along a half cosine, or (WarmupStableDecay,
    arXiv 2404.06395) constant over the trunk, if there is one, and then along a line.
    """
    if step < training.warmup_steps:
        return training.learning_rate * (step + 1) / training.warmup_steps
    start = training.trunk_steps or training.warmup_steps
    share = min(1.0, max(0.0, (step - start + 1) / max(1, training.steps - start)))
    linear = training.schedule.type is LearningRateScheduleType.WARMUP_STABLE_DECAY
    left = 1 - share if linear else 0.5 * (1 + math.cos(math.pi * share))
    return training.minimum_learning_rate + left * (training.learning_rate - training.minimum_learning_rate)


def distillation_weight(distillation: ResolvedDistillation, step: int, steps: int) -> float:
    """Weight of the distillation term at `step` of `steps`.

    A linear schedule runs from `weight` at step 0 to `end_weight` at step `until * steps`, and stays there.
    Where the weight is 0 the predecessor's forward pass is not needed, and `TrainStep` leaves it out.
    """
    schedule = distillation.schedule
    if schedule.type is DistillationScheduleType.CONSTANT:
        return distillation.weight
    until = 1.0 if schedule.until is None else schedule.until
    end_weight = 0.0 if schedule.end_weight is None else schedule.end_weight
    share = step / (until * steps)
    if share >= 1:
        return end_weight
    return distillation.weight + share * (end_weight - distillation.weight)
