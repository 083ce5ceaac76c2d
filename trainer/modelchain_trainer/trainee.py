"""The model that a stage trains and all that goes with it: new, grown, or from a checkpoint.

Rank 0 alone reads weights from stores, and gives them to the others.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from modelchain.artifacts import MetricsLine, attempt_folder
from modelchain.memory import shards_moments
from modelchain.resolved import ResolvedStage
from modelchain.spec import AnyConfig, OptimizerState
from modelchain.times import rfc3339
from modelchain_trainer.attempt import Attempt
from modelchain_trainer.checkpoint import Restored, TrainingState, restore_latest, restore_random
from modelchain_trainer.collectives import Group
from modelchain_trainer.initial_weights import first_weights, published_model
from modelchain_trainer.metrics_log import MetricsLog, decode_lines, is_metrics_file
from modelchain_trainer.model.build import model_from
from modelchain_trainer.model.families import AnyModel, family_of
from modelchain_trainer.optimizer import AdamW
from modelchain_trainer.schedule import distillation_weight
from modelchain_trainer.step import Teaching, TrainStep
from modelchain_trainer.tasks import task_of

logger = logging.getLogger(__name__)


@dataclass
class Trainee:
    """A stage's model between two steps."""

    model: AnyModel
    train_step: TrainStep
    step: int  # finished
    train_seconds: float  # spent in them, over all attempts
    started_at: str  # RFC 3339, first attempt
    corrupt: dict[str, int]  # samples replaced, by cause
    attempts: tuple[str, ...]  # tokens of the attempts resumed from, and ours

    def state(self) -> TrainingState:
        """The numbers for a checkpoint."""
        teaching = self.train_step.teaching()
        return TrainingState(
            step=self.step,
            train_seconds=self.train_seconds,
            started_at=self.started_at,
            corrupt_samples=self.corrupt,
            attempts=self.attempts,
            teacher_steps=teaching.steps,
            teacher_margin=teaching.margin,
            teacher_surpassed=teaching.surpassed,
        )

    @property
    def published(self) -> AnyModel:
        """The model that is evaluated and published."""
        return self.train_step.published


def prepare(attempt: Attempt) -> Trainee:
    """The stage's model on its device, equal on all ranks, ready for its next step.

    Raises MissingInputError where the predecessor is not complete, UserDataError for damaged weights.
    """
    stage = attempt.stage
    restored = restore_latest(attempt.store, stage, attempt.scratch) if attempt.ranks.first else None
    state_json = attempt.ranks.share("state", lambda: restored.state.model_dump_json() if restored else "")
    resumed = bool(state_json)
    state = TrainingState.model_validate_json(state_json) if resumed else _new_state()

    teacher = None
    if stage.teacher is not None and _needs_teacher(stage, state):
        teacher = (
            published_model(attempt, stage.teacher)
            if attempt.ranks.first
            else _allocated(stage.teacher.model_config_)
        )
    moments = None
    if restored is not None:
        model = model_from(restored.model, stage.model_config_)
    elif attempt.ranks.first:
        model, moments = first_weights(attempt, teacher)
    else:
        model = _allocated(stage.model_config_)
    model = model.to(attempt.device)
    _broadcast(model.state_dict().values(), attempt.ranks.group)
    model.set_gradient_checkpointing(stage.training.gradient_checkpointing)
    if teacher is not None:
        teacher = teacher.to(attempt.device)
        _broadcast(teacher.state_dict().values(), attempt.ranks.group)

    train_step = _train_step(attempt, model, teacher, state)
    if resumed:
        train_step.load_from_first(None if restored is None else restored.optimizer)
    elif stage.expansion.optimizer_state is OptimizerState.CARRIED and stage.predecessor is not None:
        train_step.load_moments_from_first(moments)
    if restored is not None:
        restore_random(restored.random)
        attempt.telemetry.resume(MetricsLog(_history(attempt, restored), state.step), state.step)
    attempt.position.step = state.step
    attempt.position.checkpoint_step = state.step if resumed else None
    return Trainee(
        model=model,
        train_step=train_step,
        step=state.step,
        train_seconds=state.train_seconds,
        started_at=state.started_at,
        corrupt=dict(state.corrupt_samples),
        attempts=(*state.attempts, attempt.token),
    )


def _allocated(config: AnyConfig) -> AnyModel:
    return family_of(config).build(config, None)


def _new_state() -> TrainingState:
    return TrainingState(
        step=0, train_seconds=0.0, started_at=rfc3339(time.time()), corrupt_samples={}, attempts=()
    )


def _needs_teacher(stage: ResolvedStage, state: TrainingState) -> bool:
    """Whether any step from here on has a weight above 0. It is monotonic: the ends tell."""
    steps = stage.training.steps
    ends = (distillation_weight(stage.distillation, step, steps) for step in (state.step, steps - 1))
    return state.step < steps and not state.teacher_surpassed and any(weight > 0 for weight in ends)


def _train_step(
    attempt: Attempt, model: AnyModel, teacher: AnyModel | None, state: TrainingState
) -> TrainStep:
    stage = attempt.stage
    projections = _projections(stage)
    parameters = list(model.named_parameters())
    if projections is not None:
        projections = projections.to(attempt.device)
        parameters += [
            (f"projections.{name}", parameter) for name, parameter in projections.named_parameters()
        ]
    count, on_gpu = sum(parameter.numel() for _, parameter in parameters), attempt.device.type == "cuda"
    memory = torch.cuda.get_device_properties(attempt.device).total_memory if on_gpu else sys.maxsize
    sharded = shards_moments(stage.training, count, memory)
    optimizer = AdamW(parameters, stage.training, attempt.ranks.group, sharded=sharded)
    teaching = Teaching(state.teacher_steps, state.teacher_margin, state.teacher_surpassed)
    return TrainStep(
        model, teacher, projections, optimizer, stage, attempt.device, attempt.ranks.group, teaching
    )


def _projections(stage: ResolvedStage) -> nn.Module | None:
    """Projections to the teacher's features, as they start.

    They depend on the stage alone, not on whether its teacher is still needed: all its checkpoints have them.
    """
    if stage.teacher is None:
        return None
    return task_of(stage).projections(stage.model_config_, stage.teacher.model_config_)


def _broadcast(tensors: Iterable[Tensor], group: Group) -> None:
    with torch.no_grad():
        for tensor in tensors:
            group.broadcast(tensor)


def _history(attempt: Attempt, restored: Restored) -> list[MetricsLine]:
    """What was measured up to the step resumed from.

    The attempt that saved the checkpoint has it all: it took over what was measured before it.
    """
    prefix = f"{attempt_folder(attempt.stage.folder, restored.token)}/"
    lines: list[MetricsLine] = []
    for info in attempt.patience.attempt(lambda: list(attempt.store.list(f"{prefix}metrics-"))):
        if is_metrics_file(info.key.removeprefix(prefix)):
            data, _ = attempt.patience.attempt(lambda key=info.key: attempt.store.get(key))
            try:
                lines += decode_lines(data, restored.state.step)
            except ValueError:
                logger.warning("%s: damaged; its lines are left out", attempt.store.uri_of(info.key))
    return lines
