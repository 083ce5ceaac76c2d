"""What a linear classifier makes of a model's frozen features of another data set (linear probe).

The features are unit embeddings of a CLIP model's image tower, or a classifier's unit features; images have the
transform of evaluation. A fifth of the training samples, drawn by the seed, chooses among PENALTIES the one with the
best accuracy (of equals the strongest); with it the classifier is fitted to all of them, and measured on the other set.

Shapes: n samples of the training set, D features, K classes.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from modelchain.errors import UserDataError
from modelchain.spec import Precision
from modelchain_trainer.data.sample import normalize
from modelchain_trainer.distributed.collectives import Group
from modelchain_trainer.evaluation.accuracy import TOP_FIVE_CLASSES, top_hits
from modelchain_trainer.evaluation.image_features import ImageEncoder, image_encoder
from modelchain_trainer.evaluation.logistic_regression import LinearClassifier, fit, spread_of
from modelchain_trainer.model.family import AnyModel

if TYPE_CHECKING:
    from modelchain_trainer.evaluation.evaluate import EvaluationSet, EvaluationSource

# The strongest first, 0.1 .. 1e-7: in units of the features' variance, so that they suit features of any spread.
PENALTIES = tuple(10 ** (exponent / 2) for exponent in range(-2, -15, -1))
PATIENCE = 3  # penalties in a row that are no better: weaker ones are not tried
HELD_OUT = 5  # one of so many training samples chooses the penalty


@dataclass(frozen=True)
class Labelled:
    """Features of the readable samples of a set, and their classes."""

    features: Tensor  # [n, D]
    labels: Tensor  # int64 [n]


def linear_probe(
    model: AnyModel,
    evaluation: EvaluationSet,
    *,
    precision: Precision,
    group: Group,
    on_progress: Callable[[], None],
) -> dict[str, float]:
    """`top1`, and `top5` from ten classes on: means over seeds 0, 1, ... With several seeds their standard deviation,
    `top1Std`. All ranks call it; every one gets rank 0's figures.

    Raises UserDataError for a set without a readable sample, and for labels that the training set does not have.
    """
    encoder = image_encoder(model)
    train, test, classes = both_sets(
        encoder, evaluation, precision=precision, group=group, on_progress=on_progress
    )
    hits: list[tuple[float, float]] = []
    for seed in range(evaluation.spec.seeds or 1):
        probe = fit_probe(train, classes, seed=seed, on_progress=on_progress)
        hits.append(shares_of_hits(probe.logits(test.features), test.labels))
    return summary(hits, classes, group, device=test.labels.device)


def both_sets(
    encoder: ImageEncoder,
    evaluation: EvaluationSet,
    *,
    precision: Precision,
    group: Group,
    on_progress: Callable[[], None],
) -> tuple[Labelled, Labelled, int]:
    """What is trained on, what is measured, and the number of classes."""
    assert evaluation.train_source is not None
    name = evaluation.spec.name

    train, test = (
        labelled(encoder, source, f"{name}: {what}", precision, group, on_progress)
        for source, what in ((evaluation.train_source, "trainData"), (evaluation.source, "data"))
    )
    classes = len(evaluation.classes) or int(train.labels.max()) + 1
    for part, what in ((train, "trainData"), (test, "data")):
        if int(part.labels.max()) >= classes:
            raise UserDataError(
                f"evaluation set {name}: labels of {what} run to {int(part.labels.max())}, but classes from 0 to "
                f"{classes - 1}; check classKey, the classes, and that both parts hold the same ones"
            )
    if len(train.labels) < HELD_OUT:
        raise UserDataError(
            f"evaluation set {name}: trainData has {len(train.labels)} samples; name at least {HELD_OUT}"
        )
    return train, test, classes


def labelled(
    encoder: ImageEncoder,
    source: EvaluationSource,
    name: str,
    precision: Precision,
    group: Group,
    on_progress: Callable[[], None],
) -> Labelled:
    """The set's features on every rank; each computes those of some batches."""
    parameter = next(encoder.parameters())
    samples, device = len(source), parameter.device
    features_nD = torch.zeros(samples, encoder.size, dtype=parameter.dtype, device=device)
    number_n = torch.zeros(samples, dtype=torch.int32, device=device)  # of the class, from 1 on; 0: not read
    for indices_B, features_BD, labels_B in _batches(encoder, source, precision, group):
        on_progress()
        features_nD[indices_B] = features_BD
        number_n[indices_B] = labels_B + 1
    label_n = group.sum(number_n).long() - 1
    readable_n = label_n >= 0
    if not bool(readable_n.any()):
        raise UserDataError(
            f"evaluation set {name}: none of the {samples} samples can be read; check its shards and keys"
        )
    return Labelled(group.sum(features_nD)[readable_n], label_n[readable_n])


def fit_probe(
    train: Labelled, classes: int, *, seed: int, on_progress: Callable[[], None] = lambda: None
) -> LinearClassifier:
    """The classifier of all samples, with the penalty that a part of them has chosen."""
    generator = torch.Generator().manual_seed(seed)
    order_n = torch.randperm(len(train.labels), generator=generator).to(train.labels.device)
    held_out, kept = order_n.tensor_split([len(order_n) // HELD_OUT])
    variance = spread_of(train.features) ** 2
    best, best_share, start, since = PENALTIES[0], -1.0, None, 0
    for penalty in (relative * variance for relative in PENALTIES):
        start = fit(
            train.features[kept],
            train.labels[kept],
            classes,
            penalty,
            start=start,
            on_progress=on_progress,
        )
        share, _ = shares_of_hits(start.logits(train.features[held_out]), train.labels[held_out])
        since += 1
        if share > best_share:
            best, best_share, since = penalty, share, 0
        if since == PATIENCE:
            break
    return fit(train.features, train.labels, classes, best, on_progress=on_progress)


def shares_of_hits(logits_nK: Tensor, labels_n: Tensor) -> tuple[float, float]:
    """Accuracy, and accuracy among the best five."""
    first_n, fifth_n = top_hits(logits_nK, labels_n)
    return float(first_n.mean()), float(fifth_n.mean())


def summary(
    hits: list[tuple[float, float]], classes: int, group: Group, *, device: torch.device
) -> dict[str, float]:
    """The metrics of several seeds: rank 0's, for ranks of unlike hardware may round unlike."""
    shares = group.broadcast(torch.tensor(hits, dtype=torch.float64, device=device)).tolist()
    firsts = [first for first, _ in shares]
    metrics = {"top1": statistics.fmean(firsts)}
    if classes >= TOP_FIVE_CLASSES:
        metrics["top5"] = statistics.fmean(fifth for _, fifth in shares)
    if len(firsts) > 1:
        metrics["top1Std"] = statistics.stdev(firsts)
    return metrics


def _batches(
    encoder: ImageEncoder, source: EvaluationSource, precision: Precision, group: Group
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """This rank's batches: places in the set, features and labels."""
    parameter = next(encoder.parameters())
    bf16 = precision is Precision.BF16
    for batch in source.batches(group.rank, group.world_size):
        if not len(batch.indices):
            continue
        assert batch.labels is not None
        images_B3HW = normalize(batch.images.to(parameter.device), parameter.dtype)
        with torch.no_grad(), torch.autocast(parameter.device.type, torch.bfloat16, enabled=bf16):
            features_BD = encoder(images_B3HW)
        yield (
            batch.indices.to(parameter.device),
            features_BD.to(parameter.dtype),
            batch.labels.to(parameter.device, torch.int32),
        )
