"""Prometheus metrics of chains and their stages, as their statuses have them.

A status outlives the operator, so these are right from the first pass after a restart on: gauges of what is, not
counters of what was seen happening. GPU time is the exception, because no status has it: it is counted while it passes,
from zero in every process, as Prometheus expects of counters. What jobs use while no operator runs is missing from it.

Series exist for chains that exist, and those of a stage while they mean something. Where there are more chains than a
setting allows, those at rest have no series of their own first, those that need a person last; the totals are of all.
"""

from __future__ import annotations

import time
from collections import Counter as Tally
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from modelchain import cost
from modelchain.artifacts import attempt_prefix
from modelchain.explanation import NEEDS_A_PERSON
from modelchain.resolved import ResolvedChain, ResolvedStage
from modelchain.status import ChainPhase, ChainStatus, ConditionType, StagePhase, StageReason, StageStatus
from modelchain_operator.kubernetes.key import Key

MAX_LOSS_TERMS = 8  # of one stage

CHAIN_LABELS = ("namespace", "chain")
STAGE_LABELS = (*CHAIN_LABELS, "stage")

_ALARMING = (ConditionType.FAILED, ConditionType.UNRESPONSIVE, ConditionType.ARTIFACTS_MISSING)
_REFUSED = "Refused"  # Accepted=False
OTHER = "Other"  # a word of Kubernetes that nothing here knows
# Of Progressing=False, where nobody is needed: what passes or was asked for, and what another condition tells.
_QUIET = frozenset({*StageReason, *ConditionType, "Invalid", "Unknown"}) - NEEDS_A_PERSON
ATTENTION = frozenset({_REFUSED, *(kind.value for kind in _ALARMING), *NEEDS_A_PERSON, OTHER})
_LIVE = (StagePhase.RUNNING, StagePhase.RETRYING)
_STOPPING = (
    StageReason.STOPPING
)  # reason of a stage whose attempt is recorded as ended while its pods still end

_CHAIN_GAUGES = {
    "progress_ratio": "Share of the compute of all stages that is done; stages found in the store are done.",
    "spent_macs": "Multiply-accumulates of the steps that the chain has trained itself.",
    "planned_saved_macs": "Planned, not measured: what training its finished models alone, for the baseline's epochs, "
    "would cost beyond the chain's multiply-accumulates.",
    "baseline_spent_macs": "Multiply-accumulates of the steps of models that the chain has trained alone, to compare.",
    "planned_speedup_ratio": "Planned, not measured: training every model alone, over the chain.",
    "measured_speedup_ratio": "Measured: the models alone until they were as good as the chain's, over the chain; a "
    "lower bound where measured_speedup_is_bound is 1.",
    "measured_speedup_is_bound": "1 if a model alone did not become as good as the chain's, else 0.",
}
_STAGE_GAUGES = {
    "progress_ratio": "Steps done over all steps of a stage that trains.",
    "samples_per_second": "Samples a second, over all processes.",
    "eta_seconds": "Estimated time to the end of the stage.",
    "unsaved_seconds": "Training since the latest checkpoint, at its present speed: what a failure now would cost.",
    "top1_ratio": "Latest zero-shot accuracy on the first such set; it stays when the stage is finished.",
    "failures": "Attempts of an unfinished stage that failed; disruptions do not count.",
    "retries_left": "Failures that an unfinished stage may still have before its chain fails.",
}


class ChainMetrics(Collector):
    """The figures of all chains. Updated in one thread, collected in any."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, *, max_chains: int) -> None:
        """`max_chains`: those that have series of their own."""
        self._clock = clock
        self._max_chains = max_chains
        self._plans: dict[Key, _Plan] = {}
        self._gpus: dict[Key, _GpuTime] = {}
        self._shown: dict[Key, _Shown] = {}

    def accept(self, key: Key, chain: ResolvedChain, plan: cost.Plan | None = None) -> None:
        """Plan the costs and the GPUs of a valid chain's stages. Called at the start of each pass."""
        known = self._plans.get(key)
        if known is None or known.chain is not chain:
            self._plans[key] = _Plan.of(chain, plan or cost.plan(chain))

    def show(self, key: Key, status: ChainStatus) -> None:
        """Update the chain's figures to this status."""
        plan, before = self._plans.get(key), self._shown.get(key)
        if plan is not None:
            gpus = self._gpus.get(key, _GpuTime())
            self._gpus[key] = gpus.hold(_gpus_held(plan, status, gpus.held), self._clock())
        self._shown[key] = _Shown(
            phase=status.phase,
            stages=tuple(stage.phase for stage in status.all_stages),
            attention=tuple(_attention(status)),
            # Without a plan nothing has changed since the last figures.
            figures=_chain_figures(plan, status) if plan is not None else before.figures if before else {},
            of_stages=tuple(
                _stage_figures(stage, plan) for stage in status.all_stages if stage.attempt or stage.metrics
            ),
        )

    def end_pass(self, key: Key, status: ChainStatus) -> None:
        """Update the chain's figures at the end of a pass."""
        self.show(key, status)
        if not any(stage.phase in _LIVE for stage in status.all_stages):
            self._plans.pop(key, None)  # a resolved chain is large; the next pass plans it again

    def forget(self, key: Key) -> None:
        """The chain is gone, and with it its series."""
        for known in (self._plans, self._gpus, self._shown):
            known.pop(key, None)

    def describe(self) -> Iterable[Metric]:
        return ()  # so that registering it collects nothing

    def collect(self) -> Iterator[Metric]:
        shown = list(self._shown.items())
        yield from _totals(shown)
        if len(shown) > self._max_chains:
            by_weight = sorted(shown, key=lambda item: _weight(item[1]), reverse=True)
            own = by_weight[: self._max_chains]
        else:
            own = shown
        left_out = GaugeMetricFamily(
            "modelchain_chains_without_series",
            "Chains that have no series of their own, since there are more than --metrics-max-chains.",
            value=len(shown) - len(own),
        )
        yield left_out
        yield from _of_chains(own)
        yield self._gpu_seconds(key for key, _ in own)
        yield from _of_stages(own)

    def _gpu_seconds(self, keys: Iterable[Key]) -> Metric:
        text = "GPUs of the chain's jobs times the seconds for which they ran, since the operator started."
        family = CounterMetricFamily("modelchain_chain_gpu_seconds", text, labels=CHAIN_LABELS)
        now = self._clock()
        for key in keys:
            if (gpus := self._gpus.get(key)) is not None:
                family.add_metric(key, gpus.seconds_at(now))
        return family


@dataclass(frozen=True, slots=True)
class _Shown:
    """The figures of one chain."""

    phase: ChainPhase
    stages: tuple[StagePhase, ...]
    attention: tuple[str, ...]  # reasons for which it needs a person
    figures: Mapping[str, float]  # by name, of _CHAIN_GAUGES
    of_stages: tuple[_StageFigures, ...]


@dataclass(frozen=True, slots=True)
class _StageFigures:
    name: str
    figures: Mapping[str, float]  # by name, of _STAGE_GAUGES
    loss: tuple[tuple[str, float], ...]  # its terms
    attempts: int | None  # None: it is finished


@dataclass(frozen=True)
class _Plan:
    """The costs of a chain's stages. Kept during a pass, and while a stage is live."""

    chain: ResolvedChain
    macs: Mapping[str, int]
    alone_macs: Mapping[str, int]

    @classmethod
    def of(cls, chain: ResolvedChain, plan: cost.Plan) -> _Plan:
        return cls(
            chain=chain,
            macs={stage.name: stage.macs for stage in plan.stages},
            alone_macs={stage.name: stage.alone_macs for stage in plan.stages},
        )

    def stage_of(self, status: StageStatus) -> ResolvedStage | None:
        """The stage that a status is about; None if the stage was edited since."""
        found = next((stage for stage in self.chain.all_stages if stage.name == status.name), None)
        return found if found is not None and found.digest == status.digest else None


# ---- GPU time

_Attempt = tuple[str, int]  # stage, number


@dataclass(frozen=True, slots=True)
class _GpuTime:
    """GPU seconds up to a moment, and the GPUs that are held since. Immutable, so that a reader sees both as of one
    moment.
    """

    seconds: float = 0.0
    since: float = 0.0
    held: Mapping[_Attempt, int] = field(default_factory=dict)

    def hold(self, held: Mapping[_Attempt, int], now: float) -> _GpuTime:
        return _GpuTime(self.seconds_at(now), now, held)

    def seconds_at(self, now: float) -> float:
        return self.seconds + sum(self.held.values()) * max(0.0, now - self.since)


def _gpus_held(plan: _Plan, status: ChainStatus, before: Mapping[_Attempt, int]) -> dict[_Attempt, int]:
    """GPUs of each attempt whose pods run, or still end. An attempt keeps what it started with, however the chain is
    edited meanwhile.
    """
    held: dict[_Attempt, int] = {}
    for stage in status.all_stages:
        if stage.phase is not StagePhase.RUNNING and stage.reason != _STOPPING:
            continue
        attempt = stage.name, stage.attempt
        resolved = plan.stage_of(stage)
        if attempt in before:
            held[attempt] = before[attempt]
        elif resolved is not None:
            held[attempt] = resolved.job.nodes * resolved.job.gpus_per_node
    return held


# ---- from a status to figures


def _attention(status: ChainStatus) -> Iterator[str]:
    """The reasons for which the chain needs a person: none of them passes by itself."""
    accepted = status.condition(ConditionType.ACCEPTED)
    if accepted is not None and accepted.status == "False":
        yield _REFUSED
    for kind in _ALARMING:
        if status.is_true(kind):
            yield kind.value
    progressing = status.condition(ConditionType.PROGRESSING)
    if progressing is not None and progressing.status == "False" and progressing.reason not in _QUIET:
        yield progressing.reason if progressing.reason in NEEDS_A_PERSON else OTHER


def _chain_figures(plan: _Plan, status: ChainStatus) -> dict[str, float]:
    done = spent = saved = 0.0
    for stage in status.stages:
        resolved = plan.stage_of(stage)
        if resolved is None:
            continue
        macs = cost.stage_macs(resolved, until_step=_steps_done(stage, resolved))
        own = macs if _trained_here(stage, plan.chain) else 0
        done += macs
        spent += own
        if stage.finished:
            saved += plan.alone_macs[stage.name] - own
    figures = {
        "progress_ratio": done / sum(plan.macs.values()),
        "spent_macs": spent,
        "planned_saved_macs": saved,
        "planned_speedup_ratio": sum(plan.alone_macs.values()) / sum(plan.macs.values()),
    }
    return figures | _comparison_figures(plan, status)


def _comparison_figures(plan: _Plan, status: ChainStatus) -> dict[str, float]:
    """Of models trained alone, where the chain asks for some."""
    figures: dict[str, float] = {}
    if status.baselines:
        figures["baseline_spent_macs"] = sum(
            cost.stage_macs(resolved, until_step=_steps_done(stage, resolved))
            for stage in status.baselines
            if (resolved := plan.stage_of(stage)) is not None and _trained_here(stage, plan.chain)
        )
    if status.measurement is not None:
        found = status.measurement.acceleration
        figures["measured_speedup_ratio"] = found.factor
        figures["measured_speedup_is_bound"] = float(found.at_least)
    return figures


def _trained_here(status: StageStatus, chain: ResolvedChain) -> bool:
    """Whether the chain has trained the stage itself. One that it had started may have been finished by another chain:
    the weights are in the folder of the attempt that made them.
    """
    if not status.finished:
        return True
    token = (status.weights_uri or "").rstrip("/").rpartition("/")[2]
    return token.startswith(attempt_prefix(chain.chain.uid, 0).removesuffix("0"))


def _steps_done(status: StageStatus, stage: ResolvedStage) -> int:
    """Steps of the stage that are done."""
    return stage.training.steps if status.finished else status.step or 0


def _stage_figures(status: StageStatus, plan: _Plan | None) -> _StageFigures:
    figures: dict[str, float] = {}
    top1 = next((value for name, value in status.metrics.items() if name.endswith("/top1")), None)
    if top1 is not None:
        figures["top1_ratio"] = top1
    if status.finished:
        return _StageFigures(status.name, figures, (), None)
    figures["failures"] = status.failures
    stage = plan.stage_of(status) if plan is not None else None
    if stage is not None:
        figures["retries_left"] = max(0, stage.retry.limit - status.failures)
    loss: tuple[tuple[str, float], ...] = ()
    if status.phase in _LIVE:
        figures |= _live_figures(status, stage)
        loss = tuple(status.loss.items())[:MAX_LOSS_TERMS]
    return _StageFigures(status.name, figures, loss, status.attempt)


def _live_figures(status: StageStatus, stage: ResolvedStage | None) -> dict[str, float]:
    figures: dict[str, float] = {}
    if status.step is not None and status.steps:
        figures["progress_ratio"] = min(1.0, status.step / status.steps)
    if status.eta_seconds is not None:
        figures["eta_seconds"] = status.eta_seconds
    speed = status.samples_per_second
    if speed is not None:
        figures["samples_per_second"] = speed
    if stage is not None and speed and status.step is not None:
        steps = max(0, status.step - (status.checkpoint_step or 0))
        figures["unsaved_seconds"] = steps * stage.training.global_batch_size / speed
    return figures


# ---- from figures to families

_AT_REST = (ChainPhase.COMPLETE, ChainPhase.SUSPENDED)


def _weight(shown: _Shown) -> int:
    """How much people want to see of a chain: 2: it needs them, 1: it goes on, or trains models alone to compare."""
    goes_on = shown.phase not in _AT_REST or any(phase in _LIVE for phase in shown.stages)
    return 2 if shown.attention else int(goes_on)


def _totals(shown: list[tuple[Key, _Shown]]) -> Iterator[Metric]:
    tally = Tally(one.phase for _, one in shown)
    chains = GaugeMetricFamily("modelchain_chains", "Chains, by phase.", labels=["phase"])
    for phase in ChainPhase:
        chains.add_metric([phase.value], tally[phase])
    yield chains
    stages_tally = Tally((key.namespace, phase) for key, one in shown for phase in one.stages)
    stages = GaugeMetricFamily(
        "modelchain_chain_stages",
        "Stages of the chains of a namespace, by phase.",
        labels=["namespace", "phase"],
    )
    for namespace in dict.fromkeys(key.namespace for key, _ in shown):
        for phase in StagePhase:
            stages.add_metric([namespace, phase.value], stages_tally[namespace, phase])
    yield stages


def _of_chains(shown: list[tuple[Key, _Shown]]) -> Iterator[Metric]:
    phases = GaugeMetricFamily(
        "modelchain_chain_phase", "1 for the phase that the chain is in.", labels=[*CHAIN_LABELS, "phase"]
    )
    attention = GaugeMetricFamily(
        "modelchain_chain_needs_attention",
        "1 for each reason for which the chain needs a person.",
        labels=[*CHAIN_LABELS, "reason"],
    )
    families = {name: _gauge("chain", name, text, CHAIN_LABELS) for name, text in _CHAIN_GAUGES.items()}
    for key, one in shown:
        phases.add_metric([*key, one.phase.value], 1)
        for reason in one.attention:
            attention.add_metric([*key, reason], 1)
        for name, value in one.figures.items():
            families[name].add_metric(key, value)
    yield from (phases, attention, *families.values())


def _of_stages(shown: list[tuple[Key, _Shown]]) -> Iterator[Metric]:
    families = {name: _gauge("stage", name, text, STAGE_LABELS) for name, text in _STAGE_GAUGES.items()}
    loss = GaugeMetricFamily("modelchain_stage_loss", "Terms of the loss.", labels=[*STAGE_LABELS, "term"])
    attempts = CounterMetricFamily(
        "modelchain_stage_attempts", "Attempts of an unfinished stage so far.", labels=STAGE_LABELS
    )
    for key, one in shown:
        for stage in one.of_stages:
            labels = [*key, stage.name]
            for name, value in stage.figures.items():
                families[name].add_metric(labels, value)
            for term, value in stage.loss:
                loss.add_metric([*labels, term], value)
            if stage.attempts is not None:
                attempts.add_metric(labels, stage.attempts)
    yield from (*families.values(), loss, attempts)


def _gauge(subject: str, name: str, text: str, labels: tuple[str, ...]) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"modelchain_{subject}_{name}", text, labels=labels)
