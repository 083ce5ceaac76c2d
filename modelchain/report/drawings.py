"""From artifacts to drawings: which curves, marks and bars the plots show, and what they say in words."""

from __future__ import annotations

from dataclasses import dataclass, replace

from modelchain.report import plots, units
from modelchain.report.accounting import Costs
from modelchain.report.data import ChainArtifacts, StageArtifacts
from modelchain.report.measures import Measure, chain_task
from modelchain.report.palette import MARKERS, Colour
from modelchain.report.plots import Bar, Drawing, Segment, StageCurve


@dataclass(frozen=True)
class Plot:
    """A drawing with its heading and texts."""

    heading: str
    drawing: Drawing
    words: str  # alternative text: what it shows
    caption: str

    @property
    def file(self) -> str:
        """Name of its PNG."""
        return f"{self.drawing.name}.png"


def accuracy_plot(
    chain: ChainArtifacts, costs: Costs, colours: tuple[Colour, ...], measure: Measure, name: str
) -> Plot | None:
    """A measure against compute; None if it was never evaluated."""
    stages, alone = _curves(chain, colours, measure), _alone(chain, costs, colours, measure)
    if not any(curve.values for curve in stages):
        return None
    ends = ", ".join(
        f"{curve.label} {measure.text(value)} after {units.macs(curve.offset + macs)}"
        for curve in stages
        for macs, value in curve.values[-1:]
    )
    caption = "Each colour is one model; the chain runs from left to right. "
    if any(curve.grown for curve in stages):
        caption += (
            "A dashed line marks growth. The ring shows the grown model before its first step, the figures above it "
            "the predecessor's value and this one: if they agree, growth has kept what was learned. "
        )
    beginning = plots.accuracy_axis_begins(stages, alone)
    if beginning is not None:
        caption += (
            f"The axis begins at {measure.text(beginning)}; training from scratch begins lower, "
            f"at {measure.text(min(value for curve in (*stages, *alone) for _, value in curve.values))}. "
        )
    if alone:
        caption += "Long dashes: the same model trained alone, from its own first step on"
        matched = any(curve.budget_matched for curve in alone)
        caption += "; dots: for the compute of the chain up to it." if matched else "."
    words = f"{measure.title} against compute: {ends}."
    drawing = plots.accuracy(name, measure.title, units.is_share(measure.metric), stages, alone)
    return Plot(f"{measure.title} against compute", drawing, words, caption)


def loss_plot(chain: ChainArtifacts, costs: Costs, colours: tuple[Colour, ...]) -> Plot | None:
    """The loss against compute; None if none was recorded."""
    stages, alone = _curves(chain, colours, None), _alone(chain, costs, colours, None)
    if not any(curve.task for curve in stages):
        return None
    ends = ", ".join(f"{curve.label} {units.digits(curve.task[-1][1])}" for curve in stages if curve.task)
    task = chain_task(chain)
    training = next((stage.resolved.training for stage in chain.stages if stage.resolved), None)
    caption = f"Task loss: {task.loss(training)}." if training else ""
    if any(curve.distillation for curve in stages):
        caption += (
            f" Distillation loss: {task.distillation}. The method asks that it stays below the task loss."
        )
    drawing = plots.loss("loss-compute", stages, alone)
    return Plot("Loss against compute", drawing, f"Task loss against compute, last values: {ends}.", caption)


def cost_plot(chain: ChainArtifacts, costs: Costs, colours: tuple[Colour, ...]) -> Plot | None:
    """What the chain cost, against its models alone; None if the store does not say what all stages are."""
    plan = costs.plan
    if plan is None:
        return None
    spent = tuple(
        Segment(colour, stage.macs or 0.0) for stage, colour in zip(chain.stages, colours, strict=True)
    )
    bars = [_bar("Chain" if chain.complete else "Chain so far", "counted", spent, real=True)]
    if not chain.complete:
        planned = tuple(Segment(c, float(s.macs)) for s, c in zip(plan.stages, colours, strict=True))
        bars.append(_bar("Chain", "planned", planned, real=False))
    if len(chain.stages) > 1:
        bars += _alone_bars(chain, costs, colours)
    legend = [(stage.model, colour) for stage, colour in zip(chain.stages, colours, strict=True)]
    words = "Compute: " + "; ".join(f"{bar.label}, {bar.note}" for bar in bars) + "."
    caption = "Full bars were run: the trainer counted the multiply-accumulates."
    if not all(bar.real for bar in bars):
        caption += (
            " Pale bars with a dashed edge were not run: they are planned figures. Alone means "
            f"{plan.baseline_epochs:,} epochs of each model."
        )
    return Plot("Cost of the chain and of training alone", plots.cost("cost", bars, legend), words, caption)


def _alone_bars(chain: ChainArtifacts, costs: Costs, colours: tuple[Colour, ...]) -> list[Bar]:
    plan = costs.plan
    assert plan is not None
    largest, family = costs.largest_alone, costs.family_alone
    assert largest is not None
    assert family is not None
    place = plan.stages.index(plan.largest)
    planned = [Segment(c, float(stage.alone_macs)) for stage, c in zip(plan.stages, colours, strict=True)]
    run = [costs.baseline(stage.name) for stage in chain.stages]
    counted = [
        Segment(c, (base.artifacts.macs or 0.0) if base else 0.0)
        for base, c in zip(run, colours, strict=True)
    ]
    one = (counted if largest.run else planned)[place]
    every = counted if family.run else planned
    return [
        _bar(
            f"{units.shorten(plan.largest.model, plots.MAX_LABEL)} alone",
            "counted" if largest.run else "planned",
            (one,),
            real=largest.run,
        ),
        _bar("Each model alone", "counted" if family.run else "planned", tuple(every), real=family.run),
    ]


def _bar(label: str, source: str, segments: tuple[Segment, ...], *, real: bool) -> Bar:
    return Bar(label, f"{units.macs(sum(segment.macs for segment in segments))}, {source}", segments, real)


def _curves(chain: ChainArtifacts, colours: tuple[Colour, ...], measure: Measure | None) -> list[StageCurve]:
    """A curve of each stage that has started."""
    found: list[StageCurve] = []
    for i, (stage, offset) in enumerate(zip(chain.stages, _offsets(chain), strict=True)):
        if not stage.started:
            continue
        predecessor = chain.predecessor(stage)
        before = measure.of(predecessor.final_metrics) if predecessor and measure else None
        grown = stage.recorded.predecessor is not None
        found.append(_curve(stage, colours[i], MARKERS[i % len(MARKERS)], offset, grown, before, measure))
    return found


def _alone(
    chain: ChainArtifacts, costs: Costs, colours: tuple[Colour, ...], measure: Measure | None
) -> list[StageCurve]:
    """A curve of each model that was trained alone, from zero; except the chain's first stage itself."""
    found: list[StageCurve] = []
    for i, stage in enumerate(chain.stages):
        runs = {run.artifacts.recorded.digest: run for run in reversed(costs.runs(stage.name))}
        for digest, run in runs.items():
            if digest == stage.recorded.digest:
                continue
            curve = _curve(run.artifacts, colours[i], MARKERS[i % len(MARKERS)], 0.0, False, None, measure)
            if curve.values or curve.task:
                found.append(replace(curve, label=stage.model, budget_matched=run.budget_matched))
    return found


def _curve(
    stage: StageArtifacts,
    colour: Colour,
    marker: str,
    offset: float,
    grown: bool,
    before: float | None,
    measure: Measure | None,
) -> StageCurve:
    training = stage.metrics.training
    return StageCurve(
        label=stage.model,
        colour=colour,
        marker=marker,
        offset=offset,
        macs=stage.macs or 0.0,
        complete=stage.complete,
        grown=grown,
        before=before,
        values=_values(stage, measure) if measure else (),
        task=[(line.macs, line.loss["task"]) for line in training if "task" in line.loss],
        distillation=[
            (line.macs, line.loss["distillation"]) for line in training if "distillation" in line.loss
        ]
        if grown
        else (),
    )


def _offsets(chain: ChainArtifacts) -> list[float]:
    """MACs that the chain had spent before each stage."""
    spent = [stage.macs or 0.0 for stage in chain.stages]
    return [sum(spent[:i]) for i in range(len(spent))]


def _values(stage: StageArtifacts, measure: Measure) -> list[tuple[float, float]]:
    """The measure over the stage's compute, with the manifest's final value where no line of metrics has it."""
    points = [
        (line.macs, value)
        for line in stage.metrics.evaluations
        if (value := measure.of(line.metrics)) is not None
    ]
    final = measure.of(stage.manifest.metrics) if stage.manifest else None
    if final is not None and stage.macs is not None and (not points or points[-1][0] < stage.macs):
        points.append((stage.macs, final))
    return points
