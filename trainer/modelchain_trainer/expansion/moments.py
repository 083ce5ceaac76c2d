"""AdamW's moments of a grown model, from those of its predecessor.

A grown parameter begins with the moments that its gradients would have left behind, had the large model been
there before. Where growth keeps the function with copies (`Exact`), the chain rule says what these are: a
matrix that *reads* from copies gets, at each of them, the gradient that it had at their source; what *writes*
c copies gets at each of them its share of the gradient, 1 / c on average. So first moments are repeated and
divided by the number of copies along the axes that are written, second moments by its square. Where growth
scales the residual stream (by kappa: widths that do not divide under `Exact`, all under `Padded`), gradients of
what writes into it shrink by that factor, those of the gammas that scale it back grow by it.

What is new (blocks that are identities, the tail of an odd width, all but the leading part under `Slice` and
`Padded`) begins at zero: the asymmetric reset of SPARKLING (arXiv 2602.02472), which found it decisive. There
the count of steps, which is carried over too, corrects no bias: the first updates of what is new are 0.7 to 1.6
times the learning rate.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from modelchain.families import AnyConfig
from modelchain.growth import is_copy
from modelchain.resolved import ResolvedExpansion
from modelchain.spec import WidthExpansion
from modelchain_trainer.expansion.depth import source_of
from modelchain_trainer.expansion.expand import space_growths
from modelchain_trainer.expansion.heads import widened_moment
from modelchain_trainer.expansion.paper import fill_leading
from modelchain_trainer.expansion.resize import resized
from modelchain_trainer.expansion.spaces import SpaceGrowth
from modelchain_trainer.model.build import parameter_shapes
from modelchain_trainer.model.families import layout_of
from modelchain_trainer.model.layout import Parameter


@torch.no_grad()
def expand_moments(
    small: Mapping[str, Tensor],
    small_config: AnyConfig,
    large_config: AnyConfig,
    expansion: ResolvedExpansion,
    *,
    power: int,
) -> dict[str, Tensor]:
    """One moment of the large model's parameters, from that of the small one's; none of those whose source was locked.

    `power` is 1 for averages of gradients, 2 for averages of their squares. Shares no memory with `small`.
    """
    if is_copy(small_config, large_config):
        return {name: small[name].clone() for name in parameter_shapes(large_config) if name in small}
    before, after = layout_of(small_config), layout_of(large_config)
    growths = space_growths(before, after, expansion)
    grown: dict[str, Tensor] = {}
    for name, shape in parameter_shapes(large_config).items():
        source = source_of(name, before, after, expansion.depth)
        if source.name not in small:
            continue
        parameter = after.parameters[name]
        tensor = resized(small[source.name], parameter, before, after)
        if source.silent:
            grown[name] = tensor.new_zeros(shape)
            continue
        if expansion.width is not WidthExpansion.SLICE:
            tensor = widened_moment(tensor, parameter, before, after, power)
        tensor = tensor * _scale(parameter, growths, expansion.width) ** power
        if expansion.width is WidthExpansion.EXACT:
            grown[name] = _lifted(tensor, parameter, growths, power)
        else:
            grown[name] = fill_leading(tensor.new_zeros(shape), tensor, parameter)
        if power == 2:
            grown[name].clamp_(min=0)  # resampling may go below
    return grown


def _scale(parameter: Parameter, growths: Mapping[str, SpaceGrowth], width: WidthExpansion) -> float:
    """What growth multiplies the gradient of a parameter with by scaling its spaces."""
    if width is WidthExpansion.SLICE:
        return 1.0
    return math.prod(growths[axis.space.name].scale(axis.side) for axis in parameter.axes)


def _lifted(tensor: Tensor, parameter: Parameter, growths: Mapping[str, SpaceGrowth], power: int) -> Tensor:
    """Repeated along every axis that has copies, and divided along those that are written."""
    for dim, axis in enumerate(parameter.axes):
        growth = growths[axis.space.name]
        if axis.parts == 1:
            tensor = growth.moment(tensor, dim, axis.side, power)
        else:
            parts = tensor.unflatten(dim, (axis.parts, -1))
            tensor = growth.moment(parts, dim + 1, axis.side, power).flatten(dim, dim + 1)
    return tensor
