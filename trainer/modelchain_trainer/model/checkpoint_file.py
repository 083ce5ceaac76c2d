"""Existing weights in one file: safetensors, or of torch.save, state dicts and checkpoints of training programs.

torch reads such a file as data alone (`weights_only`): what would run code as it is read is refused. The file does not
say what model it is of; a configuration beside it does, or it is the stage's own.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from modelchain import families
from modelchain.errors import UserDataError
from modelchain.families import AnyConfig
from modelchain_trainer.model.build import parameter_shapes
from modelchain_trainer.model.families import family_of
from modelchain_trainer.model.foreign import NO_MEMORY, of_foreign_files
from modelchain_trainer.model.open_clip_config import MEAN, STANDARD_DEVIATION
from modelchain_trainer.model.weights import checked_state, load_config, read_tensors

logger = logging.getLogger(__name__)

SAFETENSORS = ".safetensors"
_INSIDE = ("state_dict", "model", "module")  # where programs put the state dict beside other things
_OF_ANYTHING = "config.json"
_PREFIXES = ("module.", "_orig_mod.")  # of DistributedDataParallel and of torch.compile
_NOT_PARAMETERS = frozenset(
    {"attn_mask", "input_resolution", "context_length", "vocab_size"}
)  # of OpenAI's files
# What says of a config.json that it is timm's or transformers', and not a training program's.
_OF_A_LIBRARY = frozenset({"architecture", "architectures", "model_type"})
_GLOBAL = re.compile(r"GLOBAL ([A-Za-z0-9_.]{1,200})")  # what torch says that a file refers to


@of_foreign_files
def load_checkpoint_file(path: Path, config: AnyConfig) -> tuple[dict[str, Tensor], AnyConfig]:
    """The state dict in fp32 on the CPU, and its model: as the configuration beside the file says, or else `config`.

    Raises UserDataError for a file that is damaged or holds more than data, where it is of another model, and as
    `load_config`.
    """
    content = read_tensors(path) if path.suffix == SAFETENSORS else _unpickled(path)
    state = _own_names(_state_dict(content, path))
    own, names = family_of(config), families.family_of(config)
    other = own.other_files
    if other is not None and not any(name.startswith(other.prefix) for name in state):
        other = None
    described_by, beside = "the stage's own model", names.weights_config if other is None else other.config
    if _says_what_model(path.parent / beside):
        try:
            config, described_by = load_config(path.parent, names, other)
        except UserDataError as error:
            raise UserDataError(
                f"{path.name}: the configuration beside it can't be used: {error}; if that is not of these weights, "
                "put the file into a folder of its own"
            ) from None
    elif config.image_side is not None:
        logger.warning(
            "%s: nothing beside it says how images come to its model; they are normalised by the statistics of "
            "OpenAI's CLIP (mean %s, deviation %s). A model that was trained with others, as most of timm's are, sees "
            "wrong pixels: put its %s beside the file, by which it is checked",
            path.name,
            list(MEAN),
            list(STANDARD_DEVIATION),
            beside,
        )
    state = (other or own).own_names(state)
    return checked_state(state, parameter_shapes(config), path, described_by), config


def _says_what_model(path: Path) -> bool:
    """Whether a configuration is there, and, if its name may be of anything, is one of a model."""
    if not path.is_file():
        return False
    if path.name != _OF_ANYTHING:
        return True
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        content = None
    if isinstance(content, Mapping) and _OF_A_LIBRARY & content.keys():
        return True
    logger.warning(
        "%s: has none of %s, so it is of no model of timm or transformers; it is not read, and the weights are taken "
        "for the stage's own model",
        path.name,
        ", ".join(sorted(_OF_A_LIBRARY)),
    )
    return False


def _unpickled(path: Path) -> object:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:
        if NO_MEMORY in str(error):
            raise
        # torch's own words advise to let the file run its code, and quote what is in it.
        named = _GLOBAL.search(str(error))
        reason = f"it refers to {named[1]}" if named else "damaged, or there is more in it"
        raise UserDataError(
            f"{path.name}: not a file of tensors alone ({reason}). Files that run code as they are read "
            "(pickled models, TorchScript) are refused: load it where you trust it, and write "
            "safetensors.torch.save_file(model.state_dict(), ...) or torch.save(model.state_dict(), ...)"
        ) from None


def _state_dict(content: object, path: Path) -> dict[str, Tensor]:
    for key in _INSIDE:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not content:
        raise UserDataError(f"{path.name}: holds no state dict; write torch.save(model.state_dict(), ...)")
    state = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    for name, tensor in state.items():
        if not _is_plain(tensor):
            raise UserDataError(
                f"{path.name}: {name} is no plain tensor (dense, with all its numbers in the file); write it as one"
            )
    return state


def _is_plain(tensor: Tensor) -> bool:
    if tensor.is_meta or tensor.is_quantized or tensor.layout is not torch.strided:
        return False
    return tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()


def _own_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without what wrappers put before names, and the text tower where open_clip's CustomTextCLIP has it apart."""
    for prefix in _PREFIXES:
        if all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    state = {name.removeprefix("text."): tensor for name, tensor in state.items()}
    return {name: tensor for name, tensor in state.items() if name not in _NOT_PARAMETERS}
