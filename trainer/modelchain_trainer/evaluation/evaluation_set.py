"""What an evaluation set is to the trainer: something that is opened once and measures models.

Each type of set is a file beside this one, registered in `sets.OPENERS`; `modelchain.evaluations` has what needs no
torch. Figures are summed in the order of the samples, in batches whose composition never depends on the number of
ranks: a model has the same metrics, whatever evaluates it.

Shapes: B samples of a batch, M classes, T tokens.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from modelchain.resolved import ResolvedStage
from modelchain.spec import EvaluationSpec, Precision
from modelchain.store import Store
from modelchain_trainer.distributed.collectives import Group
from modelchain_trainer.model.family import AnyModel


class EvaluationBatch(Protocol):
    """Samples of a set, as `data.evaluation_data.EvaluationReader` gives them."""

    @property
    def indices(self) -> Tensor:
        """int64 [B]: places of the samples in the set; unreadable ones are missing."""
        ...

    @property
    def images(self) -> Tensor:
        """uint8 [B, 3, H, W]"""
        ...

    @property
    def labels(self) -> Tensor | None:
        """int64 [B], of a labelled set."""
        ...

    @property
    def captions(self) -> list[list[str]] | None:
        """One or several of each sample, of a set with captions."""
        ...


class EvaluationSource(Protocol):
    """Samples that can be read again and again; what a batch holds does not depend on the number of ranks."""

    def __len__(self) -> int:
        """Samples of the set, unreadable ones included."""
        ...

    def batches(self, rank: int, world_size: int) -> Iterator[EvaluationBatch]:
        """The batches of one rank: those whose number is `rank` modulo `world_size`."""
        ...

    def samples(self, indices: Sequence[int]) -> EvaluationBatch:
        """These samples, without those that are unreadable."""
        ...

    def check_readable(self, readable_n: Tensor, name: str) -> None:
        """Whoever has read the whole set says which samples could be used, bool [n], the same on every rank.

        Raises UserDataError where these are too few of the set `name`.
        """
        ...

    def describe(self, sample: int) -> str:
        """A sample, for people: its key and its shard."""
        ...


class Tokenize(Protocol):
    def __call__(self, texts: Sequence[str]) -> Tensor:
        """int64 [number of texts, T]"""
        ...


@dataclass(frozen=True)
class Opening:
    """What sets are opened with."""

    stage: ResolvedStage
    index_store: Store  # keeps indexes of shards
    on_progress: Callable[[], None]


@dataclass(frozen=True)
class Run:
    """How models are measured: by which ranks, in which numbers."""

    precision: Precision = Precision.FP32
    group: Group = field(default_factory=Group)
    on_progress: Callable[[], None] = lambda: None  # after each batch
    tokenizer: Tokenize | None = None  # of class names and captions, where a model embeds texts

    def autocast(self, device: torch.device) -> torch.autocast:
        """Forward passes in the run's precision."""
        return torch.autocast(device.type, torch.bfloat16, enabled=self.precision is Precision.BF16)


class EvaluationSet(ABC):
    """A set with its data."""

    spec: EvaluationSpec

    @abstractmethod
    def measure(self, model: AnyModel, run: Run) -> dict[str, float]:
        """Metrics of the model, named without the set's name, the same on every rank; all ranks call it.

        Raises UserDataError for a set of which too few samples can be used.
        """


class ClassifiedImages(EvaluationSet):
    """A set whose classes a model tells apart as it is, so that examples of its answers can be shown."""

    source: EvaluationSource
    classes: tuple[
        str, ...
    ]  # in the order of their numbers; none where the model alone knows how many there are

    @abstractmethod
    def classifier(self, model: AnyModel, run: Run) -> Callable[[Tensor], Tensor]:
        """Logits [B, M] of uint8 images [B, 3, H, W]. All ranks call it; its result is called by any."""
