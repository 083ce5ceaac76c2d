"""What every task says of itself."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar, Generic, TypeVar

from modelchain.families import Family, FamilyConfig, Problem, families_of
from modelchain.mix import seen_in_epoch
from modelchain.resolved import ResolvedData, ResolvedStage, ResolvedTraining
from modelchain.spec import DataSpec, EvaluationType, TaskName

C = TypeVar("C", bound=FamilyConfig)


def samples_of(data: DataSpec) -> int | None:
    """Samples that an epoch sees, repetitions counted; None where the chain does not say."""
    if data.sources is None:
        return data.samples
    repeats = (1.0 if source.repeat is None else source.repeat for source in data.sources)
    return sum(seen_in_epoch(source.samples, r) for source, r in zip(data.sources, repeats, strict=True))


class Task(ABC, Generic[C]):
    """One task. `C` is the kind of models that it trains, of whatever family."""

    name: ClassVar[TaskName]
    config: type[C]
    own_fields: ClassVar[frozenset[tuple[str, str]]]  # (block, field) of the chain that not every task reads
    evaluations: ClassVar[tuple[EvaluationType, ...]]
    text: ClassVar[str] = ""  # what a sample's texts are to people: captions, labels
    size_field: ClassVar[str] = "samples"  # of spec.data: how much data there is
    unit: ClassVar[str] = "samples"  # what batches are made of, for people
    distillation: ClassVar[str]  # its loss, after "Distillation loss:"

    @property
    def families(self) -> tuple[Family[Any], ...]:
        """Those whose models it trains, the usual one first."""
        return families_of(self.config)

    @abstractmethod
    def loss(self, training: ResolvedTraining) -> str:
        """The task's loss in a sentence, for people."""

    @abstractmethod
    def text_keys(self, data: ResolvedData) -> tuple[str, ...]:
        """Extensions of the files of a sample that are read beside its image; none where samples are images alone."""

    def samples(self, data: DataSpec, config: C) -> int | None:  # noqa: ARG002
        """Samples of an epoch; None where the chain does not say how much data there is."""
        return samples_of(data)

    def sample(self, data: ResolvedData, config: C) -> str:  # noqa: ARG002
        """What of a sample is learnt, for people: 5 captions."""
        texts = len(self.text_keys(data))
        return "1 image" if not texts else f"{texts} {self.text}{'s' * (texts != 1)}"

    def count(self, samples: int, stage: ResolvedStage) -> str:  # noqa: ARG002
        """So many samples that a stage has seen, for people."""
        return f"{samples:,}"

    def unfit(self, data: DataSpec, config: C) -> Iterator[Problem]:  # noqa: ARG002
        """What keeps a model from being trained on this data: where in the configuration, and so on."""
        yield from ()
