"""What stands at the top of the page: the verdict, the headline figures, and how good the models became."""

from __future__ import annotations

from dataclasses import dataclass

from modelchain.report import units
from modelchain.report.accounting import Costs, reached
from modelchain.report.data import ChainArtifacts
from modelchain.report.measures import Measure

COUNTED = "counted"
MEASURED = "measured"
PLANNED = "planned, not run"


@dataclass(frozen=True)
class Tile:
    """A headline figure; `source` says where it comes from."""

    title: str
    value: str
    detail: str
    source: str


@dataclass(frozen=True)
class Final:
    """How good a model became in the first measure."""

    stage: int
    model: str
    value: float | None
    text: str
    alone: str | None  # the same model trained alone, where that was run


@dataclass(frozen=True)
class AloneRow:
    """A model of the chain beside the same model trained alone; both were run."""

    stage: int
    model: str
    value: str
    alone_value: str
    macs: str  # of the chain, up to the end of this stage
    alone_macs: str
    until: str | None  # of the chain, until it was as good as the model alone; None: it never was
    ratio: str | None


def verdict(chain: ChainArtifacts, costs: Costs) -> str:
    """The sentence below the title."""
    ratio, speedup, plan = costs.of_largest, costs.family_speedup, costs.plan
    done = sum(stage.complete for stage in chain.stages)
    if len(chain.stages) == 1:
        return "A chain of one model: there is nothing to compare its cost with."
    if ratio is None or speedup is None or plan is None:
        return f"{done} of {len(chain.stages)} models are trained."
    took = "took" if chain.complete else "will take"
    start = "" if chain.complete else f"{done} of {len(chain.stages)} models are trained. "
    factor = f"{speedup:.2f} times less" if speedup >= 1 else f"{1 / speedup:.2f} times more"
    return (
        f"{start}All {len(chain.stages)} models together {took} {units.percent(ratio)} of the compute of "
        f"training {plan.largest.model} alone, and {factor} than training each of them alone."
    )


def tiles(chain: ChainArtifacts, costs: Costs, measure: Measure | None) -> list[Tile]:
    """The headline figures."""
    found = [_spent(chain, costs)]
    plan, ratio, speedup = costs.plan, costs.of_largest, costs.family_speedup
    if plan is not None and ratio is not None and speedup is not None and len(chain.stages) > 1:
        source = f"chain {COUNTED if chain.complete else 'planned'}; alone {PLANNED}"
        epochs = f"{plan.baseline_epochs:,} epochs"
        found += [
            Tile(
                f"Chain against {plan.largest.model} alone",
                units.percent(ratio),
                f"of {units.macs(plan.largest.alone_macs)}, "
                f"which {epochs} of {plan.largest.model} would take.",
                source,
            ),
            Tile(
                "Chain against the family alone",
                _factor(speedup),
                f"than {units.macs(plan.family_macs)}, which {len(plan.stages)} models alone would "
                f"take, {epochs} each.",
                source,
            ),
        ]
    return found + _measured_tile(chain, costs, measure)


def _spent(chain: ChainArtifacts, costs: Costs) -> Tile:
    detail = f"in {units.duration(costs.spent_seconds)} of training"
    if not chain.complete and costs.plan is not None:
        detail += f", of {units.macs(costs.plan.chain_macs)} planned"
    detail += "."
    if costs.reused:
        detail += (
            f" Of this, {units.macs(costs.reused_macs)} ({', '.join(costs.reused)}) was not spent again: "
            "another chain had trained it."
        )
    title = "Cost of the chain" if chain.complete else "Cost of the chain so far"
    return Tile(title, units.macs(costs.spent_macs), detail, f"compute {COUNTED}, time {MEASURED}")


def _measured_tile(chain: ChainArtifacts, costs: Costs, measure: Measure | None) -> list[Tile]:
    """Against the largest model that really was trained alone."""
    rows = against_alone(chain, costs, measure)
    if not rows:
        return []
    row = rows[-1]
    detail = f"{row.alone_value} took {row.alone_macs} alone"
    if row.until:
        detail += f", and {row.until} of the chain from its first step on."
    else:
        detail += f"; the chain’s {row.model} ended at {row.value}."
    return [
        Tile(f"As good as {row.model} trained alone", row.ratio or "not reached", detail, "both runs counted")
    ]


def against_alone(chain: ChainArtifacts, costs: Costs, measure: Measure | None) -> list[AloneRow]:
    """Every model of the chain beside a finished run of the same model alone."""
    rows: list[AloneRow] = []
    for i, stage in enumerate(chain.stages):
        baseline = costs.baseline(stage.name)
        if baseline is None or not stage.complete or stage.recorded.predecessor is None:
            continue
        alone = baseline.artifacts
        if not alone.complete or alone.macs is None:
            continue
        event = reached(chain, baseline, measure.metric) if measure else None
        until = sum(other.macs or 0.0 for other in chain.stages[: i + 1])
        rows.append(
            AloneRow(
                stage=i,
                model=stage.model,
                value=measure.text(measure.of(stage.final_metrics)) if measure else "–",
                alone_value=measure.text(measure.of(alone.final_metrics)) if measure else "–",
                macs=units.macs(until),
                alone_macs=units.macs(alone.macs),
                until=units.macs(event.chain_macs) if event and event.chain_macs is not None else None,
                ratio=_factor(event.ratio) if event and event.ratio is not None else None,
            )
        )
    return rows


def _factor(ratio: float) -> str:
    return f"{ratio:.2f}× less" if ratio >= 1 else f"{1 / ratio:.2f}× more"


def finals(chain: ChainArtifacts, costs: Costs, measure: Measure) -> list[Final]:
    """Each model's final value."""
    rows: list[Final] = []
    for i, stage in enumerate(chain.stages):
        value, baseline = measure.of(stage.final_metrics), costs.baseline(stage.name)
        alone = measure.of(baseline.artifacts.final_metrics) if baseline else None
        rows.append(
            Final(
                i,
                stage.model,
                value,
                measure.text(value),
                None if alone is None else measure.text(alone),
            )
        )
    return rows
