"""What a task is to the trainer: its models, what it reads, how its loss comes about, how it is evaluated."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from modelchain.families import AnyConfig
from modelchain.resolved import ResolvedStage
from modelchain_trainer.data.source import DataSource
from modelchain_trainer.data.tokenizer import Tokenizer
from modelchain_trainer.distributed.collectives import GradientSum, Group
from modelchain_trainer.model.families import AnyModel
from modelchain_trainer.retry_policy import RetryPolicy


class StepBatch(Protocol):
    """What a step needs of a batch (`data.loader.Batch` is one): this rank's rows, on the CPU."""

    @property
    def images(self) -> Tensor:
        """uint8 [b, 3, H, W], or [b, 0, 0, 0] where a task has none"""
        ...

    @property
    def tokens(self) -> Tensor:
        """int64 [C, b, T]: what the task's field made of the C texts of a sample"""
        ...


def patches_of(batch: StepBatch, device: torch.device) -> Tensor | None:
    """The places [b, K] of the patches that the student sees, on the device; None: all.

    Only batches of pictures have them, and only where some are dropped.
    """
    kept_bK: Tensor | None = getattr(batch, "patches", None)
    if kept_bK is None:
        return None
    if device.type == "cuda" and not kept_bK.is_pinned():
        kept_bK = kept_bK.pin_memory()
    return kept_bK.to(device, non_blocking=True)


@dataclass(frozen=True)
class Setting:
    """What an objective works on; models and projections are on `device` already."""

    model: AnyModel
    teacher: AnyModel | None  # frozen
    projections: nn.Module | None  # from the student's features to the teacher's
    stage: ResolvedStage
    device: torch.device
    group: Group
    gradients: GradientSum


class Objective(Protocol):
    """The loss of a global batch. There are two kinds: `contrastive` (global) and `local_loss` (a sum over rows)."""

    def accumulate(self, batch: StepBatch, *, weight: float, taught: bool) -> Tensor:
        """Add the gradient of the global batch's loss to the setting's.

        `weight` multiplies the distillation, `taught` says whether the teacher is asked. Returns fp64 [3], sums over
        all ranks: the task's loss, the distillation's, and the teacher's task loss (0 where nobody wants to know it).
        """
        ...

    @property
    def text_lengths(self) -> Mapping[int, int]:
        """How many texts of which length in tokens the last `accumulate` computed for this rank's rows, padding
        included; empty where rows have no texts of their own length.
        """
        ...

    def constrain(self) -> None:
        """Bring parameters back into their bounds after an update."""
        ...

    def logit_scale(self) -> Tensor | None:
        """The factor of the logits ([]), where the task learns one."""
        ...


@dataclass(frozen=True)
class Task:
    """One task, to torch. Its counterpart in `modelchain.tasks` has what needs no torch."""

    source: Callable[[ResolvedStage], DataSource]  # where batches come from
    tokenizer: Callable[[ResolvedStage], Tokenizer | None]  # of class names and captions, for evaluation
    projections: Callable[
        [AnyConfig, AnyConfig], nn.Module | None
    ]  # of the student's and the teacher's sizes
    objective: Callable[[Setting], Objective]
    # Files by name that are published beside the weights, for who loads them.
    companions: Callable[[ResolvedStage, RetryPolicy], Mapping[str, bytes]] = lambda _stage, _retry_policy: {}


def pixels_dtype(model: nn.Module) -> torch.dtype:
    """The dtype of a model's input: a teacher's matrices may be in bf16, its vectors are not."""
    return next(parameter.dtype for parameter in model.parameters() if parameter.ndim < 2)
