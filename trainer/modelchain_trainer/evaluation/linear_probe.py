"""What a linear classifier makes of a model's frozen features of another data set (linear probe).

The features are unit embeddings of a CLIP model's image tower, or a classifier's unit features; images have the
transform of evaluation. A fifth of the training samples, drawn by the seed, chooses among PENALTIES the one with the
best accuracy (of equals the strongest); with it the classifier is fitted to all of them, and measured on the other set.

Shapes: n samples of the training set, D features, K classes.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from modelchain.errors import UserDataError
from modelchain.evaluations import TOP5_CLASSES
from modelchain.spec import EvaluationSpec
from modelchain_trainer.data.evaluation_data import EvaluationReader
from modelchain_trainer.data.sample import normalize
from modelchain_trainer.distributed.collectives import Group
from modelchain_trainer.evaluation.accuracy import top_hits
from modelchain_trainer.evaluation.evaluation_set import (
    EvaluationSet,
    EvaluationSource,
    Opening,
    Run,
)
from modelchain_trainer.evaluation.image_features import ImageEncoder, image_encoder
from modelchain_trainer.evaluation.images import class_names, open_images
from modelchain_trainer.evaluation.logistic_regression import LinearClassifier, fit, spread_of
from modelchain_trainer.model.family import AnyModel

# The strongest first, 0.1 .. 1e-7: in units of the features' variance, so that they suit features of any spread.
PENALTIES = tuple(10 ** (exponent / 2) for exponent in range(-2, -15, -1))
PATIENCE = 3  # penalties in a row that are no better: weaker ones are not tried
MOST_NUMBERS = 2  # class numbers for each that samples have, where classes are not named
HELD_OUT = 5  # one of so many training samples chooses the penalty


@dataclass(frozen=True)
class Labelled:
    """Features of the readable samples of a set, and their classes."""

    features: Tensor  # [n, D]
    labels: Tensor  # int64 [n]
    samples: Tensor  # int64 [n]: their places in the set


@dataclass(frozen=True)
class TrainAndTest(EvaluationSet):
    """Labelled images of which one part is trained on and the other is measured."""

    spec: EvaluationSpec
    source: EvaluationSource
    train_source: EvaluationReader
    classes: tuple[str, ...]  # none: as many as the labels that are trained on

    def features(self, encoder: ImageEncoder, run: Run) -> tuple[Labelled, Labelled, int]:
        """Of what is trained on, of what is measured, and the number of classes."""
        name = f"evaluation set {self.spec.name}"
        train = labelled(encoder, self.train_source, f"{self.spec.name}: trainData", run)
        if len(train.labels) < HELD_OUT:
            raise UserDataError(
                f"{name}: trainData has {len(train.labels)} samples; name at least {HELD_OUT}"
            )
        present = len(train.labels.unique())
        if present < 2:
            raise UserDataError(
                f"{name}: all samples of trainData have the label {int(train.labels[0])}, and of one class there is "
                "nothing to tell apart; check trainData.classKey"
            )
        classes = len(self.classes) or int(train.labels.max()) + 1
        if not self.classes and classes > MOST_NUMBERS * present:
            raise UserDataError(
                f"{name}: {greatest_label(train, self.train_source)} of trainData, which has {present} different ones; "
                "fix that label, number the classes from 0 on, or name them all under classes or classesUri"
            )
        test = labelled(encoder, self.source, f"{self.spec.name}: data", run)
        if int(test.labels.max()) >= classes:
            raise UserDataError(
                f"{name}: {greatest_label(test, self.source)} of data, but the classes of trainData are 0 to "
                f"{classes - 1}; fix that label, or let both parts hold the same classes"
            )
        return train, test, classes


@dataclass(frozen=True)
class LinearProbeSet(TrainAndTest):
    """One that a linear classifier is fitted to."""

    @classmethod
    def open(cls, spec: EvaluationSpec, opening: Opening) -> LinearProbeSet:
        """The samples of both parts. Raises as `open_both`."""
        return cls(spec, *open_both(spec, opening))

    def measure(self, model: AnyModel, run: Run) -> dict[str, float]:
        """`top1`, and `top5` from ten classes on: means over seeds 0, 1, ... With several seeds their standard
        deviation, `top1Std`. Every rank gets rank 0's figures.

        Raises UserDataError, too, for labels that the training set does not have.
        """
        train, test, classes = self.features(image_encoder(model), run)
        hits: list[tuple[float, float]] = []
        for seed in range(self.spec.seeds or 1):
            probe = fit_probe(train, classes, seed=seed, on_progress=run.on_progress)
            hits.append(shares_of_hits(probe.logits(test.features), test.labels))
        return summary(hits, classes, run.group, device=test.labels.device)


def open_both(
    spec: EvaluationSpec, opening: Opening
) -> tuple[EvaluationReader, EvaluationReader, tuple[str, ...]]:
    """What is measured, what is trained on, and the names of the classes.

    Raises MissingInputError for shards or a file of names that do not exist.
    """
    if spec.train_data is None:
        raise UserDataError(f"evaluation set {spec.name}: a {spec.type} set needs trainData")
    train_spec = spec.model_copy(update={"data": spec.train_data})
    names = class_names(spec, opening.stage)
    classes = len(names) or None
    return open_images(spec, opening, classes), open_images(train_spec, opening, classes), names


def labelled(encoder: ImageEncoder, source: EvaluationSource, name: str, run: Run) -> Labelled:
    """The set's features on every rank; each computes those of some batches."""
    parameter = next(encoder.parameters())
    samples, device = len(source), parameter.device
    features_nD = torch.zeros(samples, encoder.size, dtype=parameter.dtype, device=device)
    number_n = torch.zeros(samples, dtype=torch.int32, device=device)  # of the class, from 1 on; 0: not read
    for batch in source.batches(run.group.rank, run.group.world_size):
        if not len(batch.indices):
            continue
        assert batch.labels is not None
        with torch.no_grad(), run.autocast(device):
            features_BD = encoder(normalize(batch.images.to(device), parameter.dtype))
        run.on_progress()
        rows_B = batch.indices.to(device)
        features_nD[rows_B] = features_BD.to(parameter.dtype)
        number_n[rows_B] = batch.labels.to(device, torch.int32) + 1
    label_n = run.group.sum(number_n).long() - 1
    readable_n = label_n >= 0
    source.check_readable(readable_n, name)
    return Labelled(run.group.sum(features_nD)[readable_n], label_n[readable_n], readable_n.nonzero()[:, 0])


def greatest_label(part: Labelled, source: EvaluationSource) -> str:
    """Which one it is, and of which sample."""
    place = int(part.labels.argmax())
    return f"the greatest label is {int(part.labels[place])}, of {source.describe(int(part.samples[place]))}"


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
    if classes >= TOP5_CLASSES:
        metrics["top5"] = statistics.fmean(fifth for _, fifth in shares)
    if len(firsts) > 1:
        metrics["top1Std"] = statistics.stdev(firsts)
    return metrics
