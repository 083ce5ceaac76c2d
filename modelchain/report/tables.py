"""The tables of the page, as texts: the template only lays them out."""

from __future__ import annotations

import json
from dataclasses import dataclass

from modelchain import cost
from modelchain.artifacts import attempt_folder
from modelchain.families import family_of
from modelchain.report import units
from modelchain.report.accounting import Costs, trained_by
from modelchain.report.data import ChainArtifacts, StageArtifacts, stage_phase
from modelchain.report.measures import Measure, chain_task
from modelchain.resolved import ResolvedStage

_NOT_SETTINGS = {
    "version", "chain", "name", "index", "digest", "folder", "predecessor", "store", "evaluation", "image",
    "task",
}  # fmt: skip


@dataclass(frozen=True)
class Growth:
    """One growth event: how good the successor was before its first step."""

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
    corrupt: tuple[tuple[str, str], ...]  # number, cause
    corrupt_known: bool
    digest: str
    weights: str | None
    weights_reader: str  # who loads them, and how


@dataclass(frozen=True)
class CostRow:
    """Planned, counted and computed cost of a stage."""

    stage: int | None  # None: the sum
    model: str
    planned: str
    teacher: str  # of `planned`: the teacher's forward passes
    counted: str
    computed: str  # of `counted`: what was computed
    alone_planned: str
    alone_counted: str


@dataclass(frozen=True)
class SettingRow:
    """One value of each stage: a setting, a metric, a version."""

    name: str
    values: tuple[str, ...]

    @property
    def same(self) -> bool:
        """Whether all stages have the same value."""
        return len(set(self.values)) == 1


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
            rows.append(Growth(i, stage.model, predecessor.model, how, values))
    return rows


def stage_rows(chain: ChainArtifacts, measures: tuple[Measure, ...]) -> list[StageRow]:
    """The table of stages."""
    return [_stage_row(chain, i, stage, measures) for i, stage in enumerate(chain.stages)]


def _stage_row(
    chain: ChainArtifacts, i: int, stage: StageArtifacts, measures: tuple[Measure, ...]
) -> StageRow:
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
        model=stage.model,
        phase=stage_phase(stage),
        trained_by=trained_by(chain, stage),
        predecessor=predecessor.model if predecessor else None,
        parameters=units.count(cost.parameters(resolved.model_config_)) if resolved else "–",
        steps=steps_text,
        samples=_samples(chain, stage),
        macs="–" if stage.macs is None else units.macs(stage.macs),
        time="–" if seconds is None else units.duration(seconds),
        speed=f"{units.digits(samples / seconds)}/s" if samples and seconds else "–",
        metrics=tuple(
            (measure.metric, measure.text(value))
            for measure in measures
            if (value := measure.of(stage.final_metrics)) is not None
        ),
        attempts=f"{len(stage.attempts)}" + (f" ({failures} failed)" if failures else ""),
        corrupt=tuple((f"{number:,}", cause) for cause, number in (corrupt or {}).items() if number),
        corrupt_known=corrupt is not None,
        digest=stage.recorded.digest,
        weights_reader=_weights_reader(stage),
        weights=f"{chain.store_uri.rstrip('/')}/{attempt_folder(stage.recorded.folder, stage.manifest.attempt)}/"
        if stage.manifest
        else None,
    )


def _weights_reader(stage: StageArtifacts) -> str:
    return family_of(stage.resolved.model_config_).weights_readers if stage.resolved else ""


def _samples(chain: ChainArtifacts, stage: StageArtifacts) -> str:
    if stage.samples is None:
        return "–"
    if stage.resolved is None:
        return f"{stage.samples:,}"
    return chain_task(chain).count(stage.samples, stage.resolved)


def cost_rows(chain: ChainArtifacts, costs: Costs) -> list[CostRow]:
    """Planned, counted and computed cost of each stage, and their sums."""
    plan = costs.plan
    if plan is None:
        return []
    rows: list[CostRow] = []
    for i, (stage, planned) in enumerate(zip(chain.stages, plan.stages, strict=True)):
        baseline = costs.baseline(stage.name)
        teacher = planned.teacher_macs
        rows.append(
            CostRow(
                stage=i,
                model=stage.model,
                planned=units.macs(planned.macs),
                teacher=units.macs(teacher) if teacher else "–",
                counted="–" if stage.macs is None else units.macs(stage.macs),
                computed="–" if stage.computed_macs is None else units.macs(stage.computed_macs),
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
            computed="–" if costs.computed_macs is None else units.macs(costs.computed_macs),
            alone_planned=units.macs(plan.family_macs),
            alone_counted=units.macs(sum(alone)) if len(alone) == len(chain.stages) else "–",
        )
    )
    return rows


def metric_rows(chain: ChainArtifacts) -> list[SettingRow]:
    """All final metrics, or the latest ones of a stage that is not complete."""
    names = dict.fromkeys(name for stage in chain.stages for name in stage.final_metrics)
    return [
        SettingRow(
            name,
            tuple(
                units.metric(name, stage.final_metrics[name]) if name in stage.final_metrics else "–"
                for stage in chain.stages
            ),
        )
        for name in names
    ]


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
    """The resolved stage that the trainer was given, for people."""
    if stage.resolved is None:
        return None
    value = stage.resolved.model_dump(mode="json", by_alias=True, exclude_none=True)
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)


def versions(chain: ChainArtifacts) -> list[SettingRow]:
    """Versions of what trained the stages."""
    tables = [stage.manifest.versions if stage.manifest else {} for stage in chain.stages]
    names = list(dict.fromkeys(name for table in tables for name in table))
    return [SettingRow(name, tuple(table.get(name, "–") for table in tables)) for name in names]
