"""The whole growth, tensor by tensor, for every family of models: by the spaces of each parameter's axes."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from modelchain.errors import UserDataError
from modelchain.families import AnyConfig
from modelchain.growth import is_copy
from modelchain.resolved import ResolvedExpansion
from modelchain.spec import WidthExpansion
from modelchain_trainer.expansion.depth import Source, source_of
from modelchain_trainer.expansion.heads import widened
from modelchain_trainer.expansion.paper import fill_leading
from modelchain_trainer.expansion.plan import plan_expansion
from modelchain_trainer.expansion.resize import resized
from modelchain_trainer.expansion.spaces import (
    BeforeNorm,
    BeforeScale,
    Copied,
    Copies,
    Fixed,
    Reading,
    SpaceGrowth,
    Stream,
    TiedReading,
    Turned,
)
from modelchain_trainer.model.build import generator_for, initial_tensor, parameter_shapes
from modelchain_trainer.model.families import layout_of
from modelchain_trainer.model.layout import Kind, Layout, Parameter, Side, Space

_NEW_BLOCK_OFFSET = 0.25


@torch.no_grad()
def expand(
    small: Mapping[str, Tensor],
    small_config: AnyConfig,
    large_config: AnyConfig,
    expansion: ResolvedExpansion,
    *,
    seed: int,
) -> dict[str, Tensor]:
    """The state dict of the large model, in the small one's dtype; it shares no memory with `small`.

    Equal arguments give equal tensors, and equal models a copy under any expansion. At any time only one tensor
    beyond the result is held. Raises ConfigurationError if the large model cannot grow out of the small one, and
    UserDataError if `small` is not of `small_config`.
    """
    if is_copy(small_config, large_config):
        _check_state(small, large_config)
        return {name: small[name].clone() for name in parameter_shapes(large_config)}
    plan_expansion(small_config, large_config, expansion)
    _check_state(small, small_config)
    before, after = layout_of(small_config), layout_of(large_config)
    growths = space_growths(before, after, expansion, small)
    grown: dict[str, Tensor] = {}
    for name, shape in parameter_shapes(large_config).items():
        source = source_of(name, before, after, expansion.depth)
        parameter = after.parameters[name]
        tensor = resized(small[source.name], parameter, before, after)

        def fresh(part: tuple[int, int], name: str = name, dtype: torch.dtype = tensor.dtype) -> Tensor:
            return initial_tensor(name, part, large_config, seed=seed, dtype=dtype)

        if expansion.width is not WidthExpansion.SLICE:
            tensor = widened(tensor, parameter, before, after, fresh)
        if source.silent and parameter.writes:
            grown[name] = tensor.new_zeros(shape)
        elif expansion.width is WidthExpansion.SLICE:
            new = initial_tensor(name, shape, large_config, seed=seed, dtype=tensor.dtype)
            grown[name] = fill_leading(new, tensor, parameter)
        else:
            reading = Reading(
                generator_for(f"split {name}", seed=seed),
                fresh,
                extra=_extra(source, parameter, before, after),
            )
            grown[name] = _grow(tensor, parameter, growths, reading)
        assert grown[name].shape == shape, name
    return grown


def space_growths(
    small: Layout,
    large: Layout,
    expansion: ResolvedExpansion,
    state: Mapping[str, Tensor] | None = None,
) -> Mapping[str, SpaceGrowth]:
    """How each space of the large model comes out of that of the small one, whose weights are `state`."""
    padded = expansion.width is WidthExpansion.PADDED
    spaces = {axis.space for parameter in large.parameters.values() for axis in parameter.axes}

    def stream(name: str) -> Stream:
        return Stream(small.sizes[name], large.sizes[name], padded)

    def gain(space: Space, size: int) -> Tensor:
        if state is None:
            return torch.ones(size)
        return state[source_of(space.gain, small, large, expansion.depth).name]

    def growth(space: Space) -> SpaceGrowth:
        # Of heads: once they are as wide as in the large model, see `widened`.
        wider = large.head_widths.get(space.name, 1) / small.head_widths.get(space.name, 1)
        before, after = round(small.size(space) * wider), large.size(space)
        match space.kind:
            case Kind.STREAM:
                return stream(space.name)
            case Kind.BEFORE_NORM:
                return BeforeNorm(stream(space.stream), gain(space, before))
            case Kind.BEFORE_SCALE:
                return BeforeScale(stream(space.stream), gain(space, before))
            case Kind.TIED_READING:
                return TiedReading(stream(space.stream))
            case Kind.COPIES:
                return Copied(Copies(before, after), padded)
            case Kind.EMBEDDING:
                return Turned(before, after)
            case Kind.FIXED | Kind.GRID | Kind.PATCH:  # the latter two are resized beforehand
                return Fixed()

    return {space.name: growth(space) for space in spaces}


def _grow(
    tensor: Tensor, parameter: Parameter, growths: Mapping[str, SpaceGrowth], reading: Reading
) -> Tensor:
    """What is produced first, then what is consumed: new rows are split like old ones. Always a new tensor."""
    grown = tensor
    for dim, axis in enumerate(parameter.axes):
        if axis.side is Side.OUT:
            growth = growths[axis.space.name]
            if axis.parts == 1:
                grown = growth.write(grown, dim)
            else:
                parts = grown.unflatten(dim, (axis.parts, -1))
                grown = growth.write(parts, dim + 1).flatten(dim, dim + 1)
    for dim, axis in enumerate(parameter.axes):
        growth = growths[axis.space.name]
        if axis.side in (Side.GAIN, Side.SHIFT):
            grown = growth.normalise(grown, axis.side, reading.generator)
        elif axis.side is Side.IN and axis.space.kind is not Kind.FIXED:
            rows = grown.movedim(dim, -1)
            read = growth.read(rows.flatten(0, -2), reading)
            grown = read.unflatten(0, rows.shape[:-1]).movedim(-1, dim).contiguous()
    return tensor.clone() if grown is tensor else grown


def _extra(source: Source, parameter: Parameter, small: Layout, large: Layout) -> float:
    """In a block that writes nothing yet, what is new computes something else from the start."""
    grows = any(
        axis.side is Side.OUT and small.size(axis.space) < large.size(axis.space) for axis in parameter.axes
    )
    return _NEW_BLOCK_OFFSET if source.silent and grows else 0.0


def _check_state(state: Mapping[str, Tensor], config: AnyConfig) -> None:
    expected = parameter_shapes(config)
    if state.keys() != expected.keys():
        different = sorted(state.keys() ^ expected.keys())
        raise UserDataError(f"the predecessor's weights do not fit its configuration: {different[0]}")
    for name, shape in expected.items():
        if state[name].shape != shape:
            raise UserDataError(
                f"the predecessor's weights do not fit its configuration: {name} has shape "
                f"{list(state[name].shape)}, not {list(shape)}"
            )
