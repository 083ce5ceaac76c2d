"""What each type of evaluation set may say, which metrics it gives, and how people call them.

A type is an entry of EVALUATIONS here and a file of `modelchain_trainer.evaluation`. Tasks name the types that their
models can be evaluated by. May import spec.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from modelchain.spec import EvaluationDataSpec, EvaluationSpec, EvaluationType

TOP5_CLASSES: Final = 10  # from so many on, the accuracy among the best five is measured too
RECALL_AT: Final = (1, 5, 10)
_LABELLED: Final = frozenset({"classKey", "imageKeys"})


@dataclass(frozen=True)
class Evaluation:
    """A type of evaluation sets. Metrics are named without the set's name."""

    metrics: Callable[[EvaluationSpec], tuple[str, ...]]  # what a set gives
    leading: tuple[str, ...]  # metrics that stand for how good a model is, the most telling first
    names: Mapping[str, str]  # of metrics, for people
    falling: frozenset[str] = frozenset()  # metrics of which a lower value is better
    fields: frozenset[str] = frozenset()  # of a set, that not every type has
    data_fields: frozenset[str] = frozenset()  # likewise, of its data (and trainData)
    one_of: tuple[str, ...] = ()  # a set has one of these fields
    lacks: tuple[str, str] = ("", "")  # what it needs if it has none of them, and the remedy
    trains: bool = False  # on trainData first, and so once, at the end of a stage


def _top1_and_5(evaluation: EvaluationSpec) -> tuple[str, ...]:
    few = evaluation.classes is not None and len(evaluation.classes) < TOP5_CLASSES
    return ("top1",) if few else ("top1", "top5")


def _of_seeds(evaluation: EvaluationSpec) -> tuple[str, ...]:
    return (*_top1_and_5(evaluation), *(("top1Std",) if (evaluation.seeds or 1) > 1 else ()))


def _recall(way: str) -> tuple[str, ...]:
    return tuple(f"{way}@{rank}" for rank in RECALL_AT)


_RECALLS: Final = (*_recall("imageToText"), *_recall("textToImage"))
_RECALL_NAMES: Final = {
    f"{way}@{rank}": f"Recall@{rank} ({name})"
    for way, name in (("imageToText", "image to text"), ("textToImage", "text to image"))
    for rank in RECALL_AT
}
_NEEDS_TRAIN_DATA: Final = ("labelled samples to train on", "name their shards under trainData")

# The most telling first.
EVALUATIONS: Final[Mapping[EvaluationType, Evaluation]] = MappingProxyType(
    {
        EvaluationType.ZERO_SHOT: Evaluation(
            metrics=_top1_and_5,
            leading=("top1",),
            names={"top1": "Zero-shot accuracy", "top5": "Zero-shot accuracy among the best five"},
            fields=frozenset({"classes", "classesUri", "templates"}),
            data_fields=_LABELLED,
            one_of=("classes", "classesUri"),
            lacks=(
                "the names of its classes",
                "list them under classes, or name a file with one a line under classesUri",
            ),
        ),
        EvaluationType.ACCURACY: Evaluation(
            metrics=lambda spec: ("loss", *_top1_and_5(spec)),
            leading=("top1",),
            names={"top1": "Accuracy", "top5": "Accuracy among the best five", "loss": "Cross-entropy"},
            falling=frozenset({"loss"}),
            fields=frozenset({"classes", "classesUri"}),
            data_fields=_LABELLED,
        ),
        EvaluationType.RETRIEVAL: Evaluation(
            metrics=lambda _: ("loss", *_RECALLS),
            leading=("imageToText@1", "loss"),
            names={"loss": "Contrastive loss", **_RECALL_NAMES},
            falling=frozenset({"loss"}),
            data_fields=frozenset({"captionKeys", "imageKeys"}),
        ),
        EvaluationType.PERPLEXITY: Evaluation(
            metrics=lambda _: ("perplexity", "loss"),
            leading=("perplexity",),
            names={"perplexity": "Perplexity", "loss": "Cross-entropy a token"},
            falling=frozenset({"perplexity", "loss"}),
            data_fields=frozenset({"textKey"}),
        ),
        EvaluationType.LINEAR_PROBE: Evaluation(
            metrics=_of_seeds,
            leading=("top1",),
            names={"top1": "Linear-probe accuracy"},
            fields=frozenset({"classes", "classesUri", "trainData", "seeds"}),
            data_fields=_LABELLED,
            one_of=("trainData",),
            lacks=_NEEDS_TRAIN_DATA,
            trains=True,
        ),
        EvaluationType.FINE_TUNE: Evaluation(
            metrics=_of_seeds,
            leading=("top1",),
            names={"top1": "Accuracy after fine-tuning"},
            fields=frozenset({"classes", "classesUri", "trainData", "seeds", "fineTune"}),
            data_fields=_LABELLED,
            one_of=("trainData",),
            lacks=_NEEDS_TRAIN_DATA,
            trains=True,
        ),
    }
)


def evaluation_of(spec: EvaluationSpec) -> Evaluation:
    """What a set's type says."""
    return EVALUATIONS[spec.type]


def metrics_of(spec: EvaluationSpec) -> tuple[str, ...]:
    """The metrics that a set gives, each with the set's name."""
    return tuple(f"{spec.name}/{metric}" for metric in evaluation_of(spec).metrics(spec))


def leading_metrics(sets: Sequence[EvaluationSpec]) -> tuple[str, ...]:
    """The metrics that stand for how good a model is, the most telling first."""
    return tuple(
        f"{one.name}/{metric}"
        for kind, evaluation in EVALUATIONS.items()
        for metric in evaluation.leading
        for one in sets
        if one.type is kind
    )


def higher_is_better(metric: str) -> bool:
    """Whether a higher value of a metric (<set>/<metric>) is better. A name means the same in sets of every type."""
    name = metric.rpartition("/")[2]
    return not any(name in evaluation.falling for evaluation in EVALUATIONS.values())


def readers_of(field: str, *, of_data: bool = False) -> tuple[EvaluationType, ...]:
    """The types whose sets may have a field, or whose data may; none where every type may."""
    return tuple(
        kind
        for kind, evaluation in EVALUATIONS.items()
        if field in (evaluation.data_fields if of_data else evaluation.fields)
    )


def own_fields(*, of_data: bool = False) -> tuple[str, ...]:
    """The fields of a set, or of its data, that not every type has, in the order of the reference."""
    block = EvaluationDataSpec if of_data else EvaluationSpec
    names = (info.alias or name for name, info in block.model_fields.items())
    return tuple(name for name in names if readers_of(name, of_data=of_data))


def misplaced(field: str, *, of_data: bool = False) -> tuple[str, str]:
    """What is said of a field of a set, or of its data, that stands in a set of another type, and the remedy."""
    readers = readers_of(field, of_data=of_data)
    listed = " and ".join(filter(None, (", ".join(readers[:-1]), readers[-1])))
    remedy = f"remove it, or write type: {readers[0]}" if len(readers) == 1 else "remove it"
    return f"only {listed} sets have {field}", remedy
