"""Causal language models: a GPT-2-like transformer (Radford et al. 2019) that predicts each token of documents from
those before it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import MappingProxyType
from typing import Final

from modelchain.digest_form import REQUIRED, Table, deciding
from modelchain.resolved import ResolvedData, ResolvedStage, ResolvedTraining
from modelchain.spec import DataSpec, EvaluationType, LanguageModelConfig, TaskName
from modelchain.tasks.task import Problem, Task, differs, near_multiple, shrinks
from modelchain.tasks.towers import Tower, block_macs, block_parameters, largest_in_block

BYTE_VOCABULARY: Final = 257  # of the built-in tokenizer: bytes, and the end of text
MODEL_DIGEST: Final[Table] = {
    "contextLength": 1024,
    "vocabularySize": REQUIRED,
    "width": REQUIRED,
    "layers": REQUIRED,
    "heads": REQUIRED,
    "mlpRatio": 4.0,
    "activation": "Gelu",
}


class LanguageModelTask(Task[LanguageModelConfig]):
    """Documents, token after token. A sample is a sequence of contextLength tokens."""

    name = TaskName.LANGUAGE_MODEL
    config = LanguageModelConfig
    config_field = "languageModelConfig"
    own_fields = frozenset(
        {
            ("data", "tokens"),
            ("data", "textKey"),
            ("data", "tokenizer"),
            ("distillation", "logitsWeight"),
        }
    )
    evaluations = (EvaluationType.PERPLEXITY,)
    text = "sequence"
    size_field = "tokens"
    metric_names = MappingProxyType({"perplexity": "Perplexity", "loss": "Cross-entropy a token"})
    distillation = (
        "the squared distance between the features of a model and of its teacher and the divergence of their "
        "probabilities, averaged over tokens, times its weight"
    )
    weights = "model.safetensors"
    weights_config = "config.json"
    weights_readers = "transformers loads by GPT2LMHeadModel.from_pretrained"

    def loss(self, training: ResolvedTraining) -> str:  # noqa: ARG002
        """One and the same."""
        return "the cross-entropy with the next token, averaged over tokens"

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

    def unteachable(self, student: LanguageModelConfig, teacher: LanguageModelConfig) -> Iterator[Problem]:
        """Both read the same tokens."""
        yield from differs(
            ("vocabularySize",),
            "vocabularySize",
            teacher.vocabulary_size,
            student.vocabulary_size,
            "models of one chain share their tokens: write the same for both",
        )
        yield from differs(
            ("contextLength",), "contextLength", teacher.context_length, student.context_length
        )

    def digest_form(self, config: LanguageModelConfig) -> dict[str, object]:
        """Of the tower."""
        return deciding(config, MODEL_DIGEST)

    def size_name(self, config: LanguageModelConfig) -> str:
        """The tower's sizes and the vocabulary."""
        return f"gpt-{config.width}x{config.layers}-{config.vocabulary_size}"

    def text_keys(self, data: ResolvedData) -> tuple[str, ...]:
        """A sequence is one text."""
        return (data.text_key or "txt",)

    def samples(self, data: DataSpec, config: LanguageModelConfig) -> int | None:
        """Whole sequences of an epoch; the last tokens that fill none are left out."""
        return None if data.tokens is None else data.tokens // config.context_length

    def sample(self, data: ResolvedData, config: LanguageModelConfig) -> str:  # noqa: ARG002
        """Its tokens."""
        return f"{config.context_length} tokens"

    def count(self, samples: int, stage: ResolvedStage) -> str:
        """With their tokens."""
        config = stage.model_config_
        assert isinstance(config, LanguageModelConfig)
        return f"{samples:,} ({samples * config.context_length:,} tokens)"

    def unfit(self, data: DataSpec, config: LanguageModelConfig) -> Iterator[Problem]:
        """A vocabulary that lacks tokens of the built-in tokenizer."""
        if data.tokenizer is None and config.vocabulary_size < BYTE_VOCABULARY:
            yield (
                ("vocabularySize",),
                f"{config.vocabulary_size} tokens are fewer than the {BYTE_VOCABULARY} of the built-in tokenizer",
                f"write at least {BYTE_VOCABULARY}, or name a data.tokenizer",
            )


LANGUAGE_MODEL = LanguageModelTask()
