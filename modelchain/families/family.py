"""What every family of models says of itself, and the kinds of models that tasks train."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, ClassVar, Generic, TypeAlias, TypeVar

from pydantic import Field

from modelchain.block import Block
from modelchain.digest_form import Table, deciding

if TYPE_CHECKING:
    from modelchain.families.towers import Tower, VisionSpec

Problem: TypeAlias = tuple[tuple[str, ...], str, str]  # where in the configuration, what is wrong, what to do


class LockedTower(StrEnum):
    IMAGE = "Image"
    TEXT = "Text"


class FamilyConfig(Block):
    """A model of a family, written out: a part of the resource.

    A family's configuration is a subclass of one of the kinds below, by which its task knows it.
    """

    @property
    def image_side(self) -> int | None:
        """Pixels along a side of the images that it looks at; None where it sees none."""
        return None

    @property
    def patch_tower(self) -> VisionSpec | None:
        """The tower of tokens that are patches of an image, of which some may be left out; None: there is none."""
        return None

    @property
    def rows_together(self) -> int:
        """Samples that a forward pass of the training keeps together: every micro-batch is a multiple of them."""
        return 1


class ImageTextConfig(FamilyConfig):
    """Of models that put images and texts into one embedding."""

    embed_dim: Annotated[int, Field(ge=1, le=65536, description="Size of the shared embedding.")]

    @property
    def text_length(self) -> int:
        """Tokens of a text."""
        raise NotImplementedError


class ImageClassifierConfig(FamilyConfig):
    """Of models that tell classes of images apart."""

    classes: Annotated[
        int, Field(ge=2, le=2**20, description="Classes of the head: labels are 0 .. classes - 1.")
    ]

    @property
    def feature_size(self) -> int:
        """Numbers that the head reads."""
        raise NotImplementedError


class TokenModelConfig(FamilyConfig):
    """Of models that predict the next token."""

    context_length: Annotated[
        int, Field(ge=2, le=65536, description="Tokens of a sequence; longer documents are split.")
    ] = 1024
    vocabulary_size: Annotated[
        int,
        Field(
            ge=2,
            le=2**20,
            description="Tokens: as many as the tokenizer has, or more to fill up a multiple of 64.",
        ),
    ]

    @property
    def feature_size(self) -> int:
        """Numbers that the output table reads."""
        raise NotImplementedError


C = TypeVar("C", bound=FamilyConfig)


class Extent(StrEnum):
    """What a size is a size of: that decides how exactly it grows (`modelchain.exactness`)."""

    DEPTH = "depth"  # blocks
    WIDTH = "width"  # channels, heads, units, an embedding
    NORMED_WIDTH = "normed-width"  # of a residual stream that begins as the output of a norm
    IMAGE = "image"  # patches along a side of it, so to speak
    PATCH = "patch"  # pixels along a side of it
    PIXELS = "pixels"  # along a side of an image that filters of a fixed size go over


@dataclass(frozen=True)
class Dimension:
    """A size of a model as people know it."""

    name: str  # a field of the model's configuration, e.g. vision.width
    size: int
    extent: Extent


class Family(ABC, Generic[C]):
    """One family of models. `C` is its configuration."""

    config: type[C]
    field: ClassVar[str]  # of a stage: where such a model is written out
    description: ClassVar[str]  # of that field
    digest: ClassVar[Table]  # fields that decide weights, with their frozen defaults; see `digest_form`
    weights: ClassVar[str]  # file name of the published weights
    pickled_weights: ClassVar[str] = "pytorch_model.bin"  # of weights from elsewhere that are no safetensors
    weights_config: ClassVar[str]  # of the configuration beside them
    weights_readers: ClassVar[str]  # who loads them, and how, for people
    grows: ClassVar[bool] = True  # False: its stages start from their seed (expansion.width: Fresh)
    in_parts: ClassVar[bool] = True  # whether it can lie in parts on the ranks (training.sharding: Full)
    compiles: ClassVar[bool] = True  # whether training.compile is of use to it

    @abstractmethod
    def parameters(self, config: C) -> int:
        """Trainable parameters."""

    @abstractmethod
    def forward_macs(self, config: C, texts: int) -> int:
        """Multiply-accumulates of a forward pass over one sample that has so many texts."""

    def computed_macs(
        self,
        config: C,
        rows: int,
        texts: Mapping[int, int],
        patch_dropout: float,  # noqa: ARG002
    ) -> tuple[int, int]:
        """Multiply-accumulates that the trainer computes in a forward pass over so many samples: of what
        `LockedTower.IMAGE` locks, and of the rest. `texts`: how many of these lengths in tokens, padding included.
        """
        return 0, rows * self.forward_macs(config, sum(texts.values()) // rows)

    @abstractmethod
    def size_name(self, config: C) -> str:
        """A short name for folders that is a function of the configuration alone."""

    @abstractmethod
    def unteachable(self, student: C, teacher: FamilyConfig) -> Iterator[Problem]:
        """What keeps `teacher`, a model of the same kind and of any family, from teaching a model that did not grow
        out of it. Both can be built.
        """

    def unbuildable(self, config: C) -> Iterator[Problem]:  # noqa: ARG002
        """What keeps a model from being built."""
        yield from ()

    def ungrowable(self, small: C, large: C) -> Iterator[Problem]:
        """What keeps `large` from growing out of `small`; in a family that does not grow, from having its weights as
        they are. Both can be built.
        """
        raise NotImplementedError

    def dimensions(self, config: C) -> Sequence[Dimension]:  # noqa: ARG002
        """The sizes that may grow, the same ones in the same order for each model of the family."""
        return ()

    def recomputes(self, config: C) -> bool:  # noqa: ARG002
        """Whether it can be computed again for the backward pass (training.gradientCheckpointing)."""
        return True

    def of_tower(self, config: C, tower: LockedTower, texts: int) -> tuple[int, int]:
        """Parameters of one of two towers, and its share of `forward_macs`."""
        raise NotImplementedError(f"models under {self.field} have no {tower} tower that could be locked")

    def digest_form(self, config: C) -> dict[str, object]:
        """What of the model decides its weights."""
        return deciding(config, self.digest)

    def towers(self, config: C) -> Sequence[Tower]:  # noqa: ARG002
        """Its stacks of blocks, of which training in parts gathers one block after another; none: all at once."""
        return ()

    def embedding_parameters(self, config: C) -> int:  # noqa: ARG002
        """Of the parameters those of tables of tokens, which stay in fp32 in a teacher that runs in bf16."""
        return 0

    def largest_parameter(self, config: C) -> int:
        """Numbers of the largest single parameter, at most."""
        return self.parameters(config)


def shrinks(part: tuple[str, ...], name: str, before: int, after: int) -> Iterator[Problem]:
    """A size that may only grow."""
    if after < before:
        yield (
            part,
            f"{name} shrinks from {before} to {after}",
            f"make it at least {before}, or start from a smaller model",
        )


def differs(
    part: tuple[str, ...], name: str, before: object, after: object, remedy: str = ""
) -> Iterator[Problem]:
    """A setting that must be that of the other model: of a predecessor, of a teacher or of given weights."""
    if before != after:
        yield part, f"{name} is {shown(after)}, not {shown(before)}", remedy or f"write {shown(before)}"


def shown(value: object) -> str:
    """A value as YAML writes it."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def near_multiple(name: str, value: int, divisor: int) -> str:
    """The remedy for a size that does not divide."""
    below = value // divisor * divisor
    choices = [number for number in (below, below + divisor) if number > 0]
    return f"make {name} a multiple of {divisor}, e.g. {' or '.join(map(str, choices))}"
