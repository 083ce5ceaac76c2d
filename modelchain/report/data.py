"""What a store holds of a chain, as values: manifests, attempts, metrics, examples."""

from __future__ import annotations

from dataclasses import dataclass, field

from modelchain.artifacts import Failure, Manifest, MetricsLine, Progress
from modelchain.report.metrics import Example, Metrics
from modelchain.resolved import ResolvedStage
from modelchain.status import ChainPhase, ChainStatus, RecordedStage, StagePhase, StageStatus


@dataclass(frozen=True)
class StageArtifacts:
    """What there is of one stage."""

    recorded: RecordedStage
    resolved: ResolvedStage | None  # None: the store does not say (yet) what the stage is
    status: StageStatus | None = None
    manifest: Manifest | None = None
    attempts: tuple[str, ...] = ()  # tokens; the one that counts comes last
    progress: Progress | None = None
    failure: Failure | None = None
    metrics: Metrics = field(default_factory=Metrics)
    example_set: str | None = None
    examples: tuple[Example, ...] = ()

    @property
    def name(self) -> str:
        """Name of the stage in this chain."""
        return self.recorded.name

    @property
    def model(self) -> str:
        """What its model is called."""
        return self.recorded.model

    @property
    def complete(self) -> bool:
        """Whether its manifest verifies."""
        return self.manifest is not None

    @property
    def started(self) -> bool:
        """Whether there is anything of it."""
        return self.complete or bool(self.attempts)

    @property
    def macs(self) -> float | None:
        """Multiply-accumulates spent on the weights so far; None if that was not recorded."""
        if self.manifest is not None:
            return self.manifest.macs
        lines = self.lines
        return max(line.macs for line in lines) if lines else None

    @property
    def computed_macs(self) -> float | None:
        """Multiply-accumulates that were computed for them so far, which is less; None if that was not recorded."""
        if self.manifest is not None:
            return self.manifest.computed_macs
        counts = [line.computed_macs for line in self.metrics.training if line.computed_macs is not None]
        return max(counts, default=None)

    @property
    def train_seconds(self) -> float | None:
        """Seconds spent in training steps so far; None if that was not recorded."""
        if self.manifest is not None:
            return self.manifest.train_seconds
        lines = self.lines
        return max(line.time for line in lines) if lines else None

    @property
    def steps(self) -> int | None:
        """Steps done."""
        if self.manifest is not None:
            return self.manifest.steps
        seen = [line.step for line in self.lines]
        if self.progress is not None:
            seen.append(self.progress.step)
        return max(seen) if seen else None

    @property
    def samples(self) -> int | None:
        """Samples seen, repetitions counted."""
        if self.manifest is not None:
            return self.manifest.samples
        return max((line.samples for line in self.lines), default=None)

    @property
    def lines(self) -> tuple[MetricsLine, ...]:
        """All lines of metrics."""
        return (*self.metrics.training, *self.metrics.evaluations)

    @property
    def final_metrics(self) -> dict[str, float]:
        """The final evaluation, or the latest one of a stage that is not complete."""
        if self.manifest is not None and self.manifest.metrics:
            return self.manifest.metrics
        return self.metrics.evaluations[-1].metrics if self.metrics.evaluations else {}

    def metrics_at_start(self) -> dict[str, float]:
        """The evaluation before the first step: what growth kept of the predecessor."""
        evaluations = self.metrics.evaluations
        return evaluations[0].metrics if evaluations and evaluations[0].step == 0 else {}


@dataclass(frozen=True)
class Baseline:
    """A model of the family that was trained alone."""

    stage: str  # the stage of the chain with the same model
    artifacts: StageArtifacts
    budget_matched: bool = False  # for the compute that the chain spends, rather than the baseline's epochs


@dataclass(frozen=True)
class ChainArtifacts:
    """What there is of a chain."""

    namespace: str
    name: str
    store_uri: str
    stages: tuple[StageArtifacts, ...]
    baseline_epochs: int | None  # epochs of a model alone, where known
    status: ChainStatus | None = None
    recorded_at: str | None = None  # when that status was written
    notes: tuple[str, ...] = ()
    metric: str | None = None  # by which models are compared that the chain has trained alone too
    baselines: tuple[Baseline, ...] = ()  # those; one may be a stage of the chain

    @property
    def complete(self) -> bool:
        """Whether every stage is complete."""
        return all(stage.complete for stage in self.stages)

    @property
    def phase(self) -> str:
        """The state of the chain, in one word."""
        if self.complete:
            return str(ChainPhase.COMPLETE)
        if self.status is not None and self.status.phase != ChainPhase.COMPLETE:
            return str(self.status.phase)
        return "Unfinished"

    def predecessor(self, stage: StageArtifacts) -> StageArtifacts | None:
        """The stage that `stage` grows out of."""
        return next((other for other in self.stages if other.name == stage.recorded.predecessor), None)


def stage_phase(stage: StageArtifacts) -> str:
    """The state of a stage, in one word."""
    if stage.complete:
        return str(StagePhase.COMPLETE)
    if stage.status is not None and not stage.status.finished:
        return str(stage.status.phase)
    if stage.failure is not None:
        return "Interrupted" if stage.failure.exit_code in (130, 143) else str(StagePhase.FAILED)
    return "Unfinished" if stage.started else "Not started"
