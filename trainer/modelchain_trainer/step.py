"""One optimizer step: the gradient of the global batch's loss, as the task's objective gives it, and the update.

Here it is decided too when the teacher is let go.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from modelchain.cost import computed_macs
from modelchain.errors import ExitCode, ModelChainError
from modelchain.resolved import ResolvedStage, ResolvedTraining
from modelchain.spec import Precision
from modelchain_trainer.averaging import AveragedModel
from modelchain_trainer.distributed.collectives import GradientSum, Group
from modelchain_trainer.distributed.sharding import gathered, is_sharded, parts_of, total_norm, whole_model
from modelchain_trainer.model.families import AnyModel
from modelchain_trainer.optimizer import AdamW
from modelchain_trainer.schedule import distillation_weight, learning_rate
from modelchain_trainer.tasks import task_of
from modelchain_trainer.tasks.task import Objective, Setting, StepBatch

OPTIMIZER = "optimizer."  # before the names of its tensors in a state
_MATRICES = ("in_proj_weight", "proj", "text_projection")  # of products; no weights of torch's layers

MOST_SKIPPED_STEPS = 3  # in a row; a single batch that overflows is no reason to give up


class DivergedError(ModelChainError):
    """Loss or gradient were no finite numbers for too many steps in a row; the weights are those before them."""

    exit_code = ExitCode.CONFIG

    def __init__(self, message: str, first: int) -> None:
        """`first` is the first of these steps, counted from 0."""
        super().__init__(message)
        self.first = first

    @property
    def end(self) -> int:
        """The step behind the last that was tolerated and the one that was not."""
        return self.first + MOST_SKIPPED_STEPS + 1


@dataclass(frozen=True)
class StepReading:
    """The figures of a step, the same on every rank."""

    loss: dict[str, float]  # total, task, distillation (weighted)
    gradient_norm: float  # before clipping
    logit_scale: float | None  # the factor itself, after the step; None where the task has none
    learning_rate: float
    distillation_weight: float
    skipped: bool  # not finite: the weights stayed as they were
    skipped_steps: int  # of this attempt, up to this one


@dataclass(frozen=True)
class StepResult:
    """The figures of a step, still on the device: nothing waits for it until `read`."""

    step: int
    learning_rate: float
    distillation_weight: float
    # fp64 [8]: total, task, distillation, gradient norm, logit scale or NaN, first step that diverged or -1, whether
    # this one was skipped, steps skipped so far
    figures: Tensor

    def read(self) -> StepReading:
        """Wait for the device. Raises DivergedError if more steps in a row than are tolerated were not finite."""
        total, task, distillation, norm, scale, diverged, skipped, skipped_steps = self.figures.tolist()
        if diverged >= 0:
            raise DivergedError(
                f"the loss or the gradient is not finite at step {int(diverged)} nor at the {MOST_SKIPPED_STEPS} after "
                "it: lower training.learningRate, raise training.warmupSteps or set training.gradientClipNorm",
                int(diverged),
            )
        return StepReading(
            loss={"total": total, "task": task, "distillation": distillation},
            gradient_norm=norm,
            logit_scale=None if math.isnan(scale) else scale,
            learning_rate=self.learning_rate,
            distillation_weight=self.distillation_weight,
            skipped=bool(skipped),
            skipped_steps=int(skipped_steps),
        )


@dataclass(frozen=True)
class Teaching:
    """How far distillation has come: what a checkpoint must know to go on with it or to leave it at that."""

    steps: int = 0  # with a forward pass of the teacher
    margin: float = 0.0  # sum of the student's loss less the teacher's, over the steps of the present window
    surpassed: bool = False  # the student was better over a window, and learns on without its teacher


class TrainStep:
    """Trains `model` in place, one global batch a call.

    `model`, `teacher` and `projections` are on `device` already, equal on all ranks, and the optimizer holds
    the parameters of `model` and `projections`. `teacher` may be None (there is none, or a weight of 0
    throughout). `teaching` is where a checkpoint left it.
    """

    def __init__(
        self,
        model: AnyModel,
        teacher: AnyModel | None,
        projections: nn.Module | None,
        optimizer: AdamW,
        stage: ResolvedStage,
        device: torch.device,
        group: Group | None = None,
        teaching: Teaching | None = None,
    ) -> None:
        teaching = teaching or Teaching()
        self.teacher_steps, self._surpassed = teaching.steps, teaching.surpassed
        self.computed_macs = 0  # for this rank's rows, since this began
        self._margin = torch.full((), teaching.margin, dtype=torch.float64, device=device)
        self._model = model.train()
        decay = stage.training.ema_decay
        self._average = None if decay is None else AveragedModel(model, decay, group)
        self._projections = projections
        self.optimizer = optimizer
        self._stage = stage
        self._training = stage.training
        self._device = device
        self._group = group or Group()
        # Those of parameters that lie in parts on the ranks are summed where they are cut.
        self._sharded = [p for p in optimizer.parameters if is_sharded(p)]
        self._gradients = GradientSum([p for p in optimizer.parameters if not is_sharded(p)], self._group)
        self._diverged_at = torch.full((), -1, dtype=torch.float64, device=device)
        self._skipped_in_a_row, self._skipped = torch.zeros(2, dtype=torch.float64, device=device).unbind()
        self._has_teacher = teacher is not None
        if teacher is not None:
            freeze(teacher, self._training.precision)
        self._setting = Setting(model, teacher, projections, stage, device, self._group, self._gradients)
        self._objective = task_of(stage).objective(self._setting)

    def run(self, batch: StepBatch, step: int) -> StepResult:
        """Train on the global batch of which `batch` holds this rank's rows, at `step` of the stage.

        A step that is not finite leaves the weights as they are. Too many in a row raise DivergedError: on the CPU at
        once, on other devices from `StepResult.read`.
        """
        rate = learning_rate(self._training, step)
        weight = distillation_weight(self._stage.distillation, step, self._training.steps)
        taught = self._has_teacher and weight > 0 and not self._surpassed
        if not taught:
            weight = 0.0
        self._gradients.zero()
        for parameter in self._sharded:
            parameter.grad = None

        losses = self._objective.accumulate(batch, weight=weight, taught=taught)
        self.computed_macs += computed_macs(
            self._stage, batch.tokens.shape[1], self._objective.text_lengths, taught=taught
        )
        if taught:
            self._judge_teacher(losses)
        return self._update(step, rate, weight, losses[:2])

    @property
    def objective(self) -> Objective:
        """How the task's loss comes about."""
        return self._objective

    @property
    def training(self) -> ResolvedTraining:
        """How it trains."""
        return self._training

    def break_off(self) -> Setting | None:
        """What a step that ran out of memory worked on, for a trial of smaller ones; None where no rank has it whole.

        The step can't be run any more.
        """
        self._gradients.break_off()
        return None if self._sharded else self._setting

    @property
    def published(self) -> AnyModel:
        """The model whose weights are evaluated and published: the average where there is one.

        Of a model that lies in parts on the ranks a whole copy, for which all ranks must ask.
        """
        if self._average is not None:
            return self._average.model
        return whole_model(self._model, self._group) if self._sharded else self._model

    def teaching(self) -> Teaching:
        """How far distillation has come. Waits for the device."""
        return Teaching(self.teacher_steps, float(self._margin), self._surpassed)

    def state_dict(self) -> dict[str, Tensor]:
        """What a checkpoint needs besides the model: moments, projections and averaged weights.

        Shares memory with this, but for what is sharded, for which every rank must call it and rank 0 gets it all.
        """
        state = {f"{OPTIMIZER}{name}": tensor for name, tensor in self.optimizer.state_dict().items()}
        state |= self._replicated_state()
        return state if self._average is None else state | self._average.state_dict()

    def model_state(self) -> dict[str, Tensor]:
        """The model's own weights, as `state_dict` gives the rest."""
        if not self._sharded:
            return self._model.state_dict()
        return gathered(parts_of(self._model), dict(self._model.named_parameters()), self._group)

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `state_dict` gave, bit for bit. Raises KeyError where something is missing."""
        self.optimizer.load_state_dict(_of_optimizer(state))
        for name, tensor in self._replicated_state().items():
            tensor.copy_(state[name])
        if self._average is not None:
            self._average.load_state_dict(state)

    @torch.no_grad()
    def load_from_first(self, state: Mapping[str, Tensor] | None) -> None:
        """Take over rank 0's `state` on every rank, bit for bit; the others pass None."""
        self.optimizer.load_from_first(None if state is None else _of_optimizer(state))
        for name, tensor in self._replicated_state().items():
            if state is not None:
                tensor.copy_(state[name])
            self._group.broadcast(tensor)
        if self._average is not None:
            self._average.load_from_first(state)

    def load_moments_from_first(self, state: Mapping[str, Tensor] | None) -> None:
        """Take over the optimizer's part of rank 0's `state` on every rank; what it lacks begins at zero."""
        self.optimizer.load_from_first(None if state is None else _of_optimizer(state))

    @property
    def sharded(self) -> bool:
        """Whether no rank has all of the state: all must take part where it is asked for."""
        return self.optimizer.sharded

    def _replicated_state(self) -> dict[str, Tensor]:
        """What every rank has whole besides model and moments, sharing memory."""
        if self._projections is None:
            return {}
        return {f"projections.{name}": p.data for name, p in self._projections.named_parameters()}

    def _judge_teacher(self, losses: Tensor) -> None:
        """Count a step with the teacher; at the end of a window see whether the student is better by now."""
        self.teacher_steps += 1
        window = self._stage.distillation.surpass_window_steps
        if window is None:
            return
        self._margin += torch.nan_to_num(losses[0] - losses[2], nan=0.0, posinf=0.0, neginf=0.0)
        if self.teacher_steps % window == 0:
            self._surpassed = bool(self._margin < 0)
            self._margin.zero_()

    @torch.no_grad()
    def _update(self, step: int, rate: float, weight: float, losses: Tensor) -> StepResult:
        norm = total_norm(self.optimizer.parameters, self._group)
        total = losses.sum()
        not_finite = ~(norm.isfinite() & total.isfinite())
        clip = self._training.gradient_clip_norm
        self.optimizer.step(
            rate,
            divisor=None if clip is None else (norm / clip).clamp(min=1).float(),
            skip=not_finite.float(),
        )
        self._model.end_step(self._group, skip=not_finite)
        self._objective.constrain()
        if self._average is not None:
            self._average.update(step)
        self._skipped = self._skipped + not_finite
        self._skipped_in_a_row = torch.where(not_finite, self._skipped_in_a_row + 1, 0.0)
        too_many = (self._skipped_in_a_row > MOST_SKIPPED_STEPS) & (self._diverged_at < 0)
        self._diverged_at = torch.where(too_many, float(step - MOST_SKIPPED_STEPS), self._diverged_at)
        scale = self._objective.logit_scale()
        scale = torch.full_like(total, math.nan) if scale is None else scale.double()
        figures = torch.stack(
            [total, *losses, norm.double(), scale, self._diverged_at, not_finite.double(), self._skipped]
        )
        result = StepResult(step, rate, weight, figures)
        if self._device.type == "cpu":
            result.read()
        return result


def freeze(teacher: AnyModel, precision: Precision) -> None:
    """Make a model ready to be a teacher: no gradients, and in bf16 the weights of its matrix products in
    bf16.

    Autocast would round those same weights at every step; all others (embeddings, tokens, positions, norms) stay in
    fp32 as in the student, so a student that equals its teacher has exactly its embeddings.
    """
    teacher.eval().requires_grad_(False)
    if precision is not Precision.BF16:
        return
    for module in teacher.modules():
        matrices = ("weight",) if isinstance(module, nn.Linear | _ConvNd) else _MATRICES
        for name, parameter in module.named_parameters(recurse=False):
            if name in matrices and parameter.dtype is not torch.bfloat16:
                parameter.data = parameter.data.to(torch.bfloat16)


def _of_optimizer(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(OPTIMIZER): state[name] for name in state if name.startswith(OPTIMIZER)}
