"""Causal language models: GPT-2-like transformers (Radford et al. 2019) whose output is tied to their input."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from enum import StrEnum
from typing import Annotated

from pydantic import Field

from modelchain.digest_form import REQUIRED
from modelchain.families.family import (
    Dimension,
    Extent,
    Family,
    FamilyConfig,
    Problem,
    TokenModelConfig,
    differs,
    near_multiple,
    shrinks,
)
from modelchain.families.towers import Tower, block_macs, block_parameters, largest_in_block


class Activation(StrEnum):
    GELU = "Gelu"
    GELU_TANH = "GeluTanh"


class LanguageModelConfig(TokenModelConfig):
    """A causal transformer over tokens, as GPT-2: pre-norm, learned positions, the output tied to the input."""

    width: Annotated[int, Field(ge=8, le=65536, description="Width of the residual stream.")]
    layers: Annotated[int, Field(ge=1, le=512, description="Transformer blocks.")]
    heads: Annotated[int, Field(ge=1, le=1024, description="Attention heads; divides width.")]
    mlp_ratio: Annotated[
        float, Field(gt=0, le=64, allow_inf_nan=False, description="Hidden width of the MLP over width.")
    ] = 4.0
    activation: Annotated[
        Activation,
        Field(description="Gelu, or GeluTanh: its approximation, as in the published weights of GPT-2."),
    ] = Activation.GELU

    @property
    def hidden_width(self) -> int:
        """Units of the MLP between its two layers."""
        return int(self.width * self.mlp_ratio)

    @property
    def feature_size(self) -> int:
        """Of the residual stream."""
        return self.width


class LanguageModelFamily(Family[LanguageModelConfig]):
    """A causal tower and its table of tokens."""

    config = LanguageModelConfig
    field = "languageModelConfig"
    description = "The model of a chain whose task is LanguageModel."
    digest = {
        "contextLength": 1024,
        "vocabularySize": REQUIRED,
        "width": REQUIRED,
        "layers": REQUIRED,
        "heads": REQUIRED,
        "mlpRatio": 4.0,
        "activation": "Gelu",
    }
    weights = "model.safetensors"
    weights_config = "config.json"
    weights_readers = "transformers loads by GPT2LMHeadModel.from_pretrained"

    def parameters(self, config: LanguageModelConfig) -> int:
        """The table of tokens is the output too."""
        tables = (config.vocabulary_size + config.context_length) * config.width
        return tables + config.layers * block_parameters(config) + 2 * config.width

    def forward_macs(self, config: LanguageModelConfig, texts: int) -> int:  # noqa: ARG002
        """Of one sequence, the logits of all its tokens included."""
        tokens = config.context_length
        head = tokens * config.width * config.vocabulary_size
        return config.layers * block_macs(tokens, config) + head

    def embedding_parameters(self, config: LanguageModelConfig) -> int:
        """The tied table: it stays in fp32 in a teacher too."""
        return config.vocabulary_size * config.width

    def towers(self, config: LanguageModelConfig) -> Sequence[Tower]:
        """The model itself."""
        return (config,)

    def largest_parameter(self, config: LanguageModelConfig) -> int:
        """The table of tokens, or a matrix of a wide tower."""
        return max(self.embedding_parameters(config), largest_in_block(config))

    def unbuildable(self, config: LanguageModelConfig) -> Iterator[Problem]:
        """Sizes that do not divide."""
        if config.width % config.heads:
            yield (
                ("heads",),
                f"{config.heads} heads do not divide a width of {config.width}",
                near_multiple("width", config.width, config.heads),
            )
        if config.hidden_width < 1:
            yield ("mlpRatio",), f"{config.mlp_ratio:g} leaves the MLP without units", "write about 4"

    def ungrowable(self, small: LanguageModelConfig, large: LanguageModelConfig) -> Iterator[Problem]:
        """Width and depth grow; what a token is, and how far a model looks back, stay."""
        yield from self.unteachable(large, small)
        yield from differs(("activation",), "the activation", small.activation, large.activation)
        yield from shrinks(("width",), "the width", small.width, large.width)
        yield from shrinks(("layers",), "the number of layers", small.layers, large.layers)
        if large.hidden_width < small.hidden_width and large.width >= small.width:
            yield (
                ("mlpRatio",),
                f"the MLP shrinks from {small.hidden_width} to {large.hidden_width} units (width x mlpRatio)",
                f"make mlpRatio at least {small.hidden_width / large.width:g}",
            )
        before, after = small.width // small.heads, large.width // large.heads
        fitting = f"write {large.width // before} heads for a width of {large.width}"
        other = f"choose a width that is a multiple of {before}, and heads = width / {before}"
        yield from differs(
            ("heads",),
            "the head width (width / heads)",
            before,
            after,
            other if large.width % before else fitting,
        )

    def dimensions(self, config: LanguageModelConfig) -> Sequence[Dimension]:
        """Of the one tower."""
        return (
            Dimension("width", config.width, Extent.WIDTH),
            Dimension("layers", config.layers, Extent.DEPTH),
            Dimension("MLP units", config.hidden_width, Extent.WIDTH),
        )

    def unteachable(self, student: LanguageModelConfig, teacher: FamilyConfig) -> Iterator[Problem]:
        """Both read the same tokens."""
        assert isinstance(teacher, TokenModelConfig)
        yield from differs(
            ("vocabularySize",),
            "vocabularySize",
            teacher.vocabulary_size,
            student.vocabulary_size,
            f"write {teacher.vocabulary_size}: both must read the same tokens",
        )
        yield from differs(
            ("contextLength",), "contextLength", teacher.context_length, student.context_length
        )

    def size_name(self, config: LanguageModelConfig) -> str:
        """The tower's sizes and the vocabulary."""
        return f"gpt-{config.width}x{config.layers}-{config.vocabulary_size}"


LANGUAGE_MODEL = LanguageModelFamily()
