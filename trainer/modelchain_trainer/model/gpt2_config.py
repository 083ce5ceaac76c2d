"""A language model as transformers writes and reads GPT-2: config.json, and the names in model.safetensors.

`GPT2LMHeadModel.from_pretrained(FOLDER)` loads such a folder. There a block's matrices stand the other way round
(inputs first), and the output is the table of tokens itself, which is written once.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from pydantic import ValidationError
from torch import Tensor

from modelchain.block import first_problem
from modelchain.errors import UserDataError
from modelchain.families import Activation, LanguageModelConfig

ARCHITECTURE: Final = "GPT2LMHeadModel"
NORM_EPSILON: Final = 1e-5
_ACTIVATIONS: Final[Mapping[str, Activation]] = {  # the first name of each is written
    "gelu": Activation.GELU,
    "gelu_new": Activation.GELU_TANH,
    "gelu_pytorch_tanh": Activation.GELU_TANH,
}
_UNSUPPORTED: Final[Mapping[str, object]] = {  # what else would change the function, and its default
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
    "tie_word_embeddings": True,
    "layer_norm_epsilon": NORM_EPSILON,
}
_BLOCKS, _GPT2_BLOCKS = "transformer.resblocks.", "h."
_OUTSIDE = {
    "token_embedding.weight": "wte.weight",
    "positional_embedding": "wpe.weight",
    "ln_final.weight": "ln_f.weight",
    "ln_final.bias": "ln_f.bias",
}
_IN_BLOCKS = {
    "ln_1.weight": "ln_1.weight",
    "ln_1.bias": "ln_1.bias",
    "attn.in_proj_weight": "attn.c_attn.weight",
    "attn.in_proj_bias": "attn.c_attn.bias",
    "attn.out_proj.weight": "attn.c_proj.weight",
    "attn.out_proj.bias": "attn.c_proj.bias",
    "ln_2.weight": "ln_2.weight",
    "ln_2.bias": "ln_2.bias",
    "mlp.c_fc.weight": "mlp.c_fc.weight",
    "mlp.c_fc.bias": "mlp.c_fc.bias",
    "mlp.c_proj.weight": "mlp.c_proj.weight",
    "mlp.c_proj.bias": "mlp.c_proj.bias",
}
_PREFIX = "transformer."
_MASKS = (".attn.bias", ".attn.masked_bias")  # buffers that old files hold


def to_gpt2(config: LanguageModelConfig) -> dict[str, object]:
    """The content of config.json."""
    return {
        "model_type": "gpt2",
        "architectures": [ARCHITECTURE],
        "vocab_size": config.vocabulary_size,
        "n_positions": config.context_length,
        "n_embd": config.width,
        "n_layer": config.layers,
        "n_head": config.heads,
        "n_inner": config.hidden_width,
        "activation_function": next(n for n, kind in _ACTIVATIONS.items() if kind is config.activation),
        "layer_norm_epsilon": NORM_EPSILON,
        "attn_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "resid_pdrop": 0.0,
        "tie_word_embeddings": True,
        "bos_token_id": None,
        "eos_token_id": None,
    }


def from_gpt2(content: object, where: str) -> LanguageModelConfig:
    """The model of a config.json. Raises UserDataError for any whose function is not GPT-2's."""
    if not isinstance(content, Mapping):
        raise UserDataError(f"{where}: expected a JSON object")
    if content.get("model_type") != "gpt2":
        raise UserDataError(
            f"{where}: model_type is {content.get('model_type')}; only GPT-2 models can be used, write model_type gpt2"
        )
    for key, wanted in _UNSUPPORTED.items():
        if content.get(key, wanted) != wanted:
            raise UserDataError(f"{where}: {key} is {content[key]}; only models with {wanted} can be used")
    activation = content.get("activation_function", "gelu_new")
    if not isinstance(activation, str) or activation not in _ACTIVATIONS:
        known = ", ".join(_ACTIVATIONS)
        raise UserDataError(f"{where}: activation_function is {activation}; only {known} can be used")
    try:
        width, inner = int(content["n_embd"]), content.get("n_inner")
        return LanguageModelConfig(
            context_length=content.get("n_positions", 1024),
            vocabulary_size=content["vocab_size"],
            width=width,
            layers=content["n_layer"],
            heads=content["n_head"],
            mlp_ratio=4.0 if inner is None else inner / width,
            activation=_ACTIVATIONS[activation],
        )
    except KeyError as error:
        raise UserDataError(f"{where}: {error.args[0]} is missing") from None
    except ValidationError as error:
        raise UserDataError(f"{where}: {first_problem(error)}") from None
    except (TypeError, ValueError, ArithmeticError):
        raise UserDataError(f"{where}: n_embd and n_inner are no sizes") from None


def gpt2_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Parameters under GPT-2's names."""
    renamed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name in _OUTSIDE:
            renamed[_PREFIX + _OUTSIDE[name]] = tensor
        else:
            number, _, leaf = name.removeprefix(_BLOCKS).partition(".")
            renamed[f"{_PREFIX}{_GPT2_BLOCKS}{number}.{_IN_BLOCKS[leaf]}"] = _turned(tensor)
    return renamed


def own_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Parameters under our names; files of the bare GPT2Model lack the prefix. Names of no parameter stay as they are,
    to be refused by them.
    """
    outside = {theirs: ours for ours, theirs in _OUTSIDE.items()}
    in_blocks = {theirs: ours for ours, theirs in _IN_BLOCKS.items()}
    renamed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        bare = name.removeprefix(_PREFIX)
        number, _, leaf = bare.removeprefix(_GPT2_BLOCKS).partition(".")
        if bare in outside:
            renamed[outside[bare]] = tensor
        elif bare.startswith(_GPT2_BLOCKS) and leaf in in_blocks:
            renamed[f"{_BLOCKS}{number}.{in_blocks[leaf]}"] = _turned(tensor)
        elif not (bare.endswith(_MASKS) or name == "lm_head.weight"):
            renamed[name] = tensor
    return renamed


def _turned(tensor: Tensor) -> Tensor:
    return tensor.T.contiguous() if tensor.ndim == 2 else tensor
