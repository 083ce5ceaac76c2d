"""The paper's width growth: the small tensors fill the leading part of a freshly initialised large model.

"Chain-of-Models Pre-Training", arXiv 2604.12391, parameter space. Every tensor of the small model is copied
into the leading slice along each axis; the rest keeps its initial numbers. The function is not kept: norms
see the new channels, and new units, heads and channels feed noise into the old ones.

One deviation from the authors' program, not from the paper: there `in_proj_weight` [3D, D] is one slice,
which puts the small model's keys and values where the large one has queries. Here q, k and v are sliced each
for itself, which also keeps heads whole, as the head width never changes.
"""

from __future__ import annotations

from torch import Tensor

from modelchain_trainer.model.layout import Parameter


def fill_leading(fresh: Tensor, small: Tensor, parameter: Parameter) -> Tensor:
    """`fresh`, a tensor of the large model, with `small` written into its leading part. In place."""
    target, source = fresh, small
    for dim, axis in reversed(list(enumerate(parameter.axes))):
        if axis.parts > 1:
            target, source = (tensor.unflatten(dim, (axis.parts, -1)) for tensor in (target, source))
    target[tuple(slice(size) for size in source.shape)] = source
    return fresh
