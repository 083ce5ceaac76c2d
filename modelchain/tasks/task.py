"""What every task says of itself and of the models that it trains."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Generic, TypeAlias, TypeVar

from modelchain.resolved import ResolvedData, ResolvedStage, ResolvedTraining
from modelchain.spec import Block, DataSpec, EvaluationType, TaskName

if TYPE_CHECKING:
    from modelchain.tasks.towers import Tower

C = TypeVar("C", bound=Block)

Problem: TypeAlias = tuple[tuple[str, ...], str, str]  # where in the configuration, what is wrong, what to do


class Task(ABC, Generic[C]):
    """One task. `C` is the configuration of the models of its family."""

    name: ClassVar[TaskName]
    config: type[C]
    config_field: ClassVar[str]  # of a stage: where such a model is written out
    own_fields: ClassVar[frozenset[tuple[str, str]]]  # (block, field) of the chain that not every task reads
    evaluations: ClassVar[tuple[EvaluationType, ...]]
    text: ClassVar[str]  # what a sample's texts are to people: captions, labels
    size_field: ClassVar[str] = "samples"  # of spec.data: how much data there is
    metric_names: ClassVar[Mapping[str, str]]  # for people
    distillation: ClassVar[str]  # and the distillation's, after "Distillation loss:"
    weights: ClassVar[str]  # file name of the published weights
    weights_config: ClassVar[str]  # and of the configuration beside them
    weights_readers: ClassVar[str]  # who loads them, and how, for people

    @abstractmethod
    def loss(self, training: ResolvedTraining) -> str:
        """The task's loss in a sentence, for people."""

    @abstractmethod
    def parameters(self, config: C) -> int:
        """Trainable parameters."""

    @abstractmethod
    def forward_macs(self, config: C, texts: int) -> int:
        """Multiply-accumulates of a forward pass over one sample that has so many texts."""

    @abstractmethod
    def embedding_parameters(self, config: C) -> int:
        """Of these, those of tables of tokens, which stay in fp32 in a teacher that runs in bf16."""

    @abstractmethod
    def towers(self, config: C) -> Sequence[Tower]:
        """Its stacks of blocks."""

    @abstractmethod
    def largest_parameter(self, config: C) -> int:
        """Numbers of the largest single parameter."""

    @abstractmethod
    def unbuildable(self, config: C) -> Iterator[Problem]:
        """What keeps a model from being built."""

    @abstractmethod
    def ungrowable(self, small: C, large: C) -> Iterator[Problem]:
        """What keeps `large` from growing out of `small`. Both can be built."""

    @abstractmethod
    def unteachable(self, student: C, teacher: C) -> Iterator[Problem]:
        """What keeps `teacher` from teaching a model that did not grow out of it. Both can be built."""

    @abstractmethod
    def digest_form(self, config: C) -> dict[str, object]:
        """What of the model decides its weights."""

    @abstractmethod
    def size_name(self, config: C) -> str:
        """A short name for folders that is a function of the configuration alone."""

    @abstractmethod
    def text_keys(self, data: ResolvedData) -> tuple[str, ...]:
        """Extensions of the files of a sample that are read beside its image."""

    def samples(self, data: DataSpec, config: C) -> int | None:  # noqa: ARG002
        """Samples of an epoch; None where `size_field` is not given."""
        return data.samples

    def sample(self, data: ResolvedData, config: C) -> str:  # noqa: ARG002
        """What of a sample is learnt, for people: 5 captions."""
        texts = len(self.text_keys(data))
        return f"{texts} {self.text}{'s' * (texts != 1)}"

    def count(self, samples: int, stage: ResolvedStage) -> str:  # noqa: ARG002
        """So many samples that a stage has seen, for people."""
        return f"{samples:,}"

    def unfit(self, data: DataSpec, config: C) -> Iterator[Problem]:  # noqa: ARG002
        """What keeps a model from being trained on this data: where in the configuration, and so on."""
        yield from ()


def shrinks(part: tuple[str, ...], name: str, before: int, after: int) -> Iterator[Problem]:
    """A size that may only grow."""
    if after < before:
        yield (
            part,
            f"{name} shrinks from {before} to {after}",
            f"make it at least {before}, or put the smaller model first",
        )


def differs(
    part: tuple[str, ...], name: str, before: object, after: object, remedy: str = ""
) -> Iterator[Problem]:
    """A setting that must stay."""
    if before != after:
        yield (
            part,
            f"{name} changes from {shown(before)} to {shown(after)}",
            remedy or f"write {shown(before)}, as in the predecessor",
        )


def shown(value: object) -> str:
    """A value as YAML writes it."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def near_multiple(name: str, value: int, divisor: int) -> str:
    """The remedy for a size that does not divide."""
    below = value // divisor * divisor
    choices = [number for number in (below, below + divisor) if number > 0]
    return f"make {name} a multiple of {divisor}, e.g. {' or '.join(map(str, choices))}"
