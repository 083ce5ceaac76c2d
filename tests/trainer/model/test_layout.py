"""The layout of a family says of each parameter what is true of its module."""

from __future__ import annotations

import pytest

from modelchain.families import AnyConfig
from modelchain_trainer.model.build import parameter_shapes
from modelchain_trainer.model.families import layout_of
from modelchain_trainer.model.layout import Kind, Side
from tests.trainer.expansion.growth import config_of

CONFIGS = {
    "clip": config_of(vision=(24, 3), text=(32, 2), embed=12, image=32, vision_ratio=3.0, text_ratio=5.0),
}


@pytest.mark.parametrize("family", CONFIGS)
def test_every_parameter_of_the_module_is_described_with_its_shape(family: str) -> None:
    config: AnyConfig = CONFIGS[family]
    layout = layout_of(config)
    shapes = {name: tuple(shape) for name, shape in parameter_shapes(config).items()}
    assert {name: layout.shape(name) for name in layout.parameters} == shapes


@pytest.mark.parametrize("family", CONFIGS)
def test_what_is_read_is_written_and_names_of_blocks_fit(family: str) -> None:
    layout = layout_of(CONFIGS[family])
    axes = [axis for parameter in layout.parameters.values() for axis in parameter.axes]
    written = {axis.space for axis in axes if axis.side is Side.OUT}
    for axis in axes:
        if axis.side is Side.IN and axis.space.kind is not Kind.FIXED:
            assert axis.space in written, axis.space.name
    for name, parameter in layout.parameters.items():
        if parameter.block is not None:
            assert name == f"{parameter.block.tower}{parameter.block.number}.{parameter.block.leaf}"
            assert parameter.block.number < layout.depths[parameter.block.tower]
