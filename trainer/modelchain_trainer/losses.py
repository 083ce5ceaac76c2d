"""The loss of the global batch and its gradients, computed by each rank for its own rows.

`L = task + distillation`. The task is CLIP's symmetric InfoNCE over the global batch, or SigLIP's sigmoid loss, one
term for each caption column, averaged over columns. All gradients are written out instead of left to autograd: a rank
gathers features (without gradient) and two log-sum-exps a row, and from these has the exact gradient of the
*global* loss with respect to its own features. No gradient of features is sent, the logits of a rank are [b,
N] and never N x N, and the same code serves one process, several, and a batch accumulated from micro-batches.

Shapes: b rows of this rank, N = world_size * b rows of the global batch, C captions, E embedding, r rows of a
chunk.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from modelchain_trainer.distillation import Projections, distance
from modelchain_trainer.distributed.collectives import Group

CHUNK_ELEMENTS = 2**26  # logits held at once: 256 MiB in fp32


@dataclass(frozen=True)
class Features:
    """L2-normalised embeddings of this rank's rows."""

    image: Tensor  # [b, E]
    text: Tensor  # [C, b, E]


@dataclass(frozen=True)
class LossAndGradients:
    """This rank's share of the loss, and gradients of the global loss.

    Sum `task`, `distillation`, `log_scale_gradient`, `bias_gradient` and `projection_gradients` over all ranks; the
    gradients of the features are final.
    """

    task: Tensor  # []
    distillation: Tensor  # []
    feature_gradients: Features
    log_scale_gradient: Tensor  # []
    projection_gradients: tuple[Tensor, Tensor] | None  # image, text: [F, E]
    bias_gradient: Tensor | None = None  # [], of the sigmoid loss


@torch.no_grad()
def loss_and_feature_gradients(
    student: Features,
    teacher: Features | None,
    log_scale: Tensor,
    projections: Projections | None,
    *,
    weight: float,
    group: Group,
    bias: Tensor | None = None,
) -> LossAndGradients:
    """The loss of the global batch and its gradient with respect to this rank's features.

    `log_scale` is the logarithm of the factor of the logits; `teacher` holds the predecessor's embeddings of
    the same rows (None: no distillation); `weight` multiplies the distillation term. With a `bias` the loss is the
    sigmoid one. Features keep their
    dtype (fp32, or fp64); matrix products are never rounded to TF32.
    """
    with full_precision(student.image.device):
        if bias is None:
            result = _contrastive(student, log_scale.exp(), group)
        else:
            result = sigmoid_loss(student, log_scale.exp(), bias, group)
        if teacher is None:
            return result
        captions, rows = student.text.shape[:2]
        rows *= group.world_size
        image = distance(
            student.image,
            teacher.image,
            None if projections is None else projections.image,
            weight=weight,
            rows=rows,
        )
        text = distance(
            student.text.flatten(0, 1),
            teacher.text.flatten(0, 1),
            None if projections is None else projections.text,
            weight=weight,
            rows=rows * captions,
        )
        result.feature_gradients.image.add_(image.student_gradient)
        result.feature_gradients.text.add_(text.student_gradient.view_as(student.text))
        projection_gradients = None
        if image.projection_gradient is not None and text.projection_gradient is not None:
            projection_gradients = (image.projection_gradient, text.projection_gradient)
        return LossAndGradients(
            task=result.task,
            distillation=image.loss + text.loss,
            feature_gradients=result.feature_gradients,
            log_scale_gradient=result.log_scale_gradient,
            projection_gradients=projection_gradients,
            bias_gradient=result.bias_gradient,
        )


@torch.no_grad()
def task_loss(features: Features, log_scale: Tensor, group: Group, bias: Tensor | None = None) -> Tensor:
    """This rank's share of the task loss of these features ([]), without gradients: what a teacher's would be."""
    with full_precision(features.image.device):
        if bias is not None:
            return sigmoid_loss(features, log_scale.exp(), bias, group).task
        image_bE, text_CbE = features.image, features.text
        first = group.rank * image_bE.shape[0]
        image_NE = group.gather(image_bE)
        text_NCE = group.gather(text_CbE.transpose(0, 1))
        scale = log_scale.exp()
        captions = range(text_CbE.shape[0])
        rows = [_row_statistics(image_bE, text_NCE[:, c], scale, first) for c in captions]
        rows += [_row_statistics(text_CbE[c], image_NE, scale, first) for c in captions]
        total = torch.stack([(row.log_sum_exp_b - row.diagonal_b).sum() for row in rows]).sum()
        return total / (len(rows) * image_NE.shape[0])


def _contrastive(features: Features, scale: Tensor, group: Group) -> LossAndGradients:
    image_bE, text_CbE = features.image, features.text
    captions, b, _ = text_CbE.shape
    first = group.rank * b  # column of this rank's first row: where the diagonal of its logits begins
    image_NE = group.gather(image_bE)
    text_NCE = group.gather(text_CbE.transpose(0, 1))

    # Log-sum-exps of the rows: of each image over the texts of a column, and of each text over the images.
    images = [_row_statistics(image_bE, text_NCE[:, c], scale, first) for c in range(captions)]
    texts = [_row_statistics(text_CbE[c], image_NE, scale, first) for c in range(captions)]
    local_bK = torch.stack([statistics.log_sum_exp_b for statistics in (*images, *texts)], dim=1)
    image_lse_NC, text_lse_NC = group.gather(local_bK).split(captions, dim=1)

    share = 1 / (2 * captions * image_NE.shape[0])
    image_gradient_bE = torch.zeros_like(image_bE)
    text_gradient_CbE = torch.empty_like(text_CbE)
    for c in range(captions):
        image_gradient_bE += _row_gradients(
            image_bE, text_NCE[:, c], scale, images[c].log_sum_exp_b, text_lse_NC[:, c], first
        )
        text_gradient_CbE[c] = _row_gradients(
            text_CbE[c], image_NE, scale, texts[c].log_sum_exp_b, image_lse_NC[:, c], first
        )
    loss = sum((s.log_sum_exp_b - s.diagonal_b).sum() for s in (*images, *texts))
    # d logits / d log_scale = logits
    log_scale_gradient = sum((s.expected_b - s.diagonal_b).sum() for s in (*images, *texts))
    assert isinstance(loss, Tensor)
    assert isinstance(log_scale_gradient, Tensor)
    return LossAndGradients(
        task=loss * share,
        distillation=torch.zeros_like(loss),
        feature_gradients=Features(
            image_gradient_bE.mul_(scale * share), text_gradient_CbE.mul_(scale * share)
        ),
        log_scale_gradient=log_scale_gradient * share,
        projection_gradients=None,
    )


def sigmoid_loss(features: Features, scale: Tensor, bias: Tensor, group: Group) -> LossAndGradients:
    """SigLIP's loss (Zhai et al., arXiv 2303.15343): each pair of the global batch is right or wrong by itself,

        1 / N * sum over i, j of log(1 + exp(-z_ij * (scale * x_i y_j + bias))),   z = 1 on the diagonal, else -1

    averaged over captions. Ranks show each other their features one after another, so that none holds more than two
    ranks' of them; a pair's loss is counted where its image is.
    """
    image_bE, text_CbE = features.image, features.text
    captions, b, _ = text_CbE.shape
    share = 1 / (captions * b * group.world_size)
    image_gradient_bE, text_gradient_CbE = torch.zeros_like(image_bE), torch.zeros_like(text_CbE)
    loss, log_scale_gradient, bias_gradient = (scale.new_zeros(()) for _ in range(3))
    for source in range(group.world_size):
        own = source == group.rank
        other_image_bE = group.broadcast(image_bE.clone(), source=source)
        other_text_CbE = group.broadcast(text_CbE.clone(), source=source)
        for c in range(captions):
            for start, chunk_rE in _chunks(image_bE, b):
                end = start + chunk_rE.shape[0]
                scaled_rb = (chunk_rE * scale) @ other_text_CbE[c].T
                logits_rb = scaled_rb + bias
                loss += functional.softplus(logits_rb).sum()
                wrong_rb = logits_rb.sigmoid()
                if own:
                    loss -= logits_rb.diagonal(start).sum()
                    wrong_rb.diagonal(start).sub_(1)
                log_scale_gradient += (wrong_rb * scaled_rb).sum()
                bias_gradient += wrong_rb.sum()
                image_gradient_bE[start:end] += wrong_rb @ other_text_CbE[c]
            for start, chunk_rE in _chunks(text_CbE[c], b):
                wrong_rb = ((chunk_rE * scale) @ other_image_bE.T + bias).sigmoid_()
                if own:
                    wrong_rb.diagonal(start).sub_(1)
                text_gradient_CbE[c, start : start + chunk_rE.shape[0]] += wrong_rb @ other_image_bE
    return LossAndGradients(
        task=loss * share,
        distillation=torch.zeros_like(loss),
        feature_gradients=Features(
            image_gradient_bE.mul_(scale * share), text_gradient_CbE.mul_(scale * share)
        ),
        log_scale_gradient=log_scale_gradient * share,
        bias_gradient=bias_gradient * share,
        projection_gradients=None,
    )


@dataclass(frozen=True)
class _RowStatistics:
    log_sum_exp_b: Tensor  # of a row's logits
    diagonal_b: Tensor  # the logit of the matching column
    expected_b: Tensor  # mean logit under the row's softmax


def _row_statistics(rows_bE: Tensor, columns_NE: Tensor, scale: Tensor, first: int) -> _RowStatistics:
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    for start, chunk_rE in _chunks(rows_bE, columns_NE.shape[0]):
        logits_rN = (chunk_rE * scale) @ columns_NE.T
        lse_r = logits_rN.logsumexp(dim=1)
        diagonal_r = logits_rN.diagonal(first + start).clone()
        expected_r = (logits_rN - lse_r[:, None]).exp_().mul_(logits_rN).sum(dim=1)
        parts.append((lse_r, diagonal_r, expected_r))
    return _RowStatistics(*(torch.cat(column) for column in zip(*parts, strict=True)))


def _row_gradients(
    rows_bE: Tensor, columns_NE: Tensor, scale: Tensor, row_lse_b: Tensor, column_lse_N: Tensor, first: int
) -> Tensor:
    """Gradient with respect to `rows_bE`, up to a factor, of the loss along rows and along columns."""
    gradient_bE = torch.empty_like(rows_bE)
    for start, chunk_rE in _chunks(rows_bE, columns_NE.shape[0]):
        end = start + chunk_rE.shape[0]
        logits_rN = (chunk_rE * scale) @ columns_NE.T
        softmaxes_rN = (logits_rN - row_lse_b[start:end, None]).exp_()
        softmaxes_rN += logits_rN.sub_(column_lse_N).exp_()
        softmaxes_rN.diagonal(first + start).sub_(2)
        torch.mm(softmaxes_rN, columns_NE, out=gradient_bE[start:end])
    return gradient_bE


def _chunks(rows_bE: Tensor, columns: int) -> Iterator[tuple[int, Tensor]]:
    size = max(1, CHUNK_ELEMENTS // columns)
    for start in range(0, rows_bE.shape[0], size):
        yield start, rows_bE[start : start + size]


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Logits reach 100: TF32's 11 bits would be off by 0.05 there."""
    if device.type != "cuda":
        yield
        return
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
