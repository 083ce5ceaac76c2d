"""Another image size or patch size: positions are interpolated, patch filters resampled. Resampled.

Positions: bicubic with antialiasing, as open_clip does when it loads weights at another size. Filters:
where patches grow, the pseudo-inverse resize of FlexiViT (Beyer et al., arXiv 2212.08013): an enlarged
patch meets the response that the patch met. Where they shrink, the transpose of enlarging: a patch meets
the response that it would have met enlarged. (There FlexiViT's choice is the best one for patches of white
noise, which pictures are not.) So a model whose patches change is exact on images that are enlarged with
them.

Shape suffixes: T tokens, D width, p and q sides of a patch.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from modelchain_trainer.model.layout import Kind, Layout, Parameter


def resized(tensor: Tensor, parameter: Parameter, small: Layout, large: Layout) -> Tensor:
    """A small model's tensor at the large model's image and patch size."""
    grid, patch = parameter.axis(Kind.GRID), parameter.axis(Kind.PATCH)
    if grid is not None:
        space = parameter.axes[grid].space
        if small.size(space) != large.size(space):
            side = math.isqrt(large.size(space) - space.prefix)
            return resize_positions(tensor, side, prefix=space.prefix)
    if patch is not None:
        return resample_filters(tensor, large.size(parameter.axes[patch].space))
    return tensor


def resize_positions(positions_TD: Tensor, side: int, *, prefix: int = 1) -> Tensor:
    """Positional embeddings [prefix + side * side, D] from those of another square grid; those of the first
    `prefix` tokens are kept."""
    grid = positions_TD[prefix:]
    old_side = math.isqrt(len(grid))
    if old_side == side:
        return positions_TD
    image = grid.reshape(1, old_side, old_side, -1).permute(0, 3, 1, 2)
    image = F.interpolate(image, size=(side, side), mode="bicubic", antialias=True, align_corners=False)
    return torch.cat([positions_TD[:prefix], image[0].permute(1, 2, 0).flatten(0, 1)])


def resample_filters(filters_DCpp: Tensor, side: int) -> Tensor:
    """Patch filters [D, C, side, side] that respond to patches at another resolution as `filters_DCpp` did."""
    old_side = filters_DCpp.shape[-1]
    if old_side == side:
        return filters_DCpp
    grows = side > old_side
    matrix_qp = (
        torch.linalg.pinv(resize_matrix(old_side, side)).T if grows else resize_matrix(side, old_side).T
    )
    matrix_qp = matrix_qp.to(filters_DCpp.dtype)
    return matrix_qp @ filters_DCpp @ matrix_qp.T


def resize_matrix(old: int, new: int) -> Tensor:
    """The matrix [new, old] (fp64) of bilinear, antialiased resizing along one axis."""
    eye = torch.eye(old, dtype=torch.float64)[None, None]
    return F.interpolate(eye, size=(new, old), mode="bilinear", antialias=True, align_corners=False)[0, 0]
