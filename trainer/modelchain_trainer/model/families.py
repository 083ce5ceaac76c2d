"""The families of models, by the type of their configuration: how each is built, described, written and read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from modelchain.spec import AnyConfig, Block, ClassifierConfig, LanguageModelConfig, ModelConfig
from modelchain_trainer.model import gpt2_config, open_clip_config, timm_config
from modelchain_trainer.model.classifier import Classifier, classifier_layout
from modelchain_trainer.model.clip import Clip
from modelchain_trainer.model.clip_layout import clip_layout
from modelchain_trainer.model.language_model import LanguageModel, language_model_layout
from modelchain_trainer.model.layout import Layout

AnyModel: TypeAlias = Clip | Classifier | LanguageModel
State: TypeAlias = dict[str, Tensor]


def _same(state: Mapping[str, Tensor]) -> State:
    return dict(state)


@dataclass(frozen=True)
class Family:
    """One family of models, to torch. `Any` is its configuration."""

    build: Callable[[Any, torch.device | str | None], AnyModel]  # allocated, not initialised
    layout: Callable[[Any], Layout]
    to_config: Callable[[Any], dict[str, object]]  # the content of the file beside the published weights
    from_config: Callable[[object, str], AnyConfig]  # of that content; the text names the file in messages
    published_names: Callable[[Mapping[str, Tensor]], State] = (
        _same  # as whoever loads the weights calls them
    )
    own_names: Callable[[Mapping[str, Tensor]], State] = _same


FAMILIES: dict[type[Block], Family] = {
    ModelConfig: Family(
        build=lambda config, device: Clip(config, device=device),
        layout=clip_layout,
        to_config=open_clip_config.to_open_clip,
        from_config=open_clip_config.from_open_clip,
    ),
    ClassifierConfig: Family(
        build=lambda config, device: Classifier(config, device=device),
        layout=classifier_layout,
        to_config=timm_config.to_timm,
        from_config=timm_config.from_timm,
        published_names=timm_config.timm_names,
        own_names=timm_config.own_names,
    ),
    LanguageModelConfig: Family(
        build=lambda config, device: LanguageModel(config, device=device),
        layout=language_model_layout,
        to_config=gpt2_config.to_gpt2,
        from_config=gpt2_config.from_gpt2,
        published_names=gpt2_config.gpt2_names,
        own_names=gpt2_config.own_names,
    ),
}


def family_of(config: AnyConfig) -> Family:
    """The family of a configuration."""
    return FAMILIES[type(config)]


def layout_of(config: AnyConfig) -> Layout:
    """What every axis of every parameter of a model means."""
    return family_of(config).layout(config)
