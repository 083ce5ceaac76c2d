"""The image side of a model by itself: what classifiers of other data sets are trained on.

Shape suffixes: B images, D features.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from modelchain.families.family import ImageClassifierConfig, ImageTextConfig
from modelchain_trainer.model.family import AnyModel, ImageTower


class ImageEncoder(nn.Module):
    """A tower whose features are of unit length, as embeddings of CLIP are (and as clip_benchmark probes them)."""

    def __init__(self, tower: ImageTower, size: int) -> None:
        super().__init__()
        self.tower = tower
        self.size = size  # D

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Unit features [B, D], at least fp32, of normalised float images."""
        features_BD = self.tower(images_BCHW)
        return functional.normalize(
            features_BD.to(torch.promote_types(features_BD.dtype, torch.float32)), dim=-1
        )


def image_encoder(model: AnyModel) -> ImageEncoder:
    """The model's own tower: of CLIP its embedding, of a classifier what its head reads."""
    return ImageEncoder(model.image_tower(), _features(model))


def copied_encoder(model: AnyModel, *, gradient_checkpointing: bool = False) -> ImageEncoder:
    """The same with weights of its own, to be trained further; on the model's device, not compiled."""
    tower = model.new_image_tower().to(next(model.parameters()).dtype)
    tower.load_state_dict(model.image_tower().state_dict())
    if gradient_checkpointing:
        tower.set_gradient_checkpointing(True)
    return ImageEncoder(tower, _features(model))


def _features(model: AnyModel) -> int:
    config = model.config
    if isinstance(config, ImageTextConfig):
        return config.embed_dim
    assert isinstance(config, ImageClassifierConfig), "it sees no images"
    return config.feature_size
