"""Images and captions into one embedding, by a contrastive loss over the global batch."""

from __future__ import annotations

from functools import cache

from torch import nn

from modelchain.families import AnyConfig
from modelchain.families.family import ImageTextConfig
from modelchain.resolved import ResolvedStage
from modelchain_trainer.data.source import SampleSource
from modelchain_trainer.data.text_field import CaptionField
from modelchain_trainer.data.tokenizer import Tokenizer
from modelchain_trainer.distillation import build_projections
from modelchain_trainer.tasks.contrastive import ContrastiveObjective
from modelchain_trainer.tasks.task import Task

_tokenizer_of_length = cache(
    Tokenizer
)  # training and evaluation share one, and what it remembers of captions


def _tokenizer(stage: ResolvedStage) -> Tokenizer:
    config = stage.model_config_
    assert isinstance(config, ImageTextConfig)
    return _tokenizer_of_length(config.text_length)


def _projections(student: AnyConfig, teacher: AnyConfig) -> nn.Module | None:
    assert isinstance(student, ImageTextConfig)
    assert isinstance(teacher, ImageTextConfig)
    return build_projections(student.embed_dim, teacher.embed_dim)


CLIP = Task(
    source=lambda stage: SampleSource(stage, CaptionField(_tokenizer(stage)), stage.data.caption_keys),
    tokenizer=_tokenizer,
    projections=_projections,
    objective=ContrastiveObjective,
)
