"""Prometheus metrics of the operator's own work; those of chains are in chain_metrics.py. Every set of labels is
bounded: by the phases there are, by the chains that exist.

https://prometheus.io/docs/practices/naming/
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)

from modelchain import __version__, cost
from modelchain.errors import ModelChainError
from modelchain.resolved import ResolvedChain
from modelchain.status import ChainStatus, StagePhase, StageStatus
from modelchain.store import Store
from modelchain_operator.kubernetes.api import ApiError
from modelchain_operator.kubernetes.key import Key
from modelchain_operator.stores.measured_store import MeasuredStore
from modelchain_operator.telemetry.chain_metrics import OTHER, ChainMetrics

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

MAX_REASONS = 48  # distinct reasons from elsewhere; further ones are counted as Other
INTERNAL = "Internal"  # a pass that ended with an unforeseen error

disable_created_metrics()  # they would double the series of counters

_FAST = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_REASON = re.compile(r"[A-Z][A-Za-z0-9]{0,47}")
_ENDED = {StagePhase.COMPLETE: "complete", StagePhase.CACHED: "cached", StagePhase.FAILED: "failed"}
# The most frequent reasons: names of the trainer's errors, and one of the kubelet's.
_TRAINER_ERRORS = (
    "DivergedError",
    "OOMKilled",
    "OutOfMemoryError",
    *(
        kind.__name__
        for kind in ModelChainError.__subclasses__()
        if kind.__module__ == ModelChainError.__module__
    ),
)
_ATTEMPTS = {
    "started": ("Started",),
    "succeeded": ("Complete",),
    "failed": ("ManifestMissing", "Stalled", "TimedOut", "TrainerFailed", *_TRAINER_ERRORS),
    "interrupted": ("Disrupted", "JobVanished", "LeaseHeld", "Superseded", "Suspended"),
}
_PASS_ERRORS = (INTERNAL, *(kind.__name__ for kind in (ApiError, *ApiError.__subclasses__())))
_KNOWN_REASONS = frozenset(_PASS_ERRORS).union(*_ATTEMPTS.values())


class Metrics:
    """The operator's metrics, in a registry of their own. Any thread may update them."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, *, max_chains: int = 2000) -> None:
        """`max_chains`: those that have series of their own."""
        self.registry = CollectorRegistry()
        self.pass_ended_at: float | None = None  # monotonic
        self._queue_depth: Callable[[], int] = lambda: 0
        self._chains = ChainMetrics(clock, max_chains=max_chains)
        self._reasons: set[str] = set()
        self._gauge("build_info", "Version of the operator.", "version").labels(__version__).set(1)
        self._leader = self._gauge("leader", "1 where this operator acts on chains, 0 where it stands by.")
        self._leader.set(1)
        depth = self._gauge("queue_depth", "Reconcile queue depth: chains that wait to be reconciled.")
        depth.set_function(self.queue_depth)
        self._stages = self._counter("stages", "Stages that have ended, by outcome.", "outcome")
        text = "Attempts that were started or have ended, by outcome and reason."
        self._attempts = self._counter("attempts", text, "outcome", "reason")
        self._pass_seconds = self._histogram("reconcile_duration_seconds", "Duration of reconciliations.")
        self._pass_errors = self._counter(
            "reconcile_errors", "Reconciliations that failed and are retried, by reason.", "reason"
        )
        self._queue_lag = self._histogram(
            "queue_lag_seconds", "Time that a chain waited in the reconcile queue."
        )
        self._status_writes = self._counter("status_writes", "Statuses written to the API server.")
        self._api_requests = self._counter(
            "kubernetes_requests", "Requests that the API server has answered, by verb.", "verb"
        )
        self._store_requests = self._counter(
            "store_requests", "Requests to stores, by operation.", "operation"
        )
        self._store_errors = self._counter(
            "store_errors", "Requests to stores that failed, by reason.", "reason"
        )
        self._store_seconds = self._histogram(
            "store_request_duration_seconds", "Time that a store took to answer."
        )
        self._export_at_zero()
        self.registry.register(self._chains)
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=self.registry)

    def _export_at_zero(self) -> None:
        """Export series from the start: an increase shows only from the second sample of a series on."""
        for outcome in _ENDED.values():
            self._stages.labels(outcome)
        for reason in ("forbidden", "unavailable", "other"):
            self._store_errors.labels(reason)
        for outcome, reasons in _ATTEMPTS.items():
            for reason in reasons:
                self._attempts.labels(outcome, reason)
        for reason in _PASS_ERRORS:
            self._pass_errors.labels(reason)

    def exposition(self) -> bytes:
        """All metrics in Prometheus' text format. With thousands of chains it takes a while: any thread may ask."""
        return generate_latest(self.registry)

    # ---- passes

    def watch_queue(self, depth: Callable[[], int]) -> None:
        """Export this as the depth of the reconcile queue."""
        self._queue_depth = depth

    def watch_leadership(self, is_held: Callable[[], bool]) -> None:
        """Export this as whether the operator acts on chains; by default it does."""
        self._leader.set_function(lambda: float(is_held()))

    def queue_depth(self) -> int:
        """Reconcile queue depth: chains that wait to be reconciled."""
        return self._queue_depth()

    def queue_lag(self, seconds: float) -> None:
        """A chain has waited this long in the queue."""
        self._queue_lag.observe(seconds)

    def pass_ended(self, seconds: float) -> None:
        """A pass has ended, with success or not."""
        self.pass_ended_at = time.monotonic()
        self._pass_seconds.observe(seconds)

    def pass_failed(self, reason: str) -> None:
        """A pass has failed; `reason` is the name of an error, of which there are few."""
        self._pass_errors.labels(self._bounded(reason)).inc()

    def api_request(self, verb: str) -> None:
        """The API server has answered a request."""
        self._api_requests.labels(verb.upper()).inc()

    # ---- chains

    def chain_accepted(self, key: Key, chain: ResolvedChain, plan: cost.Plan | None = None) -> None:
        """A pass starts over a valid chain: from it follow the costs and the GPUs of its stages. `plan`: the
        chain's, if it was made already.
        """
        self._chains.accept(key, chain, plan)

    def chain_seen(self, key: Key, status: ChainStatus) -> None:
        """The chain's status at the end of a pass."""
        self._chains.end_pass(key, status)

    def chain_gone(self, key: Key) -> None:
        """The chain is gone, and with it its series."""
        self._chains.forget(key)

    def status_written(self, key: Key, before: ChainStatus | None, status: ChainStatus) -> None:
        """The chain's status was written: count what has happened since the one before."""
        self._status_writes.inc()
        self._chains.show(key, status)
        for stage in status.all_stages:
            self._count(before.find_stage(stage.name) if before is not None else None, stage)

    def _count(self, before: StageStatus | None, stage: StageStatus) -> None:
        outcome = _ENDED.get(stage.phase)
        is_new = before is None or before.phase is not stage.phase or before.digest != stage.digest
        if outcome is not None and is_new:
            self._stages.labels(outcome).inc()
            if stage.phase is StagePhase.COMPLETE:
                self._attempts.labels("succeeded", "Complete").inc()
        if stage.attempt > (before.attempt if before is not None else 0):
            self._attempts.labels("started", "Started").inc()
        ended = stage.last_ended
        if before is not None and before.finished:
            return  # an edit has reset the stage, which ends no attempt
        if ended is not None and ended.attempt > (before.last_ended_attempt if before is not None else 0):
            outcome = "failed" if ended.counted else "interrupted"
            self._attempts.labels(outcome, self._bounded(ended.reason)).inc()

    def _bounded(self, reason: str) -> str:
        """The reason, or Other: a trainer that invents reasons must not create series without limit."""
        if reason in self._reasons or reason in _KNOWN_REASONS:
            return reason
        if len(self._reasons) >= MAX_REASONS or not _REASON.fullmatch(reason):
            return OTHER
        self._reasons.add(reason)
        return reason

    # ---- stores

    def measured(self, store: Store) -> Store:
        """The same store; its requests, errors and times are counted."""
        return MeasuredStore(store, self._store_answered)

    def _store_answered(self, operation: str, seconds: float, error: str | None) -> None:
        self._store_requests.labels(operation).inc()
        self._store_seconds.observe(seconds)
        if error is not None:
            self._store_errors.labels(error).inc()

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"modelchain_{name}", text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"modelchain_{name}", text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str) -> Histogram:
        return Histogram(f"modelchain_{name}", text, registry=self.registry, buckets=_FAST)
