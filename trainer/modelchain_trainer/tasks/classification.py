"""Images into classes, by cross-entropy; a student also follows its teacher's features and probabilities.

Shapes: m rows of a micro-batch, K classes, D width of the student, E of the teacher.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from modelchain.families import AnyConfig
from modelchain.families.family import ImageClassifierConfig
from modelchain.resolved import ResolvedStage
from modelchain_trainer.data.sample import normalize
from modelchain_trainer.data.source import SampleSource
from modelchain_trainer.data.text_field import LabelField
from modelchain_trainer.tasks.local_loss import LocalObjective, Sums, rows_of
from modelchain_trainer.tasks.task import Setting, StepBatch, Task, patches_of, pixels_dtype


@dataclass(frozen=True)
class Rows:
    """A micro-batch on the device."""

    images: Tensor  # uint8 [m, 3, H, W]
    labels: Tensor  # int64 [m]
    patches: Tensor | None = None  # int64 [m, K]: places of those that the student sees; None: all


@dataclass(frozen=True)
class Outputs:
    """What a classifier makes of images."""

    features: Tensor  # [m, D]
    logits: Tensor  # [m, K]


class FeatureProjection(nn.Module):
    """A linear map from the student's unit features to the teacher's, where their widths differ.

    Exact growth repeats the features of a small model n times; scaled back to unit length they are read by n
    identities side by side, each over the root of n. So a grown student begins at its teacher's features.
    """

    def __init__(self, student: int, teacher: int, *, copies: int = 1) -> None:
        super().__init__()
        start = torch.zeros(teacher, student)
        for copy in range(copies):
            block = start[:, copy * teacher : (copy + 1) * teacher]
            block.copy_(torch.eye(*block.shape) / math.sqrt(copies))
        self.features = nn.Parameter(start)


def _projections(student: AnyConfig, teacher: AnyConfig) -> nn.Module | None:
    assert isinstance(student, ImageClassifierConfig)
    assert isinstance(teacher, ImageClassifierConfig)
    width, other = student.feature_size, teacher.feature_size
    if width == other:
        return None
    return FeatureProjection(width, other, copies=max(1, width // other))


class ClassificationObjective(LocalObjective[Rows, Outputs]):
    """Cross-entropy with the labels. The distillation is the squared distance of unit features plus
    `distillation.logitsWeight` times the Kullback-Leibler divergence of the student's probabilities from the teacher's
    (Hinton et al., arXiv 1503.02531, at temperature 1).
    """

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self._judged = setting.stage.distillation.surpass_window_steps is not None
        projections = setting.projections
        self._pixels: tuple[Rows, Tensor] | None = None
        self._projection = projections.features if isinstance(projections, FeatureProjection) else None

    def micro_batches(self, batch: StepBatch) -> Sequence[Rows]:
        """Images and labels."""
        images, labels = batch.images, batch.tokens[0, :, 0].contiguous()
        if self.setting.device.type == "cuda":
            images, labels = (one if one.is_pinned() else one.pin_memory() for one in (images, labels))
        images, labels = (one.to(self.setting.device, non_blocking=True) for one in (images, labels))
        size = self.setting.stage.training.micro_batch_size
        kept_bK = patches_of(batch, self.setting.device)
        return [
            Rows(images[part], labels[part], None if kept_bK is None else kept_bK[part])
            for part in rows_of(batch, size)
        ]

    def weight(self, batch: StepBatch) -> int:
        """Rows."""
        return batch.images.shape[0]

    def outputs(self, model: nn.Module, micro_batch: Rows, dtype: torch.dtype) -> Outputs:
        """A teacher sees the student's pictures whole, at its own size."""
        images_m3HW = self._normalised(micro_batch).to(dtype)
        side = self._side(model)
        if images_m3HW.shape[-1] != side:
            images_m3HW = functional.interpolate(images_m3HW, (side, side), mode="bicubic", antialias=True)
        patches = micro_batch.patches if model is self.setting.model else None
        features_mD, logits_mK = model(images_m3HW) if patches is None else model(images_m3HW, patches)
        return Outputs(_at_least_fp32(features_mD), _at_least_fp32(logits_mK))

    def _normalised(self, micro_batch: Rows) -> Tensor:
        """Its pixels, once for teacher and student, who look at them one after the other."""
        if self._pixels is None or self._pixels[0] is not micro_batch:
            self._pixels = micro_batch, normalize(micro_batch.images, pixels_dtype(self.setting.model))
        return self._pixels[1]

    def losses(self, student: Outputs, teacher: Outputs | None, micro_batch: Rows) -> Sums:
        """Sums over rows."""
        task = functional.cross_entropy(student.logits, micro_batch.labels, reduction="sum")
        if teacher is None:
            return Sums(task, None, None)
        judged = None
        if self._judged:
            judged = functional.cross_entropy(teacher.logits, micro_batch.labels, reduction="sum")
        return Sums(task, self._distance(student, teacher), judged)

    def _distance(self, student: Outputs, teacher: Outputs) -> Tensor:
        mine_mE, theirs_mE = (functional.normalize(one.features, dim=-1) for one in (student, teacher))
        if self._projection is not None:
            mine_mE = functional.linear(mine_mE, self._projection)
        distance = (mine_mE - theirs_mE).square().sum()
        divergence = functional.kl_div(
            student.logits.log_softmax(-1), teacher.logits.log_softmax(-1), reduction="sum", log_target=True
        )
        return distance + self.setting.stage.distillation.logits_weight * divergence

    @staticmethod
    def _side(model: nn.Module) -> int:
        config = model.config
        assert isinstance(config, ImageClassifierConfig)
        assert config.image_side is not None
        return config.image_side


def _source(stage: ResolvedStage) -> SampleSource:
    config = stage.model_config_
    assert isinstance(config, ImageClassifierConfig)
    return SampleSource(stage, LabelField(config.classes), [stage.data.class_key])


def _at_least_fp32(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


CLASSIFICATION = Task(
    source=_source,
    tokenizer=lambda _stage: None,
    projections=_projections,
    objective=ClassificationObjective,
)
