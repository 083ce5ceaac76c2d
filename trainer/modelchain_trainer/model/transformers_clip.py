"""CLIP models as transformers writes them (`CLIPModel`): config.json, and the names in model.safetensors.

They are read, never written. There q, k and v are matrices of their own, projections stand the other way round, and
how images are normalised stands in a file beside them, preprocessor_config.json.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

import torch
from pydantic import ValidationError
from torch import Tensor

from modelchain.block import first_problem
from modelchain.errors import UserDataError
from modelchain.families import ModelConfig
from modelchain_trainer.model.family import OtherFiles
from modelchain_trainer.model.layers import CHANNELS
from modelchain_trainer.model.open_clip_config import MEAN, STANDARD_DEVIATION, mapping, side

ARCHITECTURE: Final = "CLIPModel"
_NORM_EPSILON: Final = 1e-5
# transformers' own defaults (configuration_clip.py), which files of some versions leave out.
_TOWER: Final[Mapping[str, object]] = {
    "num_hidden_layers": 12,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": _NORM_EPSILON,
}
_VISION: Final[Mapping[str, object]] = _TOWER | {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_attention_heads": 12,
    "image_size": 224,
    "patch_size": 32,
    "num_channels": CHANNELS,
}
_TEXT: Final[Mapping[str, object]] = _TOWER | {
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_attention_heads": 8,
    "max_position_embeddings": 77,
    "vocab_size": 49408,
    "eos_token_id": 49407,
}
_ENDS: Final = (
    49407,
    2,
)  # of open_clip's tokenizer; 2 is of older files, which mean the largest token of a text
_PROJECTION: Final = 512
_ACTIVATIONS: Final[Mapping[str, bool]] = {"quick_gelu": True, "gelu": False}  # whether it is QuickGELU

_OUTSIDE: Final[Mapping[str, str]] = {
    "logit_scale": "logit_scale",
    "vision_model.embeddings.class_embedding": "visual.class_embedding",
    "vision_model.embeddings.patch_embedding.weight": "visual.conv1.weight",
    "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
    "vision_model.pre_layrnorm.weight": "visual.ln_pre.weight",
    "vision_model.pre_layrnorm.bias": "visual.ln_pre.bias",
    "vision_model.post_layernorm.weight": "visual.ln_post.weight",
    "vision_model.post_layernorm.bias": "visual.ln_post.bias",
    "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.final_layer_norm.weight": "ln_final.weight",
    "text_model.final_layer_norm.bias": "ln_final.bias",
}
_TURNED: Final[Mapping[str, str]] = {
    "visual_projection.weight": "visual.proj",
    "text_projection.weight": "text_projection",
}
_BLOCKS: Final[Mapping[str, str]] = {
    "vision_model.encoder.layers.": "visual.transformer.resblocks.",
    "text_model.encoder.layers.": "transformer.resblocks.",
}
_IN_BLOCKS: Final[Mapping[str, str]] = {
    "layer_norm1.": "ln_1.",
    "layer_norm2.": "ln_2.",
    "self_attn.out_proj.": "attn.out_proj.",
    "mlp.fc1.": "mlp.c_fc.",
    "mlp.fc2.": "mlp.c_proj.",
}
_MERGED: Final = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
_BUFFERS: Final = ".position_ids"  # numbers from 0 on, which files of older versions hold


def from_transformers(content: object, where: str) -> ModelConfig:
    """The model of a config.json. `where` names the file in messages.

    Raises UserDataError for any but a CLIPModel, and for one whose function differs from open_clip's.
    """
    whole = mapping(content, where)
    named = whole.get("architectures")
    architecture = named[0] if isinstance(named, list) and named else whole.get("model_type")
    if architecture not in (ARCHITECTURE, "clip") or whole.get("model_type", "clip") != "clip":
        raise UserDataError(
            f"{where}: of transformers' models of images and texts only {ARCHITECTURE} can be used, not {architecture}"
        )
    vision, text = _tower(whole, "vision", _VISION, where), _tower(whole, "text", _TEXT, where)
    activations = {_ACTIVATIONS.get(str(tower["hidden_act"])) for tower in (vision, text)}
    if len(activations) > 1 or None in activations:
        raise UserDataError(
            f"{where}: hidden_act is {vision['hidden_act']} of images and {text['hidden_act']} of texts; only "
            f"{' or '.join(_ACTIVATIONS)} of both can be used"
        )
    for name, part, key, usual in (
        ("vision", vision, "layer_norm_eps", (_NORM_EPSILON,)),
        ("text", text, "layer_norm_eps", (_NORM_EPSILON,)),
        ("vision", vision, "num_channels", (CHANNELS,)),
        ("text", text, "eos_token_id", _ENDS),
    ):
        if part[key] not in usual:
            choices = " or ".join(map(str, usual))
            raise UserDataError(f"{where}: {name}_config.{key} is {part[key]}; only {choices} can be used")
    document = {
        "embed_dim": whole.get("projection_dim", _PROJECTION),
        "quick_gelu": activations.pop(),
        "vision": {
            "image_size": side(vision["image_size"]),
            "patch_size": side(vision["patch_size"]),
            "width": vision["hidden_size"],
            "layers": vision["num_hidden_layers"],
            "head_width": _head_width(vision, f"{where}: vision_config"),
            "mlp_ratio": _ratio(vision, f"{where}: vision_config"),
        },
        "text": {
            "context_length": text["max_position_embeddings"],
            "vocab_size": text["vocab_size"],
            "width": text["hidden_size"],
            "layers": text["num_hidden_layers"],
            "heads": text["num_attention_heads"],
            "mlp_ratio": _ratio(text, f"{where}: text_config"),
        },
    }
    try:
        return ModelConfig.model_validate(document)
    except ValidationError as error:
        raise UserDataError(f"{where}: {first_problem(error)}") from None


def _tower(
    whole: Mapping[str, object], name: str, defaults: Mapping[str, object], where: str
) -> Mapping[str, Any]:
    """The settings of a tower; where older files say them twice, the second place counts, as in transformers: whole,
    completed by the defaults.
    """
    tower = dict(defaults)
    for key in (f"{name}_config", f"{name}_config_dict"):
        if (given := whole.get(key)) is not None:
            tower |= {**(defaults if key.endswith("_dict") else {}), **mapping(given, f"{where}: {key}")}
    for key in ("hidden_size", "intermediate_size", "num_attention_heads"):
        value = tower[key]
        if not isinstance(value, int) or value < 1:
            raise UserDataError(f"{where}: {name}_config.{key} is {value}, no number of at least 1")
    return tower


def _head_width(tower: Mapping[str, Any], where: str) -> int:
    width, heads = tower["hidden_size"], tower["num_attention_heads"]
    if width % heads:
        raise UserDataError(f"{where}: {heads} heads do not divide a width of {width}")
    return width // heads


def _ratio(tower: Mapping[str, Any], where: str) -> float:
    """The ratio of which that many units follow, rounded down as open_clip does."""
    width, hidden = tower["hidden_size"], tower["intermediate_size"]
    for ratio in (hidden / width, math.nextafter(hidden / width, math.inf)):
        if int(width * ratio) == hidden:
            return ratio
    raise UserDataError(f"{where}: an MLP of {hidden} units is no ratio of a width of {width}")


def check_preprocessing(content: object, where: str) -> None:
    """Raises UserDataError for a preprocessor_config.json of images normalised by other statistics than ours."""
    given = mapping(content, where)
    for key in ("do_normalize", "do_rescale"):
        if given.get(key) is False:
            raise UserDataError(f"{where}: {key} is false; only models of normalised images can be used")
    for key, ours in (("image_mean", MEAN), ("image_std", STANDARD_DEVIATION)):
        value = given.get(key)
        if value is not None and (not isinstance(value, list) or tuple(value) != ours):
            raise UserDataError(
                f"{where}: {key} is {value}; only models trained on images normalised as OpenAI's CLIP ({list(ours)}) "
                "can be used"
            )


def own_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Parameters under open_clip's names. What is not of a CLIPModel is left as it is, to be refused by its name."""
    own: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name in _OUTSIDE:
            own[_OUTSIDE[name]] = tensor
        elif name in _TURNED:
            own[_TURNED[name]] = tensor.mT.contiguous() if tensor.ndim == 2 else tensor
        elif not name.endswith(_BUFFERS):
            own |= _of_block(name, state)
    return own


def _of_block(name: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A parameter of a block; q, k and v are one, made where q is met with both others."""
    tower = next((theirs for theirs in _BLOCKS if name.startswith(theirs)), None)
    if tower is None:
        return {name: state[name]}
    number, _, leaf = name.removeprefix(tower).partition(".")
    block = f"{_BLOCKS[tower]}{number}."
    for one, other in _IN_BLOCKS.items():
        if leaf.startswith(one):
            return {f"{block}{other}{leaf.removeprefix(one)}": state[name]}
    attention, _, kind = leaf.rpartition(".")
    parts = [f"{tower}{number}.{part}.{kind}" for part in _MERGED]
    if attention not in _MERGED or not all(part in state for part in parts):
        return {name: state[name]}
    return (
        {f"{block}attn.in_proj_{kind}": torch.cat([state[part] for part in parts])}
        if name == parts[0]
        else {}
    )


OTHER_FILES = OtherFiles(
    prefix="vision_model.",
    weights="model.safetensors",
    pickled_weights="pytorch_model.bin",
    config="config.json",
    preprocessing="preprocessor_config.json",
    from_config=from_transformers,
    own_names=own_names,
    check_preprocessing=check_preprocessing,
)
