"""How the spaces of a model grow: what is written into a larger one, and what reads from it.

The rule for each kind of space, as `expansion.expand` applies it to every axis of every parameter. Two ways of
width growth keep the function: with copies (`Exact`), or with room for what is new (`Padded`).

**The residual stream.** Write D and E for the small and the large width, n = E // D, r = E - n*D, kappa = sqrt(E /
(n*D)). The large stream is held at

    y = kappa * [x, ..., x (n copies), mean(x) * ones(r)]

Its mean is kappa * mean(x) and its variance is that of x, so LayerNorm, with its own epsilon, normalises the
copies to kappa times what it makes of x and the r tail entries to 0. (With r = 0 the stream is n plain
copies.) Hence

- writers into the stream (out_proj, c_proj, embeddings) write kappa * [A, ..., A, mean(A)] along the stream
  axis;
- norms that feed readers use gamma / kappa and beta on the copies, and beta 0 on the tail;
- readers of the stream (q, k, v, c_fc, the final projections) read [W1, ..., Wn | tail] with W1 + ... + Wn =
  W, and anything on the tail, which is 0: random numbers at initial scale, so that it learns.

**Heads and units.** New ones repeat the old ones in turn; whoever reads them splits its weight among the repeats.

Copies must not stay copies. If a split were even, or merely in constant proportion, copies would receive the
same gradient up to a factor, which Adam removes, and would never part. So each weight W[o, s], read from
copies k of source s, is split as W * (1/c + offset_k * sign_os): random signs, and offsets that differ
from copy to copy and sum to zero. Copies then receive gradients that differ in direction. In a block that is
new (an identity block writes nothing, so nothing has to be kept in it) the offsets need not sum to zero, and
its repeated heads and units compute different things from the start.

**A norm whose output is the stream** (CLIP's ln_pre). On the copies it keeps gamma, and kappa * beta. The tail
must become kappa * mean(gamma * x_hat + beta), whose first part depends on the input unless gamma is uniform
or r = 0. It is linear in the norm's input though, g(x) = mean((gamma - mean(gamma)) * x), so the writers
before the norm give it to the tail: kappa * mean(x) + s_j * g(x) with sum(s) = 0, and gamma there is
kappa / s_j. Means are kept exactly; the variance is too large by sum(s^2) / E * g(x)^2, of second order: a
relative error of 1e-6 to 1e-4 in place of the 3e-3 to 5e-3 of a constant tail. It cannot be removed
altogether: the tail would have to be a tight frame of the stream, which takes r >= D - 1.

**A factor for each channel of what is written** (LayerScale: gamma * A). It stays gamma on the copies. The tail must
become kappa * mean(gamma * A), which is linear in A: the tail of the writers is that mean over a factor of its own.

**A tied table** writes tokens into the stream and reads scores from it. It is grown as what it writes, kappa * [W,
..., W, mean(W)], and reads all copies with the same weights; so the norm before it hands out unequal shares of
gamma / kappa^2 and beta / kappa that sum to one.

`Padded` holds the stream with a single copy and a tail of all that is new, so that the old model stays as it is.
New heads and MLP units repeat the old ones in turn too (copied fan-in), but nothing reads them (zero fan-out):
their readers learn from the first step, and then they part from what they were copied from. It is the best of four
growths of width in SPARKLING (arXiv 2602.02472, table 6).

After Net2Net (Chen et al., 1511.05641), LEMON (2310.07999; average expansion for odd widths), HyperCloning
(2409.12903) and MSG (2305.02869). The signed split, the differing identity blocks, the shares of a tied table and
the tail of ln_pre are ours.

Moments: what a growth makes of the averages of gradients (`power` 1) and of their squares (2); see `moments`.

Shape suffixes: D, E widths; R rows of a matrix; S sources and L their copies.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from modelchain_trainer.expansion.embedding import embedding_map
from modelchain_trainer.model.layout import Side

_NORM_STEP = 0.25  # s above: smaller is more exact, but gamma grows as 1 / s

Fresh = Callable[
    [tuple[int, int]], Tensor
]  # new numbers [rows, columns] in a parameter's initial distribution


@dataclass(frozen=True)
class Copies:
    """A larger axis whose entry j repeats entry j mod `small`: heads and units in turn, heads as wholes."""

    small: int
    large: int

    def repeat(self, tensor: Tensor, dim: int = 0) -> Tensor:
        """The sources along `dim`, repeated. A new tensor."""
        whole, rest = divmod(self.large, self.small)
        return torch.cat([tensor] * whole + [tensor.narrow(dim, 0, rest)] * (rest > 0), dim)

    def share(self, tensor: Tensor, dim: int, power: int) -> Tensor:
        """As `repeat`, each divided by the number of its copies to the power."""
        shape = [1] * tensor.ndim
        shape[dim] = -1
        count = torch.bincount(torch.arange(self.large) % self.small, minlength=self.small)
        return self.repeat(tensor / count.to(tensor.dtype).view(shape) ** power, dim)

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
class Reading:
    """What a reader of a grown space needs besides its weights."""

    generator: torch.Generator
    fresh: Fresh
    extra: float = 0.0  # of a block that is new, see `Copies.split`


class SpaceGrowth:
    """One space before and after. Every method returns a new tensor, unless nothing grows.

    What no family asks of a kind of space is not implemented there: nothing reads an embedding, for example.
    """

    def write(self, tensor: Tensor, dim: int) -> Tensor:
        """A tensor that produces into the space along `dim`."""
        raise NotImplementedError

    def read(self, weight_RS: Tensor, reading: Reading) -> Tensor:
        """A matrix that consumes from the space along its columns."""
        raise NotImplementedError

    def normalise(self, vector_D: Tensor, side: Side, generator: torch.Generator) -> Tensor:
        """The factor (GAIN) or the summand (SHIFT) of a norm that reads the space."""
        raise NotImplementedError

    def scale(self, side: Side) -> float:  # noqa: ARG002
        """What growth multiplies the gradient of a parameter with, by scaling the space."""
        return 1.0

    def moment(self, tensor: Tensor, dim: int, side: Side, power: int) -> Tensor:
        """A moment of a parameter along `dim`, but for `scale`."""
        raise NotImplementedError


@dataclass(frozen=True)
class Fixed(SpaceGrowth):
    """A space that stays as it is."""

    def write(self, tensor: Tensor, dim: int) -> Tensor:  # noqa: ARG002
        return tensor

    def read(self, weight_RS: Tensor, reading: Reading) -> Tensor:  # noqa: ARG002
        return weight_RS

    def moment(self, tensor: Tensor, dim: int, side: Side, power: int) -> Tensor:  # noqa: ARG002
        return tensor


@dataclass(frozen=True)
class Turned(SpaceGrowth):
    """An embedding, turned into the larger space (see `expansion.embedding`)."""

    small: int
    large: int

    def write(self, tensor: Tensor, dim: int) -> Tensor:
        if self.small == self.large:
            return tensor
        assert dim == tensor.ndim - 1, "an embedding is the last axis of what writes it"
        return tensor @ embedding_map(self.small, self.large).to(tensor.dtype)

    def moment(self, tensor: Tensor, dim: int, side: Side, power: int) -> Tensor:  # noqa: ARG002
        return tensor @ embedding_map(self.small, self.large).to(tensor.dtype).pow(power)


@dataclass(frozen=True)
class Copied(SpaceGrowth):
    """Heads or units."""

    copies: Copies
    padded: bool  # what is new is read by nobody at first

    def write(self, tensor: Tensor, dim: int) -> Tensor:
        return self.copies.repeat(tensor, dim)

    def read(self, weight_RS: Tensor, reading: Reading) -> Tensor:
        if not self.padded:
            return self.copies.split(weight_RS, reading.generator)
        new = weight_RS.new_zeros(weight_RS.shape[0], self.copies.large - self.copies.small)
        return torch.cat([weight_RS, new], dim=1)

    def moment(self, tensor: Tensor, dim: int, side: Side, power: int) -> Tensor:
        if side is Side.IN:
            return self.copies.repeat(tensor, dim)
        return self.copies.share(tensor, dim, power)


@dataclass(frozen=True)
class Stream(SpaceGrowth):
    """The residual stream of a tower."""

    width: int
    large_width: int
    padded: bool = False  # one copy, and a tail of all that is new

    @property
    def copies(self) -> Copies:
        """The stream without its tail."""
        return Copies(self.width, self.large_width - self.tail)

    @property
    def tail(self) -> int:
        """Entries that are no copies."""
        return self.large_width - self.width if self.padded else self.large_width % self.width

    @property
    def kappa(self) -> float:
        """What the stream is multiplied with, so that the tail does not lessen its variance."""
        return math.sqrt(self.large_width / (self.large_width - self.tail))

    def write(self, tensor: Tensor, dim: int) -> Tensor:
        """kappa * [A, ..., A, mean(A)] along `dim`."""
        if not self.tail:
            return self.copies.repeat(tensor, dim)
        shape = list(tensor.shape)
        shape[dim] = self.tail
        tail = tensor.mean(dim, keepdim=True).expand(shape)
        copied = [tensor] * (self.copies.large // self.width)
        return torch.cat([*copied, tail], dim).mul_(self.kappa)

    def read(self, weight_RS: Tensor, reading: Reading) -> Tensor:
        """[W1, ..., Wn | random] with W1 + ... + Wn = W (if `reading.extra` is 0)."""
        split = self.copies.split(weight_RS, reading.generator, extra=reading.extra)
        if not self.tail:
            return split
        return self.with_tail(split, reading.fresh((weight_RS.shape[0], self.tail)), dim=1)

    def normalise(self, vector_D: Tensor, side: Side, generator: torch.Generator) -> Tensor:  # noqa: ARG002
        """Of a norm that feeds readers. The tail's gain is of the others' size: it scales the tail's gradient."""
        copied = self.copies.repeat(vector_D)
        if side is Side.SHIFT:
            return self.with_tail(copied, vector_D.new_zeros(self.tail))
        return self.with_tail(copied, vector_D.abs().mean().expand(self.tail)) / self.kappa

    def scale(self, side: Side) -> float:
        return {Side.OUT: 1 / self.kappa, Side.GAIN: self.kappa}.get(side, 1.0)

    def moment(self, tensor: Tensor, dim: int, side: Side, power: int) -> Tensor:
        """With zeros for the tail."""
        read = side is Side.IN
        copied = self.copies.repeat(tensor, dim) if read else self.copies.share(tensor, dim, power)
        shape = list(copied.shape)
        shape[dim] = self.tail
        return torch.cat([copied, copied.new_zeros(shape)], dim)

    def with_tail(self, copied: Tensor, tail: Tensor, dim: int = 0) -> Tensor:
        """Copies with their tail behind them, if they have one."""
        return torch.cat([copied, tail], dim) if self.tail else copied


@dataclass(frozen=True)
class BeforeNorm(SpaceGrowth):
    """The input of a norm whose output is the stream. `gain` [D] is that norm's factor in the small model."""

    stream: Stream
    gain: Tensor

    def write(self, tensor: Tensor, dim: int) -> Tensor:
        """As into the stream, plus s_j * g(A) on the tail."""
        grown, tail = self.stream.write(tensor, dim), self.stream.tail
        if tail:
            centred_D = (self.gain - self.gain.mean()) / len(self.gain)
            g = (tensor.movedim(dim, -1) @ centred_D).unsqueeze(-1) * self._steps(tensor.dtype)
            grown.narrow(dim, grown.shape[dim] - tail, tail).add_(g.movedim(-1, dim))
        return grown

    def normalise(self, vector_D: Tensor, side: Side, generator: torch.Generator) -> Tensor:  # noqa: ARG002
        assert side is Side.GAIN, "the norm's summand writes into the stream"
        tail = self.stream.kappa / self._steps(vector_D.dtype)
        return self.stream.with_tail(self.stream.copies.repeat(vector_D), tail)

    def scale(self, side: Side) -> float:
        return 1 / self.stream.kappa if side is Side.OUT else 1.0

    def moment(self, tensor: Tensor, dim: int, side: Side, power: int) -> Tensor:
        return self.stream.moment(tensor, dim, side, power)

    def _steps(self, dtype: torch.dtype) -> Tensor:
        """s: one number for each tail entry, of both signs, that sum to zero (a lone one can't)."""
        positive = (self.stream.tail + 1) // 2
        negative = self.stream.tail - positive
        steps = torch.full((self.stream.tail,), _NORM_STEP, dtype=dtype)
        if negative:
            steps[positive:] *= -positive / negative
        return steps


@dataclass(frozen=True)
class BeforeScale(SpaceGrowth):
    """What a factor for each channel turns into the stream. `gain` [D] is that factor in the small model."""

    stream: Stream
    gain: Tensor

    def write(self, tensor: Tensor, dim: int) -> Tensor:
        """kappa * [A, ..., A, mean(gain * A) / tail's gain]."""
        grown, tail = self.stream.write(tensor, dim), self.stream.tail
        if tail:
            shares_D = self.gain * (self.stream.kappa / len(self.gain) / self._tail_gain())
            summed = (tensor.movedim(dim, -1) @ shares_D).unsqueeze(-1).movedim(-1, dim)
            target = grown.narrow(dim, grown.shape[dim] - tail, tail)
            target.copy_(summed.expand_as(target))
        return grown

    def normalise(self, vector_D: Tensor, side: Side, generator: torch.Generator) -> Tensor:  # noqa: ARG002
        assert side is Side.GAIN, "such a factor has no summand"
        tail = vector_D.new_full((self.stream.tail,), self._tail_gain())
        return self.stream.with_tail(self.stream.copies.repeat(vector_D), tail)

    def scale(self, side: Side) -> float:
        return 1 / self.stream.kappa if side is Side.OUT else 1.0

    def moment(self, tensor: Tensor, dim: int, side: Side, power: int) -> Tensor:
        return self.stream.moment(tensor, dim, side, power)

    def _tail_gain(self) -> float:
        """Any number but 0 is exact; one of the others' size is learnt as they are."""
        return float(self.gain.abs().mean()) or 1.0


@dataclass(frozen=True)
class TiedReading(SpaceGrowth):
    """The output of a norm that is read by the table which writes into its stream."""

    stream: Stream

    def normalise(self, vector_D: Tensor, side: Side, generator: torch.Generator) -> Tensor:
        """Shares that sum to the whole over the copies."""
        shares = self.stream.copies.split(vector_D[None], generator)[0]
        if side is Side.SHIFT:
            return self.stream.with_tail(shares, vector_D.new_zeros(self.stream.tail)) / self.stream.kappa
        tail = vector_D.abs().mean().expand(self.stream.tail)
        return self.stream.with_tail(shares, tail) / self.stream.kappa**2

    def scale(self, side: Side) -> float:
        return self.stream.kappa**2 if side is Side.GAIN else self.stream.kappa

    def moment(self, tensor: Tensor, dim: int, side: Side, power: int) -> Tensor:  # noqa: ARG002
        """Every copy is read with the whole weight, hence gets the whole gradient."""
        return self.stream.moment(tensor, dim, Side.IN, power)


def _signs(rows: int, columns: int, generator: torch.Generator, dtype: torch.dtype) -> Tensor:
    """Random signs [rows, columns]: each row a window, at a place of its own, of one long random vector.

    Drawing every element would cost more than all the rest of the growth.
    """
    line = torch.randint(0, 2, (rows + columns,), generator=generator).to(dtype) * 2 - 1
    return line.unfold(0, columns, 1)[torch.randperm(rows, generator=generator)]
