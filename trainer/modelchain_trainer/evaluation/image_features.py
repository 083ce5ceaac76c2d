"""The image side of a model by itself: what classifiers of other data sets are trained on.

Shape suffixes: B images, D features.
"""

from __future__ import annotations

from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

from modelchain_trainer.model.classifier import Classifier
from modelchain_trainer.model.clip import Clip, VisionTower

ImageModel: TypeAlias = Clip | Classifier


class ImageEncoder(nn.Module):
    """A tower whose features are of unit length, as embeddings of CLIP are (and as clip_benchmark probes them)."""

    def __init__(self, tower: VisionTower | Classifier, size: int) -> None:
        super().__init__()
        self.tower = tower
        self.size = size  # D

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Unit features [B, D], at least fp32, of normalised float images."""
        tower = self.tower
        features_BD = tower.features(images_BCHW) if isinstance(tower, Classifier) else tower(images_BCHW)
        return functional.normalize(
            features_BD.to(torch.promote_types(features_BD.dtype, torch.float32)), dim=-1
        )


def image_encoder(model: ImageModel) -> ImageEncoder:
    """The model's own tower: of CLIP its embedding, of a classifier what its head reads."""
    match model:
        case Clip():
            return ImageEncoder(model.visual, model.config.embed_dim)
        case Classifier():
            return ImageEncoder(model, model.config.vision.width)


def copied_encoder(model: ImageModel) -> ImageEncoder:
    """The same with weights of its own, to be trained further; on the model's device, not compiled."""
    encoder = image_encoder(model)
    device = next(model.parameters()).device
    match model:
        case Clip():
            config = model.config
            tower = VisionTower(config.vision, config.embed_dim, config.quick_gelu, device)
        case Classifier():
            tower = Classifier(model.config, device=device)
    tower.to(next(model.parameters()).dtype).load_state_dict(encoder.tower.state_dict())
    return ImageEncoder(tower, encoder.size)
