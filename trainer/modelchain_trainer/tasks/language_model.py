"""Documents, token after token, by cross-entropy; a student also follows its teacher's features and probabilities.

Shapes: m sequences of a micro-batch, S tokens of each, R = m * S, V vocabulary, D width of the student, E of the
teacher.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from modelchain.families import AnyConfig, LanguageModelConfig
from modelchain.families.family import TokenModelConfig
from modelchain.resolved import ResolvedStage
from modelchain.spec import Precision
from modelchain_trainer.data.document_tokenizer import read_tokenizer
from modelchain_trainer.data.published_tokenizer import BYTE_END, published_tokenizer
from modelchain_trainer.data.source import DocumentSource
from modelchain_trainer.model.language_model import LanguageModel
from modelchain_trainer.retry_policy import RetryPolicy
from modelchain_trainer.tasks.local_loss import LocalObjective, Sums, rows_of
from modelchain_trainer.tasks.task import Setting, StepBatch, Task

# Logits held at once: 512 MiB in fp32. Beyond that they are computed again in the backward pass, part by part.
LOGITS_AT_ONCE = 2**27


@dataclass(frozen=True)
class Sequences:
    """A micro-batch on the device: each sequence with the token behind it."""

    tokens: Tensor  # int64 [m, S + 1]
    positions: Tensor  # int64 [m, S + 1], in their documents


@dataclass(frozen=True)
class Outputs:
    """What a model makes of sequences."""

    features: Tensor  # [R, D]
    table: Tensor  # [V, D]: the rows whose products with the features are the logits


class TokenProjection(nn.Module):
    """A linear map from the student's features to the teacher's, where their widths differ.

    Exact growth hands the features of a small model out over its copies in shares that sum to the whole (up to a
    factor), so identities side by side read them back: a grown student begins at its teacher's features.
    """

    def __init__(self, student: int, teacher: int) -> None:
        super().__init__()
        start = torch.zeros(teacher, student)
        for begin in range(0, max(student - teacher, 0) + 1, teacher):
            block = start[:, begin : begin + teacher]
            block.copy_(torch.eye(*block.shape))
        self.features = nn.Parameter(start)


def _projections(student: AnyConfig, teacher: AnyConfig) -> nn.Module | None:
    assert isinstance(student, TokenModelConfig)
    assert isinstance(teacher, TokenModelConfig)
    width, other = student.feature_size, teacher.feature_size
    return None if width == other else TokenProjection(width, other)


class LanguageModelObjective(LocalObjective[Sequences, Outputs]):
    """Cross-entropy with the next token. The distillation is the squared distance of the directions of features plus
    `distillation.logitsWeight` times the Kullback-Leibler divergence of the student's probabilities from the teacher's
    (Hinton et al., arXiv 1503.02531, at temperature 1), both averaged over tokens.
    """

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self._judged = setting.stage.distillation.surpass_window_steps is not None
        projections = setting.projections
        self._projection = projections.features if isinstance(projections, TokenProjection) else None
        self._autocast = setting.stage.training.precision is Precision.BF16

    def micro_batches(self, batch: StepBatch) -> Sequence[Sequences]:
        """Tokens and positions."""
        tokens, positions = batch.tokens.unbind()
        if self.setting.device.type == "cuda":
            tokens, positions = (one if one.is_pinned() else one.pin_memory() for one in (tokens, positions))
        tokens, positions = (one.to(self.setting.device, non_blocking=True) for one in (tokens, positions))
        size = self.setting.stage.training.micro_batch_size
        return [Sequences(tokens[part], positions[part]) for part in rows_of(batch, size)]

    def weight(self, batch: StepBatch) -> int:
        """Tokens."""
        _, sequences, tokens = batch.tokens.shape
        return sequences * (tokens - 1)

    def outputs(self, model: nn.Module, micro_batch: Sequences, dtype: torch.dtype) -> Outputs:  # noqa: ARG002
        """Features of all tokens but the last, which is only predicted."""
        assert isinstance(model, LanguageModel)
        features = model(micro_batch.tokens[:, :-1], micro_batch.positions[:, :-1])
        return Outputs(features.flatten(0, 1), model.token_embedding.weight)

    def losses(self, student: Outputs, teacher: Outputs | None, micro_batch: Sequences) -> Sums:
        """Sums over tokens."""
        target_R = micro_batch.tokens[:, 1:].flatten()
        sums: Tensor | None = None
        parts = list(self._parts(len(target_R), student.table.shape[0]))
        for part in parts:
            arguments = (
                student.features[part],
                student.table,
                target_R[part],
                None if teacher is None else teacher.features[part],
                None if teacher is None else teacher.table,
            )
            if len(parts) == 1:
                found = self._sums(*arguments)
            else:
                found = checkpoint(self._sums, *arguments, use_reentrant=False)
            assert isinstance(found, Tensor)
            sums = found if sums is None else sums + found
        assert sums is not None
        task, distillation, judged = sums.unbind()
        if teacher is None:
            return Sums(task, None, None)
        return Sums(task, distillation, judged.detach() if self._judged else None)

    @staticmethod
    def _parts(rows: int, vocabulary: int) -> Iterator[slice]:
        size = max(1, LOGITS_AT_ONCE // vocabulary)
        for start in range(0, rows, size):
            yield slice(start, min(start + size, rows))

    def _sums(
        self,
        features_RD: Tensor,
        table_VD: Tensor,
        target_R: Tensor,
        teacher_RE: Tensor | None,
        teacher_table_VE: Tensor | None,
    ) -> Tensor:
        """The task's loss, the distillation's, and the teacher's task loss where somebody wants to know it: [3]."""
        logits_RV = self._logits(features_RD, table_VD)
        task = functional.cross_entropy(logits_RV, target_R, reduction="sum")
        if teacher_RE is None or teacher_table_VE is None:
            return torch.stack([task, torch.zeros_like(task), torch.zeros_like(task)])
        mine_RE = (
            features_RD if self._projection is None else functional.linear(features_RD, self._projection)
        )
        distance = (_directions(mine_RE) - _directions(teacher_RE)).square().sum()
        with torch.no_grad():
            taught_RV = self._logits(teacher_RE, teacher_table_VE)
            judged = torch.zeros_like(task)
            if self._judged:
                judged = functional.cross_entropy(taught_RV, target_R, reduction="sum")
            taught_RV = taught_RV.log_softmax(-1)
        divergence = functional.kl_div(logits_RV.log_softmax(-1), taught_RV, reduction="sum", log_target=True)
        logits_weight = self.setting.stage.distillation.logits_weight
        return torch.stack([task, distance + logits_weight * divergence, judged])

    def _logits(self, features_RD: Tensor, table_VD: Tensor) -> Tensor:
        with torch.autocast(features_RD.device.type, torch.bfloat16, enabled=self._autocast):
            return _at_least_fp32(functional.linear(features_RD, table_VD))


def _directions(features: Tensor) -> Tensor:
    return functional.normalize(_at_least_fp32(features), dim=-1)


def _at_least_fp32(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _source(stage: ResolvedStage) -> DocumentSource:
    config = stage.model_config_
    assert isinstance(config, LanguageModelConfig)
    return DocumentSource(stage, config)


def _tokenizer_files(stage: ResolvedStage, retry_policy: RetryPolicy) -> Mapping[str, bytes]:
    """What transformers reads a tokenizer from."""
    config = stage.model_config_
    assert isinstance(config, TokenModelConfig)
    return published_tokenizer(
        read_tokenizer(stage.data, stage.store, retry_policy),
        BYTE_END if stage.data.tokenizer is None else stage.data.tokenizer.end_of_text,
        config.context_length,
    )


LANGUAGE_MODEL = Task(
    source=_source,
    tokenizer=lambda _stage: None,
    projections=_projections,
    objective=LanguageModelObjective,
    companions=_tokenizer_files,
)
