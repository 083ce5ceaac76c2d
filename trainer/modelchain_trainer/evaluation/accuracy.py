"""How well a classifier does on a labelled set: loss and accuracy.

Shapes: n samples of the set, B samples of a batch, K classes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from modelchain.errors import UserDataError
from modelchain.evaluations import TOP5_CLASSES
from modelchain.families.family import ImageClassifierConfig
from modelchain.spec import EvaluationSpec
from modelchain_trainer.data.sample import normalize
from modelchain_trainer.evaluation.evaluation_set import (
    ClassifiedImages,
    EvaluationSource,
    Opening,
    Run,
)
from modelchain_trainer.evaluation.images import class_names, open_images
from modelchain_trainer.model.family import AnyModel, ClassifierModel
from modelchain_trainer.tasks.task import pixels_dtype


@dataclass(frozen=True)
class AccuracySet(ClassifiedImages):
    """Labelled images of the classifier's own classes."""

    spec: EvaluationSpec
    source: EvaluationSource
    classes: tuple[str, ...] = ()

    @classmethod
    def open(cls, spec: EvaluationSpec, opening: Opening) -> AccuracySet:
        """The samples, and the names of their classes where there are any.

        Raises MissingInputError for shards or a file of names that do not exist.
        """
        config = opening.stage.model_config_
        assert isinstance(config, ImageClassifierConfig)
        names = class_names(spec, opening.stage)
        return cls(spec, open_images(spec, opening, config.classes), names)

    def measure(self, model: AnyModel, run: Run) -> dict[str, float]:
        """Mean cross-entropy `loss`, `top1`, and `top5` from ten classes on."""
        assert isinstance(model, ClassifierModel)
        samples, device = len(self.source), next(model.parameters()).device
        classes, name = model.config.classes, self.spec.name
        if self.classes and len(self.classes) != classes:
            raise UserDataError(
                f"evaluation set {name}: it names {len(self.classes)} classes, but the head has {classes}; "
                "name all of them, or none"
            )
        figures_n4 = torch.zeros(
            samples, 4, dtype=torch.float64, device=device
        )  # is readable, loss, top-1, top-5
        for batch in self.source.batches(run.group.rank, run.group.world_size):
            run.on_progress()
            if not len(batch.indices):
                continue
            assert batch.labels is not None
            if int(batch.labels.max()) >= classes:
                raise UserDataError(
                    f"evaluation set {name}: labels run to {int(batch.labels.max())}, but classes from 0 to "
                    f"{classes - 1}; check its data.classKey and the model's classes"
                )
            labels_B = batch.labels.to(device)
            logits_BK = classify(model, batch.images, run=run)
            figures_n4[batch.indices.to(device)] = torch.stack(
                [
                    torch.ones_like(labels_B, dtype=torch.float64),
                    functional.cross_entropy(logits_BK, labels_B, reduction="none").double(),
                    *top_hits(logits_BK, labels_B),
                ],
                dim=1,
            )
        figures_n4 = run.group.sum(figures_n4)
        readable_n = figures_n4[:, 0] > 0
        self.source.check_readable(readable_n, name)
        _, loss, top1, top5 = figures_n4[readable_n].mean(dim=0).tolist()
        return {"loss": loss, "top1": top1} | ({"top5": top5} if classes >= TOP5_CLASSES else {})

    def classifier(self, model: AnyModel, run: Run) -> Callable[[Tensor], Tensor]:
        """The head's logits."""
        assert isinstance(model, ClassifierModel)
        return lambda images: classify(model, images, run=run)


def classify(model: ClassifierModel[Any], images_u8_B3HW: Tensor, *, run: Run) -> Tensor:
    """Logits [B, K], at least fp32, of uint8 images of the model's size."""
    device = next(model.parameters()).device
    with run.autocast(device):
        _, logits_BK = model(normalize(images_u8_B3HW.to(device), pixels_dtype(model)))
    return logits_BK.to(torch.promote_types(logits_BK.dtype, torch.float32))


def top_hits(logits_BK: Tensor, labels_B: Tensor) -> tuple[Tensor, Tensor]:
    """For k of 1 and 5 [B], fp64: the chance that the label is among the k best, in a random order of equals.

    Not "greater": a model that says NaN must not be right.
    """
    own_B1 = logits_BK.gather(1, labels_B[:, None])
    others_BK = torch.ones_like(logits_BK, dtype=torch.bool).scatter_(1, labels_B[:, None], False)
    equal_B = ((logits_BK == own_B1) & others_BK).sum(dim=1)
    better_B = (~(logits_BK < own_B1) & others_BK).sum(dim=1) - equal_B
    first, fifth = (((k - better_B).double() / (equal_B + 1)).clamp(0, 1) for k in (1, 5))
    return first, fifth
