"""A local loss: a sum over rows, each of which depends on nothing else.

The weight of a batch (rows, or tokens) is known before the forward pass and summed over ranks first, so each
micro-batch has its final gradient at once and runs once. Gradients of all ranks are summed.

Shapes: m rows of a micro-batch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from modelchain.spec import Precision
from modelchain_trainer.model.families import AnyModel
from modelchain_trainer.tasks.task import Setting, StepBatch, pixels_dtype

M = TypeVar("M")  # a micro-batch on the device
O = TypeVar("O")  # noqa: E741 - what a model makes of it


@dataclass(frozen=True)
class Sums:
    """Losses of a micro-batch, summed over its rows; the distillation without its weight."""

    task: Tensor  # []
    distillation: Tensor | None  # []
    teacher: Tensor | None  # []: the teacher's task loss


class LocalObjective(ABC, Generic[M, O]):
    """The loop over micro-batches; a task says what a micro-batch is, and what its losses are."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self._bf16 = setting.stage.training.precision is Precision.BF16
        self._student = self._forward_of(setting.model)
        self._teacher = None if setting.teacher is None else self._forward_of(setting.teacher)

    @abstractmethod
    def micro_batches(self, batch: StepBatch) -> Sequence[M]:
        """The rank's rows in parts that fit into memory, on the device."""

    @abstractmethod
    def weight(self, batch: StepBatch) -> int:
        """What this rank's sum of losses is divided by, with those of the other ranks."""

    @abstractmethod
    def outputs(self, model: nn.Module, micro_batch: M, dtype: torch.dtype) -> O:
        """The model's outputs for a micro-batch, with a graph."""

    @abstractmethod
    def losses(self, student: O, teacher: O | None, micro_batch: M) -> Sums:
        """The sums of a micro-batch. `teacher` is None where it is not asked."""

    def accumulate(self, batch: StepBatch, *, weight: float, taught: bool) -> Tensor:
        """See `Objective`."""
        setting, device = self.setting, self.setting.device
        # Filled on the device: a number of the processor's would be copied there, for which it waits.
        total = torch.full((), self.weight(batch), dtype=torch.float64, device=device)
        total = setting.group.sum(total)
        figures = torch.zeros(3, dtype=torch.float64, device=device)
        micro_batches = self.micro_batches(batch)
        unused = [] if taught else self._zero_projections()
        for number, micro_batch in enumerate(micro_batches):
            teacher = None
            if taught and self._teacher is not None:
                with torch.no_grad():
                    teacher = self._teacher(micro_batch)
            sums = self.losses(self._student(micro_batch), teacher, micro_batch)
            loss = sums.task
            if sums.distillation is not None:
                loss = loss + weight * sums.distillation
                figures[1] += weight * sums.distillation.detach()
            figures[0] += sums.task.detach()
            if sums.teacher is not None:
                figures[2] += sums.teacher
            if number == len(micro_batches) - 1:
                setting.gradients.arm(unused)
            (loss / total.to(loss.dtype)).backward()
        setting.gradients.finish()
        return setting.group.sum(figures) / total

    @property
    def text_lengths(self) -> Mapping[int, int]:
        """None: rows are as long as the model's context, or no texts."""
        return {}

    def constrain(self) -> None:
        """Nothing is bounded."""

    def logit_scale(self) -> Tensor | None:
        """None is learnt."""
        return None

    def _zero_projections(self) -> list[nn.Parameter]:
        """Without a teacher's forward their gradients are zero, not None: then every rank's buckets stay the same."""
        unused = [] if self.setting.projections is None else list(self.setting.projections.parameters())
        for parameter in unused:
            self.setting.gradients.add(parameter, torch.zeros_like(parameter))
        return unused

    def _forward_of(self, model: AnyModel) -> _Forward[M, O]:
        return _Forward(self, model, self._bf16)


class _Forward(Generic[M, O]):
    """One model's outputs, compiled where the stage asks for it."""

    def __init__(self, objective: LocalObjective[M, O], model: AnyModel, bf16: bool) -> None:
        if objective.setting.stage.training.compile:
            model.compile_blocks()
        self._objective, self._bf16, self._dtype = objective, bf16, pixels_dtype(model)
        self._model = model

    def __call__(self, micro_batch: M) -> O:
        with torch.autocast(self._objective.setting.device.type, torch.bfloat16, enabled=self._bf16):
            return self._objective.outputs(self._model, micro_batch, self._dtype)


def rows_of(batch: StepBatch, size: int | None) -> Iterator[slice]:
    """The rows of each micro-batch of so many rows (None: all)."""
    rows = batch.tokens.shape[1]
    for start in range(0, rows, size or rows):
        yield slice(start, min(start + (size or rows), rows))
