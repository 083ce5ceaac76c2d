"""Contrastive pre-training on images and their captions (CLIP, Radford et al., arXiv 2103.00020)."""

from __future__ import annotations

from modelchain.families.family import ImageTextConfig
from modelchain.resolved import ResolvedData, ResolvedTraining
from modelchain.spec import EvaluationType, LossName, TaskName
from modelchain.tasks.images import IMAGE_FIELDS, OF_IMAGES
from modelchain.tasks.task import Task


class ClipTask(Task[ImageTextConfig]):
    """Images and captions into one embedding."""

    name = TaskName.CLIP
    config = ImageTextConfig
    own_fields = IMAGE_FIELDS | {("data", "captionKeys"), ("training", "loss"), ("training", "lockedTower")}
    evaluations = (EvaluationType.ZERO_SHOT, EvaluationType.RETRIEVAL, *OF_IMAGES)
    text = "caption"
    distillation = (
        "the squared distance between the embeddings of a model and of its teacher, times its weight"
    )

    def loss(self, training: ResolvedTraining) -> str:
        """By training.loss."""
        name = "sigmoid" if training.loss is LossName.SIGMOID else "contrastive"
        return f"the {name} loss, averaged over captions"

    def text_keys(self, data: ResolvedData) -> tuple[str, ...]:
        """The captions."""
        return data.caption_keys


CLIP = ClipTask()
