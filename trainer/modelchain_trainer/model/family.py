"""What a family of models is to torch, and what its modules have in common.

Shape suffixes: B images, C colours, D features.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Generic, TypeAlias, TypeVar

import torch
from torch import Tensor, nn

from modelchain.errors import ConfigurationError
from modelchain.families import FamilyConfig, LockedTower
from modelchain_trainer.distributed.collectives import Group
from modelchain_trainer.model.layout import Layout

C = TypeVar("C", bound=FamilyConfig)
_NO_BLOCKS = (
    "training.gradientCheckpointing: models of this family have no blocks to compute again; remove it"
)
State: TypeAlias = dict[str, Tensor]


class ImageTower(nn.Module):
    """The image side of a model: its output for normalised images [B, C, S, S] is features [B, D]."""

    def set_gradient_checkpointing(self, enabled: bool) -> None:
        """See `Model`."""
        if enabled:
            raise ConfigurationError(_NO_BLOCKS)


class Model(nn.Module, Generic[C]):
    """A model of any family. Parameters are allocated but not initialised: use `build_model` or `model_from`."""

    config: C

    def set_gradient_checkpointing(self, enabled: bool) -> None:
        """Keep only each block's input for the backward pass and compute the rest again: less memory, more time."""
        if enabled:
            raise ConfigurationError(_NO_BLOCKS)

    def recomputing(self) -> AbstractContextManager[None]:
        """Around forward passes that are made once more in a step, for their gradient: they leave no other trace."""
        return nullcontext()

    def end_step(self, group: Group, skip: Tensor) -> None:
        """Take up from the step's forward passes on all ranks what is no parameter: running statistics.

        `skip` ([]) is not 0 where the step was not finite: all stays as it was. All ranks call it.
        """

    def compile_blocks(self) -> None:
        """Compile what is repeated, each by itself; nothing where that is not known to work."""

    def image_tower(self) -> ImageTower:
        """The image side, of models that have one; it shares its weights."""
        raise NotImplementedError(f"{type(self).__name__} sees no images")

    def new_image_tower(self) -> ImageTower:
        """A tower like it, uncompiled, on the same device, whose weights are still to be filled in."""
        raise NotImplementedError(f"{type(self).__name__} sees no images")


AnyModel: TypeAlias = Model[Any]


class ClassifierModel(Model[C]):
    """A model that tells classes of images apart."""

    def forward(self, images_BCHW: Tensor, kept_BK: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Features [B, D] and logits [B, classes] of normalised float images.

        `kept_BK` are the places of the patches that are seen; None: all. Only models with a tower of patches
        (`FamilyConfig.patch_tower`) are asked to leave some out.
        """
        raise NotImplementedError


class ImageTextModel(Model[C]):
    """A model that puts images and texts into one embedding."""

    logit_scale: nn.Parameter  # [], the logarithm of the factor of the logits
    logit_bias: nn.Parameter | None  # [], of the sigmoid loss

    def lock(self, tower: LockedTower) -> None:
        """Keep a tower, with its projection into the embedding, as it is: it gets no gradients."""
        raise NotImplementedError

    def encode_image(
        self, images_BCHW: Tensor, normalize: bool = True, kept_BK: Tensor | None = None
    ) -> Tensor:
        """Embeddings [B, E] of normalised float images [B, C, S, S]; of unit length if `normalize`.

        `kept_BK` are the places of the patches that are seen; None: all. Only models with a tower of patches
        (`FamilyConfig.patch_tower`) are asked to leave some out.
        """
        raise NotImplementedError

    def encode_text(self, tokens_BT: Tensor, normalize: bool = True) -> Tensor:
        """Embeddings [B, E] of texts: int64 tokens of open_clip's tokenizer, T at most the context length.

        The end-of-text token is the largest of each row. What stands behind it may have been cut off.
        """
        raise NotImplementedError

    def encode_texts(self, texts: Sequence[Tensor]) -> Tensor:
        """Unit embeddings [M, E] of several matrices of texts, one below the other: those of `encode_text`."""
        raise NotImplementedError


def _same(state: Mapping[str, Tensor]) -> State:
    return dict(state)


@dataclass(frozen=True)
class OtherFiles:
    """How another library keeps models of a family, which are read where the family's own files are not there."""

    prefix: str  # of some of its parameters, by which its weights are known
    weights: str  # file names
    pickled_weights: str
    config: str
    preprocessing: str  # how images come to the model; it may be missing
    from_config: Callable[[object, str], FamilyConfig]  # as of `Family`
    own_names: Callable[[Mapping[str, Tensor]], State]
    check_preprocessing: Callable[[object, str], None]  # raises UserDataError


@dataclass(frozen=True)
class Family:
    """One family of models, to torch. `Any` is its configuration."""

    config: type[FamilyConfig]
    build: Callable[[Any, torch.device | str | None], AnyModel]  # allocated, not initialised
    to_config: Callable[[Any], dict[str, object]]  # the content of the file beside the published weights
    from_config: Callable[[object, str], FamilyConfig]  # of that content; the text names the file in messages
    # What every axis of every parameter means, and how it starts. None, of a family that does not grow: it starts
    # as `initialise` fills it in.
    layout: Callable[[Any], Layout] | None = None
    initialise: Callable[[AnyModel, torch.Generator], None] | None = None
    # Names of the published weights, as whoever loads them calls them.
    published_names: Callable[[Mapping[str, Tensor]], State] = _same
    own_names: Callable[[Mapping[str, Tensor]], State] = _same
    other_files: OtherFiles | None = None
