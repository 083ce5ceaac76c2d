"""What Prometheus is told, read back with Prometheus' own parser."""

from __future__ import annotations

import gc
import re
import weakref
from dataclasses import replace
from pathlib import Path

import pytest

from modelchain import __version__, cost
from modelchain.errors import DiskFullError
from modelchain.explanation import NEEDS_A_PERSON
from modelchain.reconcile.observation import JobPhase, StageFacts, StoreProblem
from modelchain.status import ChainPhase, ChainStatus, Condition, EndedAttempt, StagePhase, StageStatus
from modelchain.store import ConflictError, Forbidden, NotFound, StoreUnavailable
from modelchain_operator.kubernetes.key import Key
from modelchain_operator.kueue.workloads import LASTING_REASONS
from modelchain_operator.telemetry.metrics import MAX_REASONS, Metrics
from tests.modelchain.reconcile.chains import chain, job, manifest, progress
from tests.monitoring.life import KEY, WatchedChain, families, value, whole_life
from tests.operator.stores.flaky_store import FlakyStore


def stage(phase: StagePhase = StagePhase.RUNNING, name: str = "tiny", **fields: object) -> StageStatus:
    return StageStatus.model_validate(
        {"name": name, "phase": phase, "digest": "0" * 64, "attempt": 1} | fields
    )


FAILED = {
    "type": "Failed",
    "status": "True",
    "reason": "RetryLimit",
    "message": "no attempt is left",
    "lastTransitionTime": "2027-01-15T08:00:00Z",
}


def status(*stages: StageStatus, phase: ChainPhase = ChainPhase.RUNNING) -> ChainStatus:
    return ChainStatus(phase=phase, stages=stages)


def ended(attempt: int, reason: str, *, counted: bool = True) -> EndedAttempt:
    return EndedAttempt(attempt=attempt, reason=reason, counted=counted, time="2027-01-15T08:00:00Z")


def test_names_types_and_units_are_as_prometheus_asks(tmp_path: Path) -> None:
    metrics = whole_life(tmp_path)
    own = {name: family for name, family in families(metrics).items() if name.startswith("modelchain_")}
    assert set(own) == {
        "modelchain_build_info",
        "modelchain_chains",
        "modelchain_chains_without_series",
        "modelchain_chain_stages",
        "modelchain_chain_phase",
        "modelchain_chain_needs_attention",
        "modelchain_chain_progress_ratio",
        "modelchain_chain_spent_macs",
        "modelchain_chain_planned_saved_macs",
        "modelchain_chain_baseline_spent_macs",
        "modelchain_chain_planned_speedup_ratio",
        "modelchain_chain_measured_speedup_ratio",
        "modelchain_chain_measured_speedup_is_bound",
        "modelchain_chain_gpu_seconds",
        "modelchain_leader",
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
        "modelchain_stage_eta_seconds",
        "modelchain_stage_unsaved_seconds",
        "modelchain_stage_loss",
        "modelchain_stage_top1_ratio",
        "modelchain_stage_attempts",
        "modelchain_stage_failures",
        "modelchain_stage_retries_left",
    }
    for name, family in own.items():
        assert family.documentation.endswith("."), name
        assert re.fullmatch(r"[a-z][a-z0-9_]*", name)
        assert family.samples, f"{name} has no sample"
        for sample in family.samples:
            if family.type == "counter":
                assert sample.name.endswith("_total")
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
    for name in ("progress_ratio", "samples_per_second", "loss", "failures"):
        assert not families(metrics)[f"modelchain_stage_{name}"].samples


def test_of_more_chains_than_a_setting_allows_those_at_rest_have_no_series_first() -> None:
    metrics = Metrics(max_chains=3)
    failed = ChainStatus(conditions=(Condition.model_validate(FAILED),), phase=ChainPhase.FAILED)
    for name, shown in {
        "complete": status(stage(StagePhase.COMPLETE), phase=ChainPhase.COMPLETE),
        "suspended": status(stage(StagePhase.SUSPENDED), phase=ChainPhase.SUSPENDED),
        "running": status(stage()),
        "comparing": status(stage(StagePhase.COMPLETE), phase=ChainPhase.COMPLETE).model_copy(
            update={"baselines": (stage(name="tiny-alone"),)}
        ),
        "failed": failed,
    }.items():
        metrics.chain_seen(Key("default", name), shown)
    labelled = {
        sample.labels["chain"]
        for family in families(metrics).values()
        for sample in family.samples
        if "chain" in sample.labels
    }
    assert labelled == {"failed", "running", "comparing"}
    assert value(metrics, "modelchain_chains_without_series") == 2
    assert value(metrics, "modelchain_chains", phase="Complete") == 2, "totals are of all"


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
        if sample.name.endswith("_total") and sample.labels["outcome"] == "failed" and sample.value
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
    metrics, inner = Metrics(), FlakyStore(tmp_path)
    store = metrics.measured(inner)
    assert store.uri == inner.uri
    etag = store.put("a/b", b"data", if_absent=True)
    assert store.get("a/b") == (b"data", etag)
    assert [info.key for info in store.list("a/")] == ["a/b"]
    inner.problem = error  # pyright: ignore[reportAttributeAccessIssue]
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


# ---- what chains cost, and how far they are


def test_a_chains_progress_and_compute_follow_from_its_steps() -> None:
    watched = WatchedChain(chain(epochs={"tiny": 4}))  # the others are trained for half as long
    tiny, small, _ = watched.chain.stages
    plan = {stage.name: stage for stage in cost.plan(watched.chain).stages}
    watched.see()
    assert watched.of_chain("spent_macs") == watched.of_chain("progress_ratio") == 0
    watched.see(job(tiny), tiny=StageFacts(progress=progress(8), progress_attempt=1))
    assert watched.of_chain("spent_macs") == plan["tiny"].macs / 4
    assert watched.of_chain("planned_saved_macs") == 0, "nothing is saved before a model is finished"
    watched.see(job(tiny, phase=JobPhase.SUCCEEDED), tiny=watched.own(tiny))
    assert watched.of_chain("planned_saved_macs") == 0, "the first stage is trained as it would be alone"
    watched.see(job(small), small=watched.own(small))
    assert watched.of_chain("spent_macs") == plan["tiny"].macs + plan["small"].macs
    assert watched.of_chain("planned_saved_macs") == plan["small"].alone_macs - plan["small"].macs > 0
    done = plan["tiny"].macs + plan["small"].macs
    assert watched.of_chain("progress_ratio") == pytest.approx(done / cost.plan(watched.chain).chain_macs)


def test_a_stage_found_in_the_store_costs_nothing_and_saves_all_of_its_training() -> None:
    watched = WatchedChain(chain())
    tiny = watched.stage("tiny")
    watched.see(tiny=StageFacts(manifest=manifest(tiny)))
    assert watched["tiny"].phase is StagePhase.CACHED
    assert watched.of_chain("spent_macs") == 0
    assert watched.of_chain("planned_saved_macs") == cost.plan(watched.chain).stages[0].alone_macs
    assert value(watched.metrics, "modelchain_chain_stages", namespace="default", phase="Cached") == 1


def test_a_stage_that_another_chain_finished_first_is_not_spent_twice() -> None:
    watched = WatchedChain(chain())
    tiny = watched.stage("tiny")
    watched.see()
    watched.see(job(tiny), tiny=StageFacts(progress=progress(8), progress_attempt=1))
    watched.see(job(tiny, phase=JobPhase.FAILED, exit_code=1))
    watched.see(tiny=StageFacts(manifest=manifest(tiny, chain_name="default/another")))
    assert watched["tiny"].phase is StagePhase.COMPLETE, "the chain had begun it"
    assert watched.of_chain("spent_macs") == 0
    assert watched.of_chain("planned_saved_macs") == cost.plan(watched.chain).stages[0].alone_macs


def test_compute_is_right_at_the_first_look_of_another_operator() -> None:
    watched = WatchedChain(chain())
    tiny, small, _ = watched.chain.stages
    watched.see()
    watched.see(job(tiny), tiny=StageFacts(manifest=manifest(tiny)))
    watched.see(job(small), small=StageFacts(progress=progress(8), progress_attempt=1))
    before = {name: watched.of_chain(name) for name in ("progress_ratio", "spent_macs", "planned_saved_macs")}
    attempts = watched.of_stage("small", "attempts_total")
    watched.restart_operator()
    watched.see(job(small))
    assert {name: watched.of_chain(name) for name in before} == before
    assert watched.of_stage("small", "attempts_total") == attempts == 1


def test_the_figures_of_a_chain_stay_when_it_is_complete_and_when_it_is_then_refused() -> None:
    watched = WatchedChain(chain())
    watched.see()
    tiny, small, base = (watched.own(stage) for stage in watched.chain.stages)
    watched.see(tiny=tiny, small=small, base=base)
    assert watched.of_chain("progress_ratio") == 1
    spent = watched.of_chain("spent_macs")
    assert spent == cost.plan(watched.chain).chain_macs
    watched.refuse("spec.stages[0].model: 'ViT-Q' is no model")
    assert watched.of_chain("spent_macs") == spent


def test_an_edit_that_makes_a_chain_invalid_keeps_its_figures_and_asks_for_attention() -> None:
    watched = WatchedChain(chain())
    watched.see()
    watched.see(job(watched.stage("tiny")), tiny=StageFacts(progress=progress(8), progress_attempt=1))
    spent = watched.of_chain("spent_macs")
    watched.refuse("spec.stages[0].model: 'ViT-Q' is no model")
    assert watched.of_chain("spent_macs") == spent
    assert watched.attention() == {"Refused"}


def test_gpu_time_passes_while_pods_run_or_end_and_at_no_other_time() -> None:
    watched = WatchedChain(chain(job={"nodes": 2, "gpusPerNode": 4}, retry={"backoffSeconds": 100}))
    tiny = watched.stage("tiny")

    def gpu_seconds() -> float | None:
        return watched.of_chain("gpu_seconds_total")

    watched.see()
    watched.see(job(tiny, phase=JobPhase.PENDING), after=100)
    assert gpu_seconds() == 0, "a job that waits for its pods trains on nothing"
    watched.see(job(tiny), after=100)
    assert gpu_seconds() == 0
    watched.now += 10
    assert gpu_seconds() == 80, "a scrape between two passes sees what has passed"
    watched.see(job(tiny), after=10)
    assert gpu_seconds() == 160
    watched.see(job(tiny, phase=JobPhase.FAILED, exit_code=1), after=5)
    watched.see(after=50)
    assert gpu_seconds() == 200, "backing off costs no GPU"
    watched.see(after=100)
    watched.see(job(tiny, 2), after=10)
    watched.see(job(tiny, 2, phase=JobPhase.TERMINATING, disrupted=True), after=5)
    assert watched["tiny"].reason == "Stopping"
    watched.see(after=5)
    watched.see(after=100)
    assert gpu_seconds() == 280, "pods that end hold their GPUs until they are gone"


def test_an_attempt_keeps_the_gpus_that_it_began_with() -> None:
    watched = WatchedChain(chain(job={"gpusPerNode": 2}))
    watched.see()
    watched.see(job(watched.stage("tiny")))
    watched.chain = chain(job={"gpusPerNode": 8})
    watched.see(job(watched.stage("tiny")), after=10)
    watched.see(job(watched.stage("tiny")), after=10)
    assert watched.of_chain("gpu_seconds_total") == 40


def test_what_a_failure_would_cost_is_the_training_since_the_last_checkpoint() -> None:
    watched = WatchedChain(chain())
    tiny = watched.stage("tiny")
    watched.see()
    said = progress(12, samples_per_second=4.0, checkpoint_step=8, eta_seconds=8.2)
    watched.see(job(tiny), tiny=StageFacts(progress=said, progress_attempt=1))
    assert watched.of_stage("tiny", "unsaved_seconds") == 4 * tiny.training.global_batch_size / 4.0
    assert watched.of_stage("tiny", "eta_seconds") == 8
    watched.see(job(tiny), tiny=StageFacts(manifest=manifest(tiny)))
    assert watched.of_stage("tiny", "unsaved_seconds") is None


def test_failures_and_the_retries_that_are_left_are_told_until_the_stage_is_finished() -> None:
    watched = WatchedChain(chain(retry={"limit": 1, "backoffSeconds": 0}))
    tiny = watched.stage("tiny")
    watched.see()
    assert watched.of_stage("tiny", "retries_left") == 1
    watched.see(job(tiny, phase=JobPhase.FAILED, exit_code=1))
    assert watched.of_stage("tiny", "failures") == 1
    assert watched.of_stage("tiny", "retries_left") == 0
    watched.see()
    watched.see(job(tiny, 2, phase=JobPhase.FAILED, exit_code=1))
    assert watched.attention() == {"Failed"}
    assert watched.of_stage("tiny", "attempts_total") == 2
    watched.generation = 2  # an edit asks again
    watched.see()
    assert watched.attention() == set()
    watched.see(job(tiny, 3), tiny=StageFacts(manifest=manifest(tiny)))
    assert watched.of_stage("tiny", "failures") is None


@pytest.mark.parametrize(
    ("reason", "label"),
    [
        ("FailedAttachVolume", "FailedAttachVolume"),
        ("FailedPrepareDynamicResources", "FailedPrepareDynamicResources"),
        ("ExceedsMaxQuota", "ExceedsMaxQuota"),
        ("CreateContainerError", "Other"),
        ("AWordOfTomorrow", "Other"),
    ],
)
def test_whatever_pods_wait_for_asks_for_attention_and_words_make_no_series_without_limit(
    reason: str, label: str
) -> None:
    watched = WatchedChain(chain())
    watched.see()
    watched.see(job(watched.stage("tiny"), phase=JobPhase.PENDING))
    assert watched.attention() == set(), "pods that are starting"
    watched.see(job(watched.stage("tiny"), phase=JobPhase.PENDING, reason=reason))
    assert watched.attention() == {label}


def test_a_suspended_chain_asks_for_attention_only_where_a_node_holds_its_pods() -> None:
    watched = WatchedChain(chain(suspend=True))
    watched.see()
    assert watched.attention() == set()
    ending = job(watched.stage("tiny"), phase=JobPhase.TERMINATING)
    watched.see(replace(ending, blocked_by_node="node-a"))
    assert watched.attention() == {"NodeUnreachable"}


def test_all_of_kueues_lasting_reasons_and_those_of_stores_need_a_person() -> None:
    assert LASTING_REASONS | set(StoreProblem) <= NEEDS_A_PERSON


def test_attention_is_asked_for_what_does_not_pass_by_itself() -> None:
    watched = WatchedChain(chain(retry={"stallSeconds": 60, "backoffSeconds": 0}))
    tiny = watched.stage("tiny")
    watched.see()
    watched.see(job(tiny, phase=JobPhase.QUEUED))
    assert watched.attention() == set(), "a queue lets it go by itself"
    watched.see(job(tiny))
    watched.see(job(tiny), after=61)
    assert watched.attention() == {"Unresponsive"}
    watched.see(tiny=StageFacts(problem=StoreProblem.FORBIDDEN))
    assert watched.attention() == {"Unresponsive", "StoreForbidden"}
    watched.see(tiny=StageFacts(manifest=manifest(tiny)))
    assert watched.attention() == set()
    watched.see(tiny=StageFacts())
    assert watched.attention() == {"ArtifactsMissing"}


def test_an_edit_of_a_finished_stage_is_no_attempt_that_was_interrupted() -> None:
    watched = WatchedChain(chain())
    watched.see()
    watched.see(job(watched.stage("tiny")), tiny=StageFacts(manifest=manifest(watched.stage("tiny"))))
    watched.chain = chain(epochs={"tiny": 3})
    watched.see(tiny=StageFacts())
    assert watched["tiny"].attempt == 2
    attempts = "modelchain_attempts_total"
    assert value(watched.metrics, attempts, outcome="interrupted", reason="Superseded") == 0
    assert value(watched.metrics, attempts, outcome="succeeded", reason="Complete") == 1


def test_the_final_accuracy_of_a_stage_stays() -> None:
    watched = WatchedChain(chain())
    tiny = watched.stage("tiny")
    watched.see()
    watched.see(job(tiny), tiny=StageFacts(manifest=manifest(tiny)))
    assert watched.of_stage("tiny", "top1_ratio") == 0.75


@pytest.mark.parametrize("reason", ["MissingInputError", "OOMKilled", "Stalled"])
def test_the_first_failure_of_a_kind_is_an_increase(reason: str) -> None:
    metrics, attempts = Metrics(), "modelchain_attempts_total"
    before = status(stage())
    assert value(metrics, attempts, outcome="failed", reason=reason) == 0
    metrics.status_written(KEY, before, status(stage(lastEnded=ended(1, reason))))
    assert value(metrics, attempts, outcome="failed", reason=reason) == 1


def test_a_chain_that_does_not_train_is_not_kept_in_memory() -> None:
    """There may be thousands of those, and the resolved chain is by far the largest of what is known of one."""
    watched = WatchedChain(chain())
    held = weakref.ref(watched.chain)
    watched.see()
    watched.see(job(watched.stage("tiny"), phase=JobPhase.QUEUED))
    watched.chain = chain()
    gc.collect()
    assert held() is None
    watched.see(job(watched.stage("tiny")), after=10)
    watched.see(job(watched.stage("tiny"), phase=JobPhase.FAILED, exit_code=1), after=10)
    assert watched.of_chain("gpu_seconds_total") == 10, "what comes later is counted all the same"
