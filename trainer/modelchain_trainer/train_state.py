"""What a stage trains between two steps, and all that goes with it: new, grown, or from a checkpoint.

Rank 0 alone reads weights from stores, and gives them to the others.
"""

from __future__ import annotations

import logging
import sys
import time
from dataclasses import dataclass

import torch
from torch import nn

from modelchain import families
from modelchain.artifacts import MetricsLine, PassedOver, attempt_folder
from modelchain.families import AnyConfig
from modelchain.memory import sharding_of
from modelchain.resolved import ResolvedStage
from modelchain.spec import OptimizerState, Sharding
from modelchain.times import rfc3339
from modelchain_trainer.attempt import Attempt
from modelchain_trainer.checkpoint import CheckpointState, Restored, restore_latest, restore_random
from modelchain_trainer.distributed.collectives import GradientSum, Group
from modelchain_trainer.distributed.sharding import sharded_model
from modelchain_trainer.initial_weights import first_weights, published_model
from modelchain_trainer.micro_batch import settle
from modelchain_trainer.model.build import model_from
from modelchain_trainer.model.families import AnyModel, family_of
from modelchain_trainer.model.family import ImageTextModel
from modelchain_trainer.optimizer import AdamW
from modelchain_trainer.schedule import distillation_weight
from modelchain_trainer.step import Teaching, TrainStep, freeze
from modelchain_trainer.tasks import task_of
from modelchain_trainer.tasks.task import Setting
from modelchain_trainer.telemetry.metrics_log import MetricsLog, decode_lines, is_metrics_file

logger = logging.getLogger(__name__)


@dataclass
class TrainState:
    """A stage's model between two steps."""

    model: AnyModel
    train_step: TrainStep
    step: int  # finished
    train_seconds: float  # spent in them, over all attempts
    started_at: str  # RFC 3339, first attempt
    corrupt: dict[str, int]  # samples replaced, by cause
    attempts: tuple[str, ...]  # tokens of the attempts resumed from, and ours
    passed_over: tuple[PassedOver, ...]  # data that the stage does without
    computed_macs: float | None  # of all ranks, as last counted; None: not counted from the beginning

    def for_checkpoint(self) -> CheckpointState:
        """The numbers for a checkpoint."""
        teaching = self.train_step.teaching()
        return CheckpointState(
            step=self.step,
            train_seconds=self.train_seconds,
            started_at=self.started_at,
            corrupt_samples=self.corrupt,
            attempts=self.attempts,
            passed_over=self.passed_over,
            computed_macs=self.computed_macs,
            teacher_steps=teaching.steps,
            teacher_margin=teaching.margin,
            teacher_surpassed=teaching.surpassed,
        )

    @property
    def published(self) -> AnyModel:
        """The model that is evaluated and published."""
        return self.train_step.published


def prepare(
    attempt: Attempt, passed_over: tuple[PassedOver, ...] | None = None, started_at: str | None = None
) -> TrainState:
    """The stage's model on its device, equal on all ranks, ready for its next step.

    `passed_over` and `started_at` (of the stage) are given where this attempt has trained before and was rolled back.
    Raises MissingInputError where the predecessor is not complete, UserDataError for damaged weights.
    """
    stage = attempt.stage
    restored = restore_latest(attempt.store, stage, attempt.scratch) if attempt.ranks.first else None
    state_json = attempt.ranks.share("state", lambda: restored.state.model_dump_json() if restored else "")
    resumed = bool(state_json)
    state = CheckpointState.model_validate_json(state_json) if resumed else _new_state(started_at)

    sharding = _sharding(attempt)
    teacher = moments = None
    taught_by = stage.teacher if _needs_teacher(stage, state) else None
    if taught_by is not None and attempt.ranks.first:
        teacher = published_model(attempt, taught_by)
    if restored is not None:
        model = model_from(restored.model, stage.model_config_)
    else:
        model, moments = first_weights(attempt, teacher) if attempt.ranks.first else (None, None)
    # Rank 0 may have downloaded and grown for long: the others wait here, and not in a collective, which gives up.
    attempt.ranks.share("weights", lambda: "ready")
    model = _spread(attempt, model, stage.model_config_, sharding)
    lock(model, stage)
    model.set_gradient_checkpointing(stage.training.gradient_checkpointing and stage.training.steps > 0)
    if taught_by is not None:
        teacher = _spread(attempt, teacher, taught_by.model_config_, sharding, teaches=True)

    train_step = _train_step(attempt, model, teacher, state, sharding)
    if resumed:
        train_step.load_from_first(None if restored is None else restored.optimizer)
    elif stage.expansion.optimizer_state is OptimizerState.CARRIED and stage.predecessor is not None:
        train_step.load_moments_from_first(moments)
    if restored is not None:
        restore_random(restored.random)
    if passed_over is not None:
        attempt.telemetry.roll_back(state.step)
    elif restored is not None:
        attempt.telemetry.resume(MetricsLog(_history(attempt, restored), state.step), state.step)
    passed_over = state.passed_over if passed_over is None else passed_over
    attempt.telemetry.passed_over(passed_over)
    attempt.position.step = state.step
    attempt.position.checkpoint_step = state.step if resumed else None
    return TrainState(
        model=model,
        train_step=train_step,
        step=state.step,
        train_seconds=state.train_seconds,
        started_at=state.started_at,
        corrupt=dict(state.corrupt_samples),
        attempts=tuple(dict.fromkeys((*state.attempts, attempt.token))),
        passed_over=passed_over,
        computed_macs=state.computed_macs,
    )


def _sharding(attempt: Attempt) -> Sharding:
    """What is kept in parts on the ranks. Rank 0 says: GPUs need not be alike."""

    def decide() -> str:
        on_gpu = attempt.device.type == "cuda"
        memory = torch.cuda.get_device_properties(attempt.device).total_memory if on_gpu else sys.maxsize
        return sharding_of(attempt.stage, ranks=attempt.ranks.world_size, gpu_bytes=memory).value

    return Sharding(attempt.ranks.share("sharding", decide))


def _spread(
    attempt: Attempt, first: AnyModel | None, config: AnyConfig, sharding: Sharding, *, teaches: bool = False
) -> AnyModel:
    """The model that rank 0 passes (the others None), on the device of every rank: whole, or its part of it."""
    if sharding is Sharding.FULL and families.family_of(config).in_parts:
        precision = attempt.stage.training.precision
        return sharded_model(
            config,
            None if first is None else first.state_dict(),
            device=attempt.device,
            group=attempt.ranks.group,
            prepare=(lambda model: freeze(model, precision)) if teaches else lambda _model: None,
        )
    model = first or family_of(config).build(config, None)
    model = model.to(attempt.device)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            attempt.ranks.group.broadcast(tensor)
    return model


def _new_state(started_at: str | None) -> CheckpointState:
    now = started_at or rfc3339(time.time())
    return CheckpointState(
        step=0, train_seconds=0.0, started_at=now, corrupt_samples={}, attempts=(), computed_macs=0.0
    )


def _needs_teacher(stage: ResolvedStage, state: CheckpointState) -> bool:
    """Whether any step from here on has a weight above 0. It is monotonic: the ends tell."""
    steps = stage.training.steps
    ends = (distillation_weight(stage.distillation, step, steps) for step in (state.step, steps - 1))
    return state.step < steps and not state.teacher_surpassed and any(weight > 0 for weight in ends)


def _train_step(
    attempt: Attempt, model: AnyModel, teacher: AnyModel | None, state: CheckpointState, sharding: Sharding
) -> TrainStep:
    stage = compiled_or_not(attempt.stage, sharding)
    group = attempt.ranks.group
    projections = _projections(stage)
    parameters = [named for named in model.named_parameters() if named[1].requires_grad]
    if projections is not None:
        projections = projections.to(attempt.device)
        parameters += [
            (f"projections.{name}", parameter) for name, parameter in projections.named_parameters()
        ]
    optimizer = AdamW(parameters, stage.training, group, sharded=sharding is Sharding.OPTIMIZER)
    if teacher is not None:
        freeze(teacher, stage.training.precision)
    setting = Setting(model, teacher, projections, stage, attempt.device, group, GradientSum([], Group()))
    stage = settle(attempt, setting, sharding)
    teaching = Teaching(state.teacher_steps, state.teacher_margin, state.teacher_surpassed)
    return TrainStep(model, teacher, projections, optimizer, stage, attempt.device, group, teaching)


def lock(model: AnyModel, stage: ResolvedStage) -> None:
    """Take the tower of the model out of training that the stage locks."""
    tower = stage.training.locked_tower
    if tower is not None:
        assert isinstance(model, ImageTextModel), "a field of task Clip alone"
        model.lock(tower)


def compiled_or_not(stage: ResolvedStage, sharding: Sharding) -> ResolvedStage:
    """The stage as it is trained: what is gathered block by block is not compiled, which has not been shown to work.

    A chain that asks for both is refused; here the size of the model has chosen Full.
    """
    if sharding is not Sharding.FULL or not stage.training.compile:
        return stage
    logger.info("stage %s: not compiled, for its size asks for sharding: Full", stage.name)
    training = stage.training.model_copy(update={"compile": False})
    return stage.model_copy(update={"training": training})


def _projections(stage: ResolvedStage) -> nn.Module | None:
    """Projections to the teacher's features, as they start.

    They depend on the stage alone, not on whether its teacher is still needed: all its checkpoints have them.
    """
    if stage.teacher is None:
        return None
    return task_of(stage).projections(stage.model_config_, stage.teacher.model_config_)


def _history(attempt: Attempt, restored: Restored) -> list[MetricsLine]:
    """What was measured up to the step resumed from.

    The attempt that saved the checkpoint has it all: it took over what was measured before it.
    """
    prefix = f"{attempt_folder(attempt.stage.folder, restored.token)}/"
    lines: list[MetricsLine] = []
    for info in attempt.retry_policy.call(lambda: list(attempt.store.list(f"{prefix}metrics-"))):
        if is_metrics_file(info.key.removeprefix(prefix)):
            data, _ = attempt.retry_policy.call(lambda key=info.key: attempt.store.get(key))
            try:
                lines += decode_lines(data, restored.state.step)
            except ValueError:
                logger.warning("%s: damaged; its lines are left out", attempt.store.uri_of(info.key))
    return lines
