"""Multinomial logistic regression: a linear classifier of frozen features, to its optimum.

It minimises the mean cross-entropy plus `penalty / 2` times the squared norm of the weights; biases are free. That is
scikit-learn's `LogisticRegression` with C = 1 / (penalty * n). The problem is convex, so the result depends on nothing
but the data: L-BFGS (Liu and Nocedal, 1989) over all samples, as Radford et al. (arXiv 2103.00020, A.3) probe CLIP.

Shape suffixes: n samples, D features, K classes, r rows of a chunk.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from modelchain_trainer.losses import full_precision

MOST_ITERATIONS = 500
GRADIENT_TOLERANCE = 1e-5  # of the largest element; the loss is a mean over samples
_CHUNK_ELEMENTS = 2**24  # logits held at once: 64 MiB


@dataclass(frozen=True)
class LinearClassifier:
    """Logits are `features @ weight.T + bias`."""

    weight: Tensor  # [K, D]
    bias: Tensor  # [K]

    def logits(self, features_nD: Tensor) -> Tensor:
        """[n, K]"""
        with full_precision(features_nD.device):
            return functional.linear(features_nD, self.weight, self.bias)


def fit(
    features_nD: Tensor,
    labels_n: Tensor,
    classes: int,
    penalty: float,
    *,
    start: LinearClassifier | None = None,
    on_progress: Callable[[], None] = lambda: None,
) -> LinearClassifier:
    """The best classifier for labels 0 .. classes - 1. `start` saves iterations, and changes nothing else."""
    size = features_nD.shape[1]
    # About their mean and with a variance of 1 the problem is far better conditioned. It stays the same problem: biases
    # are free, and the penalty follows the weights.
    mean_D, spread = features_nD.mean(dim=0), spread_of(features_nD)
    features_nD = (features_nD - mean_D) / spread
    penalty /= spread**2
    flat = torch.zeros(classes * (size + 1), dtype=features_nD.dtype, device=features_nD.device)
    if start is not None:
        bias_K = start.bias + start.weight @ mean_D
        flat.copy_(torch.cat([start.weight.flatten() * spread, bias_K]))
    flat.requires_grad_()
    optimizer = torch.optim.LBFGS(
        [flat],
        max_iter=MOST_ITERATIONS,
        tolerance_grad=GRADIENT_TOLERANCE,
        line_search_fn="strong_wolfe",
    )

    def closure() -> float:
        on_progress()
        loss, gradient = _loss_and_gradient(features_nD, labels_n, _unflatten(flat.detach(), size), penalty)
        flat.grad = gradient
        return loss

    optimizer.step(closure)
    found = _unflatten(flat.detach(), size)
    weight_KD = found.weight / spread
    return LinearClassifier(weight_KD, found.bias - weight_KD @ mean_D)


def spread_of(features_nD: Tensor) -> float:
    """The root of their total variance, or 1 where there is none."""
    return float(features_nD.var(dim=0, unbiased=False).sum().sqrt()) or 1.0


def _unflatten(flat: Tensor, size: int) -> LinearClassifier:
    classes = flat.numel() // (size + 1)
    return LinearClassifier(flat[: classes * size].view(classes, size), flat[classes * size :])


def _loss_and_gradient(
    features_nD: Tensor, labels_n: Tensor, classifier: LinearClassifier, penalty: float
) -> tuple[float, Tensor]:
    weight_KD = classifier.weight
    loss = torch.zeros((), dtype=torch.float64, device=features_nD.device)
    weight_gradient_KD, bias_gradient_K = torch.zeros_like(weight_KD), torch.zeros_like(classifier.bias)
    samples = features_nD.shape[0]
    rows = max(1, _CHUNK_ELEMENTS // weight_KD.shape[0])
    for features_rD, labels_r in zip(features_nD.split(rows), labels_n.split(rows), strict=True):
        logits_rK = classifier.logits(features_rD)
        loss += functional.cross_entropy(logits_rK, labels_r, reduction="sum")
        residual_rK = logits_rK.softmax(dim=1)
        residual_rK[torch.arange(len(labels_r), device=labels_r.device), labels_r] -= 1
        with full_precision(features_rD.device):
            weight_gradient_KD += residual_rK.T @ features_rD
        bias_gradient_K += residual_rK.sum(dim=0)
    total = loss / samples + penalty / 2 * weight_KD.double().square().sum()
    gradient_KD = weight_gradient_KD / samples + penalty * weight_KD
    return float(total), torch.cat([gradient_KD.flatten(), bias_gradient_K / samples])
