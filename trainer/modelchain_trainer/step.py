"""One optimizer step: features, the loss of the global batch, its gradient, the update.

A rank's rows may be split into micro-batches that fit into memory. The contrastive loss needs the features of
all rows at once, so they are computed first, without a graph but for the last micro-batch; then each takes up its
rows' gradient, the last at once and the others after another forward pass (GradCache, arXiv 2101.06983). The result
is the gradient of the whole batch. With one micro-batch nothing runs twice.

Shapes: b rows of this rank, m rows of a micro-batch, C captions, E embedding of the student, F of the
teacher, T tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from modelchain.errors import ExitCode, ModelChainError
from modelchain.resolved import ResolvedStage
from modelchain.spec import Precision
from modelchain_trainer.averaging import AveragedModel
from modelchain_trainer.captions import Captions, bucketed
from modelchain_trainer.collectives import GradientSum, Group
from modelchain_trainer.data.sample import normalize
from modelchain_trainer.distillation import Projections
from modelchain_trainer.losses import Features, contrastive_loss, loss_and_feature_gradients
from modelchain_trainer.model.clip import Clip
from modelchain_trainer.optimizer import AdamW
from modelchain_trainer.schedule import distillation_weight, learning_rate

MAXIMUM_LOG_SCALE = math.log(100)
OPTIMIZER = "optimizer."  # before the names of its tensors in a state
# A bucket of captions more must save so many tokens: about what its own kernels' launches cost.
CPU_BUCKET_COST, GPU_BUCKET_COST = 32, 4096
GPU_TOKENS_MULTIPLE = 8  # few lengths are few kernels to compile or pick


class DivergedError(ModelChainError):
    """The loss or the gradient is not a finite number; the weights are those before that step."""

    exit_code = ExitCode.CONFIG


class StepBatch(Protocol):
    """What a step needs of a batch (`data.loader.Batch` is one): this rank's rows, on the CPU."""

    @property
    def images(self) -> Tensor:
        """uint8 [b, 3, H, W]"""
        ...

    @property
    def tokens(self) -> Tensor:
        """int64 [C, b, T]"""
        ...


@dataclass(frozen=True)
class StepReading:
    """The figures of a step, the same on every rank."""

    loss: dict[str, float]  # total, task, distillation (weighted)
    gradient_norm: float  # before clipping
    logit_scale: float  # the factor itself, after the step
    learning_rate: float
    distillation_weight: float


@dataclass(frozen=True)
class StepResult:
    """The figures of a step, still on the device: nothing waits for it until `read`."""

    step: int
    learning_rate: float
    distillation_weight: float
    # fp64 [6]: total, task, distillation, gradient norm, logit scale, first step that diverged or -1
    figures: Tensor

    def read(self) -> StepReading:
        """Wait for the device. Raises DivergedError if this step or one before it was not finite."""
        total, task, distillation, norm, scale, diverged = self.figures.tolist()
        if diverged >= 0:
            raise DivergedError(
                f"the loss or the gradient is not finite at step {int(diverged)}: "
                "lower training.learningRate, raise training.warmupSteps or set training.gradientClipNorm"
            )
        return StepReading(
            loss={"total": total, "task": task, "distillation": distillation},
            gradient_norm=norm,
            logit_scale=scale,
            learning_rate=self.learning_rate,
            distillation_weight=self.distillation_weight,
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
        model: Clip,
        teacher: Clip | None,
        projections: Projections | None,
        optimizer: AdamW,
        stage: ResolvedStage,
        device: torch.device,
        group: Group | None = None,
        teaching: Teaching | None = None,
    ) -> None:
        teaching = teaching or Teaching()
        self.teacher_steps, self._surpassed = teaching.steps, teaching.surpassed
        self._margin = torch.full((), teaching.margin, dtype=torch.float64, device=device)
        self._model = model.train()
        decay = stage.training.ema_decay
        self._average = None if decay is None else AveragedModel(model, decay)
        self._teacher_log_scale = None if teacher is None else teacher.logit_scale.detach()
        self._projections = projections
        self.optimizer = optimizer
        self._stage = stage
        self._training = stage.training
        self._device = device
        self._group = group or Group()
        self._gradients = GradientSum(optimizer.parameters, self._group)
        self._diverged_at = torch.full((), -1, dtype=torch.float64, device=device)
        self._student_forward = self._forward(model)
        self._teacher_forward = None
        if teacher is not None:
            freeze(teacher, self._training.precision)
            self._teacher_forward = self._forward(teacher)

    def run(self, batch: StepBatch, step: int) -> StepResult:
        """Train on the global batch of which `batch` holds this rank's rows, at `step` of the stage.

        On the CPU a step that is not finite raises DivergedError at once; on other devices `StepResult.read`
        does, and until then the weights stay as they were before it.
        """
        rate = learning_rate(self._training, step)
        weight = distillation_weight(self._stage.distillation, step, self._training.steps)
        teacher_forward = self._teacher_forward if weight > 0 and not self._surpassed else None
        if teacher_forward is None:
            weight = 0.0
        micro_batches = self.micro_batches(batch)
        self._gradients.zero()

        with torch.no_grad():
            teacher = None if teacher_forward is None else _join([teacher_forward(*m) for m in micro_batches])
            parts = [self._student_forward(*m) for m in micro_batches[:-1]]
        with_graph = self._student_forward(*micro_batches[-1])
        features = _join([*parts, Features(with_graph.image.detach(), with_graph.text.detach())])

        result = loss_and_feature_gradients(
            features,
            teacher,
            self._model.logit_scale.detach(),
            self._projections,
            weight=weight,
            group=self._group,
        )
        losses = torch.stack([result.task, result.distillation, self._teacher_loss(teacher)]).double()
        losses_sum = self._group.start_sum(losses)
        outside_autograd = self._add_gradients(result.log_scale_gradient, result.projection_gradients)

        end = features.image.shape[0]
        for number in reversed(range(len(micro_batches))):
            features_m = self._student_forward(*micro_batches[number]) if with_graph is None else with_graph
            start = end - features_m.image.shape[0]
            if number == 0:
                self._gradients.arm(outside_autograd)
            # A scalar with these gradients: given gradients, `torch.autograd.backward` imports sympy (seconds).
            image = features_m.image * result.feature_gradients.image[start:end]
            text = features_m.text * result.feature_gradients.text[:, start:end]
            (image.sum() + text.sum()).backward()
            with_graph = features_m = image = text = None  # frees the graph before the next one is built
            end = start
        self._gradients.finish()
        if losses_sum is not None:
            losses_sum.wait()
        if teacher is not None:
            self._judge_teacher(losses)
        return self._update(step, rate, weight, losses[:2])

    @property
    def published(self) -> Clip:
        """The model whose weights are evaluated and published: the average where there is one."""
        return self._model if self._average is None else self._average.model

    def teaching(self) -> Teaching:
        """How far distillation has come. Waits for the device."""
        return Teaching(self.teacher_steps, float(self._margin), self._surpassed)

    def state_dict(self) -> dict[str, Tensor]:
        """What a checkpoint needs besides the model: moments, projections and averaged weights.

        Shares memory with this, but for sharded moments, for which every rank must call it and rank 0 gets them all.
        """
        return {
            f"{OPTIMIZER}{name}": tensor for name, tensor in self.optimizer.state_dict().items()
        } | self._replicated_state()

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `state_dict` gave, bit for bit. Raises KeyError where something is missing."""
        self.optimizer.load_state_dict(_of_optimizer(state))
        for name, tensor in self._replicated_state().items():
            tensor.copy_(state[name])

    @torch.no_grad()
    def load_from_first(self, state: Mapping[str, Tensor] | None) -> None:
        """Take over rank 0's `state` on every rank, bit for bit; the others pass None."""
        self.optimizer.load_from_first(None if state is None else _of_optimizer(state))
        for name, tensor in self._replicated_state().items():
            if state is not None:
                tensor.copy_(state[name])
            self._group.broadcast(tensor)

    def load_moments_from_first(self, state: Mapping[str, Tensor] | None) -> None:
        """Take over the optimizer's part of rank 0's `state` on every rank; what it lacks begins at zero."""
        self.optimizer.load_from_first(None if state is None else _of_optimizer(state))

    @property
    def sharded(self) -> bool:
        """Whether no rank has all of the state: all must take part where it is asked for."""
        return self.optimizer.sharded

    def _replicated_state(self) -> dict[str, Tensor]:
        """What every rank has besides model and moments, sharing memory."""
        state: dict[str, Tensor] = {}
        if self._projections is not None:
            state |= {f"projections.{name}": p.data for name, p in self._projections.named_parameters()}
        if self._average is not None:
            state |= self._average.state_dict()
        return state

    def _teacher_loss(self, teacher: Features | None) -> Tensor:
        """This rank's share of the teacher's task loss on the batch, where somebody wants to know it; else 0."""
        if teacher is None or self._stage.distillation.surpass_window_steps is None:
            return torch.zeros((), device=self._device)
        assert self._teacher_log_scale is not None
        return contrastive_loss(teacher, self._teacher_log_scale, self._group)

    def _judge_teacher(self, losses: Tensor) -> None:
        """Count a step with the teacher; at the end of a window see whether the student is better by now."""
        self.teacher_steps += 1
        window = self._stage.distillation.surpass_window_steps
        if window is None:
            return
        self._margin += losses[0] - losses[2]
        if self.teacher_steps % window == 0:
            self._surpassed = bool(self._margin < 0)
            self._margin.zero_()

    def _forward(self, model: Clip) -> Callable[[Tensor, Captions], Features]:
        if self._training.compile:
            model.compile_blocks()
        bf16 = self._training.precision is Precision.BF16
        side = model.config.vision.image_size
        dtype = model.logit_scale.dtype

        def forward(images_u8_m3HW: Tensor, captions: Captions) -> Features:
            images_m3HW = normalize(images_u8_m3HW, dtype)
            if images_m3HW.shape[-1] != side:  # a teacher sees the student's pictures at its own size
                images_m3HW = functional.interpolate(
                    images_m3HW, (side, side), mode="bicubic", antialias=True
                )
            with torch.autocast(self._device.type, torch.bfloat16, enabled=bf16):
                image_mE = model.encode_image(images_m3HW)
                text_CmE = captions.encode(model.encode_text)
            return Features(image_mE, text_CmE)

        return forward

    def micro_batches(self, batch: StepBatch) -> list[tuple[Tensor, Captions]]:
        """The rank's rows in parts that fit into memory, on the device: uint8 [m, 3, H, W] and m samples' captions."""
        on_gpu = self._device.type == "cuda"
        images_b3HW = batch.images
        if on_gpu and not images_b3HW.is_pinned():
            images_b3HW = images_b3HW.pin_memory()
        size = self._training.micro_batch_size or images_b3HW.shape[0]
        # Captions are measured on the CPU, so that nothing waits for the device.
        captions = [
            bucketed(
                tokens_CmT,
                multiple_of=GPU_TOKENS_MULTIPLE if on_gpu else 1,
                bucket_cost=GPU_BUCKET_COST if on_gpu else CPU_BUCKET_COST,
            ).to(self._device)
            for tokens_CmT in batch.tokens.split(size, dim=1)
        ]
        images = images_b3HW.to(self._device, non_blocking=True).split(size)
        return list(zip(images, captions, strict=True))

    def _add_gradients(
        self, log_scale_gradient: Tensor, projection_gradients: tuple[Tensor, Tensor] | None
    ) -> list[nn.Parameter]:
        """Gradients that do not come through autograd; returns the parameters they belong to."""
        self._gradients.add(self._model.logit_scale, log_scale_gradient)
        if self._projections is None:
            return [self._model.logit_scale]
        parameters = [self._projections.image, self._projections.text]
        # Without a teacher's forward they are zero, not None: then every rank's buckets stay the same.
        for parameter, gradient in zip(
            parameters, projection_gradients or map(torch.zeros_like, parameters), strict=True
        ):
            self._gradients.add(parameter, gradient)
        return [self._model.logit_scale, *parameters]

    @torch.no_grad()
    def _update(self, step: int, rate: float, weight: float, losses: Tensor) -> StepResult:
        gradients = [p.grad for p in self.optimizer.parameters if p.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        total = losses.sum()
        not_finite = ~(norm.isfinite() & total.isfinite())
        clip = self._training.gradient_clip_norm
        self.optimizer.step(
            rate,
            divisor=None if clip is None else (norm / clip).clamp(min=1).float(),
            skip=not_finite.float(),
        )
        log_scale = self._model.logit_scale
        log_scale.clamp_(0, MAXIMUM_LOG_SCALE)
        if self._average is not None:
            self._average.update(step)
        self._diverged_at = torch.where(not_finite & (self._diverged_at < 0), float(step), self._diverged_at)
        figures = torch.stack([total, *losses, norm.double(), log_scale.exp().double(), self._diverged_at])
        result = StepResult(step, rate, weight, figures)
        if self._device.type == "cpu":
            result.read()
        return result


def freeze(teacher: Clip, precision: Precision) -> None:
    """Make a model ready to be a teacher: no gradients, and in bf16 the weights of its matrix products in
    bf16.

    Autocast would round those same weights at every step; embeddings and norms stay in fp32 as in the
    student, so a student that equals its teacher has exactly its embeddings.
    """
    teacher.eval().requires_grad_(False)
    if precision is not Precision.BF16:
        return
    for name, parameter in teacher.named_parameters():
        if parameter.ndim >= 2 and "embedding" not in name:
            parameter.data = parameter.data.to(torch.bfloat16)


def _of_optimizer(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(OPTIMIZER): state[name] for name in state if name.startswith(OPTIMIZER)}


def _join(features: list[Features]) -> Features:
    return Features(
        torch.cat([part.image for part in features]),
        torch.cat([part.text for part in features], dim=1),
    )
