"""A chain as the operator sees it, pass by pass, and what Prometheus is told of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from modelchain.artifacts import new_attempt_token
from modelchain.reconcile.conditions import refused
from modelchain.reconcile.observation import Job, JobPhase, StageFacts
from modelchain.resolved import ResolvedChain, ResolvedStage
from modelchain.status import (
    ChainPhase,
    ChainStatus,
    Measurement,
    ModelMeasured,
    StagePhase,
    StageStatus,
)
from modelchain.store import StoreUnavailable
from modelchain_operator.kubernetes.key import Key
from modelchain_operator.telemetry.metrics import Metrics
from tests.modelchain.reconcile.chains import Play, chain, job, manifest, progress
from tests.operator.stores.flaky_store import FlakyStore

KEY = Key("default", "family")
COMPARED = Key("default", "compared")
CHAIN = {"namespace": KEY.namespace, "chain": KEY.name}


class WatchedChain(Play):
    """Has passes as the reconciler has them, on a clock that the metrics share."""

    def __init__(self, resolved: ResolvedChain, metrics: Metrics | None = None) -> None:
        super().__init__(resolved)
        self.metrics = metrics or Metrics(lambda: self.now)

    def see(self, *jobs: Job, after: float = 0.0, **facts: StageFacts) -> None:
        """One pass."""
        before = self.status
        self.metrics.chain_accepted(KEY, self.chain)
        decision = self.look(*jobs, after=after, **facts)
        if decision.status != before:
            self.metrics.status_written(KEY, before, decision.status)
        self.metrics.chain_seen(KEY, decision.status)

    def own(self, stage: ResolvedStage) -> StageFacts:
        """What the store says when an attempt of this chain has finished the stage."""
        token = new_attempt_token(self.chain.chain.uid, 1)
        return StageFacts(manifest=manifest(stage).model_copy(update={"attempt": token}))

    def refuse(self, *problems: str) -> None:
        """One pass over the chain after an edit that made it invalid."""
        before, self.status = self.status, refused(self.status, problems, generation=2, now=self.now)
        self.metrics.status_written(KEY, before, self.status)

    def restart_operator(self) -> None:
        """Another process goes on with what the statuses say."""
        self.metrics = Metrics(lambda: self.now)

    def of_chain(self, name: str) -> float | None:
        """A figure of the chain."""
        return value(self.metrics, f"modelchain_chain_{name}", **CHAIN)

    def of_stage(self, stage: str, name: str, **labels: str) -> float | None:
        """A figure of one of its stages."""
        return value(self.metrics, f"modelchain_stage_{name}", **CHAIN, stage=stage, **labels)

    def attention(self) -> set[str]:
        """Reasons for which it needs a person."""
        family = families(self.metrics)["modelchain_chain_needs_attention"]
        return {sample.labels["reason"] for sample in family.samples}


def families(metrics: Metrics) -> dict[str, Metric]:
    """What Prometheus reads, by name of the family, as its own parser understands it."""
    return {family.name: family for family in text_string_to_metric_families(metrics.exposition().decode())}


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    """The sample of that name with exactly these labels."""
    for family in families(metrics).values():
        for sample in family.samples:
            if sample.name == name and sample.labels == labels:
                return sample.value
    return None


def see_compared(metrics: Metrics, *, reached: bool = True) -> ResolvedChain:
    """A chain that was compared: its models alone took 2.5 times as much, or at least so much."""
    compared = chain((("tiny", None), ("small", "tiny")), baseline={"train": ["small"], "epochs": 8})
    alone = compared.stage("small-alone")
    token = new_attempt_token(compared.chain.uid, 1)
    status = ChainStatus(
        phase=ChainPhase.COMPLETE,
        baselines=(
            StageStatus(
                name=alone.name,
                digest=alone.digest,
                phase=StagePhase.COMPLETE,
                weights_uri=f"file:///store/{alone.folder}/attempts/{token}",
            ),
        ),
        measurement=Measurement(
            metric="digits/top1",
            chain_macs=100.0,
            models=(ModelMeasured(name="small", target=0.75, macs=250.0, reached=reached),),
        ),
    )
    metrics.chain_accepted(COMPARED, compared)
    metrics.chain_seen(COMPARED, status)
    return compared


def whole_life(folder: Path) -> Metrics:
    """The metrics of an operator in whose life every metric has had a sample: a chain has trained, failed, finished a
    stage and trains the next, an edit has made it invalid, and a store has not answered; and another chain has been
    compared with its models trained alone.
    """
    watched = WatchedChain(chain(job={"gpusPerNode": 8}))
    metrics = watched.metrics
    tiny, small = watched.stage("tiny"), watched.stage("small")
    watched.see()
    figures = {"samples_per_second": 40.0, "eta_seconds": 3.0, "loss": {"total": 1.0}}
    said = progress(4, **figures, metrics={"digits/top1": 0.5})
    watched.see(job(tiny), after=10, tiny=StageFacts(progress=said, progress_attempt=1))
    watched.see(job(tiny, phase=JobPhase.FAILED, exit_code=1), after=10)
    watched.see(after=60)
    watched.see(job(tiny, 2), after=10, tiny=watched.own(tiny))
    watched.see(after=1)
    watched.see(job(small), after=10, small=StageFacts(progress=progress(8, **figures), progress_attempt=1))
    watched.refuse("spec.stages[1].model: 'ViT-Q' is no model")
    see_compared(metrics)
    metrics.watch_queue(lambda: 1)
    metrics.queue_lag(0.1)
    metrics.pass_ended(0.01)
    metrics.pass_failed("Unavailable")
    metrics.api_request("put")
    store = FlakyStore(folder)
    metrics.measured(store).find("nothing")
    store.problem = StoreUnavailable("no")
    with pytest.raises(StoreUnavailable):
        metrics.measured(store).find("nothing")
    return metrics
