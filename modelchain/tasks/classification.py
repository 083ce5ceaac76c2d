"""Supervised pre-training of an image classifier: a vision transformer (Dosovitskiy et al., arXiv 2010.11929) with a
linear head, on labels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import MappingProxyType
from typing import Final

from modelchain.digest_form import REQUIRED, Table, deciding
from modelchain.resolved import ResolvedData, ResolvedTraining
from modelchain.spec import ClassifierConfig, EvaluationType, TaskName
from modelchain.tasks.task import Problem, Task, differs
from modelchain.tasks.towers import (
    IMAGE_FIELDS,
    OF_IMAGES,
    VISION_DIGEST,
    Tower,
    image_tower_macs,
    image_tower_parameters,
    largest_in_block,
    shrinking_heads,
    shrinking_tower,
    shrinking_units,
    unbuildable_image_tower,
    vision_heads,
    without_units,
)

MODEL_DIGEST: Final[Table] = {"classes": REQUIRED}


class ClassificationTask(Task[ClassifierConfig]):
    """Images into classes."""

    name = TaskName.CLASSIFICATION
    config = ClassifierConfig
    config_field = "classifierConfig"
    own_fields = IMAGE_FIELDS | {("data", "classKey"), ("distillation", "logitsWeight")}
    evaluations = (EvaluationType.ACCURACY, *OF_IMAGES)
    text = "label"
    metric_names = MappingProxyType(
        {"top1": "Accuracy", "top5": "Accuracy among the best five", "loss": "Cross-entropy"}
    )
    distillation = (
        "the squared distance between the features of a model and of its teacher and the divergence of their "
        "probabilities, times its weight"
    )
    weights = "model.safetensors"
    weights_config = "config.json"
    weights_readers = "timm loads as local-dir:"

    def loss(self, training: ResolvedTraining) -> str:  # noqa: ARG002
        """One and the same."""
        return "the cross-entropy with the labels"

    def parameters(self, config: ClassifierConfig) -> int:
        """The head included."""
        vision = config.vision
        patch_bias = vision.width
        return image_tower_parameters(vision) + patch_bias + (vision.width + 1) * config.classes

    def forward_macs(self, config: ClassifierConfig, texts: int) -> int:  # noqa: ARG002
        """A label costs nothing."""
        return image_tower_macs(config.vision) + config.vision.width * config.classes

    def embedding_parameters(self, config: ClassifierConfig) -> int:  # noqa: ARG002
        """None."""
        return 0

    def towers(self, config: ClassifierConfig) -> Sequence[Tower]:
        """One, for images."""
        return (config.vision,)

    def largest_parameter(self, config: ClassifierConfig) -> int:
        """A matrix of the tower, or the head of many classes."""
        return max(largest_in_block(config.vision), config.vision.width * config.classes)

    def unbuildable(self, config: ClassifierConfig) -> Iterator[Problem]:
        """Sizes that do not divide."""
        yield from unbuildable_image_tower(config.vision)
        yield from without_units("vision", config.vision)

    def ungrowable(self, small: ClassifierConfig, large: ClassifierConfig) -> Iterator[Problem]:
        """Images and patches may change either way."""
        yield from differs(("classes",), "the number of classes", small.classes, large.classes)
        yield from shrinking_tower("vision", small.vision, large.vision)
        yield from shrinking_units("vision", small.vision, large.vision)
        yield from shrinking_heads(
            ("vision", "headWidth"), "vision", vision_heads(small.vision), vision_heads(large.vision)
        )

    def unteachable(self, student: ClassifierConfig, teacher: ClassifierConfig) -> Iterator[Problem]:
        """Both tell the same classes apart."""
        yield from differs(("classes",), "the number of classes", teacher.classes, student.classes)

    def digest_form(self, config: ClassifierConfig) -> dict[str, object]:
        """Of the tower and its head."""
        return deciding(config, MODEL_DIGEST) | {"vision": deciding(config.vision, VISION_DIGEST)}

    def size_name(self, config: ClassifierConfig) -> str:
        """The tower's sizes and the classes."""
        vision = config.vision
        return f"classifier-{vision.width}x{vision.layers}-p{vision.patch_size}-{config.classes}"

    def text_keys(self, data: ResolvedData) -> tuple[str, ...]:
        """The label."""
        return (data.class_key,)


CLASSIFICATION = ClassificationTask()
