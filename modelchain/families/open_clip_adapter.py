"""CLIP models whose image tower is a module of open_clip's or timm's, as stages: trained and taught, never grown.

The text tower is that of CLIP models of two transformers. What image towers cost stands in
modelchain/open_clip_towers.json, which tools/open_clip_towers.py makes from the libraries, and of convolutional ones in
modelchain/timm_models.json.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Final

from pydantic import Field

from modelchain.block import Block
from modelchain.digest_form import REQUIRED, Table
from modelchain.families.clip import (
    DualEncoderConfig,
    DualEncoderFamily,
    TextSpec,
    computed_text_macs,
    unbuildable_text_tower,
)
from modelchain.families.family import (
    Dimension,
    Extent,
    Problem,
    differs,
    near_multiple,
)
from modelchain.families.timm_adapter import NORM_BATCH, TILE, timm_models
from modelchain.families.towers import largest_in_block

IMAGE_TOWER_DIGEST: Final[Table] = {
    "name": REQUIRED,
    "imageSize": 224,
    "mlpProjection": False,
    "normBatchSize": NORM_BATCH,
}
_UNPROJECTED: Final = "mobilenet"  # the head of timm's reads more than open_clip's adapter projects


@dataclass(frozen=True)
class ImageTower:
    """An image tower of open_clip's; what follows its features, the embedding's projection, is counted by itself."""

    vision_cfg: Mapping[str, object]  # as open_clip's configurations have it, without the image's size
    image_size: int | None  # the only one that it sees; None: any multiple of 32
    parameters: int
    largest_parameter: int
    tile_macs: int  # of each 32 x 32 pixels
    whole_macs: int  # and once an image
    features: int
    output_parameters: int  # of one number of the embedding
    output_macs: int
    batch_norm: bool  # whether it normalises over samples

    def macs(self, image_size: int) -> int:
        """Multiply-accumulates of a forward pass over one image, up to the features."""
        return self.tile_macs * (image_size // TILE) ** 2 + self.whole_macs

    @property
    def is_projected(self) -> bool:
        """Whether a layer of open_clip's makes the embedding, and not the tower's own head."""
        return self.vision_cfg.get("timm_proj") == "linear"


@cache
def image_towers() -> dict[str, ImageTower]:
    """Those that can be stages, by timm's name of the model, or open_clip's of a ResNet."""
    content = json.loads((Path(__file__).parents[1] / "open_clip_towers.json").read_text(encoding="utf-8"))
    towers = {
        name: ImageTower(
            vision_cfg=entry["visionCfg"],
            image_size=entry["imageSize"],
            parameters=entry["parameters"],
            largest_parameter=entry["largestParameter"],
            tile_macs=0,
            whole_macs=entry["macs"],
            features=entry["features"],
            output_parameters=entry["outputParameters"],
            output_macs=entry["outputMacs"],
            batch_norm=entry["batchNorm"],
        )
        for name, entry in content.items()
    }
    return towers | {
        name: ImageTower(
            vision_cfg={"timm_model_name": name, "timm_pool": "", "timm_proj": "linear"},
            image_size=None,
            parameters=model.parameters,
            largest_parameter=model.largest_parameter,
            tile_macs=model.tile_macs,
            whole_macs=model.whole_macs,
            features=model.features,
            output_parameters=model.features,
            output_macs=model.features,
            batch_norm=model.batch_norm,
        )
        for name, model in timm_models().items()
        if not name.startswith(_UNPROJECTED)
    }


class ImageTowerSpec(Block):
    name: Annotated[
        str,
        Field(
            pattern=r"^[A-Za-z0-9_]{1,64}$",
            description="timm's name of the image tower, as an open_clip configuration has it (timm_model_name), or "
            "that of a convolutional model of `modelchain models --task Classification`, but MobileNets; or RN50, "
            "RN101, RN50x4, RN50x16, RN50x64.",
        ),
    ]
    image_size: Annotated[
        int,
        Field(
            ge=TILE,
            le=4096,
            description="Side of the image in pixels: a multiple of 32 of convolutional models of timm, of all others "
            "the one that they see.",
        ),
    ] = 224
    mlp_projection: Annotated[
        bool,
        Field(
            description="Two layers from the features to the embedding, as in open_clip's convnext_large_d, instead of "
            "one."
        ),
    ] = False
    norm_batch_size: Annotated[
        int,
        Field(
            ge=2,
            le=4096,
            description="Samples over which BatchNorm takes its statistics in training, on however many processes "
            "and in whatever micro-batches they are. Only of towers with BatchNorm.",
        ),
    ] = NORM_BATCH


class OpenClipConfig(DualEncoderConfig):
    """A CLIP model whose image tower is open_clip's ResNet or a model of timm."""

    vision: Annotated[ImageTowerSpec, Field(description="The image tower.")]
    text: Annotated[TextSpec, Field(description="The text tower.")]

    @property
    def tower(self) -> ImageTower:
        """What is known of the image tower. Raises KeyError for a name that is not listed."""
        return image_towers()[self.vision.name]

    @property
    def image_side(self) -> int:
        """Of the image tower."""
        return self.vision.image_size

    @property
    def rows_together(self) -> int:
        """Those that are normed together."""
        return self.vision.norm_batch_size if self.has_batch_norm else 1

    @property
    def has_batch_norm(self) -> bool:
        """Whether its image tower normalises over samples; False for a name that is not listed."""
        known = image_towers().get(self.vision.name)
        return known is not None and known.batch_norm


class OpenClipFamily(DualEncoderFamily[OpenClipConfig]):
    """CLIP models with an image tower of open_clip's or timm's."""

    config = OpenClipConfig
    field = "openClipConfig"
    description = (
        "A CLIP model with an image tower of open_clip's or timm's, as it is. It does not grow: it is trained from its "
        "seed and taught (expansion.width: Fresh), or teaches others."
    )
    image_digest = IMAGE_TOWER_DIGEST
    grows = False
    in_parts = False
    compiles = False

    def recomputes(self, config: OpenClipConfig) -> bool:
        """A second pass of a training step must not reach BatchNorm's statistics."""
        return not config.has_batch_norm

    def image_parameters(self, config: OpenClipConfig) -> int:
        """As counted in the libraries' modules."""
        tower, size = config.tower, config.embed_dim
        if config.vision.mlp_projection:
            return tower.parameters + 2 * size * (tower.features + 1) + 2 * size**2
        return tower.parameters + tower.output_parameters * size

    def image_macs(self, config: OpenClipConfig) -> int:
        """As counted in the libraries' modules."""
        tower, size = config.tower, config.embed_dim
        mlp = 2 * size * (tower.features + size)
        projection = mlp if config.vision.mlp_projection else tower.output_macs * size
        return tower.macs(config.vision.image_size) + projection

    def computed_macs(
        self,
        config: OpenClipConfig,
        rows: int,
        texts: Mapping[int, int],
        patch_dropout: float,  # noqa: ARG002
    ) -> tuple[int, int]:
        """Texts are as long as they are handed to the tower; its last block computes what is pooled."""
        return rows * self.image_macs(config), computed_text_macs(config, texts)

    def largest_parameter(self, config: OpenClipConfig) -> int:
        """The table of tokens, a matrix of a wide tower, or the projection of many features."""
        tower, outputs = config.tower, config.embed_dim * (1 + config.vision.mlp_projection)
        return max(
            self.embedding_parameters(config),
            largest_in_block(config.text),
            tower.largest_parameter,
            max(tower.features, config.embed_dim) * outputs,
        )

    def unbuildable(self, config: OpenClipConfig) -> Iterator[Problem]:
        """A name that is not listed, an image that it can't see, a text tower whose sizes do not divide."""
        vision, known = config.vision, image_towers().get(config.vision.name)
        if known is None and vision.name.startswith(_UNPROJECTED) and vision.name in timm_models():
            message = f"open_clip's adapter can't project the features of {vision.name}, as of all of timm's MobileNets"
            remedy = (
                "name another tower, or make it a stage of a chain of task Classification, under timmConfig"
            )
            yield ("vision", "name"), message, remedy
        elif known is None:
            message = f"there is no image tower {vision.name!r} among open_clip's that can be stages"
            yield ("vision", "name"), message, near(vision.name)
        elif known.image_size is None and vision.image_size % TILE:
            message = f"an image of {vision.image_size} pixels is no multiple of {TILE}"
            yield ("vision", "imageSize"), message, near_multiple("imageSize", vision.image_size, TILE)
        elif known.image_size not in (None, vision.image_size):
            message = f"{vision.name} sees images of {known.image_size} pixels, not of {vision.image_size}"
            yield ("vision", "imageSize"), message, f"write {known.image_size}"
        if known is not None and not known.batch_norm and vision.norm_batch_size != NORM_BATCH:
            yield ("vision", "normBatchSize"), f"{vision.name} has no BatchNorm", "leave it out"
        if known is not None and vision.mlp_projection and not known.is_projected:
            message = f"{vision.name} makes the embedding itself"
            yield ("vision", "mlpProjection"), message, "leave it out"
        yield from unbuildable_text_tower(config.text)

    def ungrowable(self, small: OpenClipConfig, large: OpenClipConfig) -> Iterator[Problem]:
        """Any other model. The size of the image and of groups for BatchNorm are the training's: no weight has them in
        its shape, where both may be chosen.
        """
        before, after = (
            {
                (): {"embedDim": one.embed_dim, "quickGelu": one.quick_gelu, "logitBias": one.logit_bias},
                ("vision",): {"name": one.vision.name, "mlpProjection": one.vision.mlp_projection},
                ("text",): one.text.model_dump(by_alias=True),
            }
            for one in (small, large)
        )
        for part, fields in before.items():
            for field, value in fields.items():
                for where, message, remedy in differs((*part, field), field, value, after[part][field]):
                    yield where, f"{message}, and models under {self.field} do not grow", remedy

    def dimensions(self, config: OpenClipConfig) -> Sequence[Dimension]:
        """That of the image alone."""
        return (Dimension("vision.imageSize", config.vision.image_size, Extent.PIXELS),)

    def size_name(self, config: OpenClipConfig) -> str:
        """The image tower's name, and the image."""
        return f"{config.vision.name.lower().replace('_', '-')}-{config.vision.image_size}"


def near(name: str) -> str:
    """The remedy for a name that is not listed."""
    from difflib import get_close_matches

    found = get_close_matches(name, image_towers(), n=3, cutoff=0.6)
    listed = "`modelchain models` and `modelchain models --task Classification` list them"
    return f"write {' or '.join(found)}; {listed}" if found else listed


OPEN_CLIP = OpenClipFamily()
