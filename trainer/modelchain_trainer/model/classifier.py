"""An image classifier: a vision transformer with a linear head on its class token, or on the mean of its patches.

The function is timm's `VisionTransformer` (github.com/huggingface/pytorch-image-models, after Dosovitskiy et al.,
arXiv 2010.11929) with its defaults; `timm_files` gives parameters their names there. Blocks are CLIP's.

Shape suffixes: B images, T tokens, D width, N patches, K classes.
"""

from __future__ import annotations

from functools import lru_cache
from typing import cast

import torch
from torch import Tensor, nn

from modelchain.families import ClassifierConfig, VisionSpec
from modelchain.families.towers import image_tokens
from modelchain_trainer.model import timm_config
from modelchain_trainer.model.clip_layout import (
    COLOURS,
    PATCH,
    VISION,
    grid,
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
    empty,
    keep_patches,
    vision_heads,
)
from modelchain_trainer.model.layout import (
    ZERO,
    Axis,
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
from modelchain_trainer.model.transformer import GELU, Transformer, image_features

NORM_EPSILON = 1e-6  # timm's
_CLASSES = Space("classes", Kind.FIXED)
_TOWER = "transformer.resblocks."


class Classifier(ClassifierModel[ClassifierConfig]):
    """The whole model. It is its own image tower: features are what the head reads."""

    class_embedding: nn.Parameter | None

    def __init__(self, config: ClassifierConfig, *, device: torch.device | str | None = None) -> None:
        super().__init__()
        check_buildable(config)
        vision = config.vision
        width, patch = vision.width, vision.patch_size
        self.config = config
        self.conv1 = PatchEmbedding(CHANNELS, width, patch, patch, bias=True, device=device)
        self.register_parameter(
            "class_embedding", empty(width, device=device) if vision.class_token else None
        )
        self.positional_embedding = empty(image_tokens(vision), width, device=device)
        self.transformer = Transformer(
            width,
            vision.layers,
            vision_heads(vision),
            vision.hidden_width,
            GELU,
            causal=False,
            device=device,
            norm_epsilon=NORM_EPSILON,
            layer_scale=vision.layer_scale is not None,
        )
        self.add_module(last_norm(vision), LayerNorm(width, eps=NORM_EPSILON, device=device))
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
        vision = self.config.vision
        x_BTD = self.conv1(images_BCHW)
        if self.class_embedding is not None:
            class_B1D = self.class_embedding.expand(x_BTD.shape[0], 1, -1)
            x_BTD = torch.cat([class_B1D, x_BTD], dim=1)
        x_BTD = keep_patches(x_BTD + self.positional_embedding, kept_BK, class_token=vision.class_token)
        norm = cast("LayerNorm", self.get_submodule(last_norm(vision)))
        return image_features(self.transformer, norm, x_BTD, vision)

    def forward(self, images_BCHW: Tensor, kept_BK: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Features [B, D] and logits [B, classes]."""
        features_BD = self.features(images_BCHW, kept_BK)
        return features_BD, self.head(features_BD)


def last_norm(vision: VisionSpec) -> str:
    """The norm behind the blocks, which timm has under another name where it reads the mean."""
    return "fc_norm" if vision.norm_after_pooling else "ln_post"


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
            **({"class_embedding": Parameter((writes,), normal(0.02))} if vision.class_token else {}),
            "positional_embedding": Parameter((Axis(grid(vision)), writes), normal(0.02)),
            "conv1.weight": Parameter((writes, Axis(COLOURS, Side.IN), patch, patch), uniform(fan_in)),
            "conv1.bias": Parameter((writes,), uniform(fan_in)),
            **transformer(_TOWER, VISION, vision.layers, vision_starts(vision), vision.layer_scale),
            **norm(last_norm(vision), stream),
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
