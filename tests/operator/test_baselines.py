"""Models trained alone, as the operator has them: their jobs, looks at the store, Events and metrics."""

from __future__ import annotations

import asyncio
import copy
from pathlib import Path

import pytest

from modelchain.artifacts import MANIFEST
from modelchain.cost import stage_macs
from modelchain.reconcile.observation import Unmeasurable
from modelchain.resolved import ResolvedChain
from modelchain.spec import JobBackend
from modelchain.status import (
    ChainPhase,
    ChainStatus,
    Condition,
    ConditionType,
    Measurement,
    StagePhase,
    StageStatus,
)
from modelchain.store import StoreUnavailable
from modelchain_operator.acceptance import Accepted, accept
from modelchain_operator.jobs.names import MAX_JOB_NAME, job_name
from modelchain_operator.kubernetes.key import Key
from modelchain_operator.stores import reader, schedule
from modelchain_operator.stores.reader import StoreReader
from modelchain_operator.stores.views import _Stages
from modelchain_operator.telemetry.events import notes
from modelchain_operator.telemetry.metrics import Metrics
from tests.modelchain.reconcile.chains import chain
from tests.monitoring.life import COMPARED, see_compared, value
from tests.operator.stores.flaky_store import FlakyStore, complete, run, until
from tests.operator.test_acceptance import BODY

KEY = Key("default", "family")
CHAIN = chain((("tiny", None), ("small", "tiny")), baseline={"train": ["small"], "epochs": 8})
ALONE = {"labels": {"namespace": COMPARED.namespace, "chain": COMPARED.name}}


def test_a_models_job_alone_is_as_its_stages() -> None:
    body = copy.deepcopy(BODY)
    body["spec"]["evaluation"] = [
        {"name": "pets", "type": "ZeroShot", "data": {"shards": ["s3://b/x.tar"]}, "classes": ["a", "b"]}
    ]
    body["spec"]["baseline"] = {"train": ["all"], "epochs": 3}
    answer = accept(body, default_image=None)
    assert isinstance(answer, Accepted)
    assert set(answer.jobs) == {"s", "b", "s-alone", "b-alone"}
    assert answer.backend("b-alone").name == JobBackend.JOB
    assert (answer.jobs["b-alone"].nodes, answer.chain.stage("b-alone").job.nodes) == (2, 2)
    assert set(answer.macs) == {"s", "b"}, "estimates are of the chain"


def test_the_names_of_their_jobs_have_room() -> None:
    long = "a-stage-with-a-name-of-thirty-"[:29] + "x"
    found = chain(((long, None),), baseline={"train": ["all"], "epochs": 8, "budgetMatched": True})
    assert found.baselines
    for stage in found.baselines:
        assert len(job_name(stage.chain, stage.name, 12)) <= MAX_JOB_NAME


def finished(*names: str) -> ChainStatus:
    return ChainStatus(
        stages=tuple(
            StageStatus(name=name, digest=CHAIN.stage(name).digest, phase=StagePhase.COMPLETE)
            for name in names
        )
    )


def test_they_are_looked_at_when_the_chain_is_complete_and_not_before() -> None:
    assert "small-alone" in _Stages.of(CHAIN, None).not_yet
    assert "small-alone" in _Stages.of(CHAIN, finished("tiny")).not_yet
    assert _Stages.of(CHAIN, finished("tiny", "small")).not_yet == frozenset()


# ---- reading what they show


class Reading:
    """A reader that follows the chain, all of whose stages are finished."""

    def __init__(self, store: FlakyStore, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(reader, "WAITING_SECONDS", 0.02)
        monkeypatch.setattr(schedule, "PROBE_SECONDS", (0.02, 0.1))
        self.store = store
        self.changes = 0
        for stage in CHAIN.all_stages:
            complete(store, stage)

    def change(self, _: Key) -> None:
        self.changes += 1

    async def measured(self, reader: StoreReader, of: ResolvedChain = CHAIN) -> object:
        reader.follow(
            KEY,
            of,
            self.store,
            running={},
            finished=frozenset(stage.name for stage in of.all_stages),
            at_rest=frozenset(),
        )
        before = self.changes
        assert reader.measure(KEY, of) is None, "it has to be read first"
        await until(lambda: reader.measure(KEY, of) is not None, "it was read")
        assert self.changes > before, "whoever waits for it is told"
        return reader.measure(KEY, of)


def test_it_is_read_once_and_the_chain_gets_a_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reading = Reading(FlakyStore(tmp_path), monkeypatch)

    async def scenario() -> None:
        reader = StoreReader(reading.change)
        reader.start()
        found = await reading.measured(reader)
        assert isinstance(found, Measurement)
        assert found.chain_macs == 2e9, "each manifest of this test says 1e9"
        stages = {stage.name for stage in CHAIN.all_stages}
        await until(lambda: reader.snapshot(KEY).facts.keys() == stages, "the stages themselves were read")
        asked = sum(reading.store.asked.values())
        assert reader.measure(KEY, CHAIN) == found
        await asyncio.sleep(0.1)
        assert sum(reading.store.asked.values()) == asked
        await reader.close()

    run(scenario())


def test_a_store_that_does_not_answer_is_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reading = Reading(FlakyStore(tmp_path), monkeypatch)
    reading.store.problem = StoreUnavailable("not now")

    async def scenario() -> None:
        reader = StoreReader(reading.change)
        reader.start()
        task = asyncio.create_task(reading.measured(reader))
        await until(lambda: sum(reading.store.asked.values()) >= 3, "it was tried")
        assert not task.done()
        reading.store.problem = None
        assert isinstance(await task, Measurement)
        await reader.close()

    run(scenario())


def test_what_is_gone_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reading = Reading(FlakyStore(tmp_path), monkeypatch)
    reading.store.delete([f"{CHAIN.stage('small-alone').folder}/{MANIFEST}"])

    async def scenario() -> None:
        reader = StoreReader(reading.change)
        reader.start()
        found = await reading.measured(reader)
        assert isinstance(found, Unmeasurable)
        assert "has no manifest any more" in found.message
        await reader.close()

    run(scenario())


def test_a_chain_that_is_compared_by_another_metric_is_read_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading = Reading(FlakyStore(tmp_path), monkeypatch)
    assert CHAIN.baseline is not None
    other = CHAIN.model_copy(update={"baseline": CHAIN.baseline.model_copy(update={"metric": "digits/top5"})})

    async def scenario() -> None:
        reader = StoreReader(reading.change)
        reader.start()
        assert isinstance(await reading.measured(reader), Measurement)
        assert isinstance(await reading.measured(reader, other), Unmeasurable)
        await reader.close()

    run(scenario())


# ---- what is told


def compared(reason: str, message: str = "") -> ChainStatus:
    holds = "True" if reason in ("Measured", "NotMeasured") else "False"
    condition = Condition(
        type=ConditionType.BASELINE_COMPLETE,
        status=holds,
        reason=reason,
        message=message,
        last_transition_time="2026-01-01T00:00:00Z",
    )
    return ChainStatus(phase=ChainPhase.COMPLETE, conditions=(condition,))


def test_events_tell_of_each_run_and_of_what_they_show() -> None:
    training = compared("Training")
    running = training.model_copy(
        update={"baselines": (StageStatus(name="small-alone", phase=StagePhase.RUNNING, reason="Running"),)}
    )
    (note,) = notes(training, running)
    assert (note.reason, note.message) == ("StageRunning", "stage small-alone is training, attempt 0")
    measured = compared("Measured", "2.50x measured at equal digits/top1")
    (note,) = notes(training, measured)
    assert (note.type, note.reason, note.message) == (
        "Normal",
        "BaselineMeasured",
        "2.50x measured at equal digits/top1",
    )
    assert list(notes(measured, measured)) == []
    (note,) = notes(training, compared("RunsFailed", "small-alone: out of memory"))
    assert (note.type, note.reason) == ("Warning", "BaselineRunsFailed")


@pytest.mark.parametrize("reached", [True, False])
def test_metrics_tell_planned_and_measured_apart(reached: bool) -> None:
    metrics = Metrics()
    of = see_compared(metrics, reached=reached)
    labels = ALONE["labels"]
    assert value(metrics, "modelchain_chain_measured_speedup_ratio", **labels) == 2.5
    assert value(metrics, "modelchain_chain_measured_speedup_is_bound", **labels) == (not reached)
    assert (value(metrics, "modelchain_chain_planned_speedup_ratio", **labels) or 0) > 1
    spent = value(metrics, "modelchain_chain_baseline_spent_macs", **labels)
    assert spent == stage_macs(of.stage("small-alone"))
    assert value(metrics, "modelchain_chain_spent_macs", **labels) == 0, "it is not the chain's"
