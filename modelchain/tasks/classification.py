"""Supervised pre-training of an image classifier, on labels."""

from __future__ import annotations

from modelchain.families.family import ImageClassifierConfig
from modelchain.resolved import ResolvedData, ResolvedTraining
from modelchain.spec import EvaluationType, TaskName
from modelchain.tasks.images import IMAGE_FIELDS, OF_IMAGES
from modelchain.tasks.task import Task


class ClassificationTask(Task[ImageClassifierConfig]):
    """Images into classes."""

    name = TaskName.CLASSIFICATION
    config = ImageClassifierConfig
    own_fields = IMAGE_FIELDS | {("data", "classKey"), ("distillation", "logitsWeight")}
    evaluations = (EvaluationType.ACCURACY, *OF_IMAGES)
    text = "label"
    distillation = (
        "the squared distance between the features of a model and of its teacher and the divergence of their "
        "probabilities, times its weight"
    )

    def loss(self, training: ResolvedTraining) -> str:  # noqa: ARG002
        """One and the same."""
        return "the cross-entropy with the labels"

    def text_keys(self, data: ResolvedData) -> tuple[str, ...]:
        """The label."""
        return (data.class_key,)


CLASSIFICATION = ClassificationTask()
