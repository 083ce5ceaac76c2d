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

from collections.abc import Mapping

import torch
from torch import Tensor

from modelchain.resolved import ResolvedExpansion
from modelchain.spec import ModelConfig, WidthExpansion
from modelchain_trainer.expansion.depth import Source, source_of
from modelchain_trainer.expansion.embedding import embedding_map
from modelchain_trainer.expansion.exact import Copies, Tower, tower_of
from modelchain_trainer.expansion.paper import fill_leading
from modelchain_trainer.expansion.resize import resized
from modelchain_trainer.model.build import parameter_shapes

_PROJECTIONS = frozenset({"proj", "text_projection"})
_SCALING_BACK = frozenset({"ln_1.weight", "ln_2.weight", "ln_post.weight", "ln_final.weight"})
_INTO_STREAM = frozenset(
    {
        "token_embedding.weight",
        "positional_embedding",
        "class_embedding",
        "conv1.weight",
        "ln_pre.bias",
        "attn.out_proj.weight",
        "attn.out_proj.bias",
        "mlp.c_proj.weight",
        "mlp.c_proj.bias",
    }
)


@torch.no_grad()
def expand_moments(
    small: Mapping[str, Tensor],
    small_config: ModelConfig,
    large_config: ModelConfig,
    expansion: ResolvedExpansion,
    *,
    power: int,
) -> dict[str, Tensor]:
    """One moment of every parameter of the large model, from that of the small one's parameters.

    `power` is 1 for averages of gradients, 2 for averages of their squares. Shares no memory with `small`.
    """
    towers = {
        vision: tower_of(small_config, large_config, expansion.width, vision=vision)
        for vision in (True, False)
    }
    turn = embedding_map(small_config.embed_dim, large_config.embed_dim)
    grown: dict[str, Tensor] = {}
    for name, shape in parameter_shapes(large_config).items():
        source = source_of(name, small_config, large_config, expansion.depth)
        tensor = resized(small[source.name], source, large_config)
        tower = towers[source.vision]
        if source.silent:
            grown[name] = tensor.new_zeros(shape)
            continue
        tensor = tensor * _scale(source, tower, expansion.width) ** power
        if expansion.width is WidthExpansion.EXACT:
            if source.leaf in _PROJECTIONS:
                tensor = tensor @ turn.to(tensor.dtype).pow(power)
            grown[name] = _lifted(tensor, source, tower, power)
        else:
            grown[name] = fill_leading(tensor.new_zeros(shape), tensor, source.leaf)
        if power == 2:
            grown[name].clamp_(min=0)  # resampling may go below
    return grown


def _scale(source: Source, tower: Tower, width: WidthExpansion) -> float:
    """What growth multiplies the gradient of a parameter with by scaling the stream."""
    if width is WidthExpansion.SLICE:
        return 1.0
    if source.leaf in _SCALING_BACK:
        return tower.kappa
    return 1 / tower.kappa if source.leaf in _INTO_STREAM else 1.0


def _lifted(tensor: Tensor, source: Source, tower: Tower, power: int) -> Tensor:
    """Repeated along every axis that has copies, and divided along those that are written."""
    heads, units = tower.heads, tower.units
    match source.leaf:
        case "attn.in_proj_weight":
            rows = _written(tensor.unflatten(0, (3, -1)), heads, 1, power).flatten(0, 1)
            return _stream(rows, tower, 1)
        case "attn.in_proj_bias":
            return _written(tensor.unflatten(0, (3, -1)), heads, 1, power).flatten()
        case "attn.out_proj.weight":
            return heads.repeat(_stream(tensor, tower, 0, power), dim=1)
        case "mlp.c_fc.weight":
            return _stream(_written(tensor, units, 0, power), tower, 1)
        case "mlp.c_fc.bias":
            return _written(tensor, units, 0, power)
        case "mlp.c_proj.weight":
            return units.repeat(_stream(tensor, tower, 0, power), dim=1)
        case "proj" | "text_projection":
            return _stream(tensor, tower, 0)
        case "token_embedding.weight" | "positional_embedding":
            return _stream(tensor, tower, 1, power)
        case "logit_scale":
            return tensor.clone()
    return _stream(tensor, tower, 0, power)  # norms, biases, patches, the class token


def _written(tensor: Tensor, copies: Copies, dim: int, power: int) -> Tensor:
    shape = [1] * tensor.ndim
    shape[dim] = -1
    count = torch.bincount(torch.arange(copies.large) % copies.small, minlength=copies.small)
    return copies.repeat(tensor / count.to(tensor.dtype).view(shape) ** power, dim)


def _stream(tensor: Tensor, tower: Tower, dim: int, power: int = 0) -> Tensor:
    """Along the residual stream, with zeros for its tail; `power` 0 where it is read."""
    copied = _written(tensor, tower.stream, dim, power) if power else tower.stream.repeat(tensor, dim)
    shape = list(copied.shape)
    shape[dim] = tower.tail
    return torch.cat([copied, copied.new_zeros(shape)], dim)
