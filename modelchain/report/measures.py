"""Which metrics the report follows, and their names for people."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from modelchain.report import units
from modelchain.report.data import ChainArtifacts, StageArtifacts
from modelchain.spec import EvaluationType, TaskName
from modelchain.tasks import Task, task_of

_LEADING = (
    "top1",
    "imageToText@1",
    "perplexity",
)  # the one figure that stands for a set, by kind of evaluation

_OF_TYPE: Mapping[EvaluationType | None, Mapping[str, str]] = {
    EvaluationType.LINEAR_PROBE: {"top1": "Linear-probe accuracy"},
    EvaluationType.FINE_TUNE: {"top1": "Accuracy after fine-tuning"},
}


@dataclass(frozen=True)
class Measure:
    """One metric of one evaluation set. `modelchain.resolved.higher_is_better` says in which direction it is better."""

    metric: str  # as in metrics, e.g. digits/top1
    set: str
    title: str

    def of(self, values: dict[str, float]) -> float | None:
        """Its value among metrics."""
        return values.get(self.metric)

    def text(self, value: float | None) -> str:
        """A value for people."""
        return "–" if value is None else units.metric(self.metric, value)


def leading_measures(chain: ChainArtifacts) -> tuple[Measure, ...]:
    """One measure for each evaluation set of the chain, in the order in which the settings name the sets."""
    seen = {name for stage in chain.stages for name in _metric_names(stage)}
    wanted = [
        spec.name for stage in reversed(chain.stages) if stage.resolved for spec in stage.resolved.evaluation
    ]
    sets = list(dict.fromkeys([*wanted, *sorted(name.rpartition("/")[0] for name in seen)]))
    return tuple(
        Measure(metric, name, title_of(metric, chain))
        for name in sets
        for metric in [next((f"{name}/{last}" for last in _LEADING if f"{name}/{last}" in seen), None)]
        if metric is not None
    )


def chain_task(chain: ChainArtifacts) -> Task:
    """The task that the chain's models are trained for."""
    return task_of(next((stage.resolved.task for stage in chain.stages if stage.resolved), TaskName.CLIP))


def title_of(metric: str, chain: ChainArtifacts) -> str:
    """The name of a metric of the chain, for people."""
    sets = (spec for stage in chain.stages if stage.resolved for spec in stage.resolved.evaluation)
    kind = next((spec.type for spec in sets if spec.name == metric.rpartition("/")[0]), None)
    return describe(metric, chain_task(chain), kind)


def describe(metric: str, task: Task, evaluated: EvaluationType | None = None) -> str:
    """A metric's name for people: digits/top1 is 'Zero-shot accuracy on digits'."""
    name, _, last = metric.rpartition("/")
    kind, _, rank = last.partition("@")
    if rank:
        direction = {"imageToText": "image to text", "textToImage": "text to image"}.get(kind, kind)
        what = f"Recall@{rank} ({direction})"
    else:
        what = (_OF_TYPE.get(evaluated) or task.metric_names).get(last, last)
    return f"{what} on {name}" if name else what


def _metric_names(stage: StageArtifacts) -> set[str]:
    evaluated = {name for line in stage.metrics.evaluations for name in line.metrics}
    return evaluated | set(stage.final_metrics)
