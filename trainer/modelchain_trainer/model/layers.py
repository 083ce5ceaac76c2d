"""torch's layers without numbers of their own, and the front of an image tower.

Shape suffixes: B images, C colours, N patches, D width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from modelchain.errors import ConfigurationError
from modelchain.families import AnyConfig, VisionSpec
from modelchain.growth import unbuildable

CHANNELS = 3


def check_buildable(config: AnyConfig) -> None:
    """Raise ConfigurationError for a configuration that is no model: sizes that do not divide."""
    for part, message, remedy in unbuildable(config):
        raise ConfigurationError(f"{'.'.join(part)}: {message}; {remedy}")


# torch's layers fill themselves with numbers that `build_model` or a state dict replaces at once. Skipping
# that also keeps torch._dynamo out: random numbers on the meta device import it.
class Linear(nn.Linear):
    def reset_parameters(self) -> None:
        """Left to `build_model`."""


class LayerNorm(nn.LayerNorm):
    def reset_parameters(self) -> None:
        """Left to `build_model`."""


class Embedding(nn.Embedding):
    def reset_parameters(self) -> None:
        """Left to `build_model`."""


class PatchEmbedding(nn.Conv2d):
    """A convolution whose stride is its kernel size, as one matrix product: [B, 3, S, S] -> [B, N, D]."""

    def reset_parameters(self) -> None:
        """Left to `build_model`."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (the name torch gives it)
        B, C, height, width = input.shape
        patch = self.kernel_size[0]
        rows, columns = height // patch, width // patch
        patches = input.reshape(B, C, rows, patch, columns, patch).permute(0, 2, 4, 1, 3, 5)
        return F.linear(patches.reshape(B, rows * columns, -1), self.weight.flatten(1), self.bias)


def keep_patches(x_BTD: Tensor, kept_BK: Tensor | None, *, class_token: bool = True) -> Tensor:
    """The class token, if any, and the patches at these places (None: all) of an image tower's input: [B, 1 + K, D]."""
    if kept_BK is None:
        return x_BTD
    places_BK = F.pad(kept_BK + 1, (1, 0)) if class_token else kept_BK
    return x_BTD.gather(1, places_BK[:, :, None].expand(-1, -1, x_BTD.shape[2]))


def vision_heads(vision: VisionSpec) -> int:
    """Attention heads of the image tower."""
    return vision.width // vision.head_width


def grid_side(vision: VisionSpec) -> int:
    """Patches along one side of the image."""
    return vision.image_size // vision.patch_size


def empty(*shape: int, device: torch.device | str | None) -> nn.Parameter:
    return nn.Parameter(torch.empty(shape, device=device))
