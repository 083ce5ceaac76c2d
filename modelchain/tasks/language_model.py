"""Language modelling: each token of documents is predicted from those before it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from modelchain.families.family import Problem, TokenModelConfig
from modelchain.resolved import ResolvedData, ResolvedStage, ResolvedTraining
from modelchain.spec import DataSpec, EvaluationType, TaskName
from modelchain.tasks.task import Task

BYTE_VOCABULARY: Final = 257  # of the built-in tokenizer: bytes, and the end of text


class LanguageModelTask(Task[TokenModelConfig]):
    """Documents, token after token. A sample is a sequence of contextLength tokens."""

    name = TaskName.LANGUAGE_MODEL
    config = TokenModelConfig
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
    unit = "sequences"
    distillation = (
        "the squared distance between the features of a model and of its teacher and the divergence of their "
        "probabilities, averaged over tokens, times its weight"
    )

    def loss(self, training: ResolvedTraining) -> str:  # noqa: ARG002
        """One and the same."""
        return "the cross-entropy with the next token, averaged over tokens"

    def text_keys(self, data: ResolvedData) -> tuple[str, ...]:
        """A sequence is one text."""
        return (data.text_key or "txt",)

    def samples(self, data: DataSpec, config: TokenModelConfig) -> int | None:
        """Whole sequences of an epoch; the last tokens that fill none are left out."""
        return None if data.tokens is None else data.tokens // config.context_length

    def sample(self, data: ResolvedData, config: TokenModelConfig) -> str:  # noqa: ARG002
        """Its tokens."""
        return f"{config.context_length} tokens"

    def count(self, samples: int, stage: ResolvedStage) -> str:
        """With their tokens."""
        config = stage.model_config_
        assert isinstance(config, TokenModelConfig)
        return f"{samples:,} ({samples * config.context_length:,} tokens)"

    def unfit(self, data: DataSpec, config: TokenModelConfig) -> Iterator[Problem]:
        """A vocabulary that lacks tokens of the built-in tokenizer."""
        if data.tokenizer is None and config.vocabulary_size < BYTE_VOCABULARY:
            yield (
                ("vocabularySize",),
                f"{config.vocabulary_size} tokens are fewer than the {BYTE_VOCABULARY} of the built-in tokenizer",
                f"write at least {BYTE_VOCABULARY}, or name a data.tokenizer",
            )


LANGUAGE_MODEL = LanguageModelTask()
