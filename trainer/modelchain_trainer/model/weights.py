"""Weights on disk: a folder that the field's libraries load as `local-dir:FOLDER`, CLIP models stock open_clip,
classifiers stock timm.

    open_clip_model.safetensors, model.safetensors   the state dict
    open_clip_config.json, config.json               the model and its preprocessing

A CLIP model is read too as transformers keeps it (model.safetensors, config.json).
Nothing is pickled. Whatever is wrong with a folder ends in one line that names the file.
"""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from modelchain import families
from modelchain.errors import (
    CannotWriteError,
    ConfigurationError,
    DiskFullError,
    MissingInputError,
    UserDataError,
)
from modelchain.families import CLIP, AnyConfig, Family
from modelchain.store.local_files import partial_file
from modelchain_trainer.model.build import parameter_shapes
from modelchain_trainer.model.families import FAMILIES, family_of
from modelchain_trainer.model.family import OtherFiles
from modelchain_trainer.model.foreign import of_foreign_files

_FILE_MODE = 0o644


def save_weights(model: nn.Module, config: AnyConfig, folder: Path) -> None:
    """Write the model's weights and configuration into `folder`, which is created if need be.

    Each file appears whole or not at all. Raises DiskFullError or CannotWriteError.
    """
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    family, names = family_of(config), families.family_of(config)
    published = family.published_names(state)
    text = json.dumps(family.to_config(config), indent=2) + "\n"
    _write(folder / names.weights, lambda path: save_tensors(published, path, {"format": "pt"}))
    _write(folder / names.weights_config, lambda path: path.write_text(text, encoding="utf-8"))


def save_tensors(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file. Raises OSError, which safetensors hides in an error of its own."""
    try:
        save_file(tensors, path, metadata)
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file into memory that torch allocates.

    There every tensor is aligned; in the file it lies anywhere, and how kernels of the CPU round depends on that.
    """
    return {name: tensor.clone() for name, tensor in load_file(path).items()}


@of_foreign_files
def load_weights(folder: Path, family: Family[Any] = CLIP) -> tuple[dict[str, Tensor], AnyConfig]:
    """The state dict in fp32 on the CPU, and the configuration, of a folder written here or by who reads its files.

    Raises MissingInputError if a file is not there, and UserDataError if the file is damaged, a tensor is
    missing, too many, of another shape or not finite, or the model is not one that ModelChain can train.
    """
    other, path = FAMILIES[family.config].other_files, folder / family.weights
    if other is not None and (path.is_file() or not (folder / other.weights).is_file()):
        other = None
    if other is not None:
        path = folder / other.weights
    config, described_by = load_config(folder, family, other)
    if not path.is_file():
        raise MissingInputError(f"{path}: there is no such file")
    own_names = (other or FAMILIES[family.config]).own_names
    return checked_state(own_names(read_tensors(path)), parameter_shapes(config), path, described_by), config


def load_config(folder: Path, family: Family[Any], other: OtherFiles | None) -> tuple[AnyConfig, str]:
    """The model that the configuration in a folder describes, and the name of that file.

    `other`: it is of another library's files. Raises MissingInputError if there is none, and UserDataError for one of a
    model that can't be built or trained, or of images that are normalised by other statistics than OpenAI's.
    """
    path = folder / (family.weights_config if other is None else other.config)
    if other is not None and (preprocessing := folder / other.preprocessing).is_file():
        other.check_preprocessing(_load_json(preprocessing), str(preprocessing))
    config = (other or FAMILIES[family.config]).from_config(_load_json(path), str(path))
    try:
        parameter_shapes(config)
    except ConfigurationError as error:
        raise UserDataError(f"{path}: {error}") from None
    return config, path.name


def read_tensors(path: Path) -> dict[str, Tensor]:
    """`load_tensors` of a file from elsewhere. Raises UserDataError for one that is damaged."""
    try:
        return load_tensors(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise UserDataError(
            f"{path}: damaged or no safetensors file ({_one_line(error)}); fetch it again"
        ) from None


def _load_json(path: Path) -> object:
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        raise MissingInputError(f"{path}: there is no such file") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserDataError(f"{path}: not readable as JSON ({_one_line(error)})") from None


def checked_state(
    state: dict[str, Tensor], expected: Mapping[str, torch.Size], path: Path, described_by: str
) -> dict[str, Tensor]:
    """The tensors in the model's order and in fp32, if they are what its configuration says.

    Raises UserDataError for what is missing, too many, of another shape or not finite.
    """
    missing, unknown = expected.keys() - state.keys(), state.keys() - expected.keys()
    if missing:
        raise UserDataError(f"{path}: {_some(missing)} missing; the file does not fit {described_by}")
    if unknown:
        raise UserDataError(f"{path}: {_some(unknown)} not part of a model as {described_by} describes it")
    checked = {}
    for name, shape in expected.items():
        tensor = state[name]
        if name in ("logit_scale", "logit_bias") and tensor.numel() == 1:
            tensor = tensor.reshape(())  # open_clip's nonscalar_logit_scale
        if tensor.shape != shape:
            raise UserDataError(
                f"{path}: {name} has shape {list(tensor.shape)}, but {described_by} asks for {list(shape)}"
            )
        if not tensor.is_floating_point():
            raise UserDataError(f"{path}: {name} holds {tensor.dtype}, not floating-point numbers")
        tensor = tensor.to(torch.float32)
        if not torch.isfinite(tensor.sum()) and not torch.isfinite(tensor).all():
            raise UserDataError(f"{path}: {name} holds numbers that are not finite")
        checked[name] = tensor
    return checked


def _write(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file beside `path` and move it there."""
    try:
        with partial_file(path.parent) as partial:
            write(partial)
            partial.chmod(_FILE_MODE)  # safetensors leaves it to its owner alone
            partial.replace(path)
    except (OSError, SafetensorError) as error:
        if getattr(error, "errno", None) == errno.ENOSPC:
            raise DiskFullError(f"{path}: no space left on the disk") from None
        raise CannotWriteError(f"{path}: cannot be written ({_one_line(error)})") from None


def _some(names: set[str]) -> str:
    shown = sorted(names)[:3]
    more = f" and {len(names) - len(shown)} more" if len(names) > len(shown) else ""
    return f"{', '.join(shown)}{more} {'is' if len(names) == 1 else 'are'}"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
