"""Width growth by padding: the old model stays as it is, and what is new starts without effect.

Write D and E for the small and the large width. The large residual stream is held at

    y = sqrt(E / D) * [x - mean(x), 0, ..., 0]

Its mean is 0 and its variance that of x, so LayerNorm normalises the leading D entries to sqrt(E / D) times
what it makes of x and the others to 0. Nothing but norms reads the stream, so taking its mean out changes
nothing. Hence

- writers into the stream (out_proj, c_proj, embeddings) are centred along the stream axis, scaled by sqrt(E /
  D), and write zeros into the new entries;
- norms that feed readers use gamma * sqrt(D / E) and beta on the old entries, and beta 0 on the new ones;
- readers of the stream read the new entries, which are 0, with random numbers at initial scale, so that the
  writers into them learn from the first step;
- new heads and MLP units repeat the old ones in turn (copied fan-in), and nothing reads them (zero fan-out):
  their readers learn from the first step, and then they part from what they were copied from.

Only ln_pre, whose output *is* the stream, is not exact: the mean of gamma * x_hat depends on the input. Its
beta is centred, its gamma kept: an error of 3e-3 to 5e-3.

Zero fan-out with copied fan-in is the best of four growths of width in SPARKLING (arXiv 2602.02472, table 6).

Shape suffixes: D width; R rows of a matrix; S sources.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from modelchain.spec import ModelConfig
from modelchain_trainer.expansion.depth import Source
from modelchain_trainer.expansion.exact import Copies, Tower
from modelchain_trainer.model.build import initial_tensor


class PaddedWidth:
    """Grows the tensors of one tower, one at a time."""

    def __init__(self, tower: Tower, large: ModelConfig, *, seed: int) -> None:
        self._tower = tower
        self._large = large
        self._seed = seed
        self._kappa = math.sqrt(tower.large_width / tower.width)

    def grow(self, name: str, tensor: Tensor, source: Source) -> Tensor:
        """The large model's parameter `name` from the small model's `tensor`, its `source`."""
        heads, units = self._tower.heads, self._tower.units
        match source.leaf:
            case "attn.in_proj_weight":
                rows = heads.repeat(tensor.unflatten(0, (3, -1)), dim=1).flatten(0, 1)
                return self._read(name, rows)
            case "attn.in_proj_bias":
                return heads.repeat(tensor.unflatten(0, (3, -1)), dim=1).flatten()
            case "attn.out_proj.weight":
                return _without_effect(self._write(tensor, dim=0), heads)
            case "mlp.c_fc.weight":
                return self._read(name, units.repeat(tensor))
            case "mlp.c_fc.bias":
                return units.repeat(tensor)
            case "mlp.c_proj.weight":
                return _without_effect(self._write(tensor, dim=0), units)
            case "proj" | "text_projection":
                return self._read(name, tensor.T).T.contiguous()
            case "ln_pre.weight":
                return self._padded(tensor, 0, value=1.0)
            case "ln_1.weight" | "ln_2.weight" | "ln_post.weight" | "ln_final.weight":
                return self._padded(tensor, 0, value=float(tensor.abs().mean())) / self._kappa
            case "ln_1.bias" | "ln_2.bias" | "ln_post.bias" | "ln_final.bias":
                return self._padded(tensor, 0)
            case "token_embedding.weight" | "positional_embedding":
                return self._write(tensor, dim=1)
            case (
                "class_embedding" | "conv1.weight" | "ln_pre.bias" | "attn.out_proj.bias" | "mlp.c_proj.bias"
            ):
                return self._write(tensor, dim=0)
            case "logit_scale":
                return tensor.clone()
        raise AssertionError(f"no rule to grow {name}")

    def _write(self, tensor: Tensor, dim: int) -> Tensor:
        """Into the stream: centred and scaled along `dim`, then zeros. As it is where the width stays."""
        if self._tower.large_width == self._tower.width:
            return tensor.clone()
        return self._padded((tensor - tensor.mean(dim, keepdim=True)) * self._kappa, dim)

    def _read(self, name: str, weight_RD: Tensor) -> Tensor:
        """From the stream: [W | random]."""
        new = self._tower.large_width - self._tower.width
        if not new:
            return weight_RD.clone()
        shape = (weight_RD.shape[0], new)
        random = initial_tensor(name, shape, self._large, seed=self._seed, dtype=weight_RD.dtype)
        return torch.cat([weight_RD, random], dim=1)

    def _padded(self, tensor: Tensor, dim: int, value: float = 0.0) -> Tensor:
        shape = list(tensor.shape)
        shape[dim] = self._tower.large_width - self._tower.width
        return torch.cat([tensor, tensor.new_full(shape, value)], dim)


def _without_effect(weight_RS: Tensor, copies: Copies) -> Tensor:
    """Weights that read the sources as `weight_RS` does, and their copies not at all."""
    return torch.cat([weight_RS, weight_RS.new_zeros(weight_RS.shape[0], copies.large - copies.small)], dim=1)
