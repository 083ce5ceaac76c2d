"""What a chain cost against training its models alone, and where each figure comes from.

Kinds of figures, which the report keeps apart: *counted* (the trainer counted the multiply-accumulates of the steps
that made the weights, and measured their time), *computed* (of these, what it computed: texts without most of their
padding), *planned* (`modelchain.cost`, from the settings alone) and, where baseline runs are given, counted figures of
models that really were trained alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from modelchain.cost import Plan, plan
from modelchain.errors import ConfigurationError
from modelchain.evaluations import higher_is_better
from modelchain.report.data import Baseline, ChainArtifacts, StageArtifacts
from modelchain.resolved import (
    ChainReference,
    ResolvedChain,
    ResolvedStore,
    default_baseline_epochs,
)


@dataclass(frozen=True)
class Alone:
    """What training without a chain takes."""

    macs: float
    epochs: int | None  # of each model; None: not all the same
    run: bool  # counted in runs; else planned


@dataclass(frozen=True)
class Costs:
    """What the chain cost. MACs are multiply-accumulates, times are seconds of training."""

    spent_macs: float  # counted, over all stages, so far
    computed_macs: float | None  # of these computed, of real tokens alone; None: not known of all
    spent_seconds: float
    reused: tuple[str, ...]  # stages that another chain had trained
    reused_macs: float  # of `spent_macs`: what those took, once
    plan: Plan | None  # None: not all stages are known
    complete: bool
    baselines: tuple[Baseline, ...] = ()

    @property
    def chain_macs(self) -> float | None:
        """The whole chain: counted if it is complete, else planned."""
        if self.complete:
            return self.spent_macs
        return float(self.plan.chain_macs) if self.plan is not None else None

    @property
    def largest_alone(self) -> Alone | None:
        """The largest model alone: as it was run, else as planned."""
        if self.plan is None:
            return None
        run = self._run([self.plan.largest.name])
        return run or Alone(float(self.plan.largest.alone_macs), self.plan.baseline_epochs, run=False)

    @property
    def family_alone(self) -> Alone | None:
        """Each model of the family alone: as they were run, if all were, else as planned."""
        if self.plan is None:
            return None
        run = self._run([stage.name for stage in self.plan.stages])
        return run or Alone(float(self.plan.family_macs), self.plan.baseline_epochs, run=False)

    @property
    def of_largest(self) -> float | None:
        """Compute of the chain over that of the largest model alone."""
        chain, alone = self.chain_macs, self.largest_alone
        return None if chain is None or alone is None else chain / alone.macs

    @property
    def family_speedup(self) -> float | None:
        """Compute of all models, each trained alone, over that of the chain."""
        chain, alone = self.chain_macs, self.family_alone
        return None if not chain or alone is None else alone.macs / chain

    def baseline(self, stage: str) -> Baseline | None:
        """The run of that stage's model alone, for the baseline's epochs."""
        return next((run for run in self.runs(stage) if not run.budget_matched), None)

    def runs(self, stage: str) -> tuple[Baseline, ...]:
        """All runs of that stage's model alone."""
        return tuple(run for run in self.baselines if run.stage == stage)

    def _run(self, stages: Sequence[str]) -> Alone | None:
        """What training these alone took; None unless a finished run of each is given."""
        manifests = [
            found.artifacts.manifest for name in stages if (found := self.baseline(name)) is not None
        ]
        finished = [manifest for manifest in manifests if manifest is not None]
        if len(finished) < len(stages):
            return None
        resolved = [found.artifacts.resolved for name in stages if (found := self.baseline(name)) is not None]
        epochs = {stage.training.epochs for stage in resolved if stage is not None}
        return Alone(
            sum(manifest.macs for manifest in finished), epochs.pop() if len(epochs) == 1 else None, run=True
        )


def costs(chain: ChainArtifacts, baselines: Sequence[Baseline] = ()) -> Costs:
    """The costs of a chain. What a stage that is not complete has spent is what its metrics say. `baselines`: models
    trained alone in chains of their own, beside those that the chain has trained itself.
    """
    reused = [stage for stage in chain.stages if trained_by(chain, stage) is not None]
    computed = [stage.computed_macs for stage in chain.stages if stage.macs is not None]
    known = [macs for macs in computed if macs is not None]
    return Costs(
        spent_macs=sum(stage.macs or 0.0 for stage in chain.stages),
        computed_macs=sum(known) if known and len(known) == len(computed) else None,
        spent_seconds=sum(stage.train_seconds or 0.0 for stage in chain.stages),
        reused=tuple(stage.name for stage in reused),
        reused_macs=sum(stage.macs or 0.0 for stage in reused),
        plan=plan_of(chain),
        complete=chain.complete,
        baselines=(*baselines, *(run for run in chain.baselines if run.artifacts.started)),
    )


def trained_by(chain: ChainArtifacts, stage: StageArtifacts) -> str | None:
    """The other chain (namespace/name) that trained a stage of this one; None if it was this one."""
    if stage.manifest is None or stage.manifest.chain == f"{chain.namespace}/{chain.name}":
        return None
    return stage.manifest.chain


def plan_of(chain: ChainArtifacts) -> Plan | None:
    """The plan, as `modelchain plan` prints it; None where the store does not say what every stage is."""
    resolved = [stage.resolved for stage in chain.stages if stage.resolved is not None]
    if not resolved or len(resolved) < len(chain.stages):
        return None
    return plan(
        ResolvedChain(
            chain=ChainReference(namespace=chain.namespace, name=chain.name, uid=""),
            store=ResolvedStore(uri=chain.store_uri),
            baseline_epochs=chain.baseline_epochs or default_baseline_epochs(resolved),
            stages=tuple(resolved),
        )
    )


def match_baselines(chain: ChainArtifacts, alone: Sequence[ChainArtifacts]) -> tuple[Baseline, ...]:
    """Which model of `chain` each run of `alone` trained by itself.

    Raises ConfigurationError for a run that is no baseline: it grew out of other weights, or its model is not one
    of the chain's.
    """
    return tuple(_match(chain, run, stage) for run in alone for stage in run.stages if stage.started)


def _match(chain: ChainArtifacts, run: ChainArtifacts, stage: StageArtifacts) -> Baseline:
    where = f"baseline {run.namespace}/{run.name}, stage {stage.name}"
    if stage.recorded.predecessor is not None or (stage.resolved is not None and stage.resolved.from_weights):
        raise ConfigurationError(
            f"{where}: a baseline trains a model alone, but this one grows out of other weights; "
            "write each model as a chain of one stage"
        )
    config = stage.resolved.model_config_ if stage.resolved is not None else None
    for other in reversed(chain.stages):
        if config is not None and other.resolved is not None and other.resolved.model_config_ == config:
            return Baseline(other.name, stage)
    raise ConfigurationError(
        f"{where}: no stage of {chain.namespace}/{chain.name} has this model ({stage.recorded.model})"
    )


@dataclass(frozen=True)
class Reached:
    """The compute that it took to become as good as the model trained alone."""

    value: float  # final value of the run alone
    alone_macs: float
    chain_macs: float | None  # of the chain, from its first step on; None: it never became as good

    @property
    def ratio(self) -> float | None:
        """Compute of the run alone over that of the chain."""
        return self.alone_macs / self.chain_macs if self.chain_macs else None


def reached(chain: ChainArtifacts, baseline: Baseline, metric: str) -> Reached | None:
    """When the chain was as good in `metric` as the finished run alone; None: unknown."""
    target = baseline.artifacts.final_metrics.get(metric)
    alone = baseline.artifacts.macs
    if target is None or not alone or not baseline.artifacts.complete:
        return None
    before, sign = 0.0, 1 if higher_is_better(metric) else -1
    for stage in chain.stages:
        if stage.name == baseline.stage:
            for line in stage.metrics.evaluations:
                value = line.metrics.get(metric)
                if value is not None and sign * value >= sign * target:
                    return Reached(target, alone, before + line.macs)
            return Reached(target, alone, None) if stage.complete else None
        before += stage.macs or 0.0
    return None
