"""Image classifiers: a vision transformer (Dosovitskiy et al., arXiv 2010.11929) with a linear head, as in timm."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated

from pydantic import Field

from modelchain.digest_form import REQUIRED, deciding
from modelchain.families.family import (
    Dimension,
    Family,
    FamilyConfig,
    ImageClassifierConfig,
    Problem,
    differs,
)
from modelchain.families.towers import (
    VISION_DIGEST,
    Tower,
    VisionSpec,
    changed_image_tower,
    computed_image_tower_macs,
    image_dimensions,
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


class ClassifierConfig(ImageClassifierConfig):
    """A vision transformer with a linear head, as timm's VisionTransformer."""

    vision: Annotated[VisionSpec, Field(description="The image tower.")]

    @property
    def image_side(self) -> int:
        """Of the tower."""
        return self.vision.image_size

    @property
    def patch_tower(self) -> VisionSpec:
        """The tower."""
        return self.vision

    @property
    def feature_size(self) -> int:
        """Of what is pooled: the class token, or the mean of the patches."""
        return self.vision.width


class ClassifierFamily(Family[ClassifierConfig]):
    """An image tower and a linear head."""

    config = ClassifierConfig
    field = "classifierConfig"
    description = "The model of a chain whose task is Classification."
    digest = {"classes": REQUIRED}
    weights = "model.safetensors"
    weights_config = "config.json"
    weights_readers = "timm loads as local-dir:"

    def parameters(self, config: ClassifierConfig) -> int:
        """The head included."""
        vision = config.vision
        patch_bias = vision.width
        return image_tower_parameters(vision) + patch_bias + (vision.width + 1) * config.classes

    def forward_macs(self, config: ClassifierConfig, texts: int) -> int:  # noqa: ARG002
        """A label costs nothing."""
        return image_tower_macs(config.vision) + config.vision.width * config.classes

    def computed_macs(
        self,
        config: ClassifierConfig,
        rows: int,
        texts: Mapping[int, int],  # noqa: ARG002
        patch_dropout: float,
    ) -> tuple[int, int]:
        """Where the class token is pooled, the last block computes nothing else."""
        head = config.vision.width * config.classes
        return 0, rows * (computed_image_tower_macs(config.vision, patch_dropout) + head)

    def towers(self, config: ClassifierConfig) -> Sequence[Tower]:
        """One, for images."""
        return (config.vision,)

    def largest_parameter(self, config: ClassifierConfig) -> int:
        """A matrix of the tower, or the head of many classes."""
        return max(largest_in_block(config.vision), config.vision.width * config.classes)

    def unbuildable(self, config: ClassifierConfig) -> Iterator[Problem]:
        """Sizes that do not divide."""
        yield from unbuildable_image_tower(config.vision)
        if not config.vision.input_norm:
            yield ("vision", "inputNorm"), "a classifier has no norm before its blocks anyway", "leave it out"
        yield from without_units("vision", config.vision)

    def ungrowable(self, small: ClassifierConfig, large: ClassifierConfig) -> Iterator[Problem]:
        """Images and patches may change either way."""
        yield from differs(("classes",), "the number of classes", small.classes, large.classes)
        yield from shrinking_tower("vision", small.vision, large.vision)
        yield from shrinking_units("vision", small.vision, large.vision)
        yield from shrinking_heads(
            ("vision", "headWidth"), "vision", vision_heads(small.vision), vision_heads(large.vision)
        )
        yield from changed_image_tower(small.vision, large.vision)

    def dimensions(self, config: ClassifierConfig) -> Sequence[Dimension]:
        """Of the tower, whose stream no norm writes."""
        return image_dimensions(config.vision, normed=False)

    def unteachable(self, student: ClassifierConfig, teacher: FamilyConfig) -> Iterator[Problem]:
        """Both tell the same classes apart."""
        assert isinstance(teacher, ImageClassifierConfig)
        yield from differs(("classes",), "the number of classes", teacher.classes, student.classes)

    def digest_form(self, config: ClassifierConfig) -> dict[str, object]:
        """Of the tower and its head."""
        return deciding(config, self.digest) | {"vision": deciding(config.vision, VISION_DIGEST)}

    def size_name(self, config: ClassifierConfig) -> str:
        """The tower's sizes and the classes."""
        vision = config.vision
        return f"classifier-{vision.width}x{vision.layers}-p{vision.patch_size}-{config.classes}"


CLASSIFIER = ClassifierFamily()
