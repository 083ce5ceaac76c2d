"""timm's own image classifiers (convolutional ones) as stages: trained and taught, never grown.

What they cost stands in modelchain/timm_models.json, which tools/timm_models.py makes from the library.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Final

from pydantic import Field

from modelchain.digest_form import REQUIRED
from modelchain.families.family import (
    Dimension,
    Extent,
    Family,
    FamilyConfig,
    ImageClassifierConfig,
    Problem,
    differs,
    near_multiple,
)

TILE: Final = 32  # pixels: the stride of these models, by which their image sizes divide
NORM_BATCH: Final = 32


@dataclass(frozen=True)
class TimmModel:
    """A model of timm without its head."""

    parameters: int
    largest_parameter: int
    tile_macs: int  # of each 32 x 32 pixels
    whole_macs: int  # and once an image
    features: int
    batch_norm: bool  # whether it normalises over samples

    def macs(self, image_size: int) -> int:
        """Multiply-accumulates of a forward pass over one image."""
        return self.tile_macs * (image_size // TILE) ** 2 + self.whole_macs


@cache
def timm_models() -> dict[str, TimmModel]:
    """Those that can be stages, by timm's name."""
    content = json.loads((Path(__file__).parents[1] / "timm_models.json").read_text(encoding="utf-8"))
    return {
        name: TimmModel(
            parameters=entry["parameters"],
            largest_parameter=entry["largestParameter"],
            tile_macs=entry["tileMacs"],
            whole_macs=entry["wholeMacs"],
            features=entry["features"],
            batch_norm=entry["batchNorm"],
        )
        for name, entry in content.items()
    }


class TimmConfig(ImageClassifierConfig):
    """A classifier as `timm.create_model(name, num_classes=classes)` builds it."""

    name: Annotated[
        str,
        Field(
            pattern=r"^[a-z0-9_]{1,64}$",
            description="timm's name of the model, e.g. convnext_atto. `modelchain models --task Classification` "
            "lists them.",
        ),
    ]
    image_size: Annotated[
        int, Field(ge=TILE, le=4096, description="Side of the image in pixels, a multiple of 32.")
    ] = 224
    norm_batch_size: Annotated[
        int,
        Field(
            ge=2,
            le=4096,
            description="Samples over which BatchNorm takes its statistics in training, on however many processes "
            "and in whatever micro-batches they are. Only of models with BatchNorm.",
        ),
    ] = NORM_BATCH

    @property
    def model(self) -> TimmModel:
        """What is known of it. Raises KeyError for a name that is not listed."""
        return timm_models()[self.name]

    @property
    def image_side(self) -> int:
        """As it is written."""
        return self.image_size

    @property
    def feature_size(self) -> int:
        """Of what the last layer reads."""
        return self.model.features

    @property
    def rows_together(self) -> int:
        """Those that are normed together."""
        return self.norm_batch_size if self.has_batch_norm else 1

    @property
    def has_batch_norm(self) -> bool:
        """Whether it normalises over samples; False for a name that is not listed."""
        known = timm_models().get(self.name)
        return known is not None and known.batch_norm


class TimmFamily(Family[TimmConfig]):
    """timm's convolutional classifiers."""

    config = TimmConfig
    field = "timmConfig"
    description = (
        "A classifier of timm, as it is, for a chain whose task is Classification. It does not grow: it is trained "
        "from its seed and taught (expansion.width: Fresh), or teaches others."
    )
    digest = {"name": REQUIRED, "classes": REQUIRED, "imageSize": REQUIRED, "normBatchSize": NORM_BATCH}
    weights = "model.safetensors"
    weights_config = "config.json"
    weights_readers = "timm loads as local-dir:"
    grows = False
    in_parts = False
    compiles = False

    def recomputes(self, config: TimmConfig) -> bool:
        """A second pass of a training step must not reach BatchNorm's statistics."""
        return not config.has_batch_norm

    def parameters(self, config: TimmConfig) -> int:
        """The head included."""
        return config.model.parameters + (config.model.features + 1) * config.classes

    def forward_macs(self, config: TimmConfig, texts: int) -> int:  # noqa: ARG002
        """A label costs nothing."""
        return config.model.macs(config.image_size) + config.model.features * config.classes

    def largest_parameter(self, config: TimmConfig) -> int:
        """A kernel, or the head of many classes."""
        return max(config.model.largest_parameter, config.model.features * config.classes)

    def unbuildable(self, config: TimmConfig) -> Iterator[Problem]:
        """A name that is not listed, an image that does not divide."""
        known = timm_models().get(config.name)
        if known is None:
            yield (
                ("name",),
                f"there is no model {config.name!r} among timm's that can be stages",
                near(config.name),
            )
        if config.image_size % TILE:
            yield (
                ("imageSize",),
                f"an image of {config.image_size} pixels is no multiple of {TILE}",
                near_multiple("imageSize", config.image_size, TILE),
            )
        if known is not None and not known.batch_norm and config.norm_batch_size != NORM_BATCH:
            yield ("normBatchSize",), f"{config.name} has no BatchNorm", "leave it out"

    def ungrowable(self, small: TimmConfig, large: TimmConfig) -> Iterator[Problem]:
        """Another model or head. The size of the image and of groups for BatchNorm are the training's: no weight has
        them in its shape.
        """
        for part, before, after in (
            ("name", small.name, large.name),
            ("classes", small.classes, large.classes),
        ):
            for where, message, remedy in differs((part,), part, before, after):
                yield where, f"{message}, and models under {self.field} do not grow", remedy

    def dimensions(self, config: TimmConfig) -> Sequence[Dimension]:
        """That of the image alone."""
        return (Dimension("imageSize", config.image_size, Extent.PIXELS),)

    def unteachable(self, student: TimmConfig, teacher: FamilyConfig) -> Iterator[Problem]:
        """Both tell the same classes apart."""
        assert isinstance(teacher, ImageClassifierConfig)
        yield from differs(("classes",), "the number of classes", teacher.classes, student.classes)

    def size_name(self, config: TimmConfig) -> str:
        """timm's name, the image and the classes."""
        return f"{config.name.replace('_', '-')}-{config.image_size}-{config.classes}"


def near(name: str) -> str:
    """The remedy for a name that is not listed."""
    from difflib import get_close_matches

    found = get_close_matches(name, timm_models(), n=3, cutoff=0.6)
    listed = "`modelchain models --task Classification` lists all"
    return f"write {' or '.join(found)}; {listed}" if found else listed


TIMM = TimmFamily()
