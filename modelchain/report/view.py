"""What stands on the page, as plain values and texts: the template only lays them out."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from itertools import pairwise

from modelchain import cost
from modelchain.report import units
from modelchain.report.accounting import Costs, reached, trained_by
from modelchain.report.data import ChainArtifacts, StageArtifacts, stage_phase
from modelchain.report.measures import Measure, describe
from modelchain.report.metrics import Example
from modelchain.resolved import ResolvedStage

COUNTED = "counted"
MEASURED = "measured"
PLANNED = "planned, not run"

_NOT_SETTINGS = {
    "version", "chain", "name", "index", "digest", "folder", "predecessor", "store", "evaluation", "image", "task",
}  # fmt: skip


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
class Growth:
    """One growth event: what the successor could do before its first step."""

    stage: int
    model: str
    predecessor: str
    expansion: str
    values: tuple[tuple[str, str, str, str], ...]  # measure, before, right after growth, at the end


@dataclass(frozen=True)
class StageRow:
    """A row of the table of stages."""

    stage: int
    name: str
    model: str
    phase: str
    trained_by: str | None
    predecessor: str | None
    parameters: str
    steps: str
    samples: str
    macs: str
    time: str
    speed: str
    metrics: tuple[tuple[str, str], ...]
    attempts: str
    corrupt: str
    digest: str
    weights: str | None


@dataclass(frozen=True)
class CostRow:
    """Planned and counted cost of a stage."""

    stage: int | None  # None: the sum
    model: str
    planned: str
    teacher: str  # of `planned`: the predecessor's forward passes
    counted: str
    alone_planned: str
    alone_counted: str


@dataclass(frozen=True)
class Answer:
    """What a model says of an example."""

    stage: int
    model: str
    right: bool
    best: str
    probability: float
    others: str


@dataclass(frozen=True)
class ExampleCard:
    """An example with the answers of the first and of the last model."""

    source: str  # data: URI
    label: str
    answers: tuple[Answer, ...]


@dataclass(frozen=True)
class SettingRow:
    """A setting: one value for all stages, or one for each."""

    name: str
    values: tuple[str, ...]

    @property
    def same(self) -> bool:
        """Whether all stages have the same value."""
        return len(set(self.values)) == 1


def model_name(stage: StageArtifacts) -> str:
    """What a stage's model is called."""
    return stage.recorded.model


def verdict(chain: ChainArtifacts, costs: Costs) -> str:
    """The sentence below the title."""
    ratio, speedup, plan = costs.of_largest, costs.family_speedup, costs.plan
    done = sum(stage.complete for stage in chain.stages)
    if len(chain.stages) == 1:
        return "A chain of one model: trained alone, so there is nothing that it could have saved."
    if ratio is None or speedup is None or plan is None:
        return f"{done} of {len(chain.stages)} models are trained."
    tense = ("took", "costs less") if chain.complete else ("will take", "costs less")
    start = "" if chain.complete else f"{done} of {len(chain.stages)} models are trained. "
    factor = f"{speedup:.2f} times less" if speedup >= 1 else f"{1 / speedup:.2f} times more"
    return (
        f"{start}All {len(chain.stages)} models together {tense[0]} {units.percent(ratio)} of the compute of training "
        f"{plan.largest.model} alone, and {factor} than training each of them alone."
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
                f"of {units.macs(plan.largest.alone_macs)}, which {epochs} of {plan.largest.model} alone would take.",
                source,
            ),
            Tile(
                "Chain against the family alone",
                f"{speedup:.2f}×",
                f"less than {units.macs(plan.family_macs)}, which {len(plan.stages)} models alone would take, "
                f"{epochs} each.",
                source,
            ),
        ]
    return found + _measured_tiles(chain, costs, measure)


def _spent(chain: ChainArtifacts, costs: Costs) -> Tile:
    detail = f"in {units.duration(costs.spent_seconds)} of training"
    if not chain.complete and costs.plan is not None:
        detail += f", of {units.macs(costs.plan.chain_macs)} planned"
    detail += "."
    if costs.reused:
        names = ", ".join(costs.reused)
        detail += f" Of this, {units.macs(costs.reused_macs)} ({names}) was not spent again: another chain had trained it."
    title = "Cost of the chain" if chain.complete else "Cost of the chain so far"
    return Tile(title, units.macs(costs.spent_macs), detail, f"compute {COUNTED}, time {MEASURED}")


def _measured_tiles(chain: ChainArtifacts, costs: Costs, measure: Measure | None) -> list[Tile]:
    """Against models that really were trained alone."""
    found: list[Tile] = []
    for stage in reversed(chain.stages):
        baseline = costs.baseline(stage.name)
        if baseline is None or measure is None or stage.recorded.predecessor is None:
            continue
        event = reached(chain, baseline, measure.metric)
        if event is None:
            continue
        title = f"As good as {model_name(stage)} trained alone"
        detail = f"{measure.text(event.value)} took {units.macs(event.alone_macs)} alone"
        if event.ratio is None or event.chain_macs is None:
            end = measure.text(measure.of(stage.final_metrics))
            found.append(
                Tile(title, "not reached", f"{detail}; the chain ended at {end}.", "both runs measured")
            )
        else:
            detail += f", and {units.macs(event.chain_macs)} of the chain from its first step on."
            found.append(Tile(title, f"{event.ratio:.2f}× less", detail, "both runs measured"))
    return found[:2]


def finals(chain: ChainArtifacts, costs: Costs, measure: Measure) -> list[Final]:
    """Each model's final value."""
    rows: list[Final] = []
    for i, stage in enumerate(chain.stages):
        value, baseline = measure.of(stage.final_metrics), costs.baseline(stage.name)
        alone = measure.of(baseline.artifacts.final_metrics) if baseline else None
        rows.append(
            Final(
                i,
                model_name(stage),
                value,
                measure.text(value),
                None if alone is None else measure.text(alone),
            )
        )
    return rows


def growths(chain: ChainArtifacts, measures: tuple[Measure, ...]) -> list[Growth]:
    """All growth events of which there is an evaluation before the first step."""
    rows: list[Growth] = []
    for i, stage in enumerate(chain.stages):
        predecessor, start = chain.predecessor(stage), stage.metrics_at_start()
        if predecessor is None or not start:
            continue
        values = tuple(
            (
                measure.title,
                measure.text(measure.of(predecessor.final_metrics)),
                measure.text(measure.of(start)),
                measure.text(measure.of(stage.final_metrics)) if stage.complete else "–",
            )
            for measure in measures
            if measure.of(start) is not None
        )
        expansion = stage.resolved.expansion if stage.resolved else None
        how = f"width {expansion.width}, depth {expansion.depth}" if expansion else ""
        if values:
            rows.append(Growth(i, model_name(stage), model_name(predecessor), how, values))
    return rows


def stage_rows(chain: ChainArtifacts) -> list[StageRow]:
    """The table of stages."""
    return [_stage_row(chain, i, stage) for i, stage in enumerate(chain.stages)]


def _stage_row(chain: ChainArtifacts, i: int, stage: StageArtifacts) -> StageRow:
    resolved, steps, samples, seconds = stage.resolved, stage.steps, stage.samples, stage.train_seconds
    planned = resolved.training.steps if resolved else None
    steps_text = "–" if steps is None else f"{steps:,}"
    if not stage.complete and planned is not None:
        steps_text += f" of {planned:,}"
    failures = stage.status.failures if stage.status else 0
    corrupt = stage.progress.corrupt_samples if stage.progress else None
    predecessor = chain.predecessor(stage)
    return StageRow(
        stage=i,
        name=stage.name,
        model=model_name(stage),
        phase=stage_phase(stage),
        trained_by=trained_by(chain, stage),
        predecessor=model_name(predecessor) if predecessor else None,
        parameters=units.count(cost.parameters(resolved.model_config_)) if resolved else "–",
        steps=steps_text,
        samples="–" if samples is None else f"{samples:,}",
        macs="–" if stage.macs is None else units.macs(stage.macs),
        time="–" if seconds is None else units.duration(seconds),
        speed=f"{units.digits(samples / seconds)}/s" if samples and seconds else "–",
        metrics=tuple(
            (describe(name), units.metric(name, value)) for name, value in stage.final_metrics.items()
        ),
        attempts=f"{len(stage.attempts)}" + (f" ({failures} failed)" if failures else ""),
        corrupt="–" if corrupt is None else _causes(corrupt),
        digest=stage.recorded.digest,
        weights=f"{chain.store_uri.rstrip('/')}/{stage.recorded.folder}/attempts/{stage.manifest.attempt}/"
        if stage.manifest
        else None,
    )


def _causes(corrupt: dict[str, int]) -> str:
    return ", ".join(f"{number:,} {cause}" for cause, number in corrupt.items() if number) or "none"


def cost_rows(chain: ChainArtifacts, costs: Costs) -> list[CostRow]:
    """Planned and counted cost of each stage, and their sums."""
    plan = costs.plan
    if plan is None:
        return []
    rows: list[CostRow] = []
    for i, (stage, planned) in enumerate(zip(chain.stages, plan.stages, strict=True)):
        baseline = costs.baseline(stage.name)
        teacher = planned.macs - cost.TRAINING_PASSES * planned.macs_per_sample * planned.samples
        rows.append(
            CostRow(
                stage=i,
                model=model_name(stage),
                planned=units.macs(planned.macs),
                teacher=units.macs(teacher) if teacher else "–",
                counted="–" if stage.macs is None else units.macs(stage.macs),
                alone_planned=units.macs(planned.alone_macs),
                alone_counted=units.macs(baseline.artifacts.macs)
                if baseline and baseline.artifacts.macs
                else "–",
            )
        )
    alone = [baseline.artifacts.macs or 0.0 for baseline in costs.baselines]
    rows.append(
        CostRow(
            stage=None,
            model="Together",
            planned=units.macs(plan.chain_macs),
            teacher="",
            counted=units.macs(costs.spent_macs),
            alone_planned=units.macs(plan.family_macs),
            alone_counted=units.macs(sum(alone)) if len(alone) == len(chain.stages) else "–",
        )
    )
    return rows


def example_stages(chain: ChainArtifacts) -> list[int]:
    """The first and the last stage that have examples (of the same set)."""
    having = [i for i, stage in enumerate(chain.stages) if stage.examples]
    if not having:
        return []
    last = having[-1]
    same = [i for i in having if chain.stages[i].example_set == chain.stages[last].example_set]
    return sorted({same[0], last})


def example_cards(chain: ChainArtifacts) -> list[ExampleCard]:
    """The examples of the last stage, with the first one's answer to the same picture."""
    places = example_stages(chain)
    if not places:
        return []
    last = places[-1]
    others = [(i, {(e.picture, e.label): e for e in chain.stages[i].examples}) for i in places[:-1]]
    cards: list[ExampleCard] = []
    for example in chain.stages[last].examples:
        pairs = [(i, known.get((example.picture, example.label))) for i, known in others] + [(last, example)]
        source = f"data:{example.media_type};base64,{base64.b64encode(example.picture).decode()}"
        answers = tuple(_answer(chain, i, found) for i, found in pairs if found is not None)
        cards.append(ExampleCard(source, example.label, answers))
    return cards


def _answer(chain: ChainArtifacts, i: int, example: Example) -> Answer:
    (best, probability), *rest = example.top
    others = ", ".join(f"{name} {100 * share:.0f} %" for name, share in rest)
    return Answer(i, model_name(chain.stages[i]), example.right, best, probability, others)


def setting_rows(chain: ChainArtifacts) -> list[SettingRow]:
    """Every resolved setting, side by side."""
    tables = [_flat(stage.resolved) if stage.resolved else {} for stage in chain.stages]
    names = list(dict.fromkeys(name for table in tables for name in table))
    return [SettingRow(name, tuple(table.get(name, "–") for table in tables)) for name in names]


def _flat(stage: ResolvedStage) -> dict[str, str]:
    found: dict[str, str] = {}

    def visit(prefix: str, value: object) -> None:
        if isinstance(value, dict):
            for key, part in value.items():
                visit(f"{prefix}.{key}" if prefix else str(key), part)
        elif isinstance(value, list):
            found[prefix] = ", ".join(str(part) for part in value)
        else:
            found[prefix] = json.dumps(value) if isinstance(value, bool) else str(value)

    for key, value in stage.model_dump(mode="json", by_alias=True, exclude_none=True).items():
        if key not in _NOT_SETTINGS:
            visit(key, value)
    return found


def stage_json(stage: StageArtifacts) -> str | None:
    """The resolved stage as the trainer got it, for people."""
    if stage.resolved is None:
        return None
    value = stage.resolved.model_dump(mode="json", by_alias=True, exclude_none=True)
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)


def versions(chain: ChainArtifacts) -> list[SettingRow]:
    """Versions of what trained the stages."""
    tables = [stage.manifest.versions if stage.manifest else {} for stage in chain.stages]
    names = list(dict.fromkeys(name for table in tables for name in table))
    return [SettingRow(name, tuple(table.get(name, "–") for table in tables)) for name in names]


def offsets(chain: ChainArtifacts) -> list[float]:
    """MACs that the chain had spent before each stage."""
    found = [0.0]
    for stage, _ in pairwise(chain.stages):
        found.append(found[-1] + (stage.macs or 0.0))
    return found
