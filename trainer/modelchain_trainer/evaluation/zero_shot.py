"""Zero-shot classification: an image is of the class whose prompts lie nearest (Radford et al., arXiv 2103.00020).

Shapes: n samples of the set, M classes, E embedding, P pairs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from modelchain.errors import UserDataError
from modelchain.evaluations import TOP5_CLASSES
from modelchain.spec import EvaluationSpec
from modelchain_trainer.evaluation.embeddings import Encoder, hits
from modelchain_trainer.evaluation.evaluation_set import (
    ClassifiedImages,
    EvaluationBatch,
    EvaluationSource,
    Opening,
    Run,
)
from modelchain_trainer.evaluation.images import class_names, open_images
from modelchain_trainer.model.family import AnyModel

DEFAULT_TEMPLATES = ("a photo of a {}.",)


@dataclass(frozen=True)
class ZeroShotSet(ClassifiedImages):
    """Labelled images, and the names of their classes."""

    spec: EvaluationSpec
    source: EvaluationSource
    classes: tuple[str, ...]

    @classmethod
    def open(cls, spec: EvaluationSpec, opening: Opening) -> ZeroShotSet:
        """The samples, and the names of their classes.

        Raises MissingInputError for shards or a file of names that do not exist.
        """
        names = class_names(spec, opening.stage)
        return cls(spec, open_images(spec, opening, len(names)), names)

    def measure(self, model: AnyModel, run: Run) -> dict[str, float]:
        """`top1`, and `top5` from ten classes on."""
        encoder = Encoder(model, run)
        classes = len(self.classes)
        class_ME = self._embed_classes(encoder)

        def answers(batch: EvaluationBatch) -> Tensor:
            assert batch.labels is not None
            return batch.labels[:, None]

        image_nE, label_n1 = encoder.embed(self.source, answers, width=1, name=self.spec.name)
        labels = label_n1[:, 0]
        if bool(((labels < 0) | (labels >= classes)).any()):
            raise UserDataError(
                f"evaluation set {self.spec.name}: labels run from {int(labels.min())} to "
                f"{int(labels.max())}, but classes from 0 to {classes - 1}; check its classes and data.classKey"
            )
        ks = (1, 5) if classes >= TOP5_CLASSES else (1,)
        pairs_P2 = torch.stack([torch.arange(len(labels), device=labels.device), labels], dim=1)
        shares = hits(image_nE, class_ME, pairs_P2, ks, run.group)
        return {f"top{k}": share for k, share in zip(ks, shares, strict=True)}

    def classifier(self, model: AnyModel, run: Run) -> Callable[[Tensor], Tensor]:
        """Scaled similarities. Each rank encodes some of the prompts."""
        encoder = Encoder(model, run)
        class_ME = self._embed_classes(encoder)
        return lambda images: encoder.model.logit_scale.exp() * encoder.images(images) @ class_ME.T

    def _embed_classes(self, encoder: Encoder) -> Tensor:
        """Unit embeddings [M, E]: the mean over templates of unit embeddings of the prompts."""
        templates = self.spec.templates or DEFAULT_TEMPLATES
        prompts = [t.replace("{}", name) for name in self.classes for t in templates]
        prompt_ME = encoder.texts(encoder.tokenizer(prompts))
        return functional.normalize(prompt_ME.unflatten(0, (-1, len(templates))).mean(dim=1), dim=-1)
