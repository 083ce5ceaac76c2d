"""Which metrics the report follows, and their names for people."""

from __future__ import annotations

from dataclasses import dataclass

from modelchain.evaluations import EVALUATIONS
from modelchain.report import units
from modelchain.report.data import ChainArtifacts, StageArtifacts
from modelchain.spec import EvaluationType, TaskName
from modelchain.tasks import Task, task_of


@dataclass(frozen=True)
class Measure:
    """One metric of one evaluation set."""

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
    leading = list(dict.fromkeys(one.leading[0] for one in EVALUATIONS.values()))
    sets = list(dict.fromkeys([*wanted, *sorted(name.rpartition("/")[0] for name in seen)]))
    return tuple(
        Measure(metric, name, title_of(metric, chain))
        for name in sets
        for metric in [next((f"{name}/{one}" for one in leading if f"{name}/{one}" in seen), None)]
        if metric is not None
    )


def chain_task(chain: ChainArtifacts) -> Task:
    """The task that the chain's models are trained for."""
    return task_of(next((stage.resolved.task for stage in chain.stages if stage.resolved), TaskName.CLIP))


def title_of(metric: str, chain: ChainArtifacts) -> str:
    """The name of a metric of the chain, for people."""
    sets = (spec for stage in chain.stages if stage.resolved for spec in stage.resolved.evaluation)
    kind = next((spec.type for spec in sets if spec.name == metric.rpartition("/")[0]), None)
    return describe(metric, *((kind,) if kind else chain_task(chain).evaluations))


def describe(metric: str, *kinds: EvaluationType) -> str:
    """A metric's name for people: digits/top1 of a ZeroShot set is 'Zero-shot accuracy on digits'. Of several types,
    where nothing says which one the set had, the first that has such a metric counts.
    """
    name, _, last = metric.rpartition("/")
    what = next((names[last] for kind in kinds if last in (names := EVALUATIONS[kind].names)), last)
    return f"{what} on {name}" if name else what


def _metric_names(stage: StageArtifacts) -> set[str]:
    evaluated = {name for line in stage.metrics.evaluations for name in line.metrics}
    return evaluated | set(stage.final_metrics)
