"""AdamW's moments of a grown model, from those of its predecessor.

A grown parameter begins with the moments that its gradients would have left behind, had the large model been
there before. Where growth keeps the function with copies (`Exact`), the chain rule says what these are: a
matrix that *reads* from copies gets, at each of them, the gradient that it had at their source; what *writes*
c copies gets at each of them its share of the gradient, 1 / c on average. So first moments are repeated and
divided by the number of copies along the axes that are written, second moments by its square. What is new
(blocks that are identities, the tail of an odd width, all but the leading part under `Slice` and `Padded`)
begins at zero: the asymmetric reset of SPARKLING (arXiv 2602.02472), which found it decisive.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from modelchain.resolved import ResolvedExpansion
from modelchain.spec import DepthExpansion, ModelConfig, WidthExpansion
from modelchain_trainer.expansion.depth import Source, source_of
from modelchain_trainer.expansion.embedding import embedding_map
from modelchain_trainer.expansion.exact import Copies, Tower, tower_of
from modelchain_trainer.expansion.paper import fill_leading
from modelchain_trainer.expansion.resize import resized
from modelchain_trainer.model.build import parameter_shapes


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
    towers = {vision: tower_of(small_config, large_config, vision=vision) for vision in (True, False)}
    grown: dict[str, Tensor] = {}
    for name, shape in parameter_shapes(large_config).items():
        source = source_of(name, small_config, large_config, expansion.depth)
        tensor = resized(small[source.name], source, large_config)
        zeros = tensor.new_zeros(shape)
        if source.new_block and expansion.depth is DepthExpansion.IDENTITY:
            grown[name] = zeros
        elif expansion.width is WidthExpansion.EXACT:
            if source.leaf in {"proj", "text_projection"}:
                turn = embedding_map(small_config.embed_dim, large_config.embed_dim).to(tensor.dtype)
                tensor = tensor @ turn.pow(power)
            grown[name] = _lifted(tensor, source, towers[source.vision], power)
        else:
            grown[name] = fill_leading(zeros, tensor, source.leaf)
        if power == 2:
            grown[name].clamp_(min=0)  # resampling may go below
    return grown


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
