"""The families of models, by the type of their configuration: how each is built, and how it is described."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch

from modelchain.spec import Block, ModelConfig
from modelchain_trainer.model.clip import Clip
from modelchain_trainer.model.clip_layout import clip_layout
from modelchain_trainer.model.layout import Layout

AnyConfig: TypeAlias = ModelConfig
AnyModel: TypeAlias = Clip


@dataclass(frozen=True)
class Family:
    """One family of models, to torch."""

    build: Callable[[AnyConfig, torch.device | str | None], AnyModel]  # allocated, not initialised
    layout: Callable[..., Layout]  # of a configuration


FAMILIES: dict[type[Block], Family] = {
    ModelConfig: Family(lambda config, device: Clip(config, device=device), clip_layout)
}


def family_of(config: AnyConfig) -> Family:
    """The family of a configuration."""
    return FAMILIES[type(config)]


def layout_of(config: AnyConfig) -> Layout:
    """What every axis of every parameter of a model means."""
    return family_of(config).layout(config)
