"""How a model starts: the distributions of its family, drawn from generators of our own.

Each tensor has its own generator, seeded by (seed, name): a tensor's numbers depend on nothing else, neither
on the order in which tensors are made nor on torch's global generator. So growth can draw one tensor at a
time.

Which distribution a parameter has stands in its family's layout.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import overload

import torch
from torch import Tensor

from modelchain.families import (
    AnyConfig,
    ClassifierConfig,
    LanguageModelConfig,
    ModelConfig,
    OpenClipConfig,
)
from modelchain_trainer.model.classifier import Classifier
from modelchain_trainer.model.clip import Clip
from modelchain_trainer.model.families import AnyModel, family_of, layout_of
from modelchain_trainer.model.language_model import LanguageModel
from modelchain_trainer.model.open_clip_adapter import OpenClip


@overload
def build_model(config: ModelConfig, *, seed: int) -> Clip: ...
@overload
def build_model(config: ClassifierConfig, *, seed: int) -> Classifier: ...
@overload
def build_model(config: LanguageModelConfig, *, seed: int) -> LanguageModel: ...
@overload
def build_model(config: OpenClipConfig, *, seed: int) -> OpenClip: ...
@overload
def build_model(config: AnyConfig, *, seed: int) -> AnyModel: ...
def build_model(config: AnyConfig, *, seed: int) -> AnyModel:
    """A new model on the CPU in fp32. Raises ConfigurationError for sizes that do not divide."""
    family = family_of(config)
    model = family.build(config, None)
    if family.initialise is not None:
        family.initialise(model, generator_for("initial weights", seed=seed))
        return model
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(initial_tensor(name, parameter.shape, config, seed=seed))
    return model


@overload
def model_from(state: Mapping[str, Tensor], config: ModelConfig) -> Clip: ...
@overload
def model_from(state: Mapping[str, Tensor], config: ClassifierConfig) -> Classifier: ...
@overload
def model_from(state: Mapping[str, Tensor], config: LanguageModelConfig) -> LanguageModel: ...
@overload
def model_from(state: Mapping[str, Tensor], config: OpenClipConfig) -> OpenClip: ...
@overload
def model_from(state: Mapping[str, Tensor], config: AnyConfig) -> AnyModel: ...
def model_from(state: Mapping[str, Tensor], config: AnyConfig) -> AnyModel:
    """A model around these tensors, which are not copied. Raises ConfigurationError for sizes that do not
    divide."""
    model = family_of(config).build(config, "meta")
    model.load_state_dict(dict(state), assign=True)
    return model


def parameter_shapes(config: AnyConfig) -> Mapping[str, torch.Size]:
    """Name and shape of every parameter, in the order of the state dict; nothing is allocated."""
    return {
        name: tensor.shape for name, tensor in family_of(config).build(config, "meta").state_dict().items()
    }


def initial_tensor(
    name: str,
    shape: torch.Size | tuple[int, ...],
    config: AnyConfig,
    *,
    seed: int,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Fresh numbers in the distribution that the parameter `name` of a model `config` starts with.

    `shape` may be that of a part of the parameter (growth draws only what is new); the scale is the whole
    one's.
    """
    generator = generator_for(name, seed=seed)
    tensor = torch.empty(shape, dtype=dtype)
    start = layout_of(config).parameters[name].start
    if start.kind == "constant":
        return tensor.fill_(start.scale)
    if start.kind == "uniform":
        return tensor.uniform_(-start.scale, start.scale, generator=generator)
    return tensor.normal_(0.0, start.scale, generator=generator)


def generator_for(purpose: str, *, seed: int) -> torch.Generator:
    """A CPU generator for one purpose, independent of all others of the same seed."""
    digest = hashlib.sha256(f"{seed}/{purpose}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
