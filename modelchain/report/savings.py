"""What the chain saves: as planned, and as measured where its models were trained alone too.

Planned figures say what training alone would cost, and nothing about how good the models would be. Measured ones
compare at equal quality, by one metric (`modelchain.acceleration`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from modelchain.acceleration import Acceleration
from modelchain.evaluations import higher_is_better
from modelchain.measuring import Trained, measure_model
from modelchain.report import units
from modelchain.report.accounting import Costs
from modelchain.report.data import ChainArtifacts, StageArtifacts
from modelchain.report.measures import Measure, title_of
from modelchain.status import Measurement, ModelMeasured

NOT_REACHED = "not reached"


@dataclass(frozen=True)
class MeasuredRow:
    """A model of the chain, or all of them: what it takes alone to become as good."""

    stage: int | None  # None: the sum
    model: str
    target: str  # what the chain's model ended with
    best: str  # what the model alone came to at best
    alone: str  # compute until it was as good; with >= where it never was
    chain: str  # compute of the chain, up to the end of the stage
    factor: str


@dataclass(frozen=True)
class PlannedRow:
    """A model, or all of them: what training it alone would cost."""

    stage: int | None
    model: str
    alone: str
    chain: str
    factor: str


@dataclass(frozen=True)
class Savings:
    """Both tables. `metric` is a name for people; without measured models there is no `acceleration`."""

    planned: tuple[PlannedRow, ...]
    measured: tuple[MeasuredRow, ...]
    metric: str
    acceleration: Acceleration | None
    covers_all: bool  # every model of the family was trained alone
    waiting: str  # why nothing is measured though the chain asks for it


def savings(chain: ChainArtifacts, costs: Costs, measure: Measure | None) -> Savings:
    """What is planned and what is measured of a chain. `measure` is the metric where the chain names none."""
    metric = chain.metric or (measure.metric if measure is not None else None)
    found = _measurement(chain, costs, metric) if metric is not None and chain.complete else None
    waiting = ""
    if found is None and chain.baselines:
        done = sum(run.artifacts.complete for run in chain.baselines)
        waiting = f"{done} of {len(chain.baselines)} runs of models trained alone are complete"
    return Savings(
        planned=_planned(costs) if len(chain.stages) > 1 else (),
        measured=_measured(chain, costs, found),
        metric=title_of(metric, chain) if metric is not None else "",
        acceleration=found.acceleration if found is not None else None,
        covers_all=found is not None and len(found.models) == len(chain.stages),
        waiting=waiting,
    )


def _measurement(chain: ChainArtifacts, costs: Costs, metric: str) -> Measurement | None:
    """As `modelchain.measuring`, over the models that were trained alone to the end, here or in chains of their own;
    None if there is none, or if one that the chain asks for is not finished.
    """
    if not all(run.artifacts.complete for run in chain.baselines):
        return None
    models: list[ModelMeasured] = []
    for stage in chain.stages:
        target = stage.final_metrics.get(metric)
        runs = [
            Trained(run.artifacts.manifest, run.artifacts.metrics.evaluations)
            for run in costs.runs(stage.name)
            if run.artifacts.manifest is not None
        ]
        if target is not None and (model := measure_model(stage.name, target, runs, metric)) is not None:
            models.append(model)
    macs = sum(stage.macs or 0.0 for stage in _needed(chain, [model.name for model in models]))
    if not models or not macs > 0:
        return None
    return Measurement(metric=metric, chain_macs=macs, models=tuple(models))


def _needed(chain: ChainArtifacts, names: Sequence[str]) -> list[StageArtifacts]:
    """The stages of these names, and all that they grow out of or learn from."""
    found = set(names)
    for stage in reversed(chain.stages):
        if stage.name in found:
            taught_by = stage.resolved.teacher if stage.resolved is not None else None
            found |= {name for name in (stage.recorded.predecessor, taught_by and taught_by.name) if name}
    return [stage for stage in chain.stages if stage.name in found]


def _measured(chain: ChainArtifacts, costs: Costs, found: Measurement | None) -> tuple[MeasuredRow, ...]:
    if found is None:
        return ()
    rows: list[MeasuredRow] = []
    for i, stage in enumerate(chain.stages):
        model = next((one for one in found.models if one.name == stage.name), None)
        if model is None:
            continue
        spent = sum(each.macs or 0.0 for each in _needed(chain, [stage.name]))
        rows.append(
            MeasuredRow(
                stage=i,
                model=stage.model,
                target=units.metric(found.metric, model.target),
                best=_best(costs, stage, found.metric),
                alone=_alone(model.macs, model.reached),
                chain=units.macs(spent),
                factor=_times(Acceleration(model.macs / spent, not model.reached)) if spent else "–",
            )
        )
    alone = sum(model.macs for model in found.models)
    reached = not found.acceleration.at_least
    total = _times(found.acceleration)
    return (
        *rows,
        MeasuredRow(None, "Together", "–", "–", _alone(alone, reached), units.macs(found.chain_macs), total),
    )


def _best(costs: Costs, stage: StageArtifacts, metric: str) -> str:
    values = [
        value
        for run in costs.runs(stage.name)
        for metrics in (
            *(line.metrics for line in run.artifacts.metrics.evaluations),
            run.artifacts.final_metrics,
        )
        if (value := metrics.get(metric)) is not None
    ]
    best = max if higher_is_better(metric) else min
    return units.metric(metric, best(values)) if values else "–"


def _planned(costs: Costs) -> tuple[PlannedRow, ...]:
    plan = costs.plan
    if plan is None:
        return ()
    rows = [
        PlannedRow(i, stage.model, units.macs(stage.alone_macs), units.macs(stage.macs), "–")
        for i, stage in enumerate(plan.stages)
    ]
    total = f"{plan.speedup:.2f}×"
    return (
        *rows,
        PlannedRow(None, "Together", units.macs(plan.family_macs), units.macs(plan.chain_macs), total),
    )


def _alone(macs: float, reached: bool) -> str:
    return f"{'' if reached else '≥ '}{units.macs(macs)}"


def _times(acceleration: Acceleration) -> str:
    """As in the status, with the signs ≥ and × of the page."""
    return str(acceleration).replace(">=", "≥").replace("x", "×")
