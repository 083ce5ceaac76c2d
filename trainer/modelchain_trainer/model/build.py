"""How a model starts: open_clip's distributions, drawn from generators of our own.

Each tensor has its own generator, seeded by (seed, name): a tensor's numbers depend on nothing else, neither
on the order in which tensors are made nor on torch's global generator. So growth can draw one tensor at a
time.

The distributions are those of open_clip's `VisionTransformer` (torch's defaults for attention and linear
layers) and `TextTransformer.init_parameters` (after Radford et al., arXiv 2103.00020).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping

import torch
from torch import Tensor

from modelchain.spec import ModelConfig
from modelchain_trainer.model.clip import CHANNELS, Clip

INITIAL_LOGIT_SCALE = math.log(1 / 0.07)


def build_model(config: ModelConfig, *, seed: int) -> Clip:
    """A new model on the CPU in fp32. Raises ConfigurationError for sizes that do not divide."""
    model = Clip(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(initial_tensor(name, parameter.shape, config, seed=seed))
    return model


def model_from(state: Mapping[str, Tensor], config: ModelConfig) -> Clip:
    """A model around these tensors, which are not copied. Raises ConfigurationError for sizes that do not
    divide."""
    model = Clip(config, device="meta")
    model.load_state_dict(dict(state), assign=True)
    return model


def parameter_shapes(config: ModelConfig) -> Mapping[str, torch.Size]:
    """Name and shape of every parameter, in the order of the state dict; nothing is allocated."""
    return {name: tensor.shape for name, tensor in Clip(config, device="meta").state_dict().items()}


def initial_tensor(
    name: str,
    shape: torch.Size | tuple[int, ...],
    config: ModelConfig,
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
    kind, scale = _distribution(name, config)
    if kind == "constant":
        return tensor.fill_(scale)
    if kind == "uniform":
        return tensor.uniform_(-scale, scale, generator=generator)
    return tensor.normal_(0.0, scale, generator=generator)


def generator_for(purpose: str, *, seed: int) -> torch.Generator:
    """A CPU generator for one purpose, independent of all others of the same seed."""
    digest = hashlib.sha256(f"{seed}/{purpose}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def _distribution(name: str, config: ModelConfig) -> tuple[str, float]:
    """("constant", value), ("uniform", bound) or ("normal", standard deviation)."""
    if name == "logit_scale":
        return "constant", INITIAL_LOGIT_SCALE
    leaf = (
        name.rpartition("resblocks.")[2].partition(".")[2]
        if "resblocks." in name
        else name.removeprefix("visual.")
    )
    module, _, kind = leaf.rpartition(".")
    if module.startswith("ln_") or module in {"ln_1", "ln_2"}:
        return "constant", 1.0 if kind == "weight" else 0.0
    if leaf in {"attn.in_proj_bias", "attn.out_proj.bias"}:
        return "constant", 0.0
    if name.startswith("visual."):
        return _vision_distribution(leaf, config)
    return _text_distribution(leaf, config)


def _vision_distribution(leaf: str, config: ModelConfig) -> tuple[str, float]:
    vision = config.vision
    if leaf in {"class_embedding", "positional_embedding", "proj"}:
        return "normal", vision.width**-0.5
    if leaf == "conv1.weight":
        return "uniform", (CHANNELS * vision.patch_size**2) ** -0.5
    if leaf == "attn.in_proj_weight":  # Xavier: fan-in and fan-out of the three matrices as one
        return "uniform", math.sqrt(6 / (3 * vision.width + vision.width))
    return "uniform", _fan_in(leaf, vision.width, vision.hidden_width) ** -0.5


def _text_distribution(leaf: str, config: ModelConfig) -> tuple[str, float]:
    text = config.text
    deep = text.width**-0.5 * (2 * text.layers) ** -0.5
    standard_deviations = {
        "token_embedding.weight": 0.02,
        "positional_embedding": 0.01,
        "text_projection": text.width**-0.5,
        "attn.in_proj_weight": text.width**-0.5,
        "attn.out_proj.weight": deep,
        "mlp.c_fc.weight": (2 * text.width) ** -0.5,
        "mlp.c_proj.weight": deep,
    }
    if leaf in standard_deviations:
        return "normal", standard_deviations[leaf]
    return "uniform", _fan_in(leaf, text.width, text.hidden_width) ** -0.5


def _fan_in(leaf: str, width: int, hidden: int) -> int:
    return hidden if leaf.startswith("mlp.c_proj") else width
