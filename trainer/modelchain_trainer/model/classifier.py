"""An image classifier: a vision transformer with a linear head on its class token.

The function is timm's `VisionTransformer` (github.com/huggingface/pytorch-image-models, after Dosovitskiy et al.,
arXiv 2010.11929) with its defaults; `timm_files` gives parameters their names there. Blocks are CLIP's.

Shape suffixes: B images, T tokens, D width, N patches, K classes.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor, nn

from modelchain.families import ClassifierConfig
from modelchain_trainer.model import timm_config
from modelchain_trainer.model.clip_layout import (
    COLOURS,
    GRID,
    PATCH,
    VISION,
    image_dimensions,
    image_sizes,
    vision_starts,
)
from modelchain_trainer.model.family import ClassifierModel, Family, ImageTower
from modelchain_trainer.model.layers import (
    CHANNELS,
    LayerNorm,
    Linear,
    PatchEmbedding,
    check_buildable,
    grid_side,
    keep_patches,
    vision_heads,
)
from modelchain_trainer.model.layout import (
    ZERO,
    Axis,
    Dimension,
    Kind,
    Layout,
    Parameter,
    Side,
    Space,
    norm,
    normal,
    transformer,
    uniform,
)
from modelchain_trainer.model.transformer import GELU, Transformer

NORM_EPSILON = 1e-6  # timm's
_CLASSES = Space("classes", Kind.FIXED)
_TOWER = "transformer.resblocks."


class Classifier(ClassifierModel[ClassifierConfig]):
    """The whole model. It is its own image tower: features are what the head reads."""

    def __init__(self, config: ClassifierConfig, *, device: torch.device | str | None = None) -> None:
        super().__init__()
        check_buildable(config)
        vision = config.vision
        width, patch = vision.width, vision.patch_size
        self.config = config
        self.conv1 = PatchEmbedding(CHANNELS, width, patch, patch, bias=True, device=device)
        self.class_embedding = nn.Parameter(torch.empty(width, device=device))
        self.positional_embedding = nn.Parameter(
            torch.empty(grid_side(vision) ** 2 + 1, width, device=device)
        )
        self.transformer = Transformer(
            width,
            vision.layers,
            vision_heads(vision),
            vision.hidden_width,
            GELU,
            causal=False,
            device=device,
            norm_epsilon=NORM_EPSILON,
        )
        self.ln_post = LayerNorm(width, eps=NORM_EPSILON, device=device)
        self.head = Linear(width, config.classes, device=device)

    def set_gradient_checkpointing(self, enabled: bool) -> None:
        """Keep only each block's input for the backward pass and compute the rest again."""
        self.transformer.gradient_checkpointing = enabled

    def compile_blocks(self) -> None:
        """Compile the blocks, each by itself (see `Clip.compile_blocks`)."""
        self.transformer.compile_blocks(dynamic=None)

    def image_tower(self) -> ImageTower:
        """The whole model but for its head."""
        return _Features(self)

    def new_image_tower(self) -> ImageTower:
        """See `Model`."""
        return _Features(Classifier(self.config, device=self.head.weight.device))

    def features(self, images_BCHW: Tensor, kept_BK: Tensor | None = None) -> Tensor:
        """What the head reads, [B, D], of normalised float images [B, 3, S, S].

        `kept_BK` are the places of the patches that are seen; None: all.
        """
        patches_BND = self.conv1(images_BCHW)
        class_B1D = self.class_embedding.expand(patches_BND.shape[0], 1, -1)
        x_BTD = torch.cat([class_B1D, patches_BND], dim=1) + self.positional_embedding
        return self.ln_post(self.transformer(keep_patches(x_BTD, kept_BK), None))

    def forward(self, images_BCHW: Tensor, kept_BK: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Features [B, D] and logits [B, classes]."""
        features_BD = self.features(images_BCHW, kept_BK)
        return features_BD, self.head(features_BD)


class _Features(ImageTower):
    """A classifier's features."""

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.classifier = classifier

    def set_gradient_checkpointing(self, enabled: bool) -> None:
        """See `Model`."""
        self.classifier.set_gradient_checkpointing(enabled)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        return self.classifier.features(images_BCHW)


@lru_cache(maxsize=16)
def classifier_layout(config: ClassifierConfig) -> Layout:
    """The layout of a `Classifier`. Nothing norms its stream, so widths that do not divide are grown exactly too."""
    vision, stream = config.vision, VISION.stream
    fan_in = (CHANNELS * vision.patch_size**2) ** -0.5
    writes, patch, classes = Axis(stream), Axis(PATCH), Axis(_CLASSES)
    return Layout(
        parameters={
            "class_embedding": Parameter((writes,), normal(0.02)),
            "positional_embedding": Parameter((Axis(GRID), writes), normal(0.02)),
            "conv1.weight": Parameter((writes, Axis(COLOURS, Side.IN), patch, patch), uniform(fan_in)),
            "conv1.bias": Parameter((writes,), uniform(fan_in)),
            **transformer(_TOWER, VISION, vision.layers, vision_starts(vision)),
            **norm("ln_post", stream),
            "head.weight": Parameter((classes, Axis(stream, Side.IN)), uniform(vision.width**-0.5)),
            "head.bias": Parameter((classes,), ZERO),
        },
        sizes={
            **VISION.sizes(vision.width, vision.hidden_width),
            **image_sizes(vision),
            _CLASSES.name: config.classes,
        },
        depths={_TOWER: vision.layers},
        head_widths={VISION.heads.name: vision.head_width},
        dimensions=(*image_dimensions(vision), Dimension("classes", config.classes, _CLASSES)),
    )


CLASSIFIER = Family(
    config=ClassifierConfig,
    build=lambda config, device: Classifier(config, device=device),
    layout=classifier_layout,
    to_config=timm_config.to_timm,
    from_config=timm_config.from_timm,
    published_names=timm_config.timm_names,
    own_names=timm_config.own_names,
)
