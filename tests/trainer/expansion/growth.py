"""Small models with weights as training leaves them: nothing is at its initial value, scales differ."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from modelchain.families import ModelConfig, TextSpec, VisionSpec
from modelchain.resolved import ResolvedExpansion
from modelchain.spec import DepthExpansion, WidthExpansion
from modelchain_trainer.expansion import embedding_map, expand
from modelchain_trainer.model import Clip, build_model, model_from

CONTEXT = 10
EXACT = ResolvedExpansion()
PAPER = ResolvedExpansion(width=WidthExpansion.SLICE, depth=DepthExpansion.INTERLEAVE)


@dataclass(frozen=True)
class Batch:
    images: Tensor
    tokens: Tensor


@dataclass(frozen=True)
class Errors:
    """Of the large model's embeddings against the small one's turned by the embedding map.

    Relative to how much the small one's differ from sample to sample: what all have in common would hide errors.
    """

    image: float
    text: float
    similarity: float  # largest difference of cosine similarities
    image_cosine: float  # smallest cosine between an image's embedding before and after


@dataclass(frozen=True)
class Grown:
    small: Clip
    large: Clip
    batch: Batch

    def errors(self) -> Errors:
        """How far the two models' functions are apart."""
        with torch.no_grad():
            map_FE = embedding_map(self.small.config.embed_dim, self.large.config.embed_dim)
            images = self.batch.images.to(self.large.logit_scale.dtype)
            before = (
                self.small.encode_image(images, normalize=False),
                self.small.encode_text(self.batch.tokens, normalize=False),
            )
            turned = [embedding.double() @ map_FE for embedding in before]
            after = [
                self.large.encode_image(images, normalize=False).double(),
                self.large.encode_text(self.batch.tokens, normalize=False).double(),
            ]
            image, text = [
                float((a - b).norm() / (b - b.mean(dim=0)).norm()) for a, b in zip(after, turned, strict=True)
            ]
            units = [[torch.nn.functional.normalize(x, dim=-1) for x in pair] for pair in (turned, after)]
            similarities = [pair[0] @ pair[1].T for pair in units]
            return Errors(
                image,
                text,
                float((similarities[0] - similarities[1]).abs().max()),
                float((units[0][0] * units[1][0]).sum(-1).min()),
            )


def config_of(
    vision: tuple[int, int] = (16, 2),
    text: tuple[int, int] = (16, 2),
    *,
    embed: int = 12,
    image: int = 24,
    patch: int = 8,
    head_width: int = 8,
    vision_head: int | None = None,
    text_head: int | None = None,
    vision_ratio: float = 4.0,
    text_ratio: float = 4.0,
    quick_gelu: bool = False,
    context: int = CONTEXT,
    tower: Mapping[str, Any] | None = None,
    causal: bool = True,
) -> ModelConfig:
    """A small model: (width, layers) of each tower, heads of 8 channels, 9 patches; `tower` are more settings of
    the image tower, `causal` is of the text tower."""
    return ModelConfig(
        embed_dim=embed,
        quick_gelu=quick_gelu,
        vision=VisionSpec(
            image_size=image,
            patch_size=patch,
            width=vision[0],
            layers=vision[1],
            head_width=vision_head or head_width,
            mlp_ratio=vision_ratio,
            **(tower or {}),
        ),
        text=TextSpec(
            context_length=context,
            vocab_size=49408,
            width=text[0],
            layers=text[1],
            heads=text[0] // (text_head or head_width),
            mlp_ratio=text_ratio,
            causal=causal,
        ),
    )


def trained(config: ModelConfig, *, dtype: torch.dtype = torch.float64, strength: float = 1.0) -> Clip:
    """A model whose weights look trained: attention is sharp, units saturate, channels differ in size.

    `strength` 0 is the initial state.
    """
    model = build_model(config, seed=0).double()
    generator = torch.Generator().manual_seed(0)

    def noise(*shape: int) -> Tensor:
        return strength * torch.randn(shape, generator=generator, dtype=torch.float64)

    with torch.no_grad():
        for name, parameter in model.named_parameters():
            module, _, kind = name.rpartition(".")
            if name == "logit_scale":
                parameter.fill_(3.7)
            elif name == "logit_bias":
                parameter.fill_(-8.3)
            elif module.rpartition(".")[2].startswith("ln_"):
                parameter.add_((0.3 if kind == "weight" else 0.5) * noise(*parameter.shape))
            elif parameter.ndim == 1:
                parameter.add_(0.2 * noise(*parameter.shape))
            else:
                rows = (0.5 * noise(parameter.shape[0], *[1] * (parameter.ndim - 1))).exp()
                columns = (0.5 * noise(*parameter.shape[1:])).exp()
                gain = 1 + strength if "resblocks" in name or "embedding" in name else 1
                parameter.mul_(rows * columns * gain)
    return model.to(dtype)


def batch_of(config: ModelConfig, *, seed: int = 0, size: int = 6) -> Batch:
    """Images, and texts of all lengths."""
    generator = torch.Generator().manual_seed(seed)
    side = config.vision.image_size
    images = torch.randn(size, 3, side, side, generator=generator, dtype=torch.float64)
    tokens = torch.zeros(size, config.text.context_length, dtype=torch.int64)
    for number, row in enumerate(tokens):
        length = 1 + number % (config.text.context_length - 2)
        row[0], row[length + 1] = 49406, 49407
        row[1 : length + 1] = torch.randint(1, 500, (length,), generator=generator)
    return Batch(images, tokens)


def grow(
    small: ModelConfig,
    large: ModelConfig,
    expansion: ResolvedExpansion = EXACT,
    *,
    dtype: torch.dtype = torch.float64,
    strength: float = 1.0,
) -> Grown:
    """Grow a trained-like model of the first configuration into one of the second."""
    before = trained(small, dtype=dtype, strength=strength)
    state = expand(before.state_dict(), small, large, expansion, seed=7)
    return Grown(before, model_from(state, large), batch_of(small))
