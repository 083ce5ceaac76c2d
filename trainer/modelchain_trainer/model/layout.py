"""What every axis of every parameter of a model means: enough to initialise it, and to grow it.

A parameter's axis lies in a *space* of the model: the residual stream of a tower, the channels of its heads, the
units of its MLPs, the shared embedding, ... All axes in one space have one size and grow together. A *side* says
what the parameter does there:

    OUT    it produces into the space (embeddings, the rows of a linear layer)
    IN     it consumes from it (the columns of a linear layer)
    GAIN   it is the factor of a norm that reads the space
    SHIFT  it is the summand of such a norm

`modelchain_trainer.expansion` needs nothing else: a family of models that describes its parameters so is grown by
the one engine, whatever their names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal


class Side(StrEnum):
    """What a parameter does with a space."""

    OUT = "out"
    IN = "in"
    GAIN = "gain"
    SHIFT = "shift"


class Kind(StrEnum):
    """How a space grows."""

    FIXED = "fixed"  # it does not: colours, vocabulary, classes
    STREAM = "stream"  # the residual stream of a tower
    BEFORE_NORM = "before-norm"  # what a norm turns into a stream
    BEFORE_SCALE = "before-scale"  # what a factor for each channel (LayerScale) turns into a stream
    TIED_READING = (
        "tied-reading"  # the output of a norm that is read by a table which writes into the stream too
    )
    COPIES = "copies"  # heads or units, each of which may be there more than once
    EMBEDDING = "embedding"  # features that are only compared by their inner products
    GRID = "grid"  # the patches of an image, and the tokens before them
    PATCH = "patch"  # one side of a patch, in pixels


@dataclass(frozen=True)
class Space:
    """A space of a model. Those with a `stream` (BEFORE_NORM, BEFORE_SCALE, TIED_READING) are as wide as that."""

    name: str
    kind: Kind
    stream: str = ""
    gain: str = ""  # BEFORE_NORM, BEFORE_SCALE: the parameter that is the factor
    prefix: int = 0  # GRID: tokens before the patches


@dataclass(frozen=True)
class Axis:
    """One axis of a parameter. `parts` matrices of the space's size stand along it (q, k and v: 3)."""

    space: Space
    side: Side = Side.OUT
    parts: int = 1


@dataclass(frozen=True)
class Start:
    """The distribution of a new parameter: a constant, uniform within +-scale, or normal of that deviation."""

    kind: Literal["constant", "uniform", "normal"]
    scale: float


@dataclass(frozen=True)
class InBlock:
    """Where a parameter of a repeated block stands: its name is `tower` + number + "." + `leaf`."""

    tower: str
    number: int
    leaf: str


@dataclass(frozen=True)
class Parameter:
    """One parameter: its axes in order, how it starts, and its block, if it is in one."""

    axes: tuple[Axis, ...]
    start: Start
    block: InBlock | None = None

    @property
    def writes(self) -> bool:
        """Whether it is what its block adds to the residual stream."""
        return self.block is not None and any(
            axis.space.kind in (Kind.STREAM, Kind.BEFORE_SCALE) and axis.side is Side.OUT
            for axis in self.axes
        )

    def axis(self, kind: Kind) -> int | None:
        """The first axis in a space of that kind; None if there is none."""
        return next((place for place, axis in enumerate(self.axes) if axis.space.kind is kind), None)


@dataclass(frozen=True)
class Layout:
    """A model's parameters, the sizes of its spaces and of its towers."""

    parameters: Mapping[str, Parameter]
    sizes: Mapping[str, int]  # of spaces, by name; those that belong to a stream are left out
    depths: Mapping[str, int]  # blocks of each tower
    head_widths: Mapping[str, int] = field(default_factory=dict)  # channels of a head, where they may widen

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a parameter."""
        return tuple(axis.parts * self.size(axis.space) for axis in self.parameters[name].axes)

    def size(self, space: Space) -> int:
        """The size of a space."""
        return self.sizes[space.stream or space.name]


ZERO, ONE = Start("constant", 0.0), Start("constant", 1.0)


def normal(deviation: float) -> Start:
    """Normal numbers of mean 0."""
    return Start("normal", deviation)


def uniform(bound: float) -> Start:
    """Numbers between -bound and bound."""
    return Start("uniform", bound)


def norm(name: str, space: Space, block: InBlock | None = None) -> dict[str, Parameter]:
    """A LayerNorm `name` that reads `space`; `block` is where it stands, without its leaf's last part."""
    return {
        f"{name}.{part}": Parameter((Axis(space, side),), start, block and _below(block, part))
        for part, side, start in (("weight", Side.GAIN, ONE), ("bias", Side.SHIFT, ZERO))
    }


@dataclass(frozen=True)
class BlockStarts:
    """How the parameters of a transformer's blocks start; biases of attention and norms at zero."""

    in_proj: Start
    out_proj: Start
    c_fc: Start
    c_fc_bias: Start
    c_proj: Start
    c_proj_bias: Start


@dataclass(frozen=True)
class TowerSpaces:
    """The spaces of a tower of pre-norm transformer blocks."""

    stream: Space
    heads: Space
    units: Space

    @classmethod
    def named(cls, name: str) -> TowerSpaces:
        """The spaces of the tower `name`."""
        return cls(
            Space(f"{name}.stream", Kind.STREAM),
            Space(f"{name}.heads", Kind.COPIES),
            Space(f"{name}.units", Kind.COPIES),
        )

    def sizes(self, width: int, units: int) -> dict[str, int]:
        """Their sizes; the channels of all heads are as many as those of the stream."""
        return {self.stream.name: width, self.heads.name: width, self.units.name: units}


def transformer(
    tower: str, spaces: TowerSpaces, layers: int, starts: BlockStarts, layer_scale: float | None = None
) -> dict[str, Parameter]:
    """The blocks of `modelchain_trainer.model.transformer.Transformer`, whose names begin with `tower`.

    `layer_scale` is where the factors of what blocks add start, if there are any.
    """
    stream, heads, units = spaces.stream, spaces.heads, spaces.units
    reads, heads_in, units_in = Axis(stream, Side.IN), Axis(heads, Side.IN), Axis(units, Side.IN)
    heads_out, units_out = Axis(heads, parts=3), Axis(units)
    parameters: dict[str, Parameter] = {}
    for number in range(layers):
        first, second = InBlock(tower, number, "ln_1"), InBlock(tower, number, "ln_2")
        attention = mlp = stream
        if layer_scale is not None:
            attention, mlp = (_scaled(stream, f"{tower}{number}.ls_{place}") for place in (1, 2))
            for place, space in enumerate((attention, mlp), 1):
                block = InBlock(tower, number, f"ls_{place}.gamma")
                parameters[space.gain] = Parameter(
                    (Axis(space, Side.GAIN),), Start("constant", layer_scale), block
                )
        products = {
            "attn.in_proj_weight": (starts.in_proj, heads_out, reads),
            "attn.in_proj_bias": (ZERO, heads_out),
            "attn.out_proj.weight": (starts.out_proj, Axis(attention), heads_in),
            "attn.out_proj.bias": (ZERO, Axis(attention)),
            "mlp.c_fc.weight": (starts.c_fc, units_out, reads),
            "mlp.c_fc.bias": (starts.c_fc_bias, units_out),
            "mlp.c_proj.weight": (starts.c_proj, Axis(mlp), units_in),
            "mlp.c_proj.bias": (starts.c_proj_bias, Axis(mlp)),
        }
        parameters |= norm(f"{tower}{number}.ln_1", stream, first)
        parameters |= norm(f"{tower}{number}.ln_2", stream, second)
        for leaf, (start, *axes) in products.items():
            parameters[f"{tower}{number}.{leaf}"] = Parameter(
                tuple(axes), start, InBlock(tower, number, leaf)
            )
    return parameters


def _scaled(stream: Space, name: str) -> Space:
    """What the factor `name`.gamma turns into the stream."""
    return Space(name, Kind.BEFORE_SCALE, stream.name, f"{name}.gamma")


def _below(block: InBlock, part: str) -> InBlock:
    return InBlock(block.tower, block.number, f"{block.leaf}.{part}")
