"""Attention heads of more channels: a model with the same heads and the same function, before any head is added.

An attention score is q . k / sqrt(K) over a head's K channels. With K' channels the old ones of q are multiplied by
sqrt(K' / K), and the new ones are 0: scores stay, whatever the new channels of k are. Those of k and v begin with new
numbers, and nothing reads the new ones of v at first. So q and the output projection learn from the first step, and k
and v, through them, from the second.

It is open_clip's way from ViT-L (64 channels) to H (80), g (88) and bigG (104): the number of heads stays at 16.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from modelchain_trainer.model.layout import Layout, Parameter, Side

_QKV = 3  # parts of what writes into heads, in this order


def widened(
    tensor: Tensor,
    parameter: Parameter,
    small: Layout,
    large: Layout,
    fresh: Callable[[tuple[int, int]], Tensor] | None,
) -> Tensor:
    """The parameter in a model that differs from the small one in the width of its heads alone.

    `fresh` gives new numbers [rows, columns] for k and v; None leaves them at 0. The tensor itself where nothing is
    wider.
    """
    return _widened(tensor, parameter, small, large, fresh, power=1)


def widened_moment(tensor: Tensor, parameter: Parameter, small: Layout, large: Layout, power: int) -> Tensor:
    """A moment of the parameter likewise: gradients of q shrink by what q grows. What is new begins at 0."""
    return _widened(tensor, parameter, small, large, None, power=-power)


def _widened(
    tensor: Tensor,
    parameter: Parameter,
    small: Layout,
    large: Layout,
    fresh: Callable[[tuple[int, int]], Tensor] | None,
    *,
    power: int,
) -> Tensor:
    for dim, axis in enumerate(parameter.axes):
        name = axis.space.name
        before, after = small.head_widths.get(name, 1), large.head_widths.get(name, 1)
        if before == after:
            continue
        heads = small.sizes[name] // before
        if axis.side is Side.IN:
            parts = tensor.unflatten(dim, (heads, before))
            shape = list(parts.shape)
            shape[dim + 1] = after - before
            tensor = torch.cat([parts, parts.new_zeros(shape)], dim + 1).flatten(dim, dim + 1)
            continue
        assert dim == 0, "heads are the rows of what writes into them"
        assert axis.parts == _QKV, "q, k and v"
        q, k, v = tensor.unflatten(0, (_QKV, heads, before))
        new = tensor.new_zeros(2, heads, after - before, *tensor.shape[1:])
        if fresh is not None and tensor.ndim == 2:  # biases of attention begin at 0
            new.copy_(fresh((new[..., 0].numel(), tensor.shape[1])).view_as(new))
        scaled = torch.cat([q * math.sqrt(after / before) ** power, torch.zeros_like(new[0])], 1)
        grown = [scaled, torch.cat([k, new[0]], 1), torch.cat([v, new[1]], 1)]
        tensor = torch.stack(grown).flatten(0, 2)
    return tensor
