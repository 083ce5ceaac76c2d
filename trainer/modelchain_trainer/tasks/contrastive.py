"""A global loss: each row's depends on the features of all rows, as the contrastive one's does.

A rank's rows may be split into micro-batches that fit into memory. The loss needs the features of
all rows at once, so they are computed first, without a graph but for the last micro-batch; then each takes up its
rows' gradient, the last at once and the others after another forward pass (GradCache, arXiv 2101.06983). The result
is the gradient of the whole batch. With one micro-batch nothing runs twice.

Shapes: b rows of this rank, m rows of a micro-batch, C captions, E embedding of the student, F of the
teacher, T tokens.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

from modelchain.families.family import ImageTextConfig
from modelchain.spec import LossName, Precision
from modelchain_trainer.captions import Captions, bucketed
from modelchain_trainer.data.sample import normalize
from modelchain_trainer.distillation import Projections
from modelchain_trainer.losses import Features, LossAndGradients, loss_and_feature_gradients, task_loss
from modelchain_trainer.model.family import ImageTextModel
from modelchain_trainer.tasks.task import Setting, StepBatch, patches_of

MicroBatch: TypeAlias = tuple[Tensor, Captions, Tensor | None]

MAXIMUM_LOG_SCALE = math.log(100)
# A bucket of captions more must save so many tokens: about what its own kernels' launches cost.
CPU_BUCKET_COST, GPU_BUCKET_COST = 32, 4096
GPU_TOKENS_MULTIPLE = 8  # few lengths are few kernels to compile or pick


class ContrastiveObjective:
    """CLIP's or SigLIP's loss, and the distance of its embeddings to the teacher's."""

    def __init__(self, setting: Setting) -> None:
        assert isinstance(setting.model, ImageTextModel)
        assert isinstance(setting.projections, Projections | None)
        self._setting = setting
        self._stage, self._training, self._device = setting.stage, setting.stage.training, setting.device
        self._projections = setting.projections
        self._model, self._log_scale = setting.model, setting.model.logit_scale
        sigmoid = self._training.loss is LossName.SIGMOID
        self._bias = setting.model.logit_bias if sigmoid else None
        self._text_lengths: Mapping[int, int] = {}
        self._student_forward = self._forward(setting.model)
        self._teacher_log_scale = None
        if setting.teacher is not None:
            assert isinstance(setting.teacher, ImageTextModel)
            self._teacher_log_scale = setting.teacher.logit_scale.detach()
            self._teacher_bias = setting.teacher.logit_bias if sigmoid else None
            self._teacher_forward = self._forward(setting.teacher)

    def accumulate(self, batch: StepBatch, *, weight: float, taught: bool) -> Tensor:
        """See `Objective`. Without a teacher's forward pass projections get a gradient of zero."""
        micro_batches = self.micro_batches(batch)
        self._text_lengths = Counter[int]()
        for _, captions, _ in micro_batches:
            self._text_lengths.update({bucket.shape[1]: bucket.shape[0] for bucket in captions.buckets})
        features, teacher, with_graph = self._features(micro_batches, taught=taught)

        result = loss_and_feature_gradients(
            features,
            teacher,
            self._log_scale.detach(),
            self._projections,
            weight=weight,
            group=self._setting.group,
            bias=None if self._bias is None else self._bias.detach(),
        )
        losses = torch.stack([result.task, result.distillation, self._teacher_loss(teacher)]).double()
        losses_sum = self._setting.group.start_sum(losses)
        outside_autograd = self._add_gradients(result)

        end = features.image.shape[0]
        for number in reversed(range(len(micro_batches))):
            features_m = self._again(micro_batches[number]) if with_graph is None else with_graph
            start = end - features_m.image.shape[0]
            if number == 0:
                self._setting.gradients.arm(outside_autograd)
            # A scalar with these gradients: given gradients, `torch.autograd.backward` imports sympy (seconds).
            image = features_m.image * result.feature_gradients.image[start:end]
            text = features_m.text * result.feature_gradients.text[:, start:end]
            (image.sum() + text.sum()).backward()
            with_graph = features_m = image = text = None  # frees the graph before the next one is built
            end = start
        self._setting.gradients.finish()
        if losses_sum is not None:
            losses_sum.wait()
        return losses

    def _features(
        self, micro_batches: list[MicroBatch], *, taught: bool
    ) -> tuple[Features, Features | None, Features | None]:
        """The features of all rows, the teacher's if it is asked, and those of the last micro-batch with a graph.

        Teacher and student look at a micro-batch one after the other: its pixels are normalised once for both.
        """
        parts: list[Features] = []
        theirs: list[Features] = []
        with_graph = None
        for number, (images_u8_m3HW, captions, kept_mK) in enumerate(micro_batches, start=1):
            images_m3HW = normalize(images_u8_m3HW, self._log_scale.dtype)
            if taught:
                with torch.no_grad():
                    theirs.append(self._teacher_forward(images_m3HW, captions, None))
            with torch.set_grad_enabled(number == len(micro_batches)):
                with_graph = self._student_forward(images_m3HW, captions, kept_mK)
            parts.append(Features(with_graph.image.detach(), with_graph.text.detach()))
        return _join(parts), _join(theirs) if taught else None, with_graph

    def _again(self, micro_batch: MicroBatch) -> Features:
        """The student's features of a micro-batch once more, now with a graph."""
        images_u8_m3HW, captions, kept_mK = micro_batch
        with self._model.recomputing():
            return self._student_forward(normalize(images_u8_m3HW, self._log_scale.dtype), captions, kept_mK)

    @property
    def text_lengths(self) -> Mapping[int, int]:
        """Of the buckets of captions."""
        return self._text_lengths

    def constrain(self) -> None:
        """Logits reach 100 times a cosine at most, as in CLIP."""
        self._log_scale.clamp_(0, MAXIMUM_LOG_SCALE)

    def logit_scale(self) -> Tensor:
        """The factor itself."""
        return self._log_scale.exp()

    def micro_batches(self, batch: StepBatch) -> list[MicroBatch]:
        """The rank's rows in parts that fit into memory, on the device.

        uint8 [m, 3, H, W], m samples' captions, and the places [m, K] of the patches that the student sees (None: all).
        """
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
        kept_bK = patches_of(batch, self._device)
        kept = [None] * len(captions) if kept_bK is None else kept_bK.split(size)
        return list(zip(images, captions, kept, strict=True))

    def _teacher_loss(self, teacher: Features | None) -> Tensor:
        """This rank's share of the teacher's task loss on the batch, where somebody wants to know it; else 0."""
        if teacher is None or self._stage.distillation.surpass_window_steps is None:
            return torch.zeros((), device=self._device)
        assert self._teacher_log_scale is not None
        return task_loss(teacher, self._teacher_log_scale, self._setting.group, self._teacher_bias)

    def _forward(self, model: ImageTextModel[ImageTextConfig]) -> Callable[..., Features]:
        if self._training.compile:
            model.compile_blocks()
        bf16 = self._training.precision is Precision.BF16
        side = model.config.image_side
        assert side is not None
        dtype = model.logit_scale.dtype

        def forward(images_m3HW: Tensor, captions: Captions, kept_mK: Tensor | None) -> Features:
            images_m3HW = images_m3HW.to(dtype)
            if images_m3HW.shape[-1] != side:  # a teacher sees the student's pictures at its own size
                images_m3HW = functional.interpolate(
                    images_m3HW, (side, side), mode="bicubic", antialias=True
                )
            with torch.autocast(self._device.type, torch.bfloat16, enabled=bf16):
                image_mE = model.encode_image(images_m3HW, kept_BK=kept_mK)
                text_CmE = captions.encode(model.encode_texts)
            return Features(image_mE, text_CmE)

        return forward

    def _add_gradients(self, result: LossAndGradients) -> list[nn.Parameter]:
        """Gradients that do not come through autograd; returns the parameters they belong to."""
        found = [(self._log_scale, result.log_scale_gradient)]
        if self._model.logit_bias is not None:  # of no use to the contrastive loss
            zero = torch.zeros_like(self._model.logit_bias)
            found.append(
                (self._model.logit_bias, zero if result.bias_gradient is None else result.bias_gradient)
            )
        if self._projections is not None:
            parameters = (self._projections.image, self._projections.text)
            # Without a teacher's forward they are zero, not None: then every rank's buckets stay the same.
            gradients = result.projection_gradients or map(torch.zeros_like, parameters)
            found += zip(parameters, gradients, strict=True)
        for parameter, gradient in found:
            self._setting.gradients.add(parameter, gradient)
        return [parameter for parameter, _ in found]


def _join(features: list[Features]) -> Features:
    return Features(
        torch.cat([part.image for part in features]),
        torch.cat([part.text for part in features], dim=1),
    )
