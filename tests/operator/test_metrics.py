"""What Prometheus is told, read back with Prometheus' own parser."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from modelchain import __version__
from modelchain.errors import DiskFullError
from modelchain.status import ChainPhase, ChainStatus, EndedAttempt, StagePhase, StageStatus
from modelchain.store import ConflictError, Forbidden, NotFound, StoreUnavailable
from modelchain_operator.metrics import MAX_REASONS, Metrics
from modelchain_operator.queue import Key
from tests.operator.stores import MoodyStore

KEY = Key("default", "family")


def families(metrics: Metrics) -> dict[str, Metric]:
    return {family.name: family for family in text_string_to_metric_families(metrics.exposition().decode())}


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    """The sample of that name with exactly these labels."""
    for family in families(metrics).values():
        for sample in family.samples:
            if sample.name == name and sample.labels == labels:
                return sample.value
    return None


def stage(phase: StagePhase = StagePhase.RUNNING, name: str = "tiny", **fields: object) -> StageStatus:
    return StageStatus.model_validate(
        {"name": name, "phase": phase, "digest": "0" * 64, "attempt": 1} | fields
    )


def status(*stages: StageStatus, phase: ChainPhase = ChainPhase.RUNNING) -> ChainStatus:
    return ChainStatus(phase=phase, stages=stages)


def ended(attempt: int, reason: str, *, counted: bool = True) -> EndedAttempt:
    return EndedAttempt(attempt=attempt, reason=reason, counted=counted, time="2027-01-15T08:00:00Z")


def everything(metrics: Metrics, store: MoodyStore) -> None:
    """Let every metric have a sample."""
    metrics.queue_lag(0.1)
    metrics.pass_ended(0.01)
    metrics.pass_failed("Unavailable")
    metrics.api_request("put")
    live = stage(
        step=5,
        steps=10,
        samplesPerSecond=7.0,
        loss={"total": 1.0},
        metrics={"val/loss": 2.0, "digits/top1": 0.5},
    )
    metrics.status_written(KEY, None, status(live))
    metrics.measured(store).find("nothing")


def test_names_types_and_units_are_as_prometheus_asks(tmp_path: Path) -> None:
    metrics = Metrics()
    everything(metrics, MoodyStore(tmp_path))
    own = {name: family for name, family in families(metrics).items() if name.startswith("modelchain_")}
    assert set(own) == {
        "modelchain_build_info",
        "modelchain_chains",
        "modelchain_queue_depth",
        "modelchain_stages",
        "modelchain_attempts",
        "modelchain_reconcile_duration_seconds",
        "modelchain_reconcile_errors",
        "modelchain_queue_lag_seconds",
        "modelchain_status_writes",
        "modelchain_kubernetes_requests",
        "modelchain_store_requests",
        "modelchain_store_errors",
        "modelchain_store_request_duration_seconds",
        "modelchain_stage_progress_ratio",
        "modelchain_stage_samples_per_second",
        "modelchain_stage_loss",
        "modelchain_stage_top1_ratio",
    }
    for name, family in own.items():
        assert family.documentation.endswith("."), name
        assert re.fullmatch(r"[a-z][a-z0-9_]*", name)
        assert family.samples, f"{name} has no sample"
        for sample in family.samples:
            if family.type == "counter":
                assert sample.name.endswith(("_total", "_created"))
    assert value(metrics, "modelchain_build_info", version=__version__) == 1
    assert "process_resident_memory_bytes" in families(metrics)


def test_chains_are_counted_by_phase_and_no_more_when_they_are_gone() -> None:
    metrics = Metrics()
    assert value(metrics, "modelchain_chains", phase="Running") == 0
    other = Key("default", "other")
    metrics.chain_seen(KEY, status(phase=ChainPhase.RUNNING))
    metrics.chain_seen(other, status(phase=ChainPhase.RUNNING))
    metrics.chain_seen(other, status(phase=ChainPhase.COMPLETE))
    assert value(metrics, "modelchain_chains", phase="Running") == 1
    assert value(metrics, "modelchain_chains", phase="Complete") == 1
    metrics.chain_gone(KEY)
    metrics.chain_gone(other)
    metrics.chain_gone(other)
    assert {s.value for s in families(metrics)["modelchain_chains"].samples} == {0.0}


def test_what_is_said_of_a_stage_is_gone_when_it_does_not_live_any_more() -> None:
    metrics = Metrics()
    labels = {"namespace": "default", "chain": "family", "stage": "tiny"}
    live = stage(
        step=5, steps=20, samplesPerSecond=7.0, loss={"total": 1.5}, metrics={"a/top1": 0.5, "b/top1": 0.9}
    )
    metrics.chain_seen(KEY, status(live, stage(StagePhase.PENDING, "small")))
    assert value(metrics, "modelchain_stage_progress_ratio", **labels) == 0.25
    assert value(metrics, "modelchain_stage_samples_per_second", **labels) == 7.0
    assert value(metrics, "modelchain_stage_loss", **labels, term="total") == 1.5
    assert value(metrics, "modelchain_stage_top1_ratio", **labels) == 0.5
    assert value(metrics, "modelchain_stage_progress_ratio", **labels | {"stage": "small"}) is None
    metrics.chain_seen(KEY, status(stage(StagePhase.COMPLETE, step=20, steps=20)))
    for name in ("progress_ratio", "samples_per_second", "loss", "top1_ratio"):
        assert not families(metrics)[f"modelchain_stage_{name}"].samples


def test_outcomes_are_counted_once_each() -> None:
    metrics = Metrics()

    def written(before: ChainStatus | None, after: ChainStatus) -> ChainStatus:
        metrics.status_written(KEY, before, after)
        return after

    first = written(None, status(stage()))
    again = written(first, status(stage(step=3)))
    failed = written(again, status(stage(StagePhase.RETRYING, lastEnded=ended(1, "DataError"))))
    second = written(failed, status(stage(attempt=2, lastEnded=ended(1, "DataError"))))
    lost = written(
        second, status(stage(StagePhase.RETRYING, attempt=2, lastEnded=ended(2, "Disrupted", counted=False)))
    )
    third = written(lost, status(stage(attempt=3, lastEnded=ended(2, "Disrupted", counted=False))))
    done = written(
        third, status(stage(StagePhase.COMPLETE, attempt=3, lastEnded=ended(2, "Disrupted", counted=False)))
    )
    written(done, done)
    attempts = "modelchain_attempts_total"
    assert value(metrics, attempts, outcome="started", reason="Started") == 3
    assert value(metrics, attempts, outcome="failed", reason="DataError") == 1
    assert value(metrics, attempts, outcome="interrupted", reason="Disrupted") == 1
    assert value(metrics, attempts, outcome="succeeded", reason="Complete") == 1
    assert value(metrics, "modelchain_stages_total", outcome="complete") == 1
    assert value(metrics, "modelchain_stages_total", outcome="failed") == 0
    assert value(metrics, "modelchain_status_writes_total") == 8


def test_reasons_that_a_trainer_makes_up_do_not_grow_without_bound() -> None:
    metrics = Metrics()
    for number in range(500):
        before = status(stage(attempt=1))
        metrics.status_written(KEY, before, status(stage(lastEnded=ended(1, f"Reason{number}"))))
    metrics.status_written(KEY, status(stage()), status(stage(lastEnded=ended(1, 'evil"\n{}'))))
    samples = [
        sample
        for sample in families(metrics)["modelchain_attempts"].samples
        if sample.name.endswith("_total") and sample.labels["outcome"] == "failed"
    ]
    assert len(samples) == MAX_REASONS + 1
    assert sum(sample.value for sample in samples) == 501


def test_the_depth_of_the_queue_is_asked_when_it_is_wanted() -> None:
    metrics, waiting = Metrics(), [1, 2]
    metrics.watch_queue(lambda: len(waiting))
    assert value(metrics, "modelchain_queue_depth") == 2
    waiting.clear()
    assert value(metrics, "modelchain_queue_depth") == 0


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (Forbidden("no"), "forbidden"),
        (StoreUnavailable("no"), "unavailable"),
        (DiskFullError("no"), "other"),
        (NotFound("no"), None),
        (ConflictError("no"), None),
    ],
)
def test_requests_of_stores_are_counted_with_their_errors(
    tmp_path: Path, error: Exception, reason: str | None
) -> None:
    metrics, inner = Metrics(), MoodyStore(tmp_path)
    store = metrics.measured(inner)
    assert store.uri == inner.uri
    etag = store.put("a/b", b"data", if_absent=True)
    assert store.get("a/b") == (b"data", etag)
    assert [info.key for info in store.list("a/")] == ["a/b"]
    inner.trouble = error  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(type(error)):
        store.get("a/b")
    with pytest.raises(type(error)):
        list(store.list("a/"))
    requests = "modelchain_store_requests_total"
    assert value(metrics, requests, operation="get") == 2
    assert value(metrics, requests, operation="list") == 2
    assert value(metrics, requests, operation="put") == 1
    assert value(metrics, "modelchain_store_request_duration_seconds_count") == 5
    errors = {
        s.labels["reason"]: s.value
        for s in families(metrics)["modelchain_store_errors"].samples
        if s.name.endswith("_total")
    }
    assert errors == {"forbidden": 0.0, "unavailable": 0.0, "other": 0.0} | ({reason: 2.0} if reason else {})
