"""How good the models became, beside the same models trained alone."""

from __future__ import annotations

from dataclasses import dataclass

from modelchain.report import units
from modelchain.report.accounting import Costs, reached
from modelchain.report.data import ChainArtifacts, StageArtifacts
from modelchain.report.measures import Measure


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
    name: str
    model: str
    value: str
    alone_value: str
    alone_then: str | None  # of the model alone, at the latest evaluation within the compute of `macs`
    macs: str  # of the chain, up to the end of this stage
    alone_macs: str
    until: str | None  # of the chain, until it was as good as the model alone; None: it never was
    ratio: str | None


def against_alone(chain: ChainArtifacts, costs: Costs, measure: Measure | None) -> list[AloneRow]:
    """Every model of the chain beside a finished run of the same model alone."""
    rows: list[AloneRow] = []
    for i, stage in enumerate(chain.stages):
        baseline = costs.baseline(stage.name)
        if baseline is None or not stage.complete or i == 0:
            continue
        alone = baseline.artifacts
        if not alone.complete or alone.macs is None:
            continue
        event = reached(chain, baseline, measure.metric) if measure else None
        until = sum(other.macs or 0.0 for other in chain.stages[: i + 1])
        rows.append(
            AloneRow(
                stage=i,
                name=stage.name,
                model=stage.model,
                value=measure.text(measure.of(stage.final_metrics)) if measure else "–",
                alone_value=measure.text(measure.of(alone.final_metrics)) if measure else "–",
                alone_then=_then(alone, measure, until),
                macs=units.macs(until),
                alone_macs=units.macs(alone.macs),
                until=units.macs(event.chain_macs) if event and event.chain_macs is not None else None,
                ratio=factor(event.ratio) if event and event.ratio is not None else None,
            )
        )
    return rows


def _then(alone: StageArtifacts, measure: Measure | None, macs: float) -> str | None:
    values = [
        value
        for line in alone.metrics.evaluations
        if measure is not None and line.macs <= macs and (value := measure.of(line.metrics)) is not None
    ]
    return measure.text(values[-1]) if measure is not None and values else None


def factor(ratio: float) -> str:
    """How many times less, or more."""
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
