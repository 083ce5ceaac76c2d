"""Width growth that keeps the function: with copies (`Exact`), or with room for what is new (`Padded`).

Write D and E for the small and the large width, n = E // D, r = E - n*D, kappa = sqrt(E / (n*D)). The large
residual stream is held at

    y = kappa * [x, ..., x (n copies), mean(x) * ones(r)]

Its mean is kappa * mean(x) and its variance is that of x, so LayerNorm, with its own epsilon, normalises the
copies to kappa times what it makes of x and the r tail entries to 0. (With r = 0 the stream is n plain
copies.) Hence

- writers into the stream (out_proj, c_proj, embeddings) write kappa * [A, ..., A, mean(A)] along the stream
  axis;
- norms that feed readers use gamma / kappa and beta on the copies, and beta 0 on the tail;
- readers of the stream (q, k, v, c_fc, the final projections) read [W1, ..., Wn | tail] with W1 + ... + Wn =
  W, and anything on the tail, which is 0: random numbers at initial scale, so that it learns;
- new heads and MLP units repeat the old ones in turn; whoever reads them splits its weight among the repeats.

Copies must not stay copies. If a split were even, or merely in constant proportion, copies would receive the
same gradient up to a factor, which Adam removes, and would never part. So each weight W[o, s], read from
copies k of source s, is split as W * (1/c + offset_k * sign_os): random signs, and offsets that differ
from copy to copy and sum to zero. Copies then receive gradients that differ in direction. In a block that is
new (an identity block writes nothing, so nothing has to be kept in it) the offsets need not sum to zero, and
its repeated heads and units compute different things from the start.

ln_pre is the one norm whose output *is* the stream. On the copies it keeps gamma, and kappa * beta. The tail
must become kappa * mean(gamma * x_hat + beta), whose first part depends on the input unless gamma is uniform
or r = 0. It is linear in the input of ln_pre though, g(x) = mean((gamma - mean(gamma)) * x), so the writers
before ln_pre give it to the tail: kappa * mean(x) + s_j * g(x) with sum(s) = 0, and ln_pre's gamma there is
kappa / s_j. Means are kept exactly; the variance is too large by sum(s^2) / E * g(x)^2, of second order: a
relative error of 1e-6 to 1e-5 in place of the 3e-3 to 5e-3 of a constant tail. It cannot be removed
altogether: the tail would have to be a tight frame of the stream, which takes r >= D - 1.

`Padded` holds the stream with a single copy and a tail of all that is new, so that the old model stays as it is.
New heads and MLP units repeat the old ones in turn too (copied fan-in), but nothing reads them (zero fan-out):
their readers learn from the first step, and then they part from what they were copied from. It is the best of four
growths of width in SPARKLING (arXiv 2602.02472, table 6).

After Net2Net (Chen et al., 1511.05641), LEMON (2310.07999; average expansion for odd widths), HyperCloning
(2409.12903) and MSG (2305.02869). The signed split, the differing identity blocks and the tail of ln_pre are
ours.

Shape suffixes: D, E widths; R rows of a matrix; S sources and L their copies; M MLP units.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from modelchain.spec import ModelConfig, WidthExpansion
from modelchain_trainer.expansion.depth import Source
from modelchain_trainer.model.build import generator_for, initial_tensor

_LN_PRE_STEP = 0.25  # s above: smaller is more exact, but gamma grows as 1 / s
_NEW_BLOCK_OFFSET = 0.25


@dataclass(frozen=True)
class Copies:
    """A larger axis whose entry j repeats entry j mod `small`: heads and units in turn, heads as wholes."""

    small: int
    large: int

    def repeat(self, tensor: Tensor, dim: int = 0) -> Tensor:
        """The sources along `dim`, repeated. A new tensor."""
        whole, rest = divmod(self.large, self.small)
        return torch.cat([tensor] * whole + [tensor.narrow(dim, 0, rest)] * (rest > 0), dim)

    def split(self, weight_RS: Tensor, generator: torch.Generator, *, extra: float = 0.0) -> Tensor:
        """Weights [R, L] that read from the copies what `weight_RS` reads from the sources. A new tensor.

        `extra` is added to the offsets: they no longer sum to zero, and the result no longer reads the same.
        """
        if self.small == self.large and not extra:
            return weight_RS.clone()
        number_L = (torch.arange(self.large) // self.small).double()  # index of the copy
        count_S = (self.large - torch.arange(self.small) + self.small - 1) // self.small
        count_L = self.repeat(count_S.double())
        offset_L = torch.where(count_L > 1, number_L * 2 / (count_L - 1).clamp(min=1) - 1, 0) / (2 * count_L)
        rows, columns = weight_RS.shape
        signed_RS = _signs(rows, columns, generator, weight_RS.dtype).mul_(weight_RS)
        split_RL = self.repeat(weight_RS, dim=1).div_(count_L.to(weight_RS.dtype))
        return split_RL.addcmul_(self.repeat(signed_RS, dim=1), (offset_L + extra).to(weight_RS.dtype))


@dataclass(frozen=True)
class Tower:
    """The sizes of one tower before and after."""

    width: int
    large_width: int
    units: Copies
    padded: bool = False  # one copy of the stream, and a tail of all that is new

    @property
    def stream(self) -> Copies:
        """The residual stream without its tail."""
        return Copies(self.width, self.large_width - self.tail)

    @property
    def heads(self) -> Copies:
        """The channels of all heads; their width is fixed, so they repeat as wholes."""
        return Copies(self.width, self.large_width)

    @property
    def tail(self) -> int:
        """Entries of the stream that are no copies."""
        return self.large_width - self.width if self.padded else self.large_width % self.width

    @property
    def kappa(self) -> float:
        """What the stream is multiplied with, so that the tail does not lessen its variance."""
        return math.sqrt(self.large_width / (self.large_width - self.tail))


def tower_of(small: ModelConfig, large: ModelConfig, width: WidthExpansion, *, vision: bool) -> Tower:
    """The image or the text tower's growth."""
    before, after = (small.vision, large.vision) if vision else (small.text, large.text)
    units = Copies(before.hidden_width, after.hidden_width)
    return Tower(before.width, after.width, units, padded=width is WidthExpansion.PADDED)


class ExactWidth:
    """Grows the tensors of one tower, one at a time."""

    def __init__(self, tower: Tower, large: ModelConfig, ln_pre_gamma_D: Tensor, *, seed: int) -> None:
        """`ln_pre_gamma_D` is the small model's; only the image tower has one, and needs it."""
        self._tower = tower
        self._large = large
        self._ln_pre_gamma_D = ln_pre_gamma_D
        self._seed = seed

    def grow(self, name: str, tensor: Tensor, source: Source) -> Tensor:
        """The large model's parameter `name` from the small model's `tensor`, its `source`."""
        heads, units = self._tower.heads, self._tower.units
        generator = generator_for(f"split {name}", seed=self._seed)
        extra_heads = _NEW_BLOCK_OFFSET if source.silent and heads.large > heads.small else 0.0
        extra_units = _NEW_BLOCK_OFFSET if source.silent and units.large > units.small else 0.0
        match source.leaf:
            case "attn.in_proj_weight":
                rows = heads.repeat(tensor.unflatten(0, (3, -1)), dim=1).flatten(0, 1)
                return self._read(name, rows, generator, extra=extra_heads)
            case "attn.in_proj_bias":
                return heads.repeat(tensor.unflatten(0, (3, -1)), dim=1).flatten()
            case "attn.out_proj.weight":
                return self._fan_out(self._write(tensor, dim=0), heads, generator)
            case "mlp.c_fc.weight":
                return self._read(name, units.repeat(tensor), generator, extra=extra_units)
            case "mlp.c_fc.bias":
                return units.repeat(tensor)
            case "mlp.c_proj.weight":
                return self._fan_out(self._write(tensor, dim=0), units, generator)
            case "proj" | "text_projection":
                return self._read(name, tensor.T, generator).T.contiguous()
            case "ln_pre.weight":
                return self._ln_pre_gamma(tensor)
            case "ln_1.weight" | "ln_2.weight" | "ln_post.weight" | "ln_final.weight":
                return self._gamma(tensor)
            case "ln_1.bias" | "ln_2.bias" | "ln_post.bias" | "ln_final.bias":
                return self._with_tail(self._tower.stream.repeat(tensor), tensor.new_zeros(self._tower.tail))
            case "token_embedding.weight":
                return self._write(tensor, dim=1)
            case "positional_embedding":
                return (
                    self._write_before_ln_pre(tensor, dim=1) if source.vision else self._write(tensor, dim=1)
                )
            case "class_embedding" | "conv1.weight":
                return self._write_before_ln_pre(tensor, dim=0)
            case "ln_pre.bias" | "attn.out_proj.bias" | "mlp.c_proj.bias":
                return self._write(tensor, dim=0)
            case "logit_scale":
                return tensor.clone()
        raise AssertionError(f"no rule to grow {name}")

    def _fan_out(self, weight_RS: Tensor, copies: Copies, generator: torch.Generator) -> Tensor:
        """Of heads or units: split among the copies, or all of it at the sources."""
        if not self._tower.padded:
            return copies.split(weight_RS, generator)
        new = weight_RS.new_zeros(weight_RS.shape[0], copies.large - copies.small)
        return torch.cat([weight_RS, new], dim=1)

    def _write(self, tensor: Tensor, dim: int) -> Tensor:
        """Into the stream: kappa * [A, ..., A, mean(A)] along `dim`."""
        if not self._tower.tail:
            return self._tower.stream.repeat(tensor, dim)
        shape = list(tensor.shape)
        shape[dim] = self._tower.tail
        tail = tensor.mean(dim, keepdim=True).expand(shape)
        copied = [tensor] * (self._tower.stream.large // self._tower.width)
        return torch.cat([*copied, tail], dim).mul_(self._tower.kappa)

    def _write_before_ln_pre(self, tensor: Tensor, dim: int) -> Tensor:
        """Into the input of ln_pre: as `_write`, plus s_j * g(A) on the tail."""
        grown = self._write(tensor, dim)
        if self._tower.tail:
            gamma_D = self._ln_pre_gamma_D
            centred_D = (gamma_D - gamma_D.mean()) / len(gamma_D)
            g = (tensor.movedim(dim, -1) @ centred_D).unsqueeze(-1) * self._steps(tensor.dtype)
            grown.narrow(dim, grown.shape[dim] - self._tower.tail, self._tower.tail).add_(g.movedim(-1, dim))
        return grown

    def _read(
        self, name: str, weight_RD: Tensor, generator: torch.Generator, *, extra: float = 0.0
    ) -> Tensor:
        """From the stream: [W1, ..., Wn | random] with W1 + ... + Wn = W (if `extra` is 0)."""
        split = self._tower.stream.split(weight_RD, generator, extra=extra)
        if not self._tower.tail:
            return split
        shape = (weight_RD.shape[0], self._tower.tail)
        tail = initial_tensor(name, shape, self._large, seed=self._seed, dtype=weight_RD.dtype)
        return self._with_tail(split, tail, dim=1)

    def _gamma(self, gamma_D: Tensor) -> Tensor:
        """Of a norm that feeds readers. The tail's is of their size: it scales the tail's gradient."""
        tail = gamma_D.abs().mean().expand(self._tower.tail)
        return self._with_tail(self._tower.stream.repeat(gamma_D), tail) / self._tower.kappa

    def _ln_pre_gamma(self, gamma_D: Tensor) -> Tensor:
        tail = self._tower.kappa / self._steps(gamma_D.dtype)
        return self._with_tail(self._tower.stream.repeat(gamma_D), tail)

    def _steps(self, dtype: torch.dtype) -> Tensor:
        """s: one number for each tail entry, of both signs, that sum to zero (a lone one can't)."""
        positive = (self._tower.tail + 1) // 2
        negative = self._tower.tail - positive
        steps = torch.full((self._tower.tail,), _LN_PRE_STEP, dtype=dtype)
        if negative:
            steps[positive:] *= -positive / negative
        return steps

    def _with_tail(self, copied: Tensor, tail: Tensor, dim: int = 0) -> Tensor:
        return torch.cat([copied, tail], dim) if self._tower.tail else copied


def _signs(rows: int, columns: int, generator: torch.Generator, dtype: torch.dtype) -> Tensor:
    """Random signs [rows, columns]: each row a window, at a place of its own, of one long random vector.

    Drawing every element would cost more than all the rest of the growth.
    """
    line = torch.randint(0, 2, (rows + columns,), generator=generator).to(dtype) * 2 - 1
    return line.unfold(0, columns, 1)[torch.randperm(rows, generator=generator)]
